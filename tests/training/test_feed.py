import numpy as np
import pytest
import torch

from vqa_core.data.text import Vocabulary
from vqa_core.data.types import Sample
from vqa_core.training.feed import Feed


def samples():
    rows = [
        ("q0", "p0", "is it red?", "yes"),
        ("q1", "p1", "what colour is the large thing?", "red"),
        ("q2", "p0", "is it?", "moon"),
    ]
    return [Sample(q, p, text, answer, "x", "open") for q, p, text, answer in rows]


def make():
    data = samples()
    words = Vocabulary.of_words(s.question for s in data[:2])
    answers = Vocabulary.of_answers(s.answer for s in data[:2])
    pictures = np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])
    return Feed.of(data, pictures, [0, 1, 0], words, answers), words, answers


def test_batch_points_into_the_pictures_and_scales_them():
    feed, _, _ = make()
    batch = feed.batch([0, 1])
    assert batch.pictures.shape == (2, 3, 4, 4)
    assert batch.pictures[0].unique().tolist() == [-1.0]
    assert batch.pictures[1].unique().tolist() == [1.0]


def test_batch_is_cut_to_its_longest_question():
    feed, _, _ = make()
    assert feed.batch([0]).words.shape == (1, 4)
    assert feed.batch([0, 1]).words.shape == (2, 7)
    assert feed.batch([0, 1]).word_mask.sum(1).tolist() == [4, 7]


def test_answer_outside_the_training_vocabulary_is_marked():
    feed, _, answers = make()
    assert feed.batch([2]).answers.tolist() == [-100]
    assert "moon" not in answers


def test_order_is_followed_and_every_question_comes_once():
    feed, _, _ = make()
    batches = list(feed.batches(2, np.array([2, 0, 1])))
    assert [len(b.answers) for b in batches] == [2, 1]
    assert torch.cat([b.answers for b in batches]).tolist() == [-100, *feed.answers[[0, 1]].tolist()]


def test_other_pictures_keep_the_questions():
    feed, _, _ = make()
    other = feed.with_pictures([1, 0, 1])
    assert torch.equal(other.batch([0]).words, feed.batch([0]).words)
    assert not torch.equal(other.batch([0]).pictures, feed.batch([0]).pictures)


def test_lengths_and_index_are_checked():
    pictures = torch.zeros(2, 1, 3)
    with pytest.raises(ValueError, match="differ in length"):
        Feed(pictures, [0, 1], torch.zeros(3, 1), torch.ones(3, 1), [0, 0, 0])
    with pytest.raises(ValueError, match="picture_index goes to 2"):
        Feed(pictures, [2], torch.zeros(1, 1), torch.ones(1, 1), [0])


def test_sentences_may_be_shared_by_questions():
    words, mask = torch.tensor([[4, 5], [6, 0]]), torch.tensor([[True, True], [True, False]])
    feed = Feed(torch.zeros(1, 1, 3), [0, 0, 0], words, mask, [0, 1, 0], question_index=[1, 0, 1])
    assert feed.batch([0]).words.tolist() == [[6]]
    assert feed.batch([1, 2]).words.tolist() == [[4, 5], [6, 0]]
    with pytest.raises(ValueError, match="question_index goes to 2"):
        Feed(torch.zeros(1, 1, 3), [0], words, mask, [0], question_index=[2])
