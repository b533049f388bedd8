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
from vqa_core.ask import Answerer, Decliner, open_picture
from vqa_core.evaluation.rejection import sgr
from vqa_core.experiments import Metric, fusion, rejection, rejection_tokens, runner
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


# ----------------------------------------------------------------------------------------------------------- declining


@pytest.fixture
def scene(tmp_path, tiny_rejection):
    """Write the first test picture to a file; there are heads that can decline."""
    path = tmp_path / "scene.png"
    Image.fromarray(scene_split("smoke", "test").images[0]).save(path)
    return path


def head_records():
    """The stored records of the heads, by seed."""
    return [load_record(s) for s in rejection.specs("smoke") if s.unit == rejection.KEPT]


def plant(probability: float | None = None, **details) -> None:
    """Change the heads' records: all 80 calibration answers right, and of this probability; other details."""
    for record in head_records():
        arrays = dict(record.arrays)
        if probability is not None:
            arrays["full.calibration.correct"] = np.ones(80, bool)
            arrays["full.calibration.probability"] = np.full(80, probability, np.float32)
        save_record(dataclasses.replace(record, arrays=arrays, details={**record.details, **details}))


def asked(capsys, path, *words: str) -> dict:
    """What ``ask --json`` says."""
    assert main(["ask", str(path), QUESTION, "--profile", "smoke", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_head_reads_what_it_was_trained_on(tiny_rejection):
    answerer, test = Answerer.load("smoke"), scene_split("smoke", "test")
    expected = rejection_tokens.material_of("smoke", "scenes").feeds["test"].pictures.squeeze(1)[:12]  # (12, D)
    found = [answerer.fused(test.picture(test[i].picture_id), test[i].question) for i in range(12)]
    torch.testing.assert_close(torch.cat(found), expected, atol=1e-4, rtol=0)


def test_the_records_weights_answer(tiny_rejection):
    decliner, image = Decliner.load(Answerer.load("smoke")), scene_split("smoke", "test").images[0]
    weights = {k.removeprefix("head."): v for k, v in decliner.record.arrays.items() if k.startswith("head.")}
    assert set(weights) == set(decliner.head.state_dict())
    for name, value in decliner.head.state_dict().items():
        np.testing.assert_array_equal(value, weights[name])
    before = decliner.ask(image, QUESTION).answers
    assert sum(p for _, p in before) == pytest.approx(1, abs=1e-5)
    last = "head.layers.1.bias_mu"
    for record in head_records():
        bias = record.arrays[last].copy()
        bias[decliner.answerer.answers.index(before[-1][0])] += 100
        save_record(dataclasses.replace(record, arrays={**record.arrays, last: bias}))
    assert Decliner.load(decliner.answerer).ask(image, QUESTION).answers[0][0] == before[-1][0]


def test_the_head_with_the_best_validation_accuracy_answers(tiny_rejection):
    for best in (0, 1):
        for record in head_records():
            score = Metric(0.9 if record.spec.seed == best else 0.1, 160)
            save_record(dataclasses.replace(record, metrics={**record.metrics, "accuracy.full.val": score}))
        assert Decliner.load(Answerer.load("smoke")).about()["seed"] == best


def test_the_same_answer_twice_and_other_draws_are_left_alone(tiny_rejection):
    decliner, image = Decliner.load(Answerer.load("smoke")), scene_split("smoke", "test").images[0]
    before = torch.random.get_rng_state()
    first = decliner.ask(image, QUESTION)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.randn(3)
    assert decliner.ask(image, QUESTION) == first
    assert first.total == pytest.approx(first.aleatoric + first.epistemic)
    assert first.epistemic > 0


def test_every_question_and_picture_has_noise_of_its_own(tiny_rejection, monkeypatch):
    decliner = Decliner.load(Answerer.load("smoke"))
    seeds, predict = [], decliner.head.predict

    def remember(fused, samples):
        seeds.append(torch.initial_seed())
        return predict(fused, samples)

    monkeypatch.setattr(decliner.head, "predict", remember)
    black, white = (np.full((40, 40, 3), grey, dtype=np.uint8) for grey in (0, 255))
    for picture, question in (
        (black, "Is it red?"),
        (black, "Is it blue?"),
        (white, "Is it red?"),
        (black, "Is it red?"),
    ):
        decliner.ask(picture, question)
    assert len(set(seeds)) == 3
    assert seeds[0] == seeds[3]


def test_answers_from_the_threshold_on(scene, capsys):
    """All calibration answers have the probability that is the threshold: the answer's own, then a little more."""
    likeliest = asked(capsys, scene, "--max-risk", "1")["answers"][0]["probability"]
    for planted, declined in ((likeliest, False), (min(1.0, likeliest + 1e-3), True)):
        plant(planted)
        found = asked(capsys, scene, "--max-risk", "0.1")
        assert found["promise"]["threshold"] == pytest.approx(planted, abs=1e-6)
        assert (found["declined"], found["answers"][0]["probability"]) == (declined, likeliest)
        assert main(["ask", str(scene), QUESTION, "--profile", "smoke", "--max-risk", "0.1"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert said.startswith("declined") is declined
        for part in ("n = 80", "at most 10 % of those", "with probability 5 %", "coverage there 100.0%", "photograph"):
            assert part in said


def test_the_promise_is_that_of_the_calibration_questions(tiny_rejection):
    decliner = Decliner.load(Answerer.load("smoke"))
    arrays = dict(decliner.record.arrays)
    errors, probability = np.arange(80) >= 60, np.linspace(0.9, 0.1, 80)
    arrays |= {"full.calibration.correct": ~errors, "full.calibration.probability": probability}
    decliner.record = dataclasses.replace(decliner.record, arrays=arrays)
    found, expected = decliner.promise(0.2, 0.1), sgr(errors, probability, 0.2, 0.1)
    assert (found.threshold, found.coverage) == (expected.threshold, expected.coverage)
    assert 0.5 < found.coverage < 1
    assert (found.questions, found.pictures) == (80, len(np.unique(arrays["pictures.calibration"])))


def test_declines_where_nothing_can_be_promised(scene, capsys):
    found = asked(capsys, scene, "--max-risk", "0")
    assert found["declined"]
    assert found["promise"]["threshold"] is None
    assert found["promise"]["coverage"] == 0
    assert main(["ask", str(scene), QUESTION, "--profile", "smoke", "--max-risk", "0"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "declined"
    assert "Nothing can be promised" in said


def test_json_of_an_answer_with_its_promise(scene, capsys):
    plant(0.0)
    found = asked(capsys, scene, "--max-risk", "1", "--delta", "0.2", "--top", "2")
    assert found["declined"] is False
    assert (found["promise"]["max_risk"], found["promise"]["delta"]) == (1, 0.2)
    said = Decliner.load(Answerer.load("smoke")).ask(open_picture(scene), QUESTION)
    assert [(a["answer"], a["probability"]) for a in found["answers"]] == said.answers[:2]
    assert found["uncertainty"] == {k: getattr(said, k) for k in ("total", "aleatoric", "epistemic")}
    assert found["head"]["samples"] == 5
    assert found["model"]["pictures"] == 40
    assert "declined" not in asked(capsys, scene)


def test_bad_promises(scene, capsys):
    def said(*words):
        return refused(capsys, scene, QUESTION, "--profile", "smoke", *words)

    assert "--delta is 0.1, but nothing is promised without --max-risk" in said("--delta", "0.1")
    assert "--max-risk is 5, it must lie between 0 and 1" in said("--max-risk", "5")
    assert "--max-risk is nan" in said("--max-risk", "nan")
    assert "--delta is 0, it must" in said("--max-risk", "0.1", "--delta", "0")
    assert "has no word" in refused(capsys, scene, "!", "--profile", "smoke", "--max-risk", "0.1")


def test_heads_behind_another_fusion_are_refused(scene, capsys, tiny_rejection):
    plant(fusion_hash="other")
    said = refused(capsys, scene, QUESTION, "--profile", "smoke", "--max-risk", "0.1")
    assert "trained behind another fusion" in said
    assert f"delete {tiny_rejection / 'smoke' / 'rejection' / rejection.KEPT}" in said
    assert "python -m vqa_core run rejection --profile smoke" in said


def test_warns_when_the_heads_code_has_changed(scene, capsys, monkeypatch):
    monkeypatch.setattr(runner, "code_hash_of", lambda experiment: "other")
    assert any("this head was trained" in w for w in asked(capsys, scene, "--max-risk", "1")["warnings"])


def test_without_heads(picture, capsys, tiny):
    said = refused(capsys, picture, QUESTION, "--profile", "smoke", "--max-risk", "0.1")
    assert str(tiny / "smoke" / "rejection" / rejection.KEPT / "seed0.json") in said
    assert "python -m vqa_core run rejection --profile smoke" in said
