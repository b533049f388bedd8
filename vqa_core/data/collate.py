"""Samples to tensors: pictures resized once, questions padded, answers numbered."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vqa_core.data.text import Vocabulary, encode_questions
from vqa_core.data.types import Batch, Dataset, Sample

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FITS = ("pad", "stretch")


def resize(picture: np.ndarray, size: int, fit: str = "pad", fill: int = 0) -> np.ndarray:
    """A square picture, bilinear with antialiasing.

    Parameters
    ----------
    picture
        RGB, uint8 (H, W, 3).
    size
        Side of the result in pixels.
    fit
        ``"pad"`` keeps the proportions and centres the picture on a ground of grey value ``fill``;
        ``"stretch"`` fills the square.
    fill
        0 (black) to 255 (white).

    Returns
    -------
    uint8 (size, size, 3)
    """
    from PIL import Image

    _check_resize(size, fit, fill)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"a picture must be uint8 (H, W, 3), this one is {picture.dtype} {picture.shape}")
    height, width = picture.shape[:2]
    if fit == "stretch":
        new_height = new_width = size
    else:
        scale = size / max(height, width)
        new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    if (new_height, new_width) != (height, width):
        picture = np.asarray(Image.fromarray(picture).resize((new_width, new_height), Image.Resampling.BILINEAR))
    square = np.full((size, size, 3), fill, dtype=np.uint8)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square[top : top + new_height, left : left + new_width] = picture
    return square


def picture_array(
    dataset: Dataset,
    size: int,
    fit: str = "pad",
    fill: int = 0,
    cache: str | Path | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """All pictures of a data set, each read and resized once.

    Parameters
    ----------
    dataset
        n questions about N pictures.
    size, fit, fill
        As in :func:`resize`.
    cache
        A folder; the array is kept there and read back next time. The file is named after the data set, the size
        and ``Dataset.content_hash``. That hash knows pictures by their ids: delete the file after changing pictures
        in place.
    progress
        Show a bar while pictures are read.

    Returns
    -------
    pictures : uint8 (N, size, size, 3)
        In the order of ``dataset.picture_ids``.
    index : int64 (n,)
        ``pictures[index[i]]`` is the picture of ``dataset[i]``.
    """
    from tqdm import tqdm

    _check_resize(size, fit, fill)
    row = {picture_id: i for i, picture_id in enumerate(dataset.picture_ids)}
    index = np.array([row[s.picture_id] for s in dataset], dtype=np.int64)
    shape = (len(row), size, size, 3)

    file = None
    if cache is not None:
        name = f"{dataset.name}-{dataset.split}-{size}-{fit}-{fill}-{dataset.content_hash()[:16]}.npy"
        file = Path(cache) / name
        if file.is_file():
            return _read_cache(file, shape), index

    pictures = np.empty(shape, dtype=np.uint8)
    for picture_id, i in tqdm(row.items(), desc=f"{dataset.name} pictures", leave=False, disable=not progress):
        pictures[i] = resize(dataset.picture(picture_id), size, fit, fill)
    if file is not None:
        _write_atomically(file, pictures)
    return pictures, index


def normalise(
    pictures: np.ndarray, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """uint8 (B, H, W, 3) → float32 (B, 3, H, W): scaled to [0, 1], then (x − mean) / std per channel.

    The defaults are the ImageNet statistics that torchvision's encoders were trained with.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise ValueError(f"pictures must be uint8 (B, H, W, 3), they are {pictures.dtype} {pictures.shape}")
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
    return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def collate(
    samples: Sequence[Sample],
    pictures: np.ndarray | torch.Tensor,
    word_vocabulary: Vocabulary,
    answer_vocabulary: Vocabulary,
    max_words: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Batch:
    """B samples and their pictures as one :class:`Batch`.

    Parameters
    ----------
    samples
        B questions.
    pictures
        The picture of each sample: uint8 (B, H, W, 3), to be normalised, or float (B, 3, H, W) or cached image tokens,
        float (B, Nᵢ, D), which are passed on.
    word_vocabulary
        Made by ``Vocabulary.of_words`` from training questions.
    answer_vocabulary
        Made by ``Vocabulary.of_answers`` from training answers; an answer outside gets the ignored label −100.
    max_words
        Longer questions are cut there.
    mean, std
        As in :func:`normalise`.

    Returns
    -------
    Batch
        ``words`` are padded to the longest question of this batch, ``word_mask`` is True at words.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    if len(pictures) != len(samples):
        raise ValueError(f"{len(samples)} samples but {len(pictures)} pictures; give the picture of each sample")
    if word_vocabulary.unknown is None:
        raise ValueError("the word vocabulary has no unknown symbol; make it with Vocabulary.of_words")
    if isinstance(pictures, np.ndarray):
        pictures = normalise(pictures, mean, std)  # (B, 3, H, W)
    elif not pictures.is_floating_point():
        raise ValueError(f"pictures must be a uint8 array or a float tensor, this is a tensor of {pictures.dtype}")
    words, mask = encode_questions([s.question for s in samples], word_vocabulary, max_words)  # (B, Nₜ) each
    answers = answer_vocabulary.ids(s.answer for s in samples)  # (B,)
    return Batch(pictures, torch.from_numpy(words), torch.from_numpy(mask), torch.from_numpy(answers))


def _check_resize(size: int, fit: str, fill: int) -> None:
    if size < 1:
        raise ValueError(f"size is {size}, it must be at least 1 pixel")
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}, allowed are {', '.join(FITS)}")
    if not 0 <= fill <= 255:
        raise ValueError(f"fill is {fill}, it must lie between 0 and 255")


def _read_cache(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        pictures = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{file}: damaged picture cache ({error}); delete the file") from error
    if pictures.shape != shape or pictures.dtype != np.uint8:
        raise ValueError(f"{file}: picture cache is {pictures.dtype} {pictures.shape}, not {shape}; delete the file")
    return pictures


def _write_atomically(file: Path, array: np.ndarray) -> None:
    """Never leave half a file: write beside it, flush to disk, rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        try:
            np.save(part, array)
            part.flush()
            os.fsync(part.fileno())
            os.replace(part.name, file)
        except BaseException:
            os.unlink(part.name)
            raise
