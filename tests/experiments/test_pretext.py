"""Experiment ``pretext``: labels are nested samples, negatives are false, weightings are told of epochs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from vqa_core.data.scenes import ATTRIBUTES
from vqa_core.encoders.masked_autoencoder import MaskedAutoencoder, PatchEncoder
from vqa_core.evaluation.caption_truth import judge
from vqa_core.experiments import pretext
from vqa_core.training.loop import Training
from vqa_core.training.pretext import TASKS, PretextModel


def forget():
    for made in (pretext.captioned, pretext.joint_vocabulary, pretext.pairs_of, pretext.generated):
        made.cache_clear()


@pytest.fixture
def small(tiny, monkeypatch):
    """Profile ``smoke`` of this experiment on the very small encoders of ``tiny``."""
    smoke = pretext.PROFILES["smoke"]
    few = pretext.FewLabels(16, 8, 60, 20, (1, 2), 48)
    training = pretext.TwoPhases(Training(epochs=1, batch_size=8), Training(epochs=2, batch_size=8))
    config = replace(smoke, few=few, mae_training=training, told=pretext.Told(24, 10, 12, 20, 8))
    monkeypatch.setitem(pretext.PROFILES, "smoke", config)
    forget()
    yield config
    forget()


def spec_of(unit, seed=0):
    return next(s for s in pretext.specs("smoke") if s.unit == unit and s.seed == seed)


# ------------------------------------------------------------------------------------------------------------- specs


@pytest.mark.parametrize("profile", ["smoke", "cpu", "gpu"])
def test_every_seed_has_every_unit_and_the_judged_number_of_labels(profile):
    every, config = pretext.specs(profile), pretext.PROFILES[profile]
    units = {"mae", "joint.plain", "joint.dwa", "joint.uncertainty", "joint.nothing", "captioner"}
    assert {s.unit for s in every} == units
    for unit in units - {"captioner"}:
        assert [s.seed for s in every if s.unit == unit] == list(range(config.seeds))
    assert len({s.path() for s in every}) == len(every)
    assert pretext.LABELS in config.few.labels
    assert pretext.ATTRIBUTE in ATTRIBUTES
    if profile != "smoke":
        assert config.seeds >= 5


# ------------------------------------------------------------------------------------------------- masked autoencoding


def test_labelled_pictures_are_balanced_and_nested():
    classes = np.random.default_rng(0).integers(0, 4, 200)
    three, ten = (pretext.some_of_each(classes, n, seed=5) for n in (3, 10))
    assert np.bincount(classes[three]).tolist() == [3] * 4
    assert np.bincount(classes[ten]).tolist() == [10] * 4
    assert set(three) < set(ten)
    assert set(ten) != set(pretext.some_of_each(classes, 10, seed=6))
    with pytest.raises(ValueError, match=r"90 labels per class .* raise FewLabels\.pool"):
        pretext.some_of_each(classes, 90, seed=0)


def test_labels_are_those_of_the_only_object():
    found = pretext.generated("labelled", 20, 48)
    assert {len(s.objects) for s in found.scenes} == {1}
    values = pretext.values_of(found, "shape")
    assert [ATTRIBUTES["shape"][v] for v in values] == [s.objects[0].shape for s in found.scenes]
    assert {len(s.objects) for s in pretext.generated("unlabelled", 20, 48).scenes} <= {3, 4, 5, 6}


def test_error_without_a_model_is_the_variance_around_the_seen_colour():
    """Two-coloured pictures: a patch of the one colour is right, one of the other wrong by their difference."""
    model = MaskedAutoencoder(PatchEncoder(16, 8, 8, 1, 2), 8, 1, 2, normalise=False)
    images = np.full((3, 16, 16, 3), 51, np.uint8)
    found = pretext.rebuilding(model, images, 0.75)
    assert found.error_of_mean == pytest.approx(np.zeros(3), abs=1e-6)
    images[:, 8:, 8:] = 204  # the last patch
    found = pretext.rebuilding(model, images, 0.75)
    last = found.hidden[:, 3]
    step = (153 / 127.5) ** 2
    assert found.error_of_mean == pytest.approx(np.where(last, step / 3, step), rel=1e-4)
    kept = images[:, :8, :8][~found.hidden[:, 0]]
    assert np.array_equal(found.rebuilt[:, :8, :8][~found.hidden[:, 0]], kept)


def test_finetuning_takes_as_many_steps_for_many_labels_and_leaves_the_encoder_alone(monkeypatch):
    encoder, steps = PatchEncoder(48, 8, 8, 1, 2), []
    images, classes = np.zeros((20, 48, 48, 3), np.uint8), np.arange(20) % 4
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **k: (steps.append(1), step(*a, **k))[1])
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    training = Training(epochs=6, batch_size=10, learning_rate=1e-2)
    for n in (8, 20):
        steps.clear()
        model = pretext.finetune(encoder, images[:n], classes[:n], training, seed=0)
        assert len(steps) == 6
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert any(not torch.equal(v, before[k]) for k, v in model.encoder.state_dict().items())


def test_a_run_of_mae_comes_again_and_holds_what_the_readout_needs(small):
    one, again = (pretext.run(spec_of("mae")) for _ in range(2))
    for way, attributes in {"frozen": ATTRIBUTES, "tuned": [pretext.ATTRIBUTE]}.items():
        for start, attribute, labels in itertools.product(("mae", "random"), attributes, (1, 2)):
            right = one.arrays[f"{way}.{start}.{attribute}.{labels}"]
            assert right.shape == (20,)
            assert right.dtype == bool
    for name in one.arrays:
        assert np.array_equal(one.arrays[name], again.arrays[name]), name
    assert one.arrays["gallery.rebuilt"].shape == (6, 48, 48, 3)
    assert one.metrics["error"].n == 8
    other = pretext.run(spec_of("mae", 1))
    assert not np.array_equal(one.arrays["gallery.rebuilt"], other.arrays["gallery.rebuilt"])


# --------------------------------------------------------------------------------------------------- captions and tasks


def test_truth_table_is_what_the_world_says(small):
    for split, pictures, number in (("val", 10, 10), ("train", 20, 100)):
        pairs, found = pretext.pairs_of("smoke", split), pretext.captioned("smoke", split)
        different = list(dict.fromkeys(pairs.captions))
        assert len(pairs.captions) == number
        assert [different[i] for i in pairs.number.tolist()] == pairs.captions
        every = found.scenes.scenes[:pictures]
        assert pairs.true.tolist() == [[judge(c, scene).true for c in different] for scene in every]
        assert all(c in found.captions[i] for c, i in zip(pairs.captions, pairs.picture.tolist()))


def test_wrong_pairs_of_a_batch_are_wrong(small):
    feed, true = pretext.caption_feed("smoke", "train"), pretext.pairs_of("smoke", "train").true
    words = pretext.joint_vocabulary("smoke")
    model, seen = PretextModel(19, len(words), 8, 1, 2, 40), {}
    match = model.match
    model.match = lambda image, mask, w, m: (seen.update(words=w, mask=m), match(image, mask, w, m))[1]
    batch = feed.batch(range(0, 100, 5))
    out = pretext.three_tasks(model, batch, true, len(words))
    every = pretext.captioned("smoke", "train").scenes.scenes
    assert set(out) == set(TASKS)
    assert 0 < int(out["itm"].targets.sum()) < 20
    for row, mask, picture, matches in zip(seen["words"], seen["mask"], range(20), out["itm"].targets.tolist()):
        sentence = " ".join(words.symbols[i] for i in row[mask].tolist())
        assert judge(sentence, every[picture]).true == bool(matches), sentence
    assert (out["mlm"].targets != -100).sum(1).min() >= 1


def test_usual_places_are_counted_by_length():
    words = torch.tensor([[5, 6, 0], [6, 5, 7], [5, 7, 6], [5, 6, 7]])
    feed = pretext.Feed(torch.zeros(1, 1, 1), torch.zeros(4), words, words > 0, torch.zeros(4))
    found = pretext.usual_places(feed)
    assert found[2, 5] == 0
    assert found[2, 6] == 1
    assert found[3, 5] == 0
    assert found[3, 7] == 2
    assert (2, 7) not in found


@pytest.mark.parametrize("name", ["plain", "dwa", "uncertainty"])
def test_weightings_are_told_of_epochs(small, name):
    out = pretext.run(spec_of(f"joint.{name}"))
    weights = np.array([[row[f"{task}.weight"] for task in TASKS] for row in out.details["pretraining"]])
    assert weights.shape == (3, 3)
    if name == "plain":
        assert (weights == 1).all()
    elif name == "dwa":
        assert weights[:2] == pytest.approx(np.ones((2, 3)))
        assert np.ptp(weights[2]) > 1e-4
        assert weights[2].sum() == pytest.approx(3)
    else:
        assert (weights[2] < weights[0]).all()  # all losses are above one half here
    words = len(out.arrays["order.right"])
    assert all(len(out.arrays[f"order.{k}"]) == words for k in ("right_other", "right_lookup", "chance", "picture"))
    assert out.arrays["order.chance"].min() > 0
    assert {*TASKS, "accuracy_test", "accuracy_val"} == set(out.metrics)


def test_without_pretraining_there_is_none(small):
    out = pretext.run(spec_of("joint.nothing"))
    assert out.details["pretraining"] == []
    assert "order.right" not in out.arrays
    assert len(out.arrays["correct_test"]) == out.metrics["accuracy_test"].n
    with pytest.raises(ValueError, match="allowed are plain, dwa, uncertainty"):
        pretext.weighting_of("nothing")


def test_captions_are_said_and_judged(small):
    out = pretext.run(spec_of("captioner"))
    test = pretext.captioned("smoke", "test")
    expected = [judge(s, scene).true for s, scene in zip(out.details["said"]["beam"], test.scenes.scenes)]
    assert out.arrays["beam.true"].tolist() == expected
    assert out.arrays["exact"].shape == (12,)
    assert not (out.arrays["exact"] & ~out.arrays["beam.true"]).any()  # the generator's captions are true


def test_too_many_pictures_or_questions_are_refused(small, monkeypatch):
    monkeypatch.setitem(pretext.PROFILES, "smoke", replace(small, told=pretext.Told(24, 10, 12, 20, 10_000)))
    with pytest.raises(ValueError, match=r"10000 questions are asked for, there are \d+; lower Told\.questions"):
        pretext.question_feeds("smoke", 10_000, 0)
    forget()
    monkeypatch.setitem(pretext.PROFILES, "smoke", replace(small, told=pretext.Told(4000, 10, 12, 20, 8)))
    with pytest.raises(ValueError, match=r"4000 pictures of split 'train' .* lower Config\.told"):
        pretext.captioned("smoke", "train")
