import numpy as np
import pytest

from vqa_core.evaluation.accuracy import accuracy, by_family, is_correct, normalize_answer, plain, vqa_v2_accuracy
from vqa_core.evaluation.statistics import seeds_and_questions, wilson


def test_accuracy_ignores_case_and_spaces_only():
    predicted, answers = ["Yes", " right  lung", "no", "0"], ["yes ", "right lung", "yes", "O"]
    np.testing.assert_array_equal(is_correct(predicted, answers), [True, True, False, False])
    assert accuracy(predicted, answers) == wilson(2, 4)
    assert plain("A\tB\n") == "a b"
    with pytest.raises(ValueError, match="3 predictions for 4 answers"):
        accuracy(predicted[:3], answers)


def test_by_family_of_one_run():
    table = by_family(np.array([1, 1, 0, 1], bool), ["x", "y", "x", "y"])
    assert list(table.index) == ["x", "y", "all"]
    assert list(table.columns) == ["mean", "low", "high", "n"]
    assert table["n"].tolist() == [2, 2, 4]
    assert table["mean"].tolist() == [0.5, 1.0, 0.75]
    assert table.loc["all", "low"] == wilson(3, 4).low


def test_by_family_of_several_seeds():
    rng = np.random.default_rng(0)
    correct, families, pictures = rng.random((3, 90)) < 0.5, np.repeat(["a", "b", "c"], 30), np.arange(90) // 3
    table = by_family(correct, families, pictures)
    i = seeds_and_questions(correct[:, :30], pictures[:30])
    assert table.loc["a"].tolist() == [i.mean, i.low, i.high, 30]
    assert table.loc["all", "mean"] == pytest.approx(correct.mean())


@pytest.mark.parametrize(
    ("correct", "families", "groups"),
    [
        (np.ones(3), ["a"] * 4, None),
        (np.full(3, 0.3), ["a"] * 3, None),
        (np.ones(3), ["a"] * 3, [1, 2, 3]),
        (np.ones(2), ["a", "all"], None),
    ],
)
def test_by_family_refuses(correct, families, groups):
    with pytest.raises(ValueError, match=r"shape|soft|groups|'all'"):
        by_family(correct, families, groups)


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_is_the_mean_over_nine_of_ten(agreeing, expected):
    # 3 of 10 agree: leaving one of them out 2/3, leaving one of the seven others out 1, so (3 · 2/3 + 7) / 10 = 0.9.
    assert vqa_v2_accuracy("cat", ["cat"] * agreeing + ["dog"] * (10 - agreeing)) == pytest.approx(expected)


def test_vqa_accuracy_normalises_both_sides():
    assert vqa_v2_accuracy("Two", ["2"] * 10) == vqa_v2_accuracy("2", ["two."] * 10) == 1
    with pytest.raises(ValueError, match="several"):
        vqa_v2_accuracy("cat", ["cat"])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("The Dog", "dog"),
        ("an apple a day", "apple day"),
        ("none", "0"),
        ("zero", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("2.5", "2.5"),
        ("v. 2.5.", "v 2.5"),
        ("black/white", "black white"),  # inside a word: a space
        ("black / white", "black white"),  # beside a space: nothing
        ("t-shirt", "t shirt"),
        ("yes, it is", "yes it is"),
        ("1,000-2,000", "10002000"),  # a comma between digits drops every mark
        ("what?!", "what"),
        ("isnt", "isn't"),
        ("Dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("hes", "he's"),
        ("yall'd've", "y'all'd've"),
        ("oclock", "o'clock"),
        ("twas", "'twas"),
        ("don't", "don't"),
        (" two\ncats\t", "2 cats"),
    ],
)
def test_official_normalisation(answer, expected):
    assert normalize_answer(answer) == expected


@pytest.mark.parametrize("word", ["well", "were", "its", "hell", "wed", "shed", "ill", "id", "lets", "shell", "whore"])
def test_words_are_not_taken_for_contractions(word):
    assert normalize_answer(word) == word
