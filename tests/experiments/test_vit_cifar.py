"""Experiments ``vit_cifar`` and ``vit_norms`` on planted pictures: parts, augmentation, recipes, what is stored."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vqa_core.data import cifar10
from vqa_core.data.cifar10 import CLASSES
from vqa_core.encoders.vision_transformer import VisionTransformer
from vqa_core.experiments import vit_cifar as vc
from vqa_core.experiments import vit_norms as vn
from vqa_core.training.feed import as_float
from vqa_core.training.loop import predict

SIZES = vc.PROFILES["smoke"].pictures


def planted(split: str) -> dict[str, bytes]:
    """A dark or bright square in one of five places says the class; the rest is noise."""
    rng, found = np.random.default_rng(len(split)), {}
    for c, name in enumerate(CLASSES):
        for i in range({"train": 25, "test": 10}[split]):
            picture = rng.integers(100, 156, (32, 32, 3), dtype=np.uint8)
            at = 6 * (c % 5)
            picture[at : at + 8, at : at + 8] = 255 * (c // 5)
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            found[f"{name}/{i:04}.png"] = buffer.getvalue()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "cifar10").mkdir()
    for split in ("train", "test"):
        with zipfile.ZipFile(root / "cifar10" / f"{split}.zip", "w") as z:
            for name, content in planted(split).items():
                z.writestr(name, content)
    return root


def forget():
    vc._whole.cache_clear()
    vc.part_of.cache_clear()


@pytest.fixture
def data(folder, monkeypatch):
    """VQA_DATA with 25 and 10 planted pictures of each class."""
    monkeypatch.setenv("VQA_DATA", str(folder))
    forget()
    yield folder
    forget()


def spec_of(unit: str, **training):
    found = next(s for s in vc.specs("smoke") if s.unit == unit and s.seed == 0)
    recipe = found.training
    return replace(found, training=replace(recipe, training=replace(recipe.training, **training)))


# ---------------------------------------------------------------------------------------------------------- the data


def test_specs_say_what_is_here(data, monkeypatch):
    smoke = vc.specs("smoke")
    assert [(s.unit, s.seed) for s in smoke] == [(u, k) for k in range(2) for u in ("vit", "cnn", "pixels")]
    assert set(vc.absent()) == {"published"}
    assert {s.unit for s in vc.specs("gpu")} == {"vit", "cnn", "pixels"}
    assert {s.data for s in vc.specs("gpu")} == {vc.SUBSET}
    monkeypatch.setattr(cifar10, "count", lambda split: {"train": 50_000, "test": 10_000}[split])
    assert vc.absent() == {}
    assert {s.unit for s in vc.specs("gpu")} == {"vit", "cnn", "pixels", "published"}
    assert {s.data for s in vc.specs("gpu")} == {vc.PROFILES["gpu"].pictures}
    assert {s.data for s in vc.specs("cpu")} == {vc.SUBSET}  # cpu has the same size, whatever is there


def test_without_data_nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(tmp_path))
    assert vc.specs("cpu") == vn.specs("cpu") == []
    assert "VQA_DATA" in vc.absent()["all"]


def test_published_is_the_published_recipe():
    config = vc.PROFILES["gpu"]
    assert config.recipes["published"] == vc.Published(epochs=5, batch_size=32, learning_rate=1e-4)
    with torch.device("meta"):
        model = config.networks["published"].build()
    from torchvision.models import vit_b_16

    with torch.device("meta"):
        theirs = vit_b_16(num_classes=10)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_train_and_validation_share_no_picture(data):
    train, val, test = (vc.part_of(SIZES, split) for split in ("train", "val", "test"))
    assert [len(p) for p in (train, val, test)] == [200, 50, 100]
    seen = {p.tobytes() for p in train.pictures}
    assert len(seen) == 200
    assert not seen & {p.tobytes() for p in val.pictures}
    assert np.bincount(val.labels).tolist() == [5] * 10


def test_too_few_pictures_are_an_error(data):
    with pytest.raises(ValueError, match=r"26 pictures of each class are asked for.*has 25"):
        vc.part_of(replace(SIZES, val=6), "val")


# ------------------------------------------------------------------------------------------- augmentation, shuffling


def test_augmentation_shifts_and_mirrors():
    pictures = torch.rand(64, 3, 8, 8) + 1  # no zero in it
    assert torch.equal(vc.augment(pictures, 0, False), pictures)
    mirrored = (vc.augment(pictures, 0, True) == pictures.flip(-1)).flatten(1).all(1)
    assert 15 < mirrored.sum() < 49
    assert torch.equal(vc.augment(pictures, 0, True)[0].sort().values, pictures[0].sort().values)
    padded = torch.nn.functional.pad(pictures, (2, 2, 2, 2))
    places = set()
    for before, after in zip(padded, vc.augment(pictures, 2, False)):
        cuts = [(y, x) for y in range(5) for x in range(5) if torch.equal(before[:, y : y + 8, x : x + 8], after)]
        assert len(cuts) == 1
        places |= set(cuts)
    assert len(places) > 15  # of 25


def test_shuffled_patches_are_the_same_patches(data):
    pictures = vc.part_of(SIZES, "test").pictures
    moved = vc.shuffle_patches(pictures, 0)
    assert moved.dtype == np.uint8
    patches = [p.reshape(-1, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, 192) for p in (pictures, moved)]
    for a, b in zip(*patches):
        assert sorted(p.tobytes() for p in a) == sorted(p.tobytes() for p in b)
    assert (pictures != moved).any((1, 2, 3)).all()
    assert not np.array_equal(moved, vc.shuffle_patches(pictures, 1))
    assert np.array_equal(moved, vc.shuffle_patches(pictures, 0))


def test_attention_distance_has_closed_forms():
    maps = torch.zeros(1, 3, 1, 5, 5)  # three layers, one head, class token and 2 × 2 patches
    maps[:, 0, :, 1:, 1:] = torch.eye(4)
    maps[:, 1, :, 1:, 1:] = 0.25
    maps[:, 2, :, 1:, 1:] = 0.5 * torch.eye(4)[[3, 2, 1, 0]]  # half of it opposite, half on the class token
    maps[:, 2, :, :, 0] = 0.5
    expected = 8 * torch.tensor([[0.0], [(2 + 2**0.5) / 4], [2**0.5]])
    torch.testing.assert_close(vc.attention_distance(maps, (2, 2), 8), expected)


# ---------------------------------------------------------------------------------------------------------- the runs


@pytest.mark.parametrize("unit", ["vit", "cnn", "pixels"])
def test_a_run_learns_and_stores_what_the_chapter_reads(data, unit):
    spec = spec_of(unit, epochs=12, batch_size=20, learning_rate=4e-3)
    outcome = vc.run(spec)
    arrays = outcome.arrays
    assert np.array_equal(arrays["correct_test"], arrays["predicted_test"] == arrays["label_test"])
    assert outcome.metrics["accuracy_test"].value == arrays["correct_test"].mean()
    assert outcome.metrics["accuracy_test"].n == 100
    assert outcome.metrics["accuracy_test"].value > 0.25  # chance is 0.1
    assert [h["epoch"] for h in outcome.details["history"]] == list(range(12))
    assert outcome.details["pictures"] == {"train": 200, "val": 50, "test": 100}
    assert outcome.details["data_hash"] == vc.content_hash(SIZES)
    assert ("positions" in arrays) == (unit == "vit")


def test_the_stored_weights_are_those_that_were_tested(data):
    spec = spec_of("vit", epochs=1)
    arrays = vc.run(spec).arrays
    network = spec.model.build()
    before = predict(vc.Classifier(network), vc.feed_of(vc.part_of(SIZES, "test")))
    network.load_state_dict({k.removeprefix("model."): torch.from_numpy(v) for k, v in arrays.items() if "model." in k})
    after = predict(vc.Classifier(network), vc.feed_of(vc.part_of(SIZES, "test")))
    assert not torch.allclose(before, after)
    assert np.array_equal(after.argmax(1).numpy(), arrays["predicted_test"])
    assert np.array_equal(network.positions[0].detach().numpy(), arrays["positions"])
    assert arrays["attention_distance"].shape == (spec.model.depth, spec.model.heads)
    tests = as_float(torch.from_numpy(vc.part_of(SIZES, "test").pictures))  # fewer than LOOKED_AT: all of them
    maps = network.encode(tests, need_weights=True)[1].detach()
    np.testing.assert_allclose(arrays["class_attention"], maps[:, :, :, 0, 1:].mean(0).numpy(), atol=1e-5)
    assert not any("model." in k for k in vc.run(replace(spec, seed=1)).arrays)


def test_a_run_can_be_repeated(data):
    first, second = (vc.run(spec_of("cnn", epochs=1)) for _ in range(2))
    assert first.metrics == second.metrics
    assert np.array_equal(first.arrays["correct_shuffled"], second.arrays["correct_shuffled"])


def test_operations_are_counted():
    assert vc.floating_point_operations(vc.LinearPixels()) == 2 * 3072 * 10
    patches, dim = 16, 12
    one = vc.floating_point_operations(VisionTransformer(32, 8, 1, dim, 2, 20, 10))
    tokens = patches + 1
    products = patches * 192 * dim + tokens * dim * (4 * dim + 2 * 20) + 2 * tokens**2 * dim + dim * 10
    assert one == 2 * products


TINY = vc.Torchvision(size=48, patch=16, depth=1, heads=2, dim=16, hidden=32)


def published(data, **recipe):
    spec = next(s for s in vc.specs("smoke") if s.unit == "vit")
    return replace(spec, unit="published", model=TINY, training=replace(vc.Published(), batch_size=20, **recipe))


def test_the_published_recipe_counts_training_and_test_accuracy(data):
    outcome = vc.run(published(data, epochs=3, learning_rate=3e-3))
    history, correct = outcome.details["history"], outcome.arrays["correct_by_epoch"]
    assert correct.shape == (3, 100)
    assert [h["test"] for h in history] == correct.mean(1).tolist()
    assert outcome.metrics["accuracy_test"].value == correct[-1].mean()
    assert history[-1]["loss"] < history[0]["loss"]
    assert outcome.details["pictures"]["train"] == 250  # the whole training split: nothing is kept for validation
    assert outcome.details["whole"] is False


def test_the_published_recipe_at_rate_zero_learns_nothing(data):
    """Torchvision's head starts as zeros: all logits are 0 and all losses ln 10, whatever else the loop does."""
    outcome = vc.run(published(data, epochs=2, learning_rate=0.0))
    for h in outcome.details["history"]:
        assert h["loss"] == pytest.approx(np.log(10), abs=1e-5)
        assert h["training"] == h["test"] == pytest.approx(0.1)


# ------------------------------------------------------------------------------------------------- the first steps


def steps_of(norm="pre", **changes):
    config = vn.PROFILES["smoke"]
    return replace(config.model, norm=norm), replace(config.training, **changes)


def test_units_and_rates():
    assert vn.Steps(4, 16, 2.0).rate(0) == 0.5
    assert vn.Steps(4, 16, 2.0).rate(3) == 2.0
    assert vn.Steps(4, 16, 2.0, warm=False).rate(0) == 2.0


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_first_norms_are_those_of_the_gradient(data, norm):
    model, training = steps_of(norm)
    train = vc.part_of(SIZES, "train")
    torch.manual_seed(3)
    losses, norms = vn.first_steps(model, training, train, 7)
    assert norms.shape == (4, 6)
    torch.manual_seed(3)
    network = model.build()
    rows = np.random.default_rng([7, 0]).permutation(200)[:16]
    loss = torch.nn.functional.cross_entropy(
        network.classify(as_float(torch.from_numpy(train.pictures[rows]))), torch.from_numpy(train.labels[rows])
    )
    weights = [block.mlp[2].weight for block in network.blocks]
    expected = [g.norm().item() for g in torch.autograd.grad(loss, weights)]
    assert losses[0] == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(norms[0], expected, rtol=1e-4)


def test_warm_and_cold_start_alike_and_part(data):
    found = {}
    for warm in (True, False):
        torch.manual_seed(0)
        found[warm] = vn.first_steps(*steps_of(warm=warm), vc.part_of(SIZES, "train"), 0)
    assert np.array_equal(found[True][1][0], found[False][1][0])
    assert not np.allclose(found[True][1][1], found[False][1][1])


def test_the_record_of_first_steps(data):
    spec = vn.specs("smoke")[0]
    outcome = vn.run(spec)
    assert [s.unit for s in vn.specs("smoke")][:4] == ["pre.warm", "pre.cold", "post.warm", "post.cold"]
    assert outcome.metrics["loss_of_last_quarter"].n == 16
    assert outcome.arrays["loss"].shape == (4,)
    with pytest.raises(ValueError, match="read 320 pictures, there are 200"):
        vn.run(replace(spec, training=replace(spec.training, steps=20)))
