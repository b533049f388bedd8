"""Tokeniser, vocabulary, padding."""

import numpy as np
import pytest

from vqa_core.data.text import PAD, UNKNOWN, Vocabulary, encode_questions, tokenize


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("Is the T2-weighted scan normal?", ["is", "the", "t2", "weighted", "scan", "normal", "?"]),
        ("What's 50% of a/b!", ["what's", "50", "%", "of", "a", "/", "b"]),
        ("  ", []),
    ],
)
def test_tokenize(sentence, words):
    assert tokenize(sentence) == words


def test_words_have_padding_and_unknown():
    vocabulary = Vocabulary.of_words(["a red ball", "a red box", "a"])
    assert vocabulary.symbols == (PAD, UNKNOWN, "a", "ball", "box", "red")
    assert vocabulary.ids(["red", "green"]).tolist() == [5, 1]
    assert vocabulary.id("green") == vocabulary.id(UNKNOWN)
    assert Vocabulary.of_words(["a red ball", "a"], min_count=2).symbols == (PAD, UNKNOWN, "a")


def test_answers_outside_are_ignored_labels():
    vocabulary = Vocabulary.of_answers(["yes", "no", "no", "two"], min_count=1)
    assert vocabulary.ids(["yes", "three"]).tolist() == [2, -100]
    assert "three" not in vocabulary
    with pytest.raises(ValueError, match="'three' is not among the 3 symbols"):
        vocabulary.id("three")
    assert vocabulary == Vocabulary(["no", "two", "yes"])
    assert hash(vocabulary) == hash(Vocabulary(["no", "two", "yes"]))
    assert vocabulary != Vocabulary(["no", "yes", "two"])


def test_wrong_vocabularies():
    with pytest.raises(ValueError, match="more than once"):
        Vocabulary(["a", "a"])
    with pytest.raises(ValueError, match="unknown symbol"):
        Vocabulary(["a"], unknown="b")


def test_encoding_pads_cuts_and_masks():
    questions = ["red ball", "is it a red ball ?", "!!"]
    vocabulary = Vocabulary.of_words(questions)
    words, mask = encode_questions(questions, vocabulary)
    assert words.shape == mask.shape == (3, 6)
    assert mask.sum(axis=1).tolist() == [2, 6, 1]
    assert (words[~mask] == 0).all()
    assert (words[mask] != 0).all()
    assert words[2, 0] == vocabulary.id(UNKNOWN)
    cut, cut_mask = encode_questions(questions, vocabulary, max_words=3)
    np.testing.assert_array_equal(cut, words[:, :3])
    assert cut_mask.sum(axis=1).tolist() == [2, 3, 1]
    with pytest.raises(ValueError, match="max_words is 0"):
        encode_questions(questions, vocabulary, max_words=0)


def test_encoding_does_not_depend_on_the_batch():
    questions = ["red ball", "is it a red ball ?"]
    vocabulary = Vocabulary.of_words(questions)
    together, mask = encode_questions(questions, vocabulary)
    for i, question in enumerate(questions):
        alone, _ = encode_questions([question], vocabulary)
        np.testing.assert_array_equal(together[i][mask[i]], alone[0])
