"""Fusions on real data: splits that share nothing, encoders that see what they should, runs that can be repeated."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vqa_core.data import nlvr
from vqa_core.encoders.tokens import Tokens
from vqa_core.experiments import fusion_real as fr
from vqa_core.experiments.records import load_record
from vqa_core.experiments.runner import run_spec
from vqa_core.experiments.scene_encoders import PROFILES as ENCODER_PROFILES
from vqa_core.experiments.scene_encoders import CellNamer

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.fixture(autouse=True)
def _own_caches():
    """What the module remembers of one data folder must not reach the next test."""
    yield
    for cached in (fr.splits_of, fr.real_tokens, fr.image_side, fr.word_vocabulary, fr.answer_vocabulary):
        cached.cache_clear()


def write_easy_vqa(root, pictures=40):
    """easy-VQA in small: a red or a blue square somewhere in each picture, three questions about it."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        images = root / "easy_vqa" / split / "images"
        images.mkdir(parents=True)
        questions = []
        for i in range(pictures):
            name = ("red", "blue")[i % 2]
            picture = np.full((64, 64, 3), 255, np.uint8)
            y, x = rng.integers(0, 40, 2)
            picture[y : y + 24, x : x + 24] = COLOURS[name]
            Image.fromarray(picture).save(images / f"{i}.png")
            questions += [["what color is the shape?", name, i]]
            questions += [[f"is there a {c} shape?", "yes" if c == name else "no", i] for c in COLOURS]
        (root / "easy_vqa" / split / "questions.json").write_text(json.dumps(questions))


@pytest.fixture
def place_of_work(tmp_path, monkeypatch):
    """A small easy-VQA and no other data set; an untrained scene encoder; results in a folder of their own."""
    write_easy_vqa(tmp_path)
    monkeypatch.setenv("VQA_DATA", str(tmp_path))
    monkeypatch.setenv("VQA_RESULTS", str(tmp_path / "results"))
    index = tmp_path / "results" / "smoke" / "scene_encoders" / "index.json"
    index.parent.mkdir(parents=True)
    index.write_text("[]")
    torch.manual_seed(0)
    namer = CellNamer(ENCODER_PROFILES["smoke"].model, 64).eval()
    monkeypatch.setattr(fr, "load_encoders", lambda profile: (namer, None, None))
    return tmp_path


def spec_of(unit, profile="smoke", seed=0):
    return next(s for s in fr.specs(profile) if s.unit == unit and s.seed == seed)


def test_only_data_sets_that_are_there_are_asked_for(place_of_work, monkeypatch):
    assert fr.present() == ("easy_vqa",)
    assert {s.unit.split(".")[0] for s in fr.specs("smoke")} == {"easy_vqa"}
    monkeypatch.setenv("VQA_DATA", str(place_of_work / "nothing"))
    assert fr.present() == ()
    assert fr.specs("cpu") == []


@pytest.mark.parametrize("profile", ["smoke", "cpu", "gpu"])
def test_every_unit_has_its_seeds_and_one_recipe_per_data_set(profile, monkeypatch):
    monkeypatch.setattr(fr, "present", lambda: tuple(fr.DATASETS))
    specs = fr.specs(profile)
    units = {s.unit for s in specs}
    assert len(specs) == len(units) * fr.PROFILES[profile].seeds
    assert {f"{name}.{method}" for name in fr.DATASETS for method in fr.SWEEP} <= units
    assert {f"{name}.encoders_{letter}" for name in fr.DATASETS for letter in fr.ENCODERS} <= units
    for name in fr.DATASETS:
        assert len({(s.data, s.training, s.model.dropout) for s in specs if s.unit.startswith(f"{name}.")}) == 1


def test_splits_share_no_picture_and_keep_to_the_sizes(place_of_work):
    parts = fr.splits_of(fr.Sizes("easy_vqa", 0.25, pictures=20, questions=2))
    pictures = {split: set(part.picture_ids) for split, part in parts.items()}
    assert {split: len(p) for split, p in pictures.items()} == {"train": 20, "val": 10, "test": 20}
    assert {split: len(part) for split, part in parts.items()} == {"train": 40, "val": 20, "test": 40}
    assert not pictures["train"] & pictures["val"]
    assert not (pictures["train"] | pictures["val"]) & pictures["test"]
    assert len({s.question for s in parts["train"]}) == 3  # not always the first two questions about a picture


@pytest.mark.realdata("nlvr")
def test_nlvr_validation_has_other_sentences_than_training(data_root, monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(data_root))
    parts = fr.splits_of(fr.Sizes("nlvr", 0.15))
    sentences = {split: {s.question for s in part} for split, part in parts.items()}
    assert not sentences["train"] & sentences["val"]
    assert len(parts["train"]) + len(parts["val"]) == len(nlvr.load("train"))


def test_cells_are_cut_in_reading_order():
    rows, columns = np.mgrid[:64, :64]
    number = (rows // 8 * 8 + columns // 8)[None, ..., None]  # (1, 64, 64, 1), the number of a pixel's cell
    np.testing.assert_array_equal(fr.cells(number)[0], np.repeat(np.arange(64)[:, None], 64, axis=1))


def test_principal_components_find_the_plane_that_was_planted():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(10, 2)))[0]  # (10, 2)
    patches = rng.normal(size=(4, 50, 2)) @ basis.T + 3
    mean, directions = fr.principal_components(patches, 2)
    rebuilt = mean + (patches - mean) @ directions @ directions.T
    np.testing.assert_allclose(rebuilt, patches, atol=1e-8)
    np.testing.assert_allclose(directions.T @ directions, np.eye(2), atol=1e-12)


def test_gradients_of_a_ramp_fall_into_one_orientation():
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None] * 4, (1, 64, 64, 3))
    across = fr.gradients_and_colours(ramp)[0]  # (64, 14)
    down = fr.gradients_and_colours(ramp.transpose(0, 2, 1, 3))[0]
    np.testing.assert_allclose(across[:, 0], 4 / 255, rtol=1e-4)
    np.testing.assert_allclose(across[:, 1:8], 0, atol=1e-6)
    np.testing.assert_allclose(down[:, 4], 4 / 255, rtol=1e-4)
    np.testing.assert_allclose(down[:, [0, 1, 2, 3, 5, 6, 7]], 0, atol=1e-6)
    assert across[0, 8] < across[7, 8]  # the mean of red grows to the right
    assert fr.gradients_and_colours(np.full((1, 64, 64, 3), 7, np.uint8))[0, :, :8].max() == 0


def test_standardising_looks_at_training_pictures_only():
    rng = np.random.default_rng(0)
    x = rng.normal(5, 3, size=(20, 64, 4))
    x[..., 3] = 2
    train = np.arange(20) < 10
    found = fr.standardised(x, train)
    np.testing.assert_allclose(found[train].mean(axis=(0, 1))[:3], 0, atol=1e-5)
    np.testing.assert_allclose(found[train].std(axis=(0, 1))[:3], 1, atol=1e-5)
    assert np.all(found[..., 3] == 0)
    other = x.copy()
    other[~train] += 100
    np.testing.assert_array_equal(fr.standardised(other, train)[train], found[train])


def test_boxes_stand_side_by_side_and_orders_move_them(monkeypatch):
    where = fr.place(3).view(3, 8, 8, 2)  # box, row, column
    assert torch.all(where[0, :, -1, 1] < where[1, :, 0, 1])
    assert torch.all(where[1, :, -1, 1] < where[2, :, 0, 1])
    assert torch.equal(where[0, ..., 0], where[2, ..., 0])
    boxes = torch.arange(3.0).repeat_interleave(64).view(1, 192, 1).expand(2, -1, -1)  # each token says its box
    tokens = fr.RealTokens(("x", "y"), dict.fromkeys(fr.ENCODERS, boxes.half()))
    monkeypatch.setattr(fr, "real_tokens", lambda profile, sizes: tokens)
    side = fr.image_side("smoke", fr.Sizes("nlvr", 0.1, box_orders=6), "a", "grid")  # (6 · 2, 192, 3)
    assert side.shape == (12, 192, 3)
    for k, order in enumerate(nlvr.BOX_ORDER):
        assert torch.equal(side[2 * k : 2 * k + 2, ::64, 0], torch.tensor([order] * 2, dtype=torch.float32))
        assert torch.equal(side[2 * k, :, 1:], side[0, :, 1:])  # the place stays when the boxes move


def test_a_nlvr_picture_becomes_its_three_boxes():
    picture = np.zeros(nlvr.PICTURE_SHAPE, np.uint8)
    for k in range(3):
        picture[:, 150 * k : 150 * k + 100] = 50 * (k + 1)

    class One:
        name = "nlvr"

        def picture(self, _):
            return picture

    views = fr.resized(One(), "any")
    assert views.shape == (3, 64, 64, 3)
    assert [int(v.mean()) for v in views] == [50, 100, 150]


@pytest.mark.parametrize("kind", ["bag", "gru"])
def test_question_vector_ignores_padding_and_learns(kind):
    encoder = fr.QuestionVector(10, 8, kind, dropout=0.0)
    words, mask = torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.bool)
    padded = torch.tensor([[3, 4, 5, 0, 0]]), torch.tensor([[True, True, True, False, False]])
    found = encoder(words, mask)
    assert isinstance(found, Tokens)
    assert found.tokens.shape == (1, 1, 8)
    torch.testing.assert_close(encoder(*padded).tokens, found.tokens)
    (found.tokens * torch.randn(8)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    with pytest.raises(ValueError, match="'bag' and 'gru'"):
        fr.QuestionVector(10, 8, "lstm", 0.0)


def test_a_run_keeps_its_contract_and_can_be_repeated(place_of_work):
    spec = spec_of("easy_vqa.attend_film")
    record = run_spec(spec, "code", place_of_work / "results")
    again = fr.run(spec)
    for name, array in record.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    arrays, details, metrics = record.arrays, record.details, record.metrics
    n = details["questions"]["test"]
    assert {len(a) for a in arrays.values()} == {n}
    test = fr.splits_of(spec.data)["test"]
    predicted = [details["answers"][i] for i in arrays["predicted_test"]]
    right = [p == s.answer for p, s in zip(predicted, test)]
    np.testing.assert_array_equal(arrays["correct_test"], right)
    assert [details["families"][i] for i in arrays["family_test"]] == [s.family for s in test]
    assert metrics["accuracy_test"].value == pytest.approx(np.mean(right))
    for kind in ("open", "closed"):
        rows = [s.kind == kind for s in test]
        assert metrics[f"accuracy_test.{kind}"].value == pytest.approx(np.mean(np.array(right)[rows]))
        assert metrics[f"accuracy_test.{kind}"].n == sum(rows)
    assert metrics["ceiling"].value == 1.0
    assert details["image_tokens"] == 64
    assert load_record(spec, "code", place_of_work / "results").metrics == metrics


def test_hidden_sides_stay_hidden(place_of_work):
    sizes = spec_of("easy_vqa.question_only").data
    for unit, side in (("question_only", "pictures"), ("picture_only", "words")):
        feed = fr.feed_of("smoke", sizes, spec_of(f"easy_vqa.{unit}").model, "train")
        batch = feed.batch(range(len(feed)))
        assert len(torch.unique(getattr(batch, side), dim=0)) == 1


def test_answers_outside_the_training_answers_are_wrong(place_of_work):
    path = place_of_work / "easy_vqa" / "test" / "questions.json"
    questions = json.loads(path.read_text())
    path.write_text(json.dumps([[q, "green" if a == "red" else a, i] for q, a, i in questions]))
    outcome = fr.run(spec_of("easy_vqa.pool_concat"))
    test = fr.splits_of(spec_of("easy_vqa.pool_concat").data)["test"]
    unreachable = np.array([s.answer == "green" for s in test])
    assert unreachable.any()
    assert not outcome.arrays["correct_test"][unreachable].any()
    assert outcome.metrics["ceiling"].value == pytest.approx(1 - unreachable.mean())


def test_pictures_help_once_there_is_training(place_of_work):
    def accuracy(unit):
        spec = spec_of(f"easy_vqa.{unit}")
        training = replace(spec.training, epochs=12, batch_size=16)
        return fr.run(replace(spec, training=training)).metrics["accuracy_test"].value

    assert accuracy("pool_film") > accuracy("question_only") + 0.2


def test_tokens_are_kept_and_made_anew_when_the_encoders_change(place_of_work):
    sizes = spec_of("easy_vqa.pool_sum").data
    first = fr.real_tokens("smoke", sizes)
    path = place_of_work / "results" / "smoke" / "fusion_real" / "tokens_easy_vqa.safetensors"
    stamp = path.stat().st_mtime_ns
    fr.real_tokens.cache_clear()
    second = fr.real_tokens("smoke", sizes)
    assert path.stat().st_mtime_ns == stamp
    assert first.ids == second.ids
    assert all(torch.equal(first.of[k], second.of[k]) for k in fr.ENCODERS)
    (place_of_work / "results" / "smoke" / "scene_encoders" / "index.json").write_text('["other"]')
    fr.real_tokens.cache_clear()
    fr.real_tokens("smoke", sizes)
    assert path.stat().st_mtime_ns != stamp


@pytest.mark.realdata("easy_vqa", "nlvr", "vqa_rad")
@pytest.mark.parametrize("name", fr.DATASETS)
def test_real_files_go_through(name, data_root, place_of_work, monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(data_root))
    outcome = fr.run(spec_of(f"{name}.attend_film"))
    assert outcome.details["image_tokens"] == (192 if name == "nlvr" else 64)
    assert 0 < outcome.metrics["ceiling"].value <= 1
    assert np.isfinite(outcome.details["history"][0]["loss"])
