"""The small CLIP: what it trains on is what it says, what is measured is measured rightly, runs keep their contract."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vqa_core.data import scenes
from vqa_core.data.scenes.grammar import noun
from vqa_core.experiments import clip, clip_material, runner
from vqa_core.experiments import clip_readout as readout
from vqa_core.experiments.clip_material import (
    ENSEMBLES,
    NAMES,
    PROMPTS,
    SEVEN,
    Pictures,
    everything_true,
    gallery,
    single,
    told,
    unseen_names,
)
from vqa_core.experiments.records import Record

SIZES = clip.PROFILES["smoke"].pictures


def spec_of(unit, seed=0, profile="smoke"):
    return next(s for s in clip.specs(profile) if (s.unit, s.seed) == (unit, seed))


# ----------------------------------------------------------------------------------------------------------- material


def test_training_pairs_are_true_and_show_no_unseen_pair():
    known = told(SIZES)
    found = scenes.load("train", n=SIZES.train, size=32, objects=(1, 2), questions_per_picture=1)
    assert np.array_equal(found.images, known.pairs.pictures)
    for scene, caption in zip(found.scenes, known.captions):
        assert 1 <= len(scene.objects) <= 2
        assert caption in everything_true(scene)
        assert not {tuple(o[2:4]) for o in scene.objects} & scenes.UNSEEN
    k = 17
    assert [known.words.symbols[i] for i in known.pairs.words[k][known.pairs.mask[k]]] == known.captions[k].split()
    for name in np.array(NAMES)[unseen_names()]:
        assert not any(name in caption for caption in known.captions)
    assert unseen_names().sum() == 8


def test_every_word_of_every_prompt_is_known():
    """Else zero-shot would compare sentences with an unknown word."""
    words = told(SIZES).words
    assert all(word in words for prompt in PROMPTS for name in NAMES for word in prompt.format(name).split())


def test_captions_of_a_gallery_differ_and_their_truth_is_known():
    found = gallery(SIZES, "test")
    assert len(set(found.captions)) == len(found.captions) == SIZES.gallery
    assert found.right.diagonal().all()
    assert found.right.shape == (SIZES.gallery,) * 2
    assert len(np.unique(found.group)) < len(found.group)


def test_a_gallery_of_equal_captions_is_refused(monkeypatch):
    monkeypatch.setattr(clip_material, "captions", lambda *_: ("there is a small solid red circle",))
    with pytest.raises(ValueError, match="1 different captions among 12 pictures, 8 are needed"):
        gallery(replace(SIZES, gallery=8), "test")


def test_a_caption_that_is_true_of_two_pictures_is_right_for_both():
    red = scenes.SceneObject("small", "solid", "red", "cross", 0.2, 0.3, 0.085)
    blue = scenes.SceneObject("large", "striped", "blue", "circle", 0.7, 0.8, 0.135)
    one, other = scenes.Scene((red, blue)), scenes.Scene((blue._replace(y=0.32), red))
    beside = "a small solid red cross left of a large striped blue circle"
    above = "a small solid red cross above a large striped blue circle"
    assert beside in everything_true(one) & everything_true(other)
    assert above in everything_true(one) - everything_true(other)


@pytest.mark.parametrize("kind", ["seen", "unseen"])
def test_single_objects_are_of_their_kind(kind):
    found = single(SIZES, kind)
    assert len(found.pictures) == len(found.label) == SIZES.single
    assert {bool(unseen_names()[k]) for k in found.label} == {kind == "unseen"}


def test_prompts_are_english_and_seven_are_among_them():
    said = [p.format("orange cross") for p in PROMPTS]
    assert len(set(said)) == len(PROMPTS) == 33
    assert set(SEVEN) < set(PROMPTS)
    assert len(set(SEVEN)) == 7
    assert "there is a solid orange cross" in said
    assert "a picture with a small striped orange cross" in said
    assert "a picture with exactly one orange cross" in said
    assert not any(" a orange" in s or s.startswith("a orange") for s in said)
    assert list(ENSEMBLES)[-2:] == ["seven", "all"]
    told_of = set(told(replace(SIZES, train=2000)).captions)
    occur = [p for p in PROMPTS if told_of & {p.format(name) for name in NAMES}]
    assert len(occur) == 13


# ------------------------------------------------------------------------------------------------------------- specs


@pytest.mark.parametrize("profile", clip.PROFILES)
def test_specs_hold_what_the_claims_compare(profile):
    specs, c = clip.specs(profile), clip.PROFILES[profile]
    assert len({(s.unit, s.seed) for s in specs}) == len(specs)
    units = {s.unit: s for s in specs if s.seed == 0}
    seeds = {u: sum(s.unit == u for s in specs) for u in units}
    small, large = clip.compared_batches(profile)
    claimed = [clip.batch_unit(size, rate) for size in (small, large) for rate in c.rates]
    claimed += [clip.amount_unit(image, n) for image in ("vit", "resnet") for n in clip.compared_amounts(profile)]
    claimed += ["small", clip.base_unit(profile), *(f"temperature.{t:g}" for t in (clip.LOWEST, clip.HIGHEST))]
    assert {seeds[u] for u in claimed} == {c.seeds}
    assert len({units[u].training.pairs_seen for u in claimed if u.startswith("batch")}) == 1
    assert len({units[u].training for u in claimed if u.startswith("pairs")}) == 1
    if profile != "smoke":
        assert (small, large, *clip.compared_amounts(profile)) == (32, 512, 2000, 20000)
        assert c.seeds >= 5
        assert c.pictures.gallery == 1000
        assert c.amount.pairs_seen >= 20000  # each of them is seen
    for size in c.cache.batches:
        assert size <= c.pictures.train


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_both_image_encoders_are_of_one_size(profile):
    c = clip.PROFILES[profile]
    vit, resnet = (sum(p.numel() for p in clip.image_encoder(m, c.pictures.size).parameters()) for m in c.models)
    assert abs(vit - resnet) < 0.01 * resnet


# -------------------------------------------------------------------------------------------------------- evaluation


def test_median_rank_counts_wrong_ones_ahead():
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert clip.median_rank(scores, np.eye(3, dtype=bool)) == 2
    right = np.eye(3, dtype=bool)
    right[:, 0] = True
    assert clip.median_rank(scores, right) == 1


def test_entropy_is_a_share_of_the_largest():
    same = clip.in_batch_entropy(np.ones((7, 7)), 5.0, 3)
    assert same.shape == (6,)  # two batches of three, one picture is left over
    assert_close(same, np.ones(6))
    sharp = clip.in_batch_entropy(np.eye(4), 100.0, 4)
    assert (sharp < 1e-6).all()
    p = np.exp([2.0, 0, 0, 0]) / np.exp([2.0, 0, 0, 0]).sum()
    expected = -(p * np.log(p)).sum() / np.log(4)
    assert_close(clip.in_batch_entropy(np.eye(4), 2.0, 9), np.full(4, expected))


def test_thinned_histories_keep_their_mean():
    history = [{"step": k, "loss": float(k % 7)} for k in range(1, 101)]
    found = clip.thinned(history)
    assert len(found) == clip.POINTS
    assert np.mean([p["loss"] for p in clip.thinned(history[:80])]) == pytest.approx(
        np.mean([p["loss"] for p in history[:80]])
    )
    assert clip.thinned(history[:3]) == history[:3]


def test_shuffled_captions_are_the_same_captions_elsewhere():
    known, data = told(SIZES), spec_of("self.shuffled").data
    found = clip.training_pairs(data, known, 0)
    assert torch.equal(found.pictures, known.pairs.pictures)
    assert sorted(map(tuple, found.words.tolist())) == sorted(map(tuple, known.pairs.words.tolist()))
    assert (found.words != known.pairs.words).any(1).float().mean() > 0.9
    assert clip.training_pairs(spec_of("small").data, known, 0).words is not None


def test_self_similarity_is_perfect_before_training():
    model = clip.SelfSimilar(clip.build(clip.PROFILES["smoke"].models[0], told(SIZES)))
    test = gallery(SIZES, "test")
    found = clip.retrieve(model, told(SIZES).words, test)
    assert model.accuracy(found.image, found.text) == 1.0
    assert model.accuracy(found.image, found.text.flip(0)) == 1.0  # whatever stands beside what
    assert found.hits.mean() < 0.2


# ----------------------------------------------------------------------------------------------------------- the runs


def test_a_run_keeps_its_contract():
    spec = spec_of("small")
    outcome = clip.run(spec)
    m, a, d = outcome.metrics, outcome.arrays, outcome.details
    test = gallery(SIZES, "test")
    assert a["hits"].shape == (2, SIZES.gallery)
    assert m["r1"].value == pytest.approx(a["hits"].mean(), abs=1e-6)
    assert m["r1"].value <= m["r5"].value <= m["r10"].value
    assert m["r1"].n == 2 * SIZES.gallery
    assert np.array_equal(a["group"], test.group)
    assert d["steps"] == spec.training.steps == 8
    assert len(d["history"]) == 8
    cosines = a["image"] @ a["text"].T
    assert_close(cosines[:24, :24], a["cosines_after"].astype(np.float32), atol=1e-5, rtol=0)
    assert np.abs(a["cosines_before"] - a["cosines_after"]).max() > 0.01
    loaded = readout.load_model(Record(spec, m, a, d), told(SIZES))
    assert_close(clip.embed_pictures(loaded, test.pictures).numpy(), a["image"], atol=1e-5, rtol=1e-5)
    for kind in ("seen", "unseen"):
        assert a[f"named_{kind}"].shape == (len(ENSEMBLES), SIZES.single)
        seven = a[f"named_{kind}"][list(ENSEMBLES).index("seven")]
        assert m[f"zero_shot_{kind}"].value == pytest.approx(np.mean(seven == a[f"label_{kind}"]))
    assert unseen_names()[a["named_among_unseen"]].all()
    assert d["data_hash"] == told(SIZES).data_hash
    again, other = clip.run(spec), clip.run(spec_of("small", seed=1))
    with pytest.raises(ValueError, match="small, seed 1, keeps no weights"):
        readout.load_model(Record(spec_of("small", 1), {}, other.arrays), told(SIZES))
    assert again.details["history"] == d["history"]
    assert other.details["history"] != d["history"]


@pytest.mark.parametrize("unit", ["temperature.0.5", "loss.siglip", "self.right", "pairs.resnet.64", "batch.16.0.001"])
def test_units_differ_in_what_they_say(unit):
    spec = spec_of(unit)
    outcome = clip.run(spec)
    assert outcome.details["steps"] == spec.training.steps
    if unit == "temperature.0.5":
        assert {round(p["temperature"], 6) for p in outcome.details["history"]} == {0.5}
    if unit == "self.right":
        assert outcome.arrays["accuracy_before"] == outcome.arrays["accuracy_after"] == 1.0
    assert all(np.isfinite(v).all() for v in outcome.arrays.values())


def test_caching_saves_memory_and_no_gradient():
    outcome = clip.run(spec_of("cache"))
    a = outcome.arrays
    assert a["bytes"].shape == a["seconds"].shape == (2, 2)
    assert (a["difference"] < 1e-4).all()
    plain, cached = a["bytes"]
    assert plain[1] == pytest.approx(2 * plain[0], rel=0.2)  # grows with the batch
    assert cached[1] < 0.6 * plain[1]
    assert cached[1] < 1.6 * cached[0]


def test_the_runner_makes_and_finds_records(tmp_path):
    spec = spec_of("temperature.0.02")
    (record, *_) = runner.run_experiment(
        "clip", "smoke", unit=spec.unit, seed=0, workers=1, root=tmp_path, progress=False
    )
    assert record.spec == spec
    assert record.arrays["hits"].shape == (2, SIZES.gallery)


def test_pictures_of_another_size_are_other_pictures():
    assert told(replace(SIZES, train=2, size=48)).pairs.pictures.shape == (2, 48, 48, 3)
    assert isinstance(SIZES, Pictures)
    assert noun(["red", "circle"]) in NAMES
