"""Very small runs of ``scene_encoders`` and ``fusion``, and of what ``rejection`` reads, made once per process."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from vqa_core.encoders.meta import MetaCNN
from vqa_core.encoders.union import View
from vqa_core.experiments import caption_encoder, fusion, medical, rejection, rejection_tokens, runner, scene_encoders
from vqa_core.experiments.medical_encoders import Loaded


def _shrink_encoders(patch: pytest.MonkeyPatch) -> None:
    encoders = scene_encoders.PROFILES["smoke"]
    sizes = scene_encoders.SceneSizes(train=40, val=20, test=20, test_composition=20)
    pictures = dataclasses.replace(encoders.pictures, epochs=40, batch_size=16)  # enough to see some objects
    patch.setitem(scene_encoders.PROFILES, "smoke", dataclasses.replace(encoders, data=sizes, pictures=pictures))


def _shrink(patch: pytest.MonkeyPatch) -> None:
    """Make profile ``smoke`` so small that it takes a second, and forget what was made at another size."""
    fusions = fusion.PROFILES["smoke"]
    _shrink_encoders(patch)
    patch.setitem(fusion.PROFILES, "smoke", dataclasses.replace(fusions, dim=16, narrow=16, hidden=16))
    _forget()


def _forget() -> None:
    for made in (scene_encoders.scene_split, fusion.answer_vocabulary, fusion.feed_of, rejection_tokens.material_of):
        made.cache_clear()


def _shrink_captions(patch: pytest.MonkeyPatch) -> None:
    _shrink_encoders(patch)
    _forget_captions()


def _forget_captions() -> None:
    for made in (scene_encoders.scene_split, caption_encoder.captioned, caption_encoder.matching_tokens):
        made.cache_clear()


@pytest.fixture(scope="session")
def shrink_captions():
    """Function that makes profile ``smoke`` of the encoders take a second, and forgets what was made."""
    return _shrink_captions


@pytest.fixture(scope="session")
def forget_captions():
    """Function that forgets what experiment ``caption_encoder`` has in memory."""
    return _forget_captions


@pytest.fixture(scope="session")
def _made(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQA_RESULTS", str(root))
        _shrink(patch)
        runner.run_experiment("fusion", "smoke", unit=fusion.KEPT, workers=1, progress=False)
    _forget()
    return root


def _copied(made, tmp_path, patch: pytest.MonkeyPatch, shrink):
    """Yield a copy of ``made`` in which a test may write; the sizes are as they were when it was made."""
    root = tmp_path / "results"
    shutil.copytree(made, root)
    patch.setenv("VQA_RESULTS", str(root))
    shrink(patch)
    yield root
    _forget()


@pytest.fixture
def tiny(_made, tmp_path, monkeypatch):
    """Folder of results (a copy), in which profile ``smoke`` is very small; VQA_RESULTS points to it."""
    yield from _copied(_made, tmp_path, monkeypatch, _shrink)


def _shrink_rejection(patch: pytest.MonkeyPatch) -> None:
    """Heads on a few scenes and phantoms, whose encoders are not trained; there are no real data."""
    _shrink(patch)
    tokens, heads = rejection_tokens.PROFILES["smoke"], rejection.PROFILES["smoke"]
    scenes = rejection_tokens.SceneParts(train=240, test=80, shifted=24, noise=(0.0, 0.2))
    drawn = rejection_tokens.PhantomParts(train=12, val=4, calibration=6, test=6, shifted=4, severity=(2.0,))
    sizes = medical.Sizes(2, 6, 8, 8, 6, 8, 4, 0.1)
    patch.setitem(
        rejection_tokens.PROFILES, "smoke", dataclasses.replace(tokens, scenes=scenes, phantoms=drawn, sizes=sizes)
    )
    patch.setitem(rejection.PROFILES, "smoke", dataclasses.replace(heads, pictures=8))
    patch.setattr(medical, "absent", lambda: {"vqa_rad": "no real data in this test"})

    def load(profile, name):
        torch.manual_seed(len(name))
        return Loaded(View(MetaCNN("grid"), 84, grey=True).requires_grad_(False).eval(), (6, 6))

    patch.setattr(rejection_tokens, "load_encoder", load)


@pytest.fixture(scope="session")
def _made_rejection(_made, tmp_path_factory):
    root = tmp_path_factory.mktemp("rejection") / "results"
    shutil.copytree(_made, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQA_RESULTS", str(root))
        _shrink_rejection(patch)
        runner.run_experiment("rejection_tokens", "smoke", workers=1, progress=False)
        runner.run_experiment("rejection", "smoke", unit=rejection.KEPT, workers=1, progress=False)
    _forget()
    return root


@pytest.fixture
def tiny_rejection(_made_rejection, tmp_path, monkeypatch):
    """As ``tiny``, with what ``rejection`` reads and the records whose heads ``ask --max-risk`` uses."""
    yield from _copied(_made_rejection, tmp_path, monkeypatch, _shrink_rejection)
