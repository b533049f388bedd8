"""``python -m vqa_core ask``: the model of the experiment answers, says what it is, and fails clearly."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vqa_core.__main__ import main
from vqa_core.ask import Answerer, open_picture
from vqa_core.experiments import fusion, runner
from vqa_core.experiments.records import load_record, save_record
from vqa_core.experiments.scene_encoders import scene_split
from vqa_core.training.loop import predict

QUESTION = "Is there a red circle?"


@pytest.fixture
def picture(tmp_path, tiny):
    """Write the first test picture to a file."""
    path = tmp_path / "scene.png"
    Image.fromarray(scene_split("smoke", "test").images[0]).save(path)
    return path


def record_of(seed: int):
    """The stored record of the answering model."""
    return load_record(next(s for s in fusion.specs("smoke") if s.unit == fusion.KEPT and s.seed == seed))


def with_validation(record, score: float):
    """The record, as if it had that score in its best epoch."""
    history = [{**row, "validation": score} for row in record.details["history"]]
    return dataclasses.replace(record, details={**record.details, "history": history})


def test_same_logits_as_the_experiment_on_cached_tokens(tiny):
    answerer, test = Answerer.load("smoke"), scene_split("smoke", "test")
    record = record_of(answerer.about.seed)
    feed = fusion.feed_of("smoke", "test", "grid", "vector")
    cached = fusion.build(record.spec.model, feed.pictures.shape[-1], feed.words.shape[-1], len(answerer.answers))
    weights = {
        k.removeprefix("model."): torch.from_numpy(v) for k, v in record.arrays.items() if k.startswith("model.")
    }
    cached.load_state_dict(weights)
    expected = predict(cached, feed, device="cpu")
    found = answerer.logits(test.images[feed.picture_index.numpy()], [s.question for s in test])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found.argmax(1).numpy() == record.arrays["predicted_test"]).mean() > 0.99  # CUDA may round otherwise


def test_answer_lists_all_answers_with_probabilities(tiny):
    answerer, test = Answerer.load("smoke"), scene_split("smoke", "test")
    answers = answerer.answer(test.images[3], QUESTION)
    chances = [p for _, p in answers]
    assert sorted(a for a, _ in answers) == sorted(answerer.answers)
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1, abs=1e-5)
    assert answers[0][0] == answerer.answers[int(answerer.logits(test.images[3:4], [QUESTION]).argmax())]


def test_the_seed_with_the_best_validation_score_answers(tiny):
    for best in (0, 1):
        for seed in (0, 1):
            save_record(with_validation(record_of(seed), 0.9 if seed == best else 0.1))
        about = Answerer.load("smoke").about
        assert about.seed == best
        assert about.accuracy == record_of(best).metrics["accuracy_test"].value
        assert (about.pictures, about.questions, about.n) == (40, 320, 160)


def test_changed_weights_change_the_answer(tiny):
    answerer, image = Answerer.load("smoke"), scene_split("smoke", "test").images[0]
    before = answerer.answer(image, QUESTION)
    record = record_of(answerer.about.seed)
    last = max(k for k in record.arrays if k.startswith("model.head") and k.endswith("bias"))
    bias = record.arrays[last].copy()
    bias[answerer.answers.index(before[-1][0])] += 100
    save_record(dataclasses.replace(record, arrays={**record.arrays, last: bias}))
    assert Answerer.load("smoke").answer(image, QUESTION)[0][0] == before[-1][0]


def test_pictures_of_any_size_are_brought_to_the_models_size(tiny):
    answerer, image = Answerer.load("smoke"), scene_split("smoke", "test").images[0]
    large = image.repeat(4, axis=0).repeat(4, axis=1)
    assert dict(answerer.answer(large, QUESTION)) == pytest.approx(dict(answerer.answer(image, QUESTION)), abs=0.02)
    assert len(answerer.answer(image[:40], QUESTION)) == len(answerer.answers)


def test_table_says_what_the_model_is(picture, capsys):
    assert main(["ask", str(picture), "Is there a red unicorn or a unicorn?", "--profile", "smoke", "--top", "3"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "generated pictures of coloured shapes",
        "40 pictures, 320 questions",
        "n = 160 questions",
        fusion.METHODS[fusion.KEPT].title,
    ):
        assert part in said
    assert said.count("%") == 3 + 3  # three answers; the accuracy, and the range over seeds
    assert "no training question has the word(s) unicorn;" in said


def test_json(picture, capsys):
    assert main(["ask", str(picture), QUESTION, "--profile", "smoke", "--top", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = Answerer.load("smoke").answer(open_picture(picture), QUESTION)[:2]
    assert [(a["answer"], a["probability"]) for a in found["answers"]] == expected
    assert found["model"]["pictures"] == 40
    assert not any("word" in w for w in found["warnings"])


def test_warns_when_no_cell_holds_an_object(tiny):
    answerer, image = Answerer.load("smoke"), scene_split("smoke", "test").images[0]
    presence = answerer.model.image_encoder.namer.names
    for bias, warned in ((-1e4, True), (1e4, False)):
        presence.bias[0] = bias
        assert any("no object" in w for w in answerer.warnings(image, QUESTION)) is warned


def test_warns_when_the_code_has_changed(tiny, monkeypatch):
    assert Answerer.load("smoke").about.current
    monkeypatch.setattr(runner, "code_hash_of", lambda experiment: "other")
    answerer = Answerer.load("smoke")
    assert any("trains it anew" in w for w in answerer.warnings(np.zeros((64, 64, 3), np.uint8), QUESTION))


def refused(capsys, *words: str) -> str:
    """Run ``ask``, which must end with exit code 2 and one line on stderr; return the line."""
    assert main(["ask", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_without_a_trained_model(picture, capsys, tiny):
    shutil.rmtree(tiny / "smoke" / "fusion")
    said = refused(capsys, picture, QUESTION, "--profile", "smoke")
    assert str(tiny / "smoke" / "fusion" / fusion.KEPT / "seed0.json") in said
    assert "make book" in said
    assert "python -m vqa_core run fusion --profile smoke" in said


def test_a_model_at_another_profile_is_pointed_out(picture, capsys):
    assert "--profile smoke" in refused(capsys, picture, QUESTION, "--profile", "cpu")


def test_without_encoders(picture, capsys, tiny):
    shutil.rmtree(tiny / "smoke" / "scene_encoders")
    assert "run scene_encoders --profile smoke" in refused(capsys, picture, QUESTION, "--profile", "smoke")


def test_record_without_weights(picture, capsys, tiny):
    for seed in (0, 1):
        record = record_of(seed)
        save_record(dataclasses.replace(record, arrays={"predicted_test": record.arrays["predicted_test"]}))
    assert "holds no weights" in refused(capsys, picture, QUESTION, "--profile", "smoke")


def test_bad_arguments(picture, capsys, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(picture.read_bytes()[:200])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for path in (damaged, text, tmp_path / "absent.png", tmp_path):
        assert str(path) in refused(capsys, path, QUESTION, "--profile", "smoke")
    assert "has no word" in refused(capsys, picture, "!", "--profile", "smoke")
    assert "--top is 0" in refused(capsys, picture, QUESTION, "--profile", "smoke", "--top", "0")
    assert "profile is 'huge'" in refused(capsys, picture, QUESTION, "--profile", "huge")
