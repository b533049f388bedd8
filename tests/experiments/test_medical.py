"""The grid of medical models: what runs, what it learns from, what it keeps; and the readout on planted records."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vqa_core.encoders.meta import MetaCNN
from vqa_core.encoders.tokens import Tokens
from vqa_core.encoders.union import View
from vqa_core.evaluation.claims import read_claims
from vqa_core.experiments import EXPERIMENTS, Spec
from vqa_core.experiments import PROFILES as PROFILE_NAMES
from vqa_core.experiments import medical as md
from vqa_core.experiments import medical_encoders as me
from vqa_core.experiments import medical_readout as ro
from vqa_core.experiments.records import Metric, Record
from vqa_core.experiments.runner import run_spec
from vqa_core.training.loop import Training

SIZES = md.Sizes(2, 6, 8, 8, 6, 8, 4, 0.1)
DRAWN = md.Drawn(10, 5, 8)


@pytest.fixture(autouse=True)
def _own_caches():
    """What the module remembers of one folder must not reach the next test."""
    yield
    for cached in (md.material_of, md.tokens_of, md._kept_pictures):
        cached.cache_clear()


@pytest.fixture
def place_of_work(tmp_path, monkeypatch):
    """Few phantoms and no real data; encoders without training; results in a folder of their own."""
    monkeypatch.setenv("VQA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("VQA_DATA", str(tmp_path))
    for name in ("VQA_CLIP", "VQA_PUBMEDCLIP", "VQA_RESNET", "VQA_VIT", "VQA_BERT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("medical", "medical_encoders"):
        monkeypatch.setitem(EXPERIMENTS, name, f"vqa_core.experiments.{name}")
    once = Training(epochs=2, batch_size=32, learning_rate=1e-2)
    config = replace(md.PROFILES["smoke"], sizes=SIZES, drawn=DRAWN, amounts={6: once}, training={"phantoms": once})
    monkeypatch.setitem(md.PROFILES, "smoke", config)

    def load(profile, name):
        torch.manual_seed(len(name))
        return me.Loaded(View(MetaCNN("grid"), 84, grey=True).requires_grad_(False).eval(), (6, 6))

    monkeypatch.setattr(md, "load_encoder", load)
    monkeypatch.setattr(md, "_weights_hash", lambda profile, name: name)
    return tmp_path


def spec_of(unit, seed=0):
    return next(s for s in md.specs("smoke") if s.unit == unit and s.seed == seed)


# ------------------------------------------------------------------------------------------------------------ the grid


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_grid_holds_every_comparison_once(profile, monkeypatch):
    monkeypatch.setattr(md, "absent", dict)
    specs, config = md.specs(profile), md.PROFILES[profile]
    assert len({s.path() for s in specs}) == len(specs)
    grid = md.grid_of(profile)
    trained = [s for s in specs if s.model is not None]
    assert len(trained) == len(grid) * config.seeds
    assert {s.seed for s in specs if s.model is None} == {0}
    assert len({(s.data, s.model, s.seed) for s in trained}) == len(trained)  # no two units are the same
    for s in trained:
        data, names, union, interaction, variant, *amount = s.unit.split(".")
        assert tuple(md.ENCODERS[data][n] for n in names.split("+")) == s.model.encoders
        assert (union, interaction, variant) == (s.model.union, s.model.interaction, s.model.variant)
        assert s.training == (config.amounts[int(amount[0])] if amount else config.training[data])
    assert {unit.split(".")[3] for unit in grid} == {*md.INTERACTIONS, *md.OTHER_FUSIONS}
    assert ("bert" in {m.variant for _, m in grid.values()}) is (profile == "gpu")


def test_what_is_absent_is_left_out_and_named(place_of_work):
    missing = md.absent()
    assert {*md.FILES, *me.FILES} == set(missing)
    assert all(missing.values())
    units = {s.unit for s in md.specs("smoke")}
    assert units
    assert all(unit.startswith("phantoms.") for unit in units)


def test_phantoms_of_the_splits_share_no_picture(place_of_work):
    material = md.material_of(DRAWN)
    pictures = {split: set(part.picture_ids) for split, part in material.parts.items()}
    assert not pictures["train"] & pictures["val"]
    assert not (pictures["train"] | pictures["val"]) & pictures["test"]
    assert not pictures["train"] & set(me.pictures_of(me.Pictures(4, 4), "train").picture_ids)
    test, noisy = material.parts["test"], material.parts["noisy"]
    assert [(s.question, s.answer) for s in test] == [(s.question, s.answer) for s in noisy]
    assert (test.images != noisy.images).any()
    rows = md.picture_rows(material)
    assert not set(rows["test"]) & set(rows["noisy"])
    every = md.all_pictures(material, 84)
    i = rows["noisy"][0]
    np.testing.assert_array_equal(every[i], noisy.picture(noisy[0].picture_id))
    assert len(every) == len(set(np.concatenate([*rows.values()])))


# ------------------------------------------------------------------------------------------------------------- tokens


class Means(nn.Module):
    """Two features for each of 4 × 4 cells: their mean grey, and a number that never changes."""

    out_dim = 2

    def forward(self, pictures):
        x = nn.functional.adaptive_avg_pool2d(pictures.mean(1, keepdim=True), 4).flatten(2).transpose(1, 2)
        return Tokens(torch.cat([x, torch.full_like(x, 3.0)], dim=-1))


def test_tokens_are_averaged_to_cells_and_standardised_on_training_pictures():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (9, 4, 4, 1)).repeat(3, -1).astype(np.uint8)
    pictures = grey.repeat(8, 1).repeat(8, 2)  # (9, 32, 32, 3)
    train = np.arange(9) < 6
    tokens = md.encode(Means(), (4, 4), pictures, train, replace(SIZES, features=1))
    assert tokens.shape == (9, 4, 1)
    by_hand = grey[..., 0].reshape(9, 2, 2, 2, 2).mean((2, 4)).reshape(9, 4)
    by_hand = (by_hand - by_hand[train].mean()) / by_hand[train].std(ddof=1)
    np.testing.assert_allclose(tokens[..., 0], by_hand, atol=1e-4)
    other = pictures.copy()
    other[~train] = 255 - other[~train]  # pictures that are not trained on change nothing for the others
    torch.testing.assert_close(
        md.encode(Means(), (4, 4), other, train, replace(SIZES, features=1))[:6], tokens[:6], rtol=1e-4, atol=1e-5
    )


def test_batch_norms_take_their_statistics_from_training_pictures():
    torch.manual_seed(0)
    view = View(MetaCNN("grid"), 84, grey=True).requires_grad_(False).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (6, 84, 84, 3), dtype=np.uint8)
    before = {k: v.clone() for k, v in view.named_parameters()}
    md.encode(view, (6, 6), pictures, np.arange(6) < 4, SIZES)
    assert not view.training
    norm = view.encoder.blocks[0].norm
    assert not torch.allclose(norm.running_mean, torch.zeros(64))
    assert all(torch.equal(v, before[k]) for k, v in view.named_parameters())  # frozen


@pytest.mark.parametrize("how", ["concat", "sum", "attention"])
def test_joining_encoders_keeps_cells_apart(how):
    joined = md.JoinedTokens([6, 4], how, 8).eval()
    tokens = torch.randn(2, 4, 10)
    out = joined(tokens).tokens
    assert out.shape == (2, 4, joined.out_dim)
    changed = tokens.clone()
    changed[:, 1] = torch.randn(2, 10)  # a constant would be taken away by LayerNorm
    moved = (joined(changed).tokens - out).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False, True, False, False]
    seen = tokens.clone()
    seen[..., 7] += 1  # both encoders matter
    assert not torch.allclose(joined(seen).tokens, out)


# ------------------------------------------------------------------------------------------------------------- models


def tiny_feed(widths, n=8, answers=5):
    words = torch.randint(2, 9, (n, 6))
    mask = torch.arange(6) < torch.randint(3, 7, (n, 1))
    labels = torch.stack([torch.arange(n) % answers, torch.arange(n) % 2, torch.arange(n) % 3], dim=1)
    tokens = torch.randn(n, 4, sum(widths))
    return md.Feed(tokens, torch.arange(n), words * mask, mask, labels)


CASES = [
    *((interaction, "concat", "base") for interaction in (*md.INTERACTIONS, *md.OTHER_FUSIONS)),
    *(("ban", union, "base") for union in ("alone", "sum", "attention")),
    *(("ban", "concat", v) for v in ("qcr", "tcr", "qcr+tcr", "self_attention", "organ_dwa", "question_only")),
]


@pytest.mark.parametrize(("interaction", "union", "variant"), CASES)
def test_every_model_trains_all_of_its_parameters(interaction, union, variant):
    """Two steps, because CMSA's blocks start as identities."""
    widths = [6] if union == "alone" else [6, 4]
    words = md.Vocabulary.of_words(["one two three four five six seven"])
    feed = tiny_feed(widths)
    sizes = replace(SIZES, dropout=0.0)
    model = md.build(md.Model(("a", "b"), union, interaction, variant, sizes), widths, words, 5, feed).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moved = {name: torch.zeros(()) for name, _ in model.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        md.loss_of(model, feed.batch(range(8))).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                moved[name] = moved[name] + p.grad.abs().sum()
        optimizer.step()
    # a ReLU may be dead for eight questions, an attention's key bias never has a gradient
    still = [n for n, m in moved.items() if m == 0 and not n.endswith("key.bias")]
    assert not still
    logits = model.eval()(*feed.batch(range(8))[:3]).logits
    padded = feed.batch(range(8))
    longer = [torch.cat([x, torch.zeros_like(x[:, :2])], dim=1) for x in padded[1:3]]
    torch.testing.assert_close(model(padded.pictures, *longer).logits, logits, rtol=1e-4, atol=1e-4)
    assert isinstance(md.score_of(model.train(), feed), float)


def test_word_region_maps_are_those_of_the_questions_asked_for(place_of_work):
    unit = "phantoms.maml+dae.concat.cmsa.base"
    record = run_spec(spec_of(unit), "code", place_of_work / "results")
    test = md.material_of(DRAWN).parts["test"]
    rows, maps = record.arrays["map_row"], record.arrays["map"]
    families = [sample.family for sample in test]
    assert sorted(rows.tolist()) == sorted(families.index(family) for family in set(families))
    np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)
    table = ro.word_region_table(record, test)
    words = [min(len(md.tokenize(test[i].question)), DRAWN.max_words) for i in rows.tolist()]
    assert len(table) == 4 * sum(words)  # no word is lost
    np.testing.assert_allclose(table.groupby("row")["weight"].sum(), 1, rtol=1e-5)  # nor has padding a weight
    np.testing.assert_allclose(table.groupby("row")["uniform"].sum(), 1, rtol=1e-5)


def test_unknown_parts_are_refused():
    words = md.Vocabulary.of_words(["one two"])
    for model, what in (
        (md.Model(("a",), "alone", "ban", "magic", SIZES), "magic"),
        (md.Model(("a",), "alone", "vote", "base", SIZES), "vote"),
    ):
        with pytest.raises(ValueError, match=what):
            md.build(model, [6], words, 5, tiny_feed([6]))


# ------------------------------------------------------------------------------------------------------------- records


def test_records_hold_what_the_readout_needs(place_of_work):
    records = {}
    for unit in (
        "phantoms.maml+dae.concat.ban.base",
        "phantoms.maml+dae.concat.ban.tcr",
        "phantoms.maml+dae.concat.ban.question_only",
        "phantoms.maml+dae.concat.ban.base.6",
        "phantoms.baselines",
    ):
        records[unit] = run_spec(spec_of(unit), "code", place_of_work / "results")
    material = md.material_of(DRAWN)
    test = material.parts["test"]
    for unit, record in records.items():
        assert record.details["protocol"].startswith("phantoms, ")
        assert record.arrays["picture_test"].tolist() == [test.picture_ids.index(s.picture_id) for s in test]
        assert record.arrays["closed_test"].tolist() == [s.kind == "closed" for s in test]
        families = np.array(record.details["families"])[record.arrays["family_test"]]
        assert families.tolist() == [s.family for s in test]
        for name, correct in record.arrays.items():
            if name.startswith("correct_"):
                assert correct.dtype == bool
                assert correct.shape == (len(test),)
        if not unit.endswith("baselines"):
            answers = np.array(record.details["answers"])[record.arrays["predicted_test"]]
            right = [a == s.answer for a, s in zip(answers, test)]
            assert record.arrays["correct_test"].tolist() == right
            assert len(record.details["history"]) == 2
            assert record.metrics["accuracy_val"].value == max(h["validation"] for h in record.details["history"])
    assert "correct_kind" in records["phantoms.maml+dae.concat.ban.tcr"].arrays
    blind = records["phantoms.maml+dae.concat.ban.question_only"].arrays
    np.testing.assert_array_equal(blind["correct_test"], blind["correct_shuffled"])  # it sees no picture
    np.testing.assert_array_equal(blind["correct_test"], blind["correct_blank"])
    small = records["phantoms.maml+dae.concat.ban.base.6"]
    assert small.details["pictures"]["train"] == 6
    assert ro.amount_table(records.values())["pictures"].tolist() == [6, 10]
    again = md.run(spec_of("phantoms.maml+dae.concat.ban.base"))
    np.testing.assert_array_equal(
        again.arrays["predicted_test"], records["phantoms.maml+dae.concat.ban.base"].arrays["predicted_test"]
    )
    table = ro.overview(records.values())
    assert {"data", "protocol", "model", "metric", "mean", "low", "high", "n"} <= set(table.columns)
    assert set(table[table.model == "maml+dae.concat.ban.base"].metric) == set(ro.METRICS)
    assert set(table.model) >= set(ro.BASELINES)


def test_tokens_are_kept_and_made_anew_for_another_encoder(place_of_work, monkeypatch):
    made = []
    real = md.encode
    monkeypatch.setattr(md, "encode", lambda *a: made.append(1) or real(*a))
    first = md.tokens_of("smoke", DRAWN, "maml")
    md.tokens_of.cache_clear()
    torch.testing.assert_close(md.tokens_of("smoke", DRAWN, "maml"), first)
    assert len(made) == 1
    md.tokens_of.cache_clear()
    monkeypatch.setattr(md, "_weights_hash", lambda profile, name: "other weights")
    md.tokens_of("smoke", DRAWN, "maml")
    assert len(made) == 2


def test_first_words():
    assert md.first_words("Is the heart enlarged?") == "is the heart"


@pytest.mark.realdata("vqa_rad")
def test_vqa_rad_follows_the_protocol(data_root, monkeypatch, tmp_path):
    monkeypatch.setenv("VQA_DATA", str(data_root))
    material = md.material_of(md.Rad())
    parts = material.parts
    assert {split: len(part) for split, part in parts.items()} == {"train": 1620, "val": 177, "test": 451}
    assert material.closed.sum() == 272
    assert not set(parts["train"].picture_ids) & set(parts["val"].picture_ids)
    assert len(material.vocabulary) == 415
    assert material.label == "VQA-RAD 1797 → 451, closed official, train vocabulary"
    outcome = md.run(Spec("medical", "vqa_rad.baselines", 0, "smoke", md.Rad()))
    assert outcome.metrics["lookup"].value == pytest.approx(0.235, abs=5e-4)
    assert outcome.metrics["ceiling"].value == pytest.approx(340 / 451)
    kinds = md.run(Spec("medical", "vqa_rad.first_words", 0, "smoke", md.Rad()))
    assert kinds.metrics["accuracy_kind"].value > kinds.metrics["majority"].value


# ---------------------------------------------------------------------------------------------------- planted effects

S, Q = 3, 400
RNG = np.random.default_rng(0)
PICTURES = np.arange(Q, dtype=np.int32) // 4
CLOSED = np.arange(Q) % 2 == 0
LUCK = RNG.random((S, Q))


def planted(unit, closed=0.5, open_=0.5, noisy=0.5, validation=0.5):
    """Records whose accuracy is what is asked for, on the same draws for all units, so that differences are exact."""
    rate = np.where(CLOSED, closed, open_)
    return [
        Record(
            Spec("medical", unit, seed, "cpu"),
            {"accuracy_val": Metric(validation, 9)},
            {
                "correct_test": LUCK[seed] < rate,
                "correct_noisy": LUCK[seed] < noisy,
                "picture_test": PICTURES,
                "closed_test": CLOSED,
            },
            {"protocol": "planted", "history": [{"validation": validation}], "pictures": {"train": 1}},
        )
        for seed in range(S)
    ]


def share(a, b, keep=None):
    """How many of the draws lie between two rates."""
    keep = np.ones(Q, bool) if keep is None else keep
    return ((LUCK[:, keep] >= min(a, b)) & (LUCK[:, keep] < max(a, b))).mean()


def planted_grid():
    records = []
    for i in md.INTERACTIONS:
        better = {"ban": (0.5, 0.5), "cmsa": (0.6, 0.8), "san": (0.5, 0.5)}[i]
        for names, how in md.SETS:
            plus = 0.05 if how == "attention" else 0.0
            if names != ("natural",):
                rates = better[0] + plus, better[1] + plus
                records += planted(f"vqa_rad.{'+'.join(names)}.{how}.{i}.base", *rates)
        records += planted(f"vqa_rad.natural.alone.{i}.base", *better)
        records += planted(f"vqa_rad.natural_random.alone.{i}.base", *(b - 0.2 for b in better))
        records += planted(f"vqa_rad.maml+dae+clip.concat.{i}.base", better[0], better[1] + 0.1)
        records += planted(f"phantoms.maml.alone.{i}.base", 0.7, 0.7, noisy=0.4)
        records += planted(f"phantoms.maml+dae.concat.{i}.base", 0.7, 0.7, noisy=0.6)
    for i in ("ban", "cmsa"):
        for level, rate in zip(me.LEVELS, (0.4, 0.5, 0.7)):
            records += planted(f"phantoms.experts_{level}.alone.{i}.base", rate, rate)
    for i in ("san", "ban"):
        records += planted(f"vqa_rad.maml+dae.concat.{i}.qcr", 0.1, 0.6)
        records += planted(f"vqa_rad.maml+dae.concat.{i}.tcr", 0.9, 0.3)
    kinds = replace(planted("vqa_rad.first_words")[0], arrays={"correct_kind": LUCK[0] < 0.9, "picture_test": PICTURES})
    return [*records, kinds]


def planted_adaptation():
    """MAML is at 0.8 from step 1 on, scratch reaches it at step 25 only."""
    after, rates = (0, 1, 5, 10, 25), {"maml": (0.2, 0.8, 0.8, 0.8, 0.8), "scratch": (0.2, 0.2, 0.3, 0.5, 0.9)}
    luck = np.random.default_rng(1).random((40, 1, 25))
    return [
        Record(
            Spec("medical_encoders", unit, 0, "cpu"),
            {},
            {"correct": luck < np.array(rate)[:, None]},
            {"after": list(after)},
        )
        for unit, rate in rates.items()
    ], luck


def test_readout_finds_the_planted_effects():
    adaptation, luck = planted_adaptation()
    found = ro.effects([*planted_grid(), *adaptation])
    assert tuple(found) == ro.CLAIMS
    opened = ~CLOSED
    more_open, more_closed = share(0.5, 0.8, opened), share(0.5, 0.6, CLOSED)
    expected = {
        "M3b": None,  # below: attention units are 0.05 higher
        "M4": np.mean([share(0.5, 0.6, opened)] * 2 + [share(0.8, 0.9, opened)]),
        "M5a": share(0.5, 0.7),
        "M5b": share(0.4, 0.5),
        "M6a": share(0.5, 0.6, opened),
        "M6b": -share(0.3, 0.5, opened),
        "M6c": (LUCK[0] < 0.9).mean(),
        "M7": ((luck >= 0.3) & (luck < 0.8)).mean(),
        "M8": share(0.4, 0.6),
    }
    for claim, value in expected.items():
        if value is not None:
            assert found[claim].mean == pytest.approx(value), claim
            assert found[claim].low < value < found[claim].high
    assert found["M3a"].mean == pytest.approx((more_open + more_closed) / 2, abs=0.01)
    assert found["M3b"].mean == pytest.approx(more_open - more_closed, abs=0.01)
    assert found["F4"].mean == pytest.approx(0.05, abs=0.02)
    assert found["M9"].mean == pytest.approx(0.2, abs=0.03)
    assert found["M4"].n == opened.sum()


def test_readout_says_none_where_a_record_is_missing():
    assert set(ro.effects([]).values()) == {None}
    without = [r for r in planted_grid() if "clip" not in r.spec.unit and "dae.concat.cmsa" not in r.spec.unit]
    found = ro.effects(without)
    assert {claim for claim, value in found.items() if value is None} == {"M3a", "M3b", "M4", "M7", "M8"}


def test_every_claim_of_the_readout_is_in_the_ledger(request):
    ledger = {claim.id for claim in read_claims(request.config.rootpath / "book" / "claims.yml")}
    assert set(ro.CLAIMS) <= ledger


def test_contrast_is_the_difference_of_two_means():
    difference = RNG.normal(size=(S, Q)) + 0.3 * ~CLOSED
    some = np.arange(Q) % 3 == 0
    found = ro.contrast(difference, some, PICTURES)
    assert found.mean == pytest.approx(difference[:, some].mean() - difference[:, ~some].mean())
    flat = np.ones((S, Q)) + some
    exact = ro.contrast(flat, some, PICTURES)  # nothing varies inside the two parts
    assert (exact.mean, exact.low, exact.high) == pytest.approx((1, 1, 1))
    with pytest.raises(ValueError, match="both"):
        ro.contrast(difference, np.ones(Q, bool), PICTURES)


def test_best_model_is_chosen_on_validation_and_compared_with_baselines():
    good = planted("vqa_rad.maml.alone.ban.base", 0.6, 0.6, validation=0.9)
    lucky = planted("vqa_rad.dae.alone.ban.base", 0.9, 0.9, validation=0.2)
    blind = planted("vqa_rad.maml+dae.concat.ban.question_only", 0.55, 0.55, validation=1.0)
    arrays = {"picture_test": PICTURES, "closed_test": CLOSED}
    arrays |= {f"correct_{name}": LUCK[0] < rate for name, rate in zip(ro.BASELINES, (0.1, 0.58, 0.2, 0.95))}
    fixed = Record(Spec("medical", "vqa_rad.baselines", 0, "cpu"), {}, arrays, {"protocol": "planted"})
    records = [*good, *lucky, *blind, fixed]
    assert ro.best_model(records) == "vqa_rad.maml.alone.ban.base"
    table = ro.beats_baselines(records).set_index("baseline")
    assert set(table.index) == {"lookup", "question_only", "question_only_trained"}
    assert table.loc["question_only_trained", "mean"] == pytest.approx(share(0.55, 0.6))
    assert table.loc["lookup", "separated"]
    assert not table.loc["question_only", "separated"]
    assert ro.best_model([]) is None
    assert ro.beats_baselines([]).empty
    shown = ro.overview(records)
    assert set(shown.metric) == {"all", "closed", "open", "noisy"}


def test_adaptation_is_read_by_step():
    records, luck = planted_adaptation()
    table = ro.adaptation_table(records).set_index(["start", "step"])
    assert table.loc[("maml", 5), "mean"] == pytest.approx((luck < 0.8).mean())
    assert table.loc[("scratch", 0), "n"] == 1000
    assert ro.steps_from_scratch(records) == 25
    with pytest.raises(ValueError, match="medical_encoders"):
        ro.steps_from_scratch([])
