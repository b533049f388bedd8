"""Experiment ``scene_encoders``: targets, frames of questions, frozen tokens and their cache."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
import torch

from vqa_core.data import scenes
from vqa_core.data.scenes import ATTRIBUTES, Scene, SceneObject, execute
from vqa_core.data.text import encode_questions
from vqa_core.experiments import runner, scene_encoders
from vqa_core.experiments.records import load_record, save_record
from vqa_core.experiments.scene_encoders import (
    CellNamer,
    EncoderModel,
    FrameReader,
    NamedCells,
    SlotTokens,
    cell_targets,
    frame,
    load_encoders,
    naming_loss,
    naming_scores,
    scene_split,
    scene_tokens,
)
from vqa_core.training.feed import Feed

SMALL = EncoderModel(image_dim=12, width=8, text_dim=16, embedding_dim=8)


# ------------------------------------------------------------------------------------------- the picture encoder


def test_cell_targets_of_a_scene_made_by_hand():
    things = (
        SceneObject("large", "striped", "black", "cross", 0.99, 0.01, 0.135),  # last column, first row
        SceneObject("small", "solid", "red", "circle", 0.30, 0.55, 0.085),  # column 2, row 4
        SceneObject("small", "striped", "orange", "square", 1.0, 1.0, 0.085),  # the corner belongs to the last cell
    )
    targets = cell_targets([Scene(things), Scene(())], (8, 8)).reshape(2, 8, 8, 4)
    assert targets[0, 0, 7].tolist() == [1, 1, 7, 3]
    assert targets[0, 4, 2].tolist() == [0, 0, 0, 0]
    assert targets[0, 7, 7].tolist() == [0, 1, 1, 1]
    assert ((targets >= 0).all(-1).sum(), (targets == -100).all(-1).sum()) == (3, 2 * 64 - 3)


def test_naming_loss_falls_until_eight_pictures_are_known_by_heart():
    found = scenes.generate(8, seed=3, noise=0, clutter=0)
    model = CellNamer(SMALL, 64)
    targets = cell_targets(found.scenes, model.encoder.grid)
    feed = Feed(found.images, np.arange(8), np.zeros((8, 1), np.int64), np.ones((8, 1), bool), targets)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        loss = naming_loss(model, feed.batch(range(8)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    scores = naming_scores(model, feed)
    assert min(s.value for s in scores.values()) > 0.95
    assert scores["presence"].n == 8 * 64
    assert scores["colour"].n == sum(len(s.objects) for s in found.scenes)


def test_naming_loss_does_not_count_attributes_of_empty_cells():
    model = CellNamer(SMALL, 64).eval()
    pictures = torch.randn(2, 3, 64, 64)
    targets = torch.full((2, 64, 4), -100)
    targets[0, 5] = torch.tensor([1, 0, 7, 2])
    batch = Feed(torch.zeros(1, 1, 1), [0, 0], np.zeros((2, 1), np.int64), np.ones((2, 1), bool), targets).batch([0, 1])
    batch = batch._replace(pictures=pictures)
    logits = model(pictures).logits
    before = naming_loss(model, batch)
    model.forward = lambda *_: scene_encoders.Named(changed)
    changed = logits.clone()
    changed[0, 6:, 1:] += torch.randn_like(changed[0, 6:, 1:])
    torch.testing.assert_close(naming_loss(model, batch), before)
    changed[0, 5, 1:] += torch.randn(16)
    assert not torch.isclose(naming_loss(model, batch), before)


def test_named_cells():
    namer = CellNamer(SMALL, 64).eval()
    grid, pooled = NamedCells(namer), NamedCells(namer, "pooled")
    pictures = torch.randn(3, 3, 64, 64)
    tokens = grid(pictures).tokens
    assert tokens.shape == (3, 64, grid.out_dim) == (3, 64, 19)
    torch.testing.assert_close(pooled(pictures).tokens, tokens.sum(1, keepdim=True))
    presence, names = tokens[..., :1], tokens[..., 1:17].split([len(v) for v in ATTRIBUTES.values()], dim=-1)
    assert ((presence > 0) & (presence < 1)).all()
    for part in names:  # the values of each attribute share the presence among them
        torch.testing.assert_close(part.sum(-1, keepdim=True), presence)
    place = tokens[0, :, 17:].unflatten(0, (8, 8))
    assert place[0, 0].tolist() == [-1, -1]
    assert place[7, 0].tolist() == [1, -1]  # row, then column
    with pytest.raises(ValueError, match="form is 'bag'"):
        NamedCells(namer, "bag")


# ------------------------------------------------------------------------------------------ frames of questions

RED, CIRCLE = ["filter", "red"], ["filter", "circle"]
ONE, OTHER = ["unique", ["filter", "small", "red"]], ["unique", ["filter", "cross"]]
RED_CIRCLE = {"first.colour": "red", "second.shape": "circle"}
ONE_OTHER = {"first.size": "small", "first.colour": "red", "second.shape": "cross"}


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (["exist", ["filter", "large", "striped", "red", "cross"]],
         {"operation": "exist", "first.size": "large", "first.texture": "striped", "first.colour": "red",
          "first.shape": "cross"}),
        (["count", RED], {"operation": "count", "first.colour": "red"}),
        (["query", "texture", OTHER], {"operation": "query", "attribute": "texture", "first.shape": "cross"}),
        (["same", "texture", ONE, OTHER], {"operation": "same", "attribute": "texture", **ONE_OTHER}),
        (["in", ONE, ["left of", OTHER]], {"operation": "in", "relation": "left of", **ONE_OTHER}),
        (["in", ONE, ["below", OTHER]], {"operation": "in", "relation": "below", **ONE_OTHER}),
        (["exist", ["filter", "red", ["above", ["unique", CIRCLE]]]],
         {"operation": "exist", "relation": "above", **RED_CIRCLE}),
        (["more", RED, CIRCLE], {"operation": "more", **RED_CIRCLE}),
        (["fewer", RED, CIRCLE], {"operation": "fewer", **RED_CIRCLE}),
        (["as many", RED, CIRCLE], {"operation": "as many", **RED_CIRCLE}),
        (["and", ["exist", RED], ["exist", CIRCLE]], {"operation": "and", **RED_CIRCLE}),
        (["or", ["exist", RED], ["exist", CIRCLE]], {"operation": "or", **RED_CIRCLE}),
        (["and", ["exist", RED], ["not", ["exist", CIRCLE]]], {"operation": "and not", **RED_CIRCLE}),
        (["and", ["not", ["exist", RED]], ["not", ["exist", CIRCLE]]], {"operation": "and not not", **RED_CIRCLE}),
        (["xor", ["has", "small", OTHER], ["has", "red", OTHER]],
         {"operation": "xor", "first.shape": "cross", "third.size": "small", "third.colour": "red"}),
    ],
)  # fmt: skip
def test_frame_of_every_operation(program, expected):
    assert frame(program) == expected


def clashes(samples, read=frame) -> list[tuple]:
    """Pairs of programs that share a frame and differ in their answer on one of forty scenes."""
    worlds = scenes.generate(40, seed=99, objects=(1, 8)).scenes
    by_frame = defaultdict(dict)
    for s in samples:
        by_frame[json.dumps(read(s.meta["program"]), sort_keys=True)][json.dumps(s.meta["program"])] = s.meta["program"]

    def answers(program):
        for scene in worlds:
            try:
                yield execute(program, scene)
            except ValueError:  # "the red circle", of which there is none or there are two
                yield None

    return [
        (p, q)
        for programs in by_frame.values()
        for p, q in itertools.combinations(programs.values(), 2)
        if list(answers(p)) != list(answers(q))
    ]


@pytest.fixture(scope="module")
def asked():
    """Questions of all families, with every knob that changes what is asked."""
    return [
        *scenes.generate(400, seed=1),
        *scenes.generate(200, seed=2, pairs="unseen"),
        *scenes.generate(100, seed=3, objects=(1, 8), questions_per_picture=16),
    ]


def test_a_frame_says_all_that_the_answer_depends_on(asked):
    assert {s.family for s in asked} == set(scenes.FAMILIES)
    assert clashes(asked) == []


@pytest.mark.parametrize("lost", ["operation", "attribute", "relation", "second.colour", "third.size"])
def test_a_frame_with_a_slot_less_would_be_noticed(asked, lost):
    assert clashes(asked, lambda program: {k: v for k, v in frame(program).items() if k != lost})


# ------------------------------------------------------------------------------------------------------ text tokens


def reader_that_uses(*slots: bool) -> FrameReader:
    """A reader that says of each slot, whatever the question, whether it is used, and its first value if so."""
    reader = FrameReader(SMALL, 10, [4] * len(slots)).eval()
    with torch.no_grad():
        reader.slots.weight.zero_()
        reader.slots.bias.copy_(
            torch.tensor([[-40.0, 40, 0, 0] if used else [40.0, 0, 0, 0] for used in slots]).flatten()
        )
    return reader


def test_slot_tokens_put_used_slots_first():
    tokens, mask = SlotTokens(reader_that_uses(False, True, False, True))(
        torch.ones(2, 3).long(), torch.ones(2, 3).bool()
    )
    assert mask.tolist() == [[True, True, False, False]] * 2
    assert tokens.shape == (2, 4, 12)
    for place, slot in enumerate((1, 3)):  # in the order of the slots
        expected = torch.zeros(12)
        expected[3 * slot] = 1
        torch.testing.assert_close(tokens[0, place], expected)
    torch.testing.assert_close(tokens[:, 2:], torch.zeros(2, 2, 12))


def test_question_vector_is_the_sum_of_all_slots():
    reader = FrameReader(SMALL, 10, [4, 3, 5]).eval()
    words, mask = torch.randint(1, 10, (6, 5)), torch.ones(6, 5, dtype=torch.bool)
    slots, vector = SlotTokens(reader)(words, mask), SlotTokens(reader, "vector")(words, mask)
    assert vector.mask is None
    assert vector.tokens.shape == (6, 1, 9)
    torch.testing.assert_close(slots.tokens.sum(1, keepdim=True), vector.tokens)
    used = slots.mask.int()
    assert (used.diff(dim=1) <= 0).all()  # no padding before a used slot
    with pytest.raises(ValueError, match="form is 'words'"):
        SlotTokens(reader, "words")


def test_padding_of_words_changes_no_slot():
    tokens = SlotTokens(FrameReader(SMALL, 10, [4, 3]).eval())
    words, mask = torch.randint(2, 10, (4, 3)), torch.ones(4, 3, dtype=torch.bool)
    padded = torch.cat([words, torch.randint(0, 10, (4, 2))], 1), torch.cat([mask, torch.zeros(4, 2).bool()], 1)
    torch.testing.assert_close(tokens(*padded).tokens, tokens(words, mask).tokens)


# ----------------------------------------------------------------------------------------------- frozen, and cached


def test_encoders_are_frozen_and_named_when_they_are_absent(tiny):
    namer, reader, words = load_encoders("smoke")
    for module in (namer, reader):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
    assert "circle" in words
    (tiny / "smoke/scene_encoders/questions/seed0.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"encoder\(s\) questions .*run scene_encoders --profile smoke"):
        load_encoders("smoke")
    shutil.rmtree(tiny / "smoke/scene_encoders")
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing.*run scene_encoders --profile smoke"):
        scene_tokens("smoke", "test")


def test_tokens_are_those_of_the_encoders(tiny):
    tokens, found = scene_tokens("smoke", "test"), scene_split("smoke", "test")
    namer, reader, words = load_encoders("smoke")
    ids, mask = encode_questions([s.question for s in found], words)
    text = SlotTokens(reader)(torch.from_numpy(ids), torch.from_numpy(mask))
    torch.testing.assert_close(tokens.text[tokens.question_index], text.tokens, atol=1e-5, rtol=0)
    assert (tokens.text_mask[tokens.question_index] == text.mask).all()
    images = scene_encoders.as_float(torch.from_numpy(found.images))
    torch.testing.assert_close(tokens.image, NamedCells(namer)(images).tokens, atol=1e-5, rtol=0)
    assert [found.picture_ids[i] for i in tokens.picture_index] == [s.picture_id for s in found]


def test_cache_is_read_until_the_encoders_change(tiny):
    path = tiny / "smoke/scene_encoders/tokens_test.safetensors"
    first = scene_tokens("smoke", "test")
    stamp = path.stat().st_mtime_ns
    again = scene_tokens("smoke", "test")
    assert path.stat().st_mtime_ns == stamp
    assert all(torch.equal(a, b) for a, b in zip(first, again))

    specs = scene_encoders.specs("smoke")
    pictures = load_record(specs[0])
    other = {k: v + 1 if k == "names.bias" else v for k, v in pictures.arrays.items()}
    save_record(dataclasses.replace(pictures, arrays=other))
    runner._write_index(tiny / "smoke/scene_encoders/index.json", [load_record(spec) for spec in specs])
    changed = scene_tokens("smoke", "test")
    assert not torch.allclose(changed.image, first.image)
    assert torch.equal(changed.text, first.text)


def test_cache_is_refused_for_another_number_of_pictures(tiny, monkeypatch):
    assert len(scene_tokens("smoke", "test").image) == 20
    config = scene_encoders.PROFILES["smoke"]
    load_all = {spec.unit: load_record(spec) for spec in scene_encoders.specs("smoke")}
    fewer = dataclasses.replace(config, data=dataclasses.replace(config.data, test=10))
    monkeypatch.setitem(scene_encoders.PROFILES, "smoke", fewer)
    scene_split.cache_clear()
    for spec in scene_encoders.specs("smoke"):  # the encoders themselves are the same
        save_record(dataclasses.replace(load_all[spec.unit], spec=spec))
    assert len(scene_tokens("smoke", "test").image) == 10
