"""CIFAR-10 in its two forms: the same pictures from both, damaged files named, no pickle run."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqa_core.data import cifar10


def pictures_and_labels(n=20):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 10


def png(picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def named(pictures, labels):
    return {f"{cifar10.CLASSES[c]}/{i:04}.png": png(p) for i, (p, c) in enumerate(zip(pictures, labels))}


def write_zip(folder: Path, split: str, members: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{split}.zip", "w") as z:
        for name, content in members.items():
            z.writestr(name, content)


def write_batch(path: Path, pictures, labels, old_numpy=True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = {"data": pictures.transpose(0, 3, 1, 2).reshape(len(labels), -1), "labels": labels.tolist()}
    content = pickle.dumps(batch, protocol=2)
    path.write_bytes(content.replace(b"numpy._core.", b"numpy.core.") if old_numpy else content)


def write_official(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    pictures, labels = pictures_and_labels(50)
    for i, name in enumerate(cifar10.BATCHES["train"]):
        rows = slice(10 * i, 10 * i + 10)
        write_batch(folder / cifar10.OFFICIAL / name, pictures[rows], labels[rows], old_numpy=i % 2 == 0)
    write_batch(folder / cifar10.OFFICIAL / "test_batch", pictures[:10], labels[:10])
    return pictures, labels


def test_zip_and_folder_give_the_same(tmp_path):
    pictures, labels = pictures_and_labels()
    write_zip(tmp_path / "a" / "cifar10", "train", named(pictures, labels))
    for name, content in named(pictures, labels).items():
        path = tmp_path / "b" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    zipped, plain = cifar10.load("train", tmp_path / "a"), cifar10.load("train", tmp_path / "b")
    assert zipped.content_hash() == plain.content_hash()
    assert zipped.form == "pictures"
    assert cifar10.count("train", tmp_path / "a") == cifar10.count("train", tmp_path / "b") == 20
    order = np.lexsort((np.arange(20), labels))  # by class, then by name
    assert np.array_equal(zipped.labels, labels[order])
    assert np.array_equal(zipped.pictures, pictures[order])


def test_the_official_form(tmp_path):
    pictures, labels = write_official(tmp_path / "cifar10")
    found = cifar10.load("train", tmp_path)
    assert found.form == "official"
    assert np.array_equal(found.pictures, pictures)
    assert np.array_equal(found.labels, labels)
    assert len(cifar10.load("test", tmp_path)) == 10
    assert not found.is_whole
    assert cifar10.count("train", tmp_path) == 50_000


def test_parts_of_each_class():
    pictures, labels = pictures_and_labels(50)
    whole = cifar10.LabelledPictures("train", "official", pictures, labels)
    first, rest = whole.per_class(0, 3), whole.per_class(3, None, "val")
    assert np.bincount(first.labels).tolist() == [3] * 10
    assert np.bincount(rest.labels).tolist() == [2] * 10
    assert rest.split == "val"
    assert np.array_equal(np.sort(np.concatenate([first.pictures[:, 0, 0, 0], rest.pictures[:, 0, 0, 0]])),
                          np.sort(pictures[:, 0, 0, 0]))  # fmt: skip
    assert first.content_hash() != rest.content_hash()


class _Evil:
    def __reduce__(self):
        return (Path.touch, (Path("was_run"),))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_official(tmp_path)
    (tmp_path / cifar10.OFFICIAL / "test_batch").write_bytes(pickle.dumps({"data": _Evil(), "labels": []}, protocol=2))
    with pytest.raises(ValueError, match=r"test_batch was not read.*could run any code"):
        cifar10.load("test", tmp_path)
    assert not (tmp_path / "was_run").exists()


def test_what_is_damaged_or_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"VQA_DATA.*download=True"):
        cifar10.load("train", tmp_path)
    with pytest.raises(ValueError, match="no split 'val'"):
        cifar10.load("val", tmp_path)
    pictures, labels = write_official(tmp_path)
    batch = tmp_path / cifar10.OFFICIAL / "data_batch_3"
    batch.unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3 is missing"):
        cifar10.load("train", tmp_path)
    write_batch(batch, pictures[:10], labels[:10] + 5)
    with pytest.raises(ValueError, match=r"data_batch_3.*labels from 0 to 9"):
        cifar10.load("train", tmp_path)
    batch.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="data_batch_3 was not read"):
        cifar10.load("train", tmp_path)


def test_pictures_that_are_none_are_named(tmp_path):
    pictures, labels = pictures_and_labels()
    good = named(pictures, labels)
    for name, content, said in (
        ("lion/0001.png", png(pictures[0]), "with a class of airplane"),
        ("cat/0001.txt", b"", "with a class of airplane"),
        ("cat/0001.jpg", b"rubbish", "damaged picture"),
        ("cat/0001.png", png(pictures[0][:16]), "32 × 16 pixels, expected 32 × 32"),
    ):
        write_zip(tmp_path, "train", good | {name: content})
        with pytest.raises(ValueError, match=said) as error:
            cifar10.load("train", tmp_path)
        assert name in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"neither test\.zip nor test/"):
        cifar10.load("test", tmp_path)
    (tmp_path / "test.zip").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="damaged archive"):
        cifar10.load("test", tmp_path)


@pytest.mark.realdata("cifar10")
def test_the_real_pictures(data_root):
    found = cifar10.load("test", data_root)
    per_class = np.bincount(found.labels)
    assert (per_class == per_class[0]).all()  # balanced, whole or subset
    assert len(per_class) == 10
    assert found.pictures.shape == (len(found), 32, 32, 3)
    assert 100 < found.pictures.mean() < 140
