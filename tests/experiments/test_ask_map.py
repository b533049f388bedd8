"""``python -m vqa_core ask --map``: the map of the answer, the picture that is written, how far to trust it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vqa_core import ask_map
from vqa_core.__main__ import main
from vqa_core.ask import Answerer
from vqa_core.experiments import Metric, Record, fusion, runner
from vqa_core.experiments.records import save_record
from vqa_core.experiments.scene_encoders import scene_split
from vqa_core.explain.maps import methods_for

QUESTION = "Is there a red circle?"
METHODS = ("raw_attention", "relevance", "grad_cam", "grad_cam_plus_plus", "integrated_gradients", "occlusion")


@pytest.fixture
def picture(tmp_path, tiny):
    """Write the first test picture to a file."""
    path = tmp_path / "scene.png"
    Image.fromarray(scene_split("smoke", "test").images[0]).save(path)
    return path


def plant(**shares: tuple[float, float, float]) -> None:
    """A record of the experiment with these shares and intervals, by method."""
    metrics = {
        f"{name}.pointing_game{end}": Metric(value, 1234)
        for name, interval in shares.items()
        for end, value in zip(("", ".low", ".high"), interval, strict=True)
    }
    provenance = {"code_hash": runner.code_hash_of(ask_map.EXPERIMENT)}
    save_record(Record(ask_map.spec_of("smoke"), metrics, provenance=provenance))


def asked(capsys, path, *words: str) -> dict:
    """What ``ask --json`` says."""
    assert main(["ask", str(path), QUESTION, "--profile", "smoke", "--json", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words: str) -> str:
    """Run ``ask``, which must end with exit code 2 and one line on stderr; return the line."""
    assert main(["ask", *map(str, words), "--profile", "smoke"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_the_map_belongs_to_the_answer(tiny):
    answerer, test = Answerer.load("smoke"), scene_split("smoke", "test")
    assert methods_for(answerer.model) == METHODS
    seen = 0
    for i in range(0, 40, 8):
        image, question = test.picture(test[i].picture_id), test[i].question
        answers = answerer.answer(image, question)
        for method in METHODS:
            found = answerer.explain(image, question, method, answers[0][0])
            assert torch.equal(found.logits, answerer.logits(image[None], [question]))
            assert answerer.answers[int(found.targets[0])] == answers[0][0]
            assert found.maps.shape == (1, 8, 8)
            assert found.maps.masked_select(~found.mask).eq(0).all()
            real = bool(found.mask.any())
            assert float(found.maps.sum()) == pytest.approx(float(real), abs=1e-5)
            seen += real
        other = answerer.explain(image, question, "grad_cam", answers[-1][0])
        assert answerer.answers[int(other.targets[0])] == answers[-1][0]
    assert seen, "the encoder sees no object in any of the pictures"


def test_raw_attention_is_that_of_the_fusion(tiny):
    answerer, test = Answerer.load("smoke"), scene_split("smoke", "test")
    image, question = test.picture(test[0].picture_id), test[0].question
    weights = answerer._output(image[None], [question]).fusion.attention[0, :, 0].mean(0)  # (N,)
    found = answerer.explain(image, question, "raw_attention", answerer.answers[0]).maps[0].flatten()
    torch.testing.assert_close(found * weights.sum(), weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".svg", ".pdf"])
def test_a_picture_is_written(picture, capsys, tmp_path, ending):
    out = tmp_path / f"out{ending}"
    found = asked(capsys, picture, "--map", out, "--method", "occlusion")["map"]
    assert (found["file"], found["method"]) == (str(out), "occlusion")
    assert np.shape(found["cells"]) == (8, 8)
    content = out.read_bytes()
    assert content.startswith({".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".svg": b"<?xml", ".pdf": b"%PDF"}[ending])
    if ending == ".png":
        image = Image.open(out)
        assert image.size == (1200, 675)
        assert QUESTION in image.text["Description"]
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_other_maps_are_other_pictures(picture, capsys, tmp_path):
    shown = Answerer.load("smoke"), Image.open(picture)
    image = np.asarray(shown[1].convert("RGB"))
    one, other = np.zeros((8, 8)), np.zeros((8, 8))
    one[1, 2], other[5, 6] = 1.0, 1.0
    written = []
    for k, cells in enumerate((one, other, other)):
        path = tmp_path / f"{k}.png"
        found = ask_map.AnswerMap("occlusion", "yes", cells, None, "not known")
        ask_map.write(path, image, shown[0].fitted(image)[0], QUESTION, found)
        written.append(np.asarray(Image.open(path).convert("RGB")))
    assert (written[0] != written[1]).any()
    np.testing.assert_array_equal(written[1], written[2])
    assert "highest in row 6 of 8, column 7 of 8" in Image.open(tmp_path / "1.png").text["Description"]


@pytest.mark.parametrize(
    ("share", "verdict"),
    [
        ((0.8, 0.75, 0.85), "better than that, and far from a proof"),
        ((0.32, 0.28, 0.36), "no better than that: do not trust it"),
        ((0.1, 0.08, 0.12), "worse than that: do not trust it"),
    ],
)
def test_says_how_far_to_trust_the_map(picture, capsys, tmp_path, share, verdict):
    plant(relevance=share, centre_bias=(0.3, 0.27, 0.33))
    found = asked(capsys, picture, "--map", tmp_path / "out.png", "--method", "relevance")
    score = found["map"]["score"]
    assert (score["value"], score["low"], score["high"], score["n"], score["current"]) == (*share, 1234, True)
    assert (score["centre"], score["centre_low"], score["centre_high"]) == (0.3, 0.27, 0.33)
    assert found["map"]["words"] in found["warnings"]
    assert main(["ask", str(picture), QUESTION, "--profile", "smoke", "--map", str(tmp_path / "out.png"),
                 "--method", "relevance"]) == 0  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    for part in (f"{share[0]:.1%} [{share[1]:.1%}, {share[2]:.1%}]", "n = 1,234", "30.0% [27.0%, 33.0%]", verdict):
        assert part in said
    assert "Map of" in said


def test_says_when_there_is_no_score(picture, capsys, tmp_path):
    found = asked(capsys, picture, "--map", tmp_path / "out.png")["map"]
    assert found["score"] is None
    assert "not known" in found["words"]
    assert str(ask_map.spec_of("smoke").path()) in found["words"]
    assert "python -m vqa_core run attention_maps --profile smoke --unit fusion.kept" in found["words"]
    plant(relevance=(0.5, 0.4, 0.6), centre_bias=(0.3, 0.2, 0.4))
    found = asked(capsys, picture, "--map", tmp_path / "out.png", "--method", "occlusion")["map"]
    assert "has no occlusion.pointing_game (it has centre_bias, relevance)" in found["words"]


def test_the_ends_of_an_interval_are_shares(tiny):
    plant(relevance=(0.2, -0.03, 0.5), centre_bias=(0.9, 0.7, 1.1))
    score, _ = ask_map.score_of("relevance", "smoke")
    assert (score.low, score.centre_high) == (0.0, 1.0)


def test_says_when_the_score_is_of_other_code(picture, capsys, tmp_path, monkeypatch):
    plant(raw_attention=(0.5, 0.4, 0.6), centre_bias=(0.3, 0.2, 0.35))
    monkeypatch.setattr(runner, "code_hash_of", lambda experiment: "other")
    found = asked(capsys, picture, "--map", tmp_path / "out.png")["map"]
    assert found["score"]["current"] is False
    assert "other code than today's" in found["words"]


def test_a_picture_without_an_object_has_an_empty_map(picture, capsys, tmp_path):
    namer = Answerer.load("smoke")
    namer.model.image_encoder.namer.names.bias[0] = -1e4
    image = scene_split("smoke", "test").images[0]
    shown = ask_map.answer_map(namer, image, QUESTION, namer.answers[0])
    assert not shown.cells.any()
    ask_map.write(tmp_path / "out.png", image, namer.fitted(image)[0], QUESTION, shown)
    assert "empty" in Image.open(tmp_path / "out.png").text["Description"]


def test_bad_arguments(picture, capsys, tmp_path):
    out = tmp_path / "out.png"
    said = refused(capsys, picture, QUESTION, "--map", out, "--method", "rollout")
    assert f"--method is 'rollout'; this model's fusion allows {', '.join(METHODS)}" in said
    assert "no map is made without --map FILE" in refused(capsys, picture, QUESTION, "--method", "occlusion")
    said = refused(capsys, picture, QUESTION, "--map", tmp_path / "out.txt")
    assert "must be one of .png, .svg, .pdf, .jpg" in said
    assert f"there is no folder {tmp_path / 'absent'}" in refused(
        capsys, picture, QUESTION, "--map", tmp_path / "absent" / "out.png"
    )
    assert not out.exists()
    assert fusion.KEPT == "attend_concat"  # METHODS above are those of this fusion
