"""A very small run of the experiments ``scene_encoders`` and ``fusion``, made once per process."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from vqa_core.experiments import caption_encoder, fusion, runner, scene_encoders


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
    for made in (scene_encoders.scene_split, fusion.answer_vocabulary, fusion.feed_of):
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


@pytest.fixture
def tiny(_made, tmp_path, monkeypatch):
    """Folder of results (a copy), in which profile ``smoke`` is very small; VQA_RESULTS points to it."""
    root = tmp_path / "results"
    shutil.copytree(_made, root)
    monkeypatch.setenv("VQA_RESULTS", str(root))
    _shrink(monkeypatch)
    yield root
    _forget()
