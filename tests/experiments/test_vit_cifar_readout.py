"""What the chapter on encoders reads, on planted records: tables, the claim, and what is there when a run is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vqa_core.evaluation.statistics import Interval
from vqa_core.experiments import vit_cifar as vc
from vqa_core.experiments import vit_cifar_readout as readout
from vqa_core.experiments.records import Metric, Record, Spec

N, SEEDS = 200, 3
NET = vc.ViT(8, 2, 16, 2, 32)
LABELS = np.repeat(np.arange(10), N // 10).astype(np.int16)


def correct(share: float, seed: int) -> np.ndarray:
    """Exactly this share right, other pictures for each seed."""
    right = np.zeros(N, bool)
    right[: round(share * N)] = True
    return np.random.default_rng(seed).permutation(right)


def record(unit: str, seed: int, share: float, shuffled: float = 0.1, **arrays) -> Record:
    right = correct(share, seed)
    arrays |= {"correct_test": right, "correct_shuffled": correct(shuffled, seed), "label_test": LABELS}
    history = [{"epoch": e, "loss": 2.0 - e, "validation": 0.2 + 0.1 * e} for e in range(2)]
    details = {"history": history, "parameters": 10, "flops": 20, "seconds_per_step": 0.1 * (seed + 1)}
    return Record(
        Spec("vit_cifar", unit, seed, "smoke", model=NET), {"accuracy_val": Metric(share, N)}, arrays, details
    )


def network(seed: int):
    torch.manual_seed(seed)
    return NET.build()


def vit(seed: int) -> Record:
    arrays = {f"model.{k}": v.numpy() for k, v in network(0).state_dict().items()} if seed == vc.KEPT else {}
    rows, columns = np.divmod(np.arange(16), 4)
    smooth = np.stack([np.ones(16), 0.2 * rows, 0.2 * columns], 1)  # near places are similar
    positions = np.concatenate([np.full((1, 3), 9.0), smooth + 0.001 * seed]).astype(np.float32)
    distance = np.array([[4.0, 2.0], [8.0, 9.0]]) + seed
    return record(
        "vit",
        seed,
        0.4,
        0.2,
        positions=positions,
        attention_distance=distance,
        class_attention=np.full((2, 2, 16), 0.05 + 0.001 * seed),
        **arrays,
    )


RECORDS = [vit(s) for s in range(SEEDS)] + [
    record(u, s, p) for u, p in (("cnn", 0.6), ("pixels", 0.3)) for s in range(SEEDS)
]


def published(seed: int, share: float = 0.55, whole: bool = True, epochs: int = 5) -> Record:
    steps = [share * (e + 1) / epochs for e in range(epochs)]
    arrays = {"correct_by_epoch": np.stack([correct(s, seed) for s in steps])}
    history = [{"epoch": e, "loss": 1.0, "training": s - 0.01, "test": s} for e, s in enumerate(steps)]
    spec = Spec("vit_cifar", "published", seed, "gpu", model=vc.Torchvision(), training=vc.Published(epochs=epochs))
    details = {"history": history, "parameters": 5, "seconds_per_step": 1.0, "whole": whole}
    return Record(spec, {}, arrays, details)


def test_accuracies_and_the_majority():
    table = readout.accuracies(RECORDS).set_index("unit")
    assert list(table.index) == ["vit", "cnn", "pixels", "majority"]
    assert table["mean"].tolist() == pytest.approx([0.4, 0.6, 0.3, 0.1])
    assert (table["n"] == N).all()
    assert table["seeds"].tolist() == [3, 3, 3, 1]
    assert ((table["low"] < table["mean"]) & (table["mean"] < table["high"])).all()
    assert not table.isna().any().any()


def test_accuracy_of_published_is_that_of_its_last_epoch():
    table = readout.accuracies(RECORDS + [published(s) for s in range(SEEDS)]).set_index("unit")
    assert table.loc["published", "mean"] == pytest.approx(0.55)


def test_gain_is_paired():
    better = [record("cnn", s, 0.58 + 0.02 * s) for s in range(SEEDS)]
    found = readout.gain([r for r in RECORDS if r.spec.unit == "vit"] + better, "cnn", "vit").interval
    assert found.mean == pytest.approx(0.2)
    assert found.low > 0.1


def test_shuffling():
    table = readout.shuffling(RECORDS)
    assert table[["unit", "pictures"]].to_numpy().tolist() == [
        [u, p] for u in ("vit", "cnn") for p in ("whole", "shuffled")
    ]
    assert table["mean"].tolist() == pytest.approx([0.4, 0.2, 0.6, 0.1])


def test_costs_leave_out_what_was_not_counted():
    table = readout.costs([*RECORDS, published(0)])
    assert table["unit"].tolist() == ["vit", "cnn", "pixels"]
    assert table["seconds_per_step"].tolist() == pytest.approx([0.2] * 3)


def test_the_claim_is_about_five_epochs_on_the_whole():
    assert readout.published_claim(RECORDS) is None
    assert readout.published_curve(RECORDS) is None
    found = readout.published_claim([*RECORDS, *(published(s) for s in range(SEEDS))])
    assert found.mean == pytest.approx(0.55)
    assert found.n == N
    for wrong in (published(0, whole=False), published(0, epochs=4)):
        with pytest.raises(ValueError, match="five epochs on the whole"):
            readout.published_claim([wrong, published(1)])


def test_the_published_curve_has_both_accuracies():
    curve = readout.published_curve([published(s, 0.5 + 0.01 * s) for s in range(SEEDS)])
    assert curve.groupby("what")["epoch"].apply(list).to_dict() == {w: [1, 2, 3, 4, 5] for w in ("training", "test")}
    last = curve[curve["epoch"] == 5].set_index("what")
    assert last.loc["test", "mean"] == pytest.approx(0.51)
    assert last.loc["training", "mean"] == pytest.approx(0.5)
    assert len(readout.PUBLISHED) == 5


def test_the_network_has_the_stored_weights():
    found = readout.network_of(RECORDS)
    assert not found.training
    expected = network(0).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in found.state_dict().items())
    with pytest.raises(ValueError, match="no record of vit with seed 0"):
        readout.network_of(RECORDS[1:])


def test_where_the_class_token_looks_is_that_of_one_seed():
    maps = readout.class_attention(RECORDS)
    assert maps.shape == (2, 2, 4, 4)
    assert (maps == 0.05).all()


def test_numbers_in_words():
    assert readout.in_words(None) == "not measured in this build"
    found = readout.in_words(Interval(0.412, 0.401, 0.423, 5000))
    assert found == "41.2 % (95 % CI 40.1–42.3, n = 5,000 pictures)"
    assert readout.in_words(Interval(-0.05, -0.062, 0.01, 9), difference=True).startswith(
        "−5.0 points (95 % CI −6.2 to +1.0"
    )


def test_similarity_of_positions_leaves_the_class_token_out():
    similar = readout.position_similarity(RECORDS)
    assert similar.shape == (16, 16)
    np.testing.assert_allclose(np.diag(similar), 1, atol=1e-6)
    table = readout.similarity_by_distance(RECORDS)
    assert table["distance"].iloc[0] == 1
    assert table["distance"].iloc[-1] == pytest.approx(18**0.5, abs=1e-5)
    assert table["mean"].iloc[0] > table["mean"].iloc[-1]
    assert (table["n"] == SEEDS).all()


def test_distances_are_sorted_within_a_layer():
    table = readout.looking_distances(RECORDS)
    assert len(table) == SEEDS * 4
    assert table[table["seed"] == 1]["pixels"].tolist() == [3, 5, 9, 10]
    assert table[table["seed"] == 1]["layer"].tolist() == [1, 1, 2, 2]


def test_uniform_attention_looks_at_the_mean_distance():
    at = 8 * np.stack(np.divmod(np.arange(16), 4), 1)
    expected = np.linalg.norm(at[:, None] - at[None], axis=-1).mean()
    assert readout.uniform_distance(network(0)) == pytest.approx(expected, rel=1e-5)


def norms(unit: str, seed: int) -> Record:
    base = {"pre": 1.0, "post": 4.0}[unit.split(".")[0]]
    gradient = base * np.array([[1.0, 2.0], [1.0, 0.5]]) * [0.5, 1, 2][seed]  # (steps, layers)
    return Record(
        Spec("vit_norms", unit, seed, "smoke"), {}, {"gradient_norm": gradient, "loss": np.array([2.3, 2.0 + seed])}
    )


def test_gradients_and_losses_by_layer_and_step():
    some = [norms(u, s) for u in ("pre.warm", "post.cold") for s in range(SEEDS)]
    table = readout.gradient_table(some, {"first": 0, "last": -1}).set_index(["norm", "step", "layer"])
    assert table.loc[("pre", "first", 2), "mean"] == pytest.approx(2.0)  # geometric mean of 1, 2 and 4
    assert table.loc[("post", "last", 2), "mean"] == pytest.approx(2.0)
    assert (table["low"] > 0).all()
    assert (table["n"] == SEEDS).all()
    losses = readout.loss_table(some)
    assert losses[(losses["norm"] == "post") & (losses["step"] == 1)]["mean"].item() == pytest.approx(3.0)
    assert set(losses["warmup"]) == {"warm", "cold"}
