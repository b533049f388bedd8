"""Pictures resized once, cached safely; batches with masks."""

import numpy as np
import pytest
import torch

from vqa_core.data import Dataset, Sample, Vocabulary
from vqa_core.data.collate import IMAGENET_MEAN, IMAGENET_STD, collate, normalise, picture_array, resize

SAMPLES = [
    Sample("q0", "b", "is it red?", "yes", "f", "closed"),
    Sample("q1", "a", "what colour is the big ball?", "blue", "f", "open"),
    Sample("q2", "b", "is it?", "mauve", "f", "open"),
]
WORDS = Vocabulary.of_words(s.question for s in SAMPLES)
ANSWERS = Vocabulary(["blue", "yes"])


class Pictures:
    """Grey pictures of 10 × 20 pixels that counts how often it is read."""

    def __init__(self):
        self.reads = []

    def __call__(self, picture_id):
        self.reads.append(picture_id)
        return np.full((10, 20, 3), ord(picture_id), dtype=np.uint8)


def dataset(samples=SAMPLES):
    return Dataset("toy", "train", samples, Pictures())


# --- resizing -------------------------------------------------------------------------------------------------------


def test_pad_keeps_proportions_and_centres():
    square = resize(np.full((10, 20, 3), 100, dtype=np.uint8), 8, fill=7)
    assert square.shape == (8, 8, 3)
    assert (square[2:6] == 100).all()
    assert (square[:2] == 7).all()
    assert (square[6:] == 7).all()


def test_stretch_fills_the_square():
    assert (resize(np.full((10, 20, 3), 100, dtype=np.uint8), 8, "stretch") == 100).all()


def test_the_right_size_is_left_alone():
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize(picture, 16), picture)


def test_shrinking_averages():
    """A fine chessboard becomes grey: antialiasing, not picking of pixels."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    inside = resize(board, 8)[1:-1, 1:-1].astype(int)
    assert abs(inside - 127).max() < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"fit": "crop"}, "fit is 'crop', allowed are pad, stretch"),
        ({"fill": 256}, "fill is 256"),
        ({"picture": np.zeros((4, 4), dtype=np.uint8)}, r"uint8 \(H, W, 3\)"),
        ({"picture": np.zeros((4, 4, 3))}, "float64"),
    ],
)
def test_wrong_resize(change, message):
    with pytest.raises(ValueError, match=message):
        resize(**({"picture": np.zeros((4, 4, 3), dtype=np.uint8), "size": 4} | change))


# --- the array of all pictures --------------------------------------------------------------------------------------


def test_each_picture_is_read_once_and_indexed():
    d = dataset()
    pictures, index = picture_array(d, 8, "stretch", progress=False)
    assert pictures.shape == (2, 8, 8, 3)
    assert pictures.dtype == np.uint8
    assert index.dtype == np.int64
    assert index.tolist() == [0, 1, 0]
    assert d._read_picture.reads == ["b", "a"]
    for i, sample in enumerate(d):
        assert (pictures[index[i]] == ord(sample.picture_id)).all()


def test_cache_is_used_and_keyed(tmp_path):
    first, _ = picture_array(dataset(), 8, cache=tmp_path / "cache", progress=False)
    again = dataset()
    second, index = picture_array(again, 8, cache=tmp_path / "cache", progress=False)
    np.testing.assert_array_equal(first, second)
    assert index.tolist() == [0, 1, 0]
    assert again._read_picture.reads == []
    for other, options in (
        (dataset(SAMPLES[:2]), {"size": 8}),
        (dataset(), {"size": 9}),
        (dataset(), {"size": 8, "fit": "stretch"}),
        (dataset(), {"size": 8, "fill": 5}),
    ):
        picture_array(other, **options, cache=tmp_path / "cache", progress=False)
        assert other._read_picture.reads == ["b", "a"]
    assert not list((tmp_path / "cache").glob("*.part"))


def test_damaged_cache_is_named_not_used(tmp_path):
    picture_array(dataset(), 8, cache=tmp_path, progress=False)
    file = next(tmp_path.glob("*.npy"))
    np.save(file, np.zeros((1, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"toy-train-8.*delete the file"):
        picture_array(dataset(), 8, cache=tmp_path, progress=False)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged picture cache"):
        picture_array(dataset(), 8, cache=tmp_path, progress=False)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        picture_array(dataset(), 8, cache=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


# --- batches --------------------------------------------------------------------------------------------------------


def test_normalise_closed_form():
    pictures = np.zeros((2, 4, 5, 3), dtype=np.uint8)
    pictures[..., 1] = 255
    x = normalise(pictures)
    assert x.shape == (2, 3, 4, 5)
    assert x.dtype == torch.float32
    for channel, value in enumerate((0.0, 1.0, 0.0)):
        expected = (value - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        torch.testing.assert_close(x[:, channel], torch.full((2, 4, 5), expected))
    plain = normalise(pictures, (0, 0, 0), (1, 1, 1))
    assert plain.unique().tolist() == [0.0, 1.0]


def test_batch_of_pictures():
    pictures, index = picture_array(dataset(), 8, progress=False)
    batch = collate(SAMPLES, pictures[index], WORDS, ANSWERS)
    assert batch.pictures.shape == (3, 3, 8, 8)
    assert batch.words.shape == batch.word_mask.shape == (3, 7)
    assert batch.words.dtype == batch.answers.dtype == torch.int64
    assert batch.word_mask.dtype == torch.bool
    assert batch.word_mask.sum(1).tolist() == [4, 7, 3]
    assert (batch.words[~batch.word_mask] == 0).all()
    assert batch.answers.tolist() == [1, 0, -100]  # mauve is not in the vocabulary
    torch.testing.assert_close(batch.pictures[0], batch.pictures[2])
    assert batch.to("cpu").words is batch.words


def test_batch_of_cached_tokens_is_passed_on():
    tokens = torch.randn(3, 5, 6)
    assert collate(SAMPLES, tokens, WORDS, ANSWERS).pictures is tokens


def test_a_sample_does_not_depend_on_its_batch():
    pictures, index = picture_array(dataset(), 8, progress=False)
    batch = collate(SAMPLES, pictures[index], WORDS, ANSWERS)
    for i in range(3):
        alone = collate(SAMPLES[i : i + 1], pictures[index[i : i + 1]], WORDS, ANSWERS)
        assert torch.equal(alone.pictures[0], batch.pictures[i])
        assert torch.equal(alone.words[0], batch.words[i][batch.word_mask[i]])
        assert torch.equal(alone.answers[0], batch.answers[i])


def test_max_words_cuts():
    batch = collate(SAMPLES, torch.zeros(3, 1, 2), WORDS, ANSWERS, max_words=3)
    assert batch.words.shape == (3, 3)


def test_wrong_batches():
    pictures = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="at least one sample"):
        collate([], pictures[:0], WORDS, ANSWERS)
    with pytest.raises(ValueError, match="3 samples but 2 pictures"):
        collate(SAMPLES, pictures[:2], WORDS, ANSWERS)
    with pytest.raises(ValueError, match="no unknown symbol"):
        collate(SAMPLES, pictures, ANSWERS, ANSWERS)
    with pytest.raises(ValueError, match=r"tensor of torch\.uint8"):
        collate(SAMPLES, torch.from_numpy(pictures), WORDS, ANSWERS)
    with pytest.raises(ValueError, match="float64"):
        collate(SAMPLES, pictures.astype(float), WORDS, ANSWERS)


@pytest.mark.realdata("nlvr")
def test_real_pictures_survive_resizing(data_root):
    from vqa_core import data

    d = data.load("nlvr", "dev", data_root).subset(range(40))
    pictures, index = picture_array(d, 64, fill=255, progress=False)
    assert pictures.shape == (40, 64, 64, 3)
    original = d.picture(d[0].picture_id)
    band = pictures[index[0]][24:40]  # 64 × 16 pixels of picture, the rest is white ground
    assert (pictures[index[0]][:24] == 255).all()
    assert abs(band.mean() - original.mean()) < 2
