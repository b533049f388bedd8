"""Word vectors: formats, every kind of damage, the published array, and that loaded numbers are the ones in use."""

import os
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vqa_core import data
from vqa_core.data.text import Vocabulary, encode_questions, tokenize
from vqa_core.encoders.text import RecurrentText
from vqa_core.encoders.word_vectors import (
    WordVectorEmbedding,
    WordVectors,
    WordVectorText,
    embedding_matrix,
    read_glove,
    read_mevf,
)

LINES = "the 0.5 -1.0 2e-1\nbrain 1 2 3\nis 0 0 1\n"


def write(tmp_path, text, name="glove.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    return WordVectors(("brain", "is", "the"), rng.normal(size=(3, 4)).astype(np.float32), "toy")


@pytest.fixture
def vocabulary():
    return Vocabulary.of_words(["is the brain zzz"])  # <pad> <unk> brain is the zzz


def test_glove_lines(tmp_path):
    got = read_glove(write(tmp_path, LINES))
    assert got.words == ("the", "brain", "is")
    assert got.vectors.dtype == np.float32
    np.testing.assert_allclose(got.vectors, [[0.5, -1, 0.2], [1, 2, 3], [0, 0, 1]], rtol=1e-6)
    assert got.source.endswith("glove.txt")


def test_only_the_words_asked_for_are_kept(tmp_path):
    got = read_glove(write(tmp_path, LINES), words={"is", "absent"})
    assert got.words == ("is",)
    assert read_glove(write(tmp_path, LINES), words=[]).vectors.shape == (0, 3)


def test_words_that_are_or_contain_spaces(tmp_path):
    """As in the official files: '. . .' in glove.840B, and U+0085, at which str.splitlines ends a line."""
    got = read_glove(write(tmp_path, "the 1 2 3\n. . . 4 5 6\n\u0085 7 8 9\n"))
    assert got.words == ("the", ". . .", "\u0085")
    assert got.vectors[:, 0].tolist() == [1, 4, 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the 1 2 3\nis 1 2\n", r"glove\.txt, line 2: 2 numbers, the first line has 3"),
        ("the 1 2 3\nis 1 x 3\n", r"line 2: 'is' has something else than numbers \(.*'x'\)"),
        ("the 1 2 3\nis 1 nan 3\n", "line 2: the vector of 'is' has NaN"),
        ("the 1 2 3\n\nis 1 2 3\n", "line 2: 0 numbers"),
        ("the 1 2 3\nthe 1 2 3\n", "line 2: 'the' has a vector already"),
        ("400000 300\nthe 1 2 3\n", "line 1: .*without a header line"),
        (b"the 1 2 3\n\xff 1 2 3\n", "line 2: not UTF-8"),
        ("", "is empty"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_glove(write(tmp_path, text))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"glove\.txt is missing"):
        read_glove(tmp_path / "glove.txt")
    with pytest.raises(FileNotFoundError, match=r"glove6b_init_300d\.npy is missing"):
        read_mevf(tmp_path)


# -- the published array -----------------------------------------------------------------------------------------------


def write_mevf(folder, words=("the", "(eg", "brain"), matrix=None, numbers=None):
    matrix = np.array([[1, 2], [0, 0], [3, 4]], dtype=np.float32) if matrix is None else matrix
    np.save(folder / "glove6b_init_300d.npy", matrix, allow_pickle=True)
    numbers = {w: i for i, w in enumerate(words)} if numbers is None else numbers
    (folder / "dictionary.pkl").write_bytes(pickle.dumps([numbers, list(words)]))


def test_mevf_files_and_rows_of_zeros(tmp_path):
    write_mevf(tmp_path)
    got = read_mevf(tmp_path)
    assert got.words == ("the", "brain")
    assert got.vectors.tolist() == [[1, 2], [3, 4]]


def test_damaged_mevf_files_are_refused(tmp_path):
    write_mevf(tmp_path, numbers={"the": 0, "(eg": 2, "brain": 1})
    with pytest.raises(ValueError, match=r"dictionary\.pkl: not .* that agree"):
        read_mevf(tmp_path)
    write_mevf(tmp_path, matrix=np.ones((2, 2), dtype=np.float32))
    with pytest.raises(ValueError, match=r"float32 \(2, 2\); expected finite float32 \(3, D\)"):
        read_mevf(tmp_path)
    write_mevf(tmp_path, matrix=np.full((3, 2), np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="expected finite"):
        read_mevf(tmp_path)


class Attack:
    """A pickle that would run a command."""

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_no_pickle_runs_code(tmp_path):
    attack = Attack()
    attack.folder = str(tmp_path / "made by the pickle")
    write_mevf(tmp_path)
    (tmp_path / "dictionary.pkl").write_bytes(pickle.dumps([attack, []]))
    with pytest.raises(ValueError, match=r"dictionary\.pkl.*mkdir"):
        read_mevf(tmp_path)
    (tmp_path / "dictionary.pkl").write_bytes(pickle.dumps([{"a": Fraction(1)}, ["a"]]))  # harmless, and still refused
    with pytest.raises(ValueError, match=r"dictionary\.pkl.*Fraction"):
        read_mevf(tmp_path)
    write_mevf(tmp_path, matrix=np.array([[attack]], dtype=object))
    with pytest.raises(ValueError, match=r"npy: no array of numbers"):
        read_mevf(tmp_path)
    assert not (tmp_path / "made by the pickle").exists()


@pytest.mark.realdata("vqa_rad")
def test_published_array_for_vqa_rad(data_root):
    vectors = read_mevf(data_root / "vqa_rad" / "mevf_weights")
    assert vectors.vectors.shape == (1177 - 155, 300)
    assert {"brain", "lungs", "pneumothorax"} < set(vectors.words)
    assert not {"infarcted", "hypo-dense"} & set(vectors.words)  # rows of zeros
    row = {w: v / np.linalg.norm(v) for w, v in zip(vectors.words, vectors.vectors)}
    assert row["left"] @ row["right"] > 0.6 > 0.3 > row["left"] @ row["pneumothorax"]  # rows belong to their words

    train = Vocabulary.of_words(s.question for s in data.load("vqa_rad", "train_3064", data_root))
    matrix = embedding_matrix(vectors, train)
    assert matrix.found.sum() + len(matrix.missing) == len(train) - 2
    assert 0.75 < matrix.found.mean() < 1
    i = train.id("brain")
    np.testing.assert_array_equal(matrix.matrix[i], vectors.vectors[vectors.words.index("brain")])


# -- in the order of a vocabulary --------------------------------------------------------------------------------------


def test_matrix_follows_the_vocabulary(vectors, vocabulary):
    got = embedding_matrix(vectors, vocabulary)
    assert got.matrix.shape == (6, 4)
    for word in ("brain", "is", "the"):
        np.testing.assert_array_equal(got.matrix[vocabulary.id(word)], vectors.vectors[vectors.words.index(word)])
    assert got.found.tolist() == [False, False, True, True, True, False]
    assert (got.matrix[~got.found] == 0).all()
    assert got.missing == ("zzz",)
    assert str(got) == "3 of 4 words have a vector, 1 are missing"


def test_unknown_words_have_their_own_row(vectors, vocabulary):
    """Published code gives an unknown word the vector of the last word of the dictionary."""
    words, mask = encode_questions(["the xylophone"], Vocabulary.of_words(["is the brain"]))
    embedding = WordVectorEmbedding(embedding_matrix(vectors, Vocabulary.of_words(["is the brain"])).matrix, 5)
    unknown = embedding(torch.from_numpy(words))[0, 1]
    assert mask.all()
    assert words[0, 1] == 1
    assert (unknown[:4] == 0).all()  # no loaded vector …
    assert (unknown[4:] != 0).all()  # … and a learned one
    assert not torch.equal(unknown, embedding(torch.tensor([[len(embedding.loaded.weight) - 1]]))[0, 0])


def test_unfit_vocabularies_are_refused(vectors):
    with pytest.raises(ValueError, match=r"make it with Vocabulary\.of_words"):
        embedding_matrix(vectors, Vocabulary(["is", "the"]))
    with pytest.raises(ValueError, match="none of 2 words is in toy"):
        embedding_matrix(vectors, Vocabulary.of_words(["das gehirn"]))


# -- in use ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def matrix(vectors, vocabulary):
    return embedding_matrix(vectors, vocabulary).matrix


def test_embedding_is_loaded_beside_learned(matrix):
    embedding, words = WordVectorEmbedding(matrix, learned_dim=5), torch.tensor([[2, 3, 4, 0]])
    got = embedding(words)
    assert got.shape == (1, 4, 9) == (1, 4, embedding.embedding_dim)
    assert_close(got[0, :, :4], torch.from_numpy(matrix)[words[0]])
    assert (got[0, 3] == 0).all()  # padding, in both halves
    assert (got[0, :3, 4:] != 0).all()
    only_loaded = WordVectorEmbedding(matrix, learned_dim=0)
    assert_close(only_loaded(words), got[..., :4])
    assert sum(p.numel() for p in only_loaded.parameters()) == matrix.size


def test_learned_half_has_the_scale_of_the_loaded_one():
    matrix = np.zeros((2000, 20), dtype=np.float32)
    matrix[100:] = 0.3 * np.random.default_rng(0).normal(size=(1900, 20))  # 100 words are missing
    learned = WordVectorEmbedding(matrix, 30).learned.weight[1:]
    assert learned.std().item() == pytest.approx(0.3, rel=0.05)


def test_loaded_vectors_are_in_use(matrix):
    """Another array gives other states, the same array the same: the numbers really reach the output."""
    words, mask = torch.tensor([[2, 3, 4]]), torch.ones(1, 3, dtype=torch.bool)

    def states(matrix):
        torch.manual_seed(0)
        return WordVectorText(matrix, dim=7, learned_dim=0)(words, mask).tokens

    assert_close(states(matrix), states(matrix.copy()), rtol=0, atol=0)
    other = matrix.copy()
    other[3] += 1.0
    changed = (states(other) - states(matrix)).abs().amax(-1)[0]
    assert changed[0] == 0  # the word before it
    assert changed[1:].min() > 1e-3


def test_states_are_those_of_the_plain_encoder_with_the_same_numbers(matrix):
    encoder = WordVectorText(matrix, dim=7, kind="gru", learned_dim=0)
    plain = RecurrentText(len(matrix), 7, kind="gru", embedding_dim=4)
    plain.recurrent.load_state_dict(encoder.recurrent.state_dict())
    plain.embedding.weight.data.copy_(torch.from_numpy(matrix))
    words, mask = torch.randint(2, 6, (3, 5)), torch.ones(3, 5, dtype=torch.bool)
    assert_close(encoder(words, mask).tokens, plain(words, mask).tokens)


def test_training_moves_the_loaded_half_only_where_it_may_and_never_the_array(matrix):
    before, words, mask = matrix.copy(), torch.tensor([[2, 3, 0]]), torch.tensor([[True, True, False]])
    for trainable in (True, False):
        encoder = WordVectorText(matrix, dim=7, learned_dim=5, trainable=trainable)
        optimiser = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=1.0)
        encoder(words, mask).tokens.square().sum().backward()
        for name, parameter in encoder.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad.abs().max() > 0, name
        optimiser.step()
        moved = encoder.embedding.loaded.weight.detach() - torch.from_numpy(before)
        assert (moved[2:4].abs().max() > 0) == trainable
        assert (moved[0] == 0).all()  # padding stays
        np.testing.assert_array_equal(matrix, before)


def test_padding_changes_no_real_token(matrix):
    encoder, words = WordVectorText(matrix, dim=7, learned_dim=5), torch.tensor([[2, 3, 4]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    got = encoder(torch.tensor([[2, 3, 4, 5, 2]]), torch.tensor([[True, True, True, False, False]])).tokens
    assert_close(got[:, :3], encoder(words, mask).tokens)


def test_published_sizes():
    encoder = WordVectorText(np.zeros((3, 300), dtype=np.float32) + np.array([[0.0], [1], [2]], np.float32))
    assert encoder.embedding.embedding_dim == 600
    assert encoder.out_dim == 1024
    assert sum(p.numel() for p in encoder.recurrent.parameters()) == 4 * 1024 * (600 + 1024 + 2)


def test_impossible_options_are_refused(matrix):
    with pytest.raises(ValueError, match=r"row 0 \(padding\) zeros"):
        WordVectorEmbedding(matrix + 1)
    with pytest.raises(ValueError, match="float64"):
        WordVectorEmbedding(matrix.astype(np.float64))
    with pytest.raises(ValueError, match="learned_dim is -1"):
        WordVectorEmbedding(matrix, -1)


@pytest.mark.realdata("vqa_rad")
def test_real_questions_through_real_vectors(data_root):
    questions = [s.question for s in data.load("vqa_rad", "test", data_root)][:8]
    vocabulary = Vocabulary.of_words(questions)
    matrix = embedding_matrix(read_mevf(data_root / "vqa_rad" / "mevf_weights"), vocabulary).matrix
    words, mask = (torch.from_numpy(a) for a in encode_questions(questions, vocabulary))
    tokens = WordVectorText(matrix, dim=16, learned_dim=8)(words, mask).tokens
    assert tokens.shape == (8, max(len(tokenize(q)) for q in questions), 16)
    assert tokens.isfinite().all()
