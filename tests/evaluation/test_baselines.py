import numpy as np
import pytest

from vqa_core.data import vqa_rad
from vqa_core.data.types import Sample
from vqa_core.evaluation.baselines import (
    ceiling,
    lookup,
    majority,
    majority_by_question,
    question_only,
)
from vqa_core.evaluation.shuffled import shuffled_pictures
from vqa_core.evaluation.statistics import wilson


def sample(picture, question, answer, number=[0]):  # noqa: B006 - a counter for unique ids
    number[0] += 1
    return Sample(str(number[0]), picture, question, answer, "f", "open")


@pytest.fixture
def train():
    return [
        sample("p1", "what colour is the ball", "Red"),
        sample("p1", "how many balls are there", "2"),
        sample("p2", "what colour is the ball", "blue"),
        sample("p2", "is there a cube", "yes"),
        sample("p3", "is there a ball", "yes"),
    ]


@pytest.fixture
def test_questions():
    return [
        sample("p1", "which colour has the ball?", "red"),
        sample("p2", "the ball is of what colour", "blue"),
        sample("p9", "is there a cube", "no"),
        sample("p9", "is it day", "yes"),
    ]


def test_lookup_reads_the_answer_off_the_same_picture(train, test_questions):
    b = lookup(train, test_questions)
    assert b.predictions == ("red", "blue", "yes", "yes")
    np.testing.assert_array_equal(b.correct, [True, True, False, True])


def test_lookup_takes_the_first_of_equals():
    train = [sample("p", "is it so", "first"), sample("p", "is it so", "second")]
    assert (
        lookup(train, [sample("p", "is it so", "x"), sample("p", "unknown words", "x")]).predictions == ("first",) * 2
    )


def test_lookup_is_the_majority_where_pictures_are_disjoint(train):
    test = [sample("new", "what colour is the ball", "red"), sample("newer", "is there a cube", "yes")]
    assert lookup(train, test).predictions == majority(train, test).predictions == ("yes", "yes")


def test_majority_by_question(train, test_questions):
    assert majority_by_question(train, test_questions).predictions == ("yes",) * 4
    more = [*train, sample("p4", "What  colour is the ball", "blue")]
    assert majority_by_question(more, [sample("p", "what colour is the Ball", "x")]).predictions == ("blue",)


def test_question_only_learns_the_words_and_nothing_of_the_picture(train):
    many = [s for _ in range(20) for s in train]
    test = [sample("p1", "how many balls are there", "2"), sample("p2", "how many balls are there", "5")]
    assert question_only(many, test).predictions == ("2", "2")
    assert question_only(many, test).name == "question_only"
    assert question_only([train[0]], test).predictions == ("red", "red")


def test_a_balanced_set_gives_a_question_only_model_nothing():
    """Every question has both answers equally often, so no function of the question beats one half."""
    words = [f"word{i}" for i in range(20)]
    make = lambda: [sample(f"{w}{a}", f"is it {w}", a) for w in words for a in ("yes", "no")]  # noqa: E731
    assert question_only(make(), make()).correct.mean() == 0.5


def test_ceiling_counts_reachable_answers(test_questions):
    assert ceiling(["RED", "yes"], test_questions) == wilson(2, 4)


def test_no_training_question_is_an_error(test_questions):
    for baseline in (majority, majority_by_question, lookup):
        with pytest.raises(ValueError, match="at least one training question"):
            baseline([], test_questions)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("counts", [[1] * 9, [5, 5], [4, 1, 1, 2], [1, 3, 2, 7, 1], [3, 3, 3, 2]])
def test_no_question_keeps_its_picture(counts, seed):
    pictures = np.random.default_rng(seed).permutation(np.repeat([f"p{i}" for i in range(len(counts))], counts))
    p = shuffled_pictures(pictures, seed)
    assert sorted(p) == list(range(len(pictures)))
    assert not (pictures[p] == pictures).any()


def test_shuffled_pictures_stay_in_their_family_and_depend_on_the_seed():
    rng = np.random.default_rng(0)
    pictures, families = rng.integers(0, 40, 300), rng.integers(0, 4, 300)
    p = shuffled_pictures(pictures, 0, families)
    assert (families[p] == families).all()
    assert not (pictures[p] == pictures).any()
    assert np.array_equal(p, shuffled_pictures(pictures, 0, families))
    assert not np.array_equal(p, shuffled_pictures(pictures, 1, families))


def test_a_picture_with_most_of_the_questions_cannot_be_shuffled():
    with pytest.raises(ValueError, match="3 of the 5 questions"):
        shuffled_pictures([0, 0, 0, 1, 2], 0)
    with pytest.raises(ValueError, match="of family 'b'"):
        shuffled_pictures([0, 1, 2, 2], 0, ["a", "a", "b", "b"])


# -- VQA-RAD: known values of baselines that see no picture -----------------------------------------------------------


@pytest.fixture
def load_vqa_rad(data_root):
    return lambda split: vqa_rad.load(split, data_root)


def by_kind(test, values):
    """Closed, open and all, in per cent."""
    closed = np.array([s.kind == "closed" for s in test])
    return [round(100 * float(v.mean()), 1) for v in (values[closed], values[~closed], values)]


@pytest.mark.realdata("vqa_rad")
@pytest.mark.parametrize(
    ("split", "n", "known"),
    [
        ("train_3064", 3064, [72.1, 48.6, 62.7]),
        ("train_2780", 2780, [37.1, 1.1, 22.8]),
        ("train", 1797, [38.2, 1.1, 23.5]),
    ],
)
def test_lookup_on_vqa_rad(load_vqa_rad, split, n, known):
    train, test = load_vqa_rad(split), load_vqa_rad("test")
    assert (len(train), len(test)) == (n, 451)
    assert by_kind(test, lookup(train, test).correct) == known


@pytest.mark.realdata("vqa_rad")
def test_lookup_knows_nothing_of_new_pictures(load_vqa_rad):
    train, test = load_vqa_rad("train_disjoint"), load_vqa_rad("test")
    assert lookup(train, test).predictions == majority(train, test).predictions


@pytest.mark.realdata("vqa_rad")
def test_ceiling_on_vqa_rad(load_vqa_rad):
    test = load_vqa_rad("test")
    answers = [s.answer for s in load_vqa_rad("train_3064")]
    parts = [[s for s in test if s.kind == "closed"], [s for s in test if s.kind == "open"], test]
    assert [round(100 * ceiling(answers, part).mean, 1) for part in parts] == [97.8, 79.3, 90.5]
