"""Captions against the world: what the generator says is true, what is swapped is not."""

import random

import pytest

from vqa_core.data import scenes
from vqa_core.data.scenes import Scene, SceneObject
from vqa_core.data.scenes.captions import captions
from vqa_core.evaluation.caption_truth import KINDS, judge

RED = SceneObject("small", "solid", "red", "circle", 0.2, 0.5, 0.085)
BLUE = SceneObject("large", "striped", "blue", "cross", 0.7, 0.55, 0.135)
TWIN = SceneObject("small", "solid", "red", "circle", 0.4, 0.9, 0.085)
PAIR, THREE = Scene((RED, BLUE)), Scene((RED, BLUE, TWIN))


def test_every_caption_of_the_generator_is_true_and_of_a_kind():
    made = scenes.generate(60, seed=3, size=32, questions_per_picture=1)
    for scene in made.scenes:
        for caption in captions(scene, 10**6, random.Random(0)):
            found = judge(caption, scene)
            assert found.true, caption
            assert found.kind in KINDS
            assert all(found.found)


@pytest.mark.parametrize(
    ("caption", "kind", "true"),
    [
        ("a small solid red circle left of a large striped blue cross", "relation", True),
        ("a large striped blue cross left of a small solid red circle", "relation", False),
        ("a small solid red circle above a large striped blue cross", "relation", False),  # 0.05 apart: not clear
        ("a red circle left of a blue thing", "relation", True),
        ("a red circle left of a red circle", "relation", False),  # of itself
        ("a picture with exactly one red circle", "count", True),
        ("a picture with exactly two red circles", "count", False),
        ("a picture with exactly no green crosses", "count", True),
        ("a picture with exactly two things", "count", True),
        ("a picture with exactly one cross", "count", True),
        ("a small solid red circle and a large striped blue cross", "list", True),
        ("a small solid red circle and a small solid red circle", "list", False),  # there is only one
        ("there is a large striped blue cross", "single", True),
        ("a picture with a striped cross", "single", True),
        ("an orange circle", "single", False),
        ("red red red", None, False),
        ("", None, False),
        ("there is a red circle and", None, False),
        ("a red circle a blue cross", None, False),
    ],
)
def test_captions_of_a_pair(caption, kind, true):
    found = judge(caption, PAIR)
    assert (found.kind, found.true) == (kind, true)


def test_lists_need_as_many_things_as_they_name():
    assert judge("a red circle and a red circle", THREE).true
    assert judge("a red circle, a blue cross and a red circle", THREE).true
    assert not judge("a red circle, a blue cross and a blue cross", THREE).true


def test_what_is_named_and_what_of_it_is_there():
    found = judge("a red circle left of a green square", PAIR)
    assert found.described == (("red", "circle"), ("green", "square"))
    assert found.found == (True, False)
    assert not found.true
    assert judge("a picture with exactly no green squares", PAIR).found == (True,)


def test_a_swapped_caption_is_found_out_where_every_word_is_kept():
    made = scenes.generate(40, seed=5, size=32, questions_per_picture=1)
    swapped = 0
    for scene in made.scenes:
        for caption in captions(scene, 10**6, random.Random(0)):
            if judge(caption, scene).kind == "relation" and " left of " in caption:
                one, other = caption.split(" left of ")
                if one != other:
                    swapped += 1
                    back = judge(f"{other} left of {one}", scene)
                    assert back.described == judge(caption, scene).described[::-1]
                    if len(scene.matching(back.described[0])) == len(scene.matching(back.described[1])) == 1:
                        assert not back.true
    assert swapped > 50
