"""Experiment ``attention_maps``: models are what they say, regions are those of the scenes, a run holds every check."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vqa_core.data.text import Vocabulary
from vqa_core.data.types import Sample
from vqa_core.encoders.meta import MetaCNN
from vqa_core.encoders.union import View
from vqa_core.experiments import attention_maps as am
from vqa_core.experiments import transformers
from vqa_core.experiments.medical_encoders import Loaded
from vqa_core.experiments.scene_encoders import is_present, scene_tokens
from vqa_core.explain import scores
from vqa_core.explain.maps import methods_for

IMAGE_DIM, TEXT_DIM, ANSWERS = 19, 30, 7
SIZES = am.PROFILES["smoke"].model
TRAINED = [unit for unit in am.METHODS if unit != am.KEPT]


@pytest.fixture
def small(tiny, monkeypatch):
    """Very small questions, and nothing in memory that was made at another size."""
    config = am.PROFILES["smoke"]
    looking = replace(config.looking, curves=8, checked=6, shown=10, gallery=3, regions=20)
    monkeypatch.setitem(am.PROFILES, "smoke", replace(config, pictures=(40, 20, 20), looking=looking))
    _forget()
    yield tiny
    _forget()


def _forget():
    for made in (transformers.questions_of, transformers.answers_of, transformers.feed_of, am.regions_of, am.case_of):
        made.cache_clear()


def spec_of(unit):
    return next(s for s in am.specs("smoke") if s.unit == unit)


@pytest.mark.parametrize("unit", TRAINED)
def test_every_model_builds_learns_and_can_be_explained(unit):
    model = am.build(replace(SIZES, fusion=unit), IMAGE_DIM, TEXT_DIM, ANSWERS)
    pictures = torch.randn(32, 6, IMAGE_DIM)
    pictures[:, 0, 0] = 1.0  # at least one real token
    words = torch.randn(32, 5 if am.METHODS[unit].text == "sentence" else 1, TEXT_DIM)
    logits = model(pictures, words, torch.ones(words.shape[:2], dtype=torch.bool)).logits
    F.cross_entropy(logits, torch.arange(32) % ANSWERS).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert logits.shape == (32, ANSWERS)
    assert silent == []
    assert len(methods_for(model)) >= 6


@pytest.mark.parametrize("profile", am.PROFILES)
def test_every_unit_has_a_spec(profile):
    specs, config = am.specs(profile), am.PROFILES[profile]
    assert [s.unit for s in specs] == [*am.METHODS, *am.BASELINES]
    assert len({s.hash for s in specs}) == len(specs)
    assert config.model.seeds >= (2 if profile == "smoke" else 5)
    if profile != "smoke":
        assert config.pictures[2] >= 1000  # one attribute of an object is asked for in each
        assert config.looking.shown >= 1000


def test_tokens_are_put_where_they_were(small):
    tokens = scene_tokens("smoke", "test").image[:4]  # (4, 64, 19), all cells in reading order
    assert torch.equal(am.cells_of(tokens, 8), torch.arange(64).expand(4, -1))
    spec = spec_of("san")
    packed = transformers.feed_of("smoke", spec.data.questions, "test").pictures
    grid = am.on_grid(is_present(packed).double(), am.cells_of(packed, 8), 8)
    whole = is_present(scene_tokens("smoke", "test").image[: len(packed)]).reshape(-1, 8, 8)
    np.testing.assert_array_equal(grid, whole.numpy())


def test_regions_are_those_of_the_scenes(small):
    data = spec_of("san").data.questions
    rows, inside = am.regions_of(data, "test", data.test)
    found, _ = transformers.questions_of(data, "test")
    assert {found[i].answer for i in rows if found[i].family == "existence"} <= {"yes"}
    assert sum(found[i].family == "attribute_query" for i in rows) == data.test
    for row, cells in zip(rows[:10], inside):
        mask = found.region_mask(int(row))
        assert mask.any()
        assert cells.mean() == pytest.approx(mask.mean())
        assert cells[2, 3] == pytest.approx(mask[16:24, 24:32].mean())
    fewer, _ = am.regions_of(data, "test", 4)
    assert {found[i].picture_id for i in fewer} == set(found.picture_ids[:4])


def test_a_sentence_is_the_sum_of_its_slots_and_the_slots(small):
    feed = am.feed_of("smoke", spec_of("san").data.questions, "test")
    whole, vector = am.with_sentence(feed), am.with_vector(feed)
    assert torch.equal(whole.words[:, 0], feed.words.sum(1))
    assert torch.equal(whole.words[:, 1:], feed.words)
    assert torch.equal(vector.words[:, 0], feed.words.sum(1))
    assert whole.word_mask.shape == whole.words.shape[:2]
    assert torch.equal(whole.answers, feed.answers)


@pytest.mark.parametrize("unit", ["cross_attention", "san", am.KEPT])
def test_a_run_holds_every_check(small, unit):
    spec = spec_of(unit)
    outcome = am.run(spec)
    arrays, metrics, details = outcome.arrays, outcome.metrics, outcome.details
    seeds, q, methods = len(arrays["right"]), len(details["rows"]), details["methods"]
    assert seeds == 2
    assert metrics["same_logits"].value == 1
    assert metrics["same_logits"].n == seeds * q * len(methods)
    for method in methods:
        for score in scores.SCORES:
            found = arrays[f"{method}.{score}"]
            assert found.shape == (seeds, q)
            assert (found >= 0).all()
            assert (found <= 1 + 1e-6).all()
        pointing = metrics[f"{method}.pointing_game"]
        assert pointing.value == pytest.approx(arrays[f"{method}.pointing_game"].mean(), abs=1e-6)
        assert metrics[f"{method}.pointing_game.low"].value <= pointing.value
        assert metrics[f"{method}.pointing_game.high"].value >= pointing.value
        assert pointing.n == q
        assert arrays[f"{method}.deletion_area"].shape == (seeds, 8)
        assert arrays[f"{method}.cascade"].shape == (1, len(details["stages"]) + 1, 6)
        assert (f"{method}.labels" in arrays) is (unit != am.KEPT)
        weights = arrays[f"maps.{method}"]
        assert (weights[~arrays["real"]] == 0).all()
        np.testing.assert_allclose(weights.sum(1), arrays["real"].any(1), atol=2e-3)
    assert "centre_bias.pointing_game" in metrics
    # the whole share of the tokens is removed by one of the orders: nothing is left to lose
    last = [arrays[f"{m}.deletion"][:, -1] for m in methods]
    np.testing.assert_allclose(last, np.broadcast_to(last[0], np.shape(last)), atol=1e-5)
    assert (arrays["drop.best"] >= arrays["drop.random"] - 1e-5).all()
    assert arrays["agreement"].shape == (seeds, len(methods), len(methods))
    assert ("words" in arrays) is (unit == "cross_attention")
    if unit == "san":
        assert am.run(spec).metrics == metrics  # the seeds decide everything
    if unit == "cross_attention":
        assert arrays["heads"].shape[:3] == (spec.model.depth, spec.model.heads, 3)
        assert arrays["words"].shape[:2] == arrays["word_mask"].shape
        assert not arrays["words"][~arrays["word_mask"]].any()


def test_an_explanation_of_another_answer_stops_the_run(small, monkeypatch):
    real = am.explain_tokens

    def moved(model, sample, method, **options):
        found = real(model, sample, method, **options)
        return found._replace(logits=found.logits + (method == "occlusion") * 1e-3)

    monkeypatch.setattr(am, "explain_tokens", moved)
    with pytest.raises(RuntimeError, match=r"fusion\.kept, seed 0: the logits with occlusion differ"):
        am.run(spec_of(am.KEPT))


def test_baselines_know_what_they_say(small):
    outcome = am.run(spec_of(am.BASELINES[0]))
    hit = {name: outcome.metrics[f"{name}.pointing_game"].value for name in ("centre_bias", "objects", "ceiling")}
    assert hit["ceiling"] >= max(hit.values())
    spec = spec_of("san")
    rows, _ = am.regions_of(spec.data.questions, "test", spec.data.questions.test)
    maps = am.baseline_maps(am.case_of("smoke", spec.data))
    assert (maps["centre_bias"] == maps["centre_bias"][0]).all()  # the same for every question
    assert set(np.unique(maps["objects"])) <= {0.0, 1.0}
    assert {len(m) for m in maps.values()} == {len(rows)}
    found = transformers.questions_of(spec.data.questions, "test")[0]
    edges = scores.edges(found.picture(found[int(rows[3])].picture_id)[None])[0]
    assert maps["edges"][3, 1, 2] == pytest.approx(edges[8:16, 16:24].mean())  # no other picture has a part in it


@pytest.fixture
def tiny_phantoms(monkeypatch):
    """A few phantoms, whose encoder is not trained."""

    def load(profile, name):
        torch.manual_seed(0)
        return Loaded(View(MetaCNN("grid"), am.SIZE, grey=True).requires_grad_(False).eval(), (6, 6))

    config = am.PROFILES["smoke"]
    looking = replace(config.looking, curves=4, checked=4, shown=4, gallery=2, regions=6)
    monkeypatch.setattr(am, "load_encoder", load)
    monkeypatch.setitem(am.PROFILES, "smoke", replace(config, drawn=am.Drawn(6, 3, 4), looking=looking))
    am.phantom_material.cache_clear()
    am.case_of.cache_clear()
    yield
    am.phantom_material.cache_clear()
    am.case_of.cache_clear()


def test_phantoms_have_a_token_for_every_cell_and_regions_that_are_theirs(tiny_phantoms):
    spec = spec_of("phantoms.san")
    case, feed = am.case_of("smoke", spec.data), am.feed_for(spec, "test")
    test = am.phantom_material("smoke", spec.data.questions).sets["test"]
    assert case.real.all()
    assert case.cells[0].tolist() == list(range(36))
    assert case.side == 6
    assert len(feed) == len(case.samples) == len(test)
    for k, row in enumerate(case.rows):
        mask = test.region_mask(int(row))
        assert 0 < mask.mean() <= spec.data.questions.largest
        assert case.inside[k].mean() == pytest.approx(mask.mean())
        assert case.inside[k, 2, 4] == pytest.approx(mask[28:42, 56:70].mean())
        np.testing.assert_array_equal(case.images[case.picture[k]], test.picture(case.samples[row].picture_id))
    left_out = set(range(len(test))) - set(case.rows.tolist())
    assert all(not 0 < test.region_mask(i).mean() <= 0.25 for i in left_out)
    outcome = am.run(spec)
    assert outcome.metrics["same_logits"].value == 1
    assert outcome.arrays["san.iou"].shape == (2, len(case.rows))
    assert outcome.arrays["san.deletion"].shape == (2, am.STEPS + 1)
    assert "words" not in outcome.arrays
    baselines = am.run(spec_of("phantoms.baselines"))
    assert baselines.metrics["ceiling.pointing_game"].value == 1


def test_a_bag_counts_words():
    words = Vocabulary.of_words(["is the mass in the lung"])
    samples = [Sample("q", "p", "Is the mass the mass?", "yes", "f", "closed")]
    bag = am.bags(samples, words)
    assert bag.shape == (1, 1, len(words))
    assert bag[0, 0, words.id("mass")] == bag[0, 0, words.id("the")] == 2
    assert bag[0, 0, words.id("?")] == 1  # no training question has it: an unknown word
    assert bag.sum() == 6
