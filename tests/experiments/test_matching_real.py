"""Matching on real data: what is left out and why, batches and galleries, planted signals, encoders trained too."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vqa_core.data import nlvr
from vqa_core.encoders.resnet import ResNet
from vqa_core.encoders.text import RecurrentText
from vqa_core.experiments import fusion_real as fr
from vqa_core.experiments import matching_real as mr
from vqa_core.experiments.caption_encoder import MatchingTokens
from vqa_core.experiments.cross_attention import Gallery, Model, Recipe
from vqa_core.experiments.records import Spec, load_record
from vqa_core.experiments.runner import run_spec
from vqa_core.experiments.scene_encoders import PROFILES as ENCODER_PROFILES
from vqa_core.experiments.scene_encoders import CellNamer
from vqa_core.fusion.cross_attention import VERSIONS
from vqa_core.fusion.output import last_token
from vqa_core.training.feed import as_float
from vqa_core.training.loop import Training
from vqa_core.training.matching import contrastive_loss

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "black": (0, 0, 0), "yellow": (255, 255, 0)}
PLACES = ("first", "second", "third", "left", "right", "middle")
SENTENCES = [f"there is a {colour} block in the {place} box" for place in PLACES for colour in COLOURS]


@pytest.fixture(autouse=True)
def _own_caches(monkeypatch):
    """What modules remember of one data folder must not reach the next test; no weights but a test's own."""
    for name in ("VQA_RESNET", "VQA_BERT"):
        monkeypatch.delenv(name, raising=False)
    yield
    for cached in (fr.splits_of, fr.real_tokens, fr.image_side, mr.prepared, mr._digest):
        cached.cache_clear()


def write_nlvr(root):
    """NLVR in small: a coloured block; each sentence is true of two pictures and false of one.

    Training has the first 16 sentences; ``dev`` has the other 8, and one of training's in capitals.
    """
    rng = np.random.default_rng(0)
    for split, sentences in {"train": SENTENCES[:16], "dev": [*SENTENCES[16:], SENTENCES[0].upper()]}.items():
        folder = root / "nlvr" / split
        (folder / "images").mkdir(parents=True)
        lines = []
        for i, (sentence, k) in enumerate(itertools.product(sentences, range(3))):
            name, label = f"{i // 3}-{k}", "true" if k < 2 else "false"
            picture = np.full(nlvr.PICTURE_SHAPE, 220, np.uint8)
            x, y = rng.integers(0, 80, 2)
            picture[y : y + 20, x : x + 20] = COLOURS[list(COLOURS)[i // 3 % 4]]
            Image.fromarray(picture).save(folder / "images" / f"{split}-{name}-0.png")
            lines.append(json.dumps({"identifier": name, "sentence": sentence, "label": label, "directory": "1"}))
        (folder / f"{split}.json").write_text("\n".join(lines) + "\n")


def write_flickr8k(root, captions="a man with a {}"):
    """Flickr8k in the official form: 12 training, 4 validation and 6 test pictures of one colour each."""
    folder = root / "flickr8k"
    (folder / "Flicker8k_Dataset").mkdir(parents=True)
    names = [f"{i:02d}_x.jpg" for i in range(22)]
    rng = np.random.default_rng(1)
    for name in names:
        colour = rng.integers(0, 255, 3).astype(np.uint8)
        Image.fromarray(np.broadcast_to(colour, (20, 30, 3)).copy()).save(folder / "Flicker8k_Dataset" / name)
    words = ["dog", "ball", "hat", "boat", "kite"]
    lines = [f"{name}#{k}\t{captions.format(words[k])} {i}" for i, name in enumerate(names) for k in range(5)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    for split, part in {"train": names[:12], "dev": names[12:16], "test": names[16:]}.items():
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(part) + "\n")
    return folder


def tiny_bert(folder):
    """A saved BertModel of 16 features with its tokeniser."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "with", "dog", "ball", "hat", "boat", "kite"]
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(folder)
    return folder


def shrunk(patch):
    """Make profile ``smoke`` fit the small data."""
    config = mr.PROFILES["smoke"]
    sizes = fr.Sizes("nlvr", 0.25)
    data = {
        "nlvr": replace(config.data["nlvr"], sizes=sizes, gallery=Gallery(5, 2)),
        "flickr8k": replace(config.data["flickr8k"], gallery=Gallery(5, 2)),
    }
    recipes = {
        name: {p: replace(r, batch_size=4, steps=3) for p, r in of.items()} for name, of in config.recipes.items()
    }
    patch.setitem(mr.PROFILES, "smoke", replace(config, data=data, recipes=recipes))


@pytest.fixture
def with_nlvr(tmp_path, monkeypatch):
    """A small NLVR and nothing else; an untrained scene encoder; results in a folder of their own."""
    write_nlvr(tmp_path)
    monkeypatch.setenv("VQA_DATA", str(tmp_path))
    monkeypatch.setenv("VQA_RESULTS", str(tmp_path / "results"))
    index = tmp_path / "results" / "smoke" / "scene_encoders" / "index.json"
    index.parent.mkdir(parents=True)
    index.write_text("[]")
    torch.manual_seed(0)
    namer = CellNamer(ENCODER_PROFILES["smoke"].model, 64).eval()
    monkeypatch.setattr(fr, "load_encoders", lambda profile: (namer, None, None))
    shrunk(monkeypatch)
    return tmp_path


@pytest.fixture
def with_flickr(tmp_path, monkeypatch):
    """A small Flickr8k, a random ResNet-18 and a tiny random BERT; nothing else."""
    write_flickr8k(tmp_path)
    torch.save(ResNet("grid", 18).backbone.state_dict(), tmp_path / "resnet.pth")
    tiny_bert(tmp_path / "bert")
    monkeypatch.setenv("VQA_DATA", str(tmp_path))
    monkeypatch.setenv("VQA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("VQA_RESNET", str(tmp_path / "resnet.pth"))
    monkeypatch.setenv("VQA_BERT", str(tmp_path / "bert"))
    monkeypatch.setattr(mr, "DEPTH", 18)
    shrunk(monkeypatch)
    return tmp_path


def spec_of(unit, profile="smoke"):
    return next(s for s in mr.specs(profile) if s.unit == unit)


# --------------------------------------------------------------------------------------------------- what there is


def test_what_is_absent_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(tmp_path))
    assert list(mr.absent()) == list(mr.NEEDS)
    assert mr.specs("gpu") == []
    write_nlvr(tmp_path)
    missing = mr.absent()
    assert list(missing) == ["nlvr.finetuned", "flickr8k", "flickr8k.finetuned"]
    assert missing["flickr8k"].count(";") == 2  # pictures, ResNet and BERT
    assert not any(str(tmp_path) in reason for reason in missing.values())  # these go into the book
    units = {f"nlvr.{p}.{v}" for p in mr.PROTOCOLS for v in mr.SHOWN}
    for profile in mr.PROFILES:
        assert {s.unit for s in mr.specs(profile)} == units


def test_with_everything_there_are_all_units(with_flickr):
    write_nlvr(with_flickr)
    assert mr.absent() == {}
    for profile, config in mr.PROFILES.items():
        specs = mr.specs(profile)
        protocols = (*mr.PROTOCOLS, "finetuned") if config.finetuning else mr.PROTOCOLS
        assert {s.unit for s in specs} == {f"{d}.{p}.{v}" for d in mr.DATASETS for p in protocols for v in mr.SHOWN}
        assert len({s.path() for s in specs}) == len(specs)
        for s in specs:
            tuned = ".finetuned." in s.unit
            assert s.model.seeds == (1 if tuned else config.seeds)
        if config.finetuning:
            seeds = [s.seed for s in specs if s.unit == "nlvr.finetuned.v9"]
            assert seeds == list(range(config.finetuning.seeds))
        for name, of in config.recipes.items():
            scoring = {p: (r.scoring, r.leaky) for p, r in of.items()}
            clean = ("pairwise", False)
            assert scoring == {"published": ("in_batch", True), "pairwise": clean, "tokens": clean}, name


def test_weights_that_are_not_there_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("VQA_RESNET", str(tmp_path / "no.pth"))
    with pytest.raises(FileNotFoundError, match=r"VQA_RESNET is .*no\.pth'; set it to a file"):
        mr.resnet_file()
    with pytest.raises(FileNotFoundError, match=r"VQA_BERT is '\.'; set it to a folder"):
        mr.bert_folder()


# ------------------------------------------------------------------------------------------------ NLVR's sentences


def test_captions_of_nlvr_are_true_sentences_that_no_two_splits_share(with_nlvr):
    sizes = mr.PROFILES["smoke"].data["nlvr"].sizes
    parts = mr.true_sentences(sizes)
    answers = {s.picture_id: (s.question, s.answer) for part in fr.splits_of(sizes).values() for s in part}
    words = {}
    for split, part in parts.items():
        assert all(answers[i] == (c, "true") for i, (c,) in zip(part.picture_ids, part.captions))
        words[split] = {c.lower() for (c,) in part.captions}
        by_group = {}
        for g, (c,) in zip(part.group.tolist(), part.captions):
            by_group.setdefault(g, set()).add(c.lower())
        assert [len(s) for s in by_group.values()] == [1] * len(words[split])  # a group is a sentence
    assert words["test"] == set(SENTENCES[16:])  # without the one that training has, in capitals
    assert words["train"] | words["val"] == set(SENTENCES[:16])
    assert not words["train"] & words["val"]
    assert len(parts["test"].picture_ids) == 16


@pytest.mark.realdata("nlvr")
def test_real_sentences(data_root, monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(data_root))
    parts = mr.true_sentences(fr.Sizes("nlvr", 0.15))
    pictures = {split: set(part.picture_ids) for split, part in parts.items()}
    sentences = {split: {c for (c,) in part.captions} for split, part in parts.items()}
    for one, other in itertools.combinations(parts, 2):
        assert not pictures[one] & pictures[other]
        assert not sentences[one] & sentences[other]
    assert len(np.unique(parts["test"].group)) >= 100  # the gallery of profile cpu


def test_cells_are_averaged_inside_their_box():
    number = torch.arange(192.0).view(1, 192, 1)
    found = mr.averaged_cells(number, 4)[0, :, 0].view(3, 2, 2)  # box, row, column
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    for box in range(3):
        cells = 64 * box + 8 * rows + columns
        blocks = [[cells[4 * r : 4 * r + 4, 4 * c : 4 * c + 4].mean() for c in (0, 1)] for r in (0, 1)]
        torch.testing.assert_close(found[box], torch.tensor(blocks))
    assert torch.equal(mr.averaged_cells(number, 1), number)
    assert torch.equal(mr.averaged_cells(number, 8).flatten(), torch.tensor([31.5, 95.5, 159.5]))


def test_standardising():
    torch.manual_seed(0)
    like = torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.0]) + 2
    found = mr.standardised(like, like)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(0), torch.tensor([1.0, 1.0, 0.0]))
    far = mr.standardised(torch.tensor([[1e6, -1e6, 3.0]]), like)
    assert far.tolist() == [[mr.FARTHEST, -mr.FARTHEST, 1.0]]


def test_tokens_of_nlvr_are_kept_and_made_anew_when_the_encoders_change(with_nlvr):
    data = mr.PROFILES["smoke"].data["nlvr"]
    first = mr.prepared("smoke", data)
    train = first.splits["train"]
    p = len(mr.true_sentences(data.sizes)["train"].picture_ids)
    assert train.image.shape[:2] == (p, 12)
    assert train.text.shape[:2] == train.text_mask.shape[:2] == (p, 1)
    assert train.text_mask[0, 0].sum() == 9  # words of a sentence
    assert torch.isfinite(train.image).all()
    torch.testing.assert_close(train.image.float().mean((0, 1)), torch.zeros(train.image.shape[-1]), atol=0.01, rtol=0)
    last = last_token(train.text[:, 0].float(), train.text_mask[:, 0])  # shifted and scaled otherwise, so correlated
    one = train.text_one[:, 0].float()
    together = torch.corrcoef(torch.stack([last[:, 0], one[:, 0]]))[0, 1]
    assert together > 0.999
    assert set(first.about) == {"nats_per_next_word", "nats_per_set_of_words", "data_hash"}

    path = with_nlvr / "results" / "smoke" / "matching_real" / "tokens_nlvr.safetensors"
    stamp = path.stat().st_mtime_ns
    mr.prepared.cache_clear()
    second = mr.prepared("smoke", data)
    assert path.stat().st_mtime_ns == stamp
    assert second.about == first.about
    assert all(torch.equal(a, b) for s in first.splits for a, b in zip(first.splits[s], second.splits[s], strict=True))
    (with_nlvr / "results" / "smoke" / "scene_encoders" / "index.json").write_text('["other"]')
    mr.prepared.cache_clear()
    assert mr.prepared("smoke", data).about["data_hash"] != first.about["data_hash"]
    assert path.stat().st_mtime_ns != stamp


# ------------------------------------------------------------------------------------------- batches and galleries

GROUPS = np.repeat(np.arange(12), [1, 2, 3] * 4)  # 24 pictures of 12 sentences


def test_a_batch_has_no_group_twice_and_an_epoch_all():
    recipe = Recipe("pairwise", False, 40, 1e-3, batch_size=5)
    pairs = mr.draw_pairs(GROUPS, 2, recipe, 0)
    assert pairs.shape == (40, 5, 2)
    groups = GROUPS[pairs[..., 0]]
    assert all(len(np.unique(batch)) == 5 for batch in groups)
    epochs = groups.reshape(20, 10)  # two whole batches of twelve groups
    assert all(len(np.unique(epoch)) == 10 for epoch in epochs)
    assert len(np.unique(pairs.reshape(-1, 2), axis=0)) == 2 * len(GROUPS)  # every pair has its turn
    assert not np.array_equal(pairs, mr.draw_pairs(GROUPS, 2, recipe, 1))
    assert np.array_equal(pairs, mr.draw_pairs(GROUPS, 2, recipe, 0))
    with pytest.raises(ValueError, match="batch_size is 13, but only 12"):
        mr.draw_pairs(GROUPS, 2, replace(recipe, batch_size=13), 0)


def test_the_published_split_is_over_captions():
    train, held = mr.leaky_split(50, 5, 3)
    both = np.concatenate([train, held])
    assert len(train) == 200
    assert len(np.unique(both, axis=0)) == len(both) == 250
    assert len(set(held[:, 0]) & set(train[:, 0])) > 25  # pictures on both sides
    recipe = Recipe("in_batch", True, 300, 1e-3, batch_size=8)
    drawn = {tuple(p) for p in mr.draw_pairs(np.arange(50), 5, recipe, 3).reshape(-1, 2).tolist()}
    assert drawn == {tuple(p) for p in train.tolist()}


def test_a_gallery_has_one_picture_of_each_sentence():
    rows, gallery = mr.gallery_rows(GROUPS, Gallery(100, 4))
    assert gallery == Gallery(12, 4)
    drawn = GROUPS[rows.reshape(4, 12)]
    assert (np.sort(drawn, axis=1) == np.arange(12)).all()
    assert len({tuple(np.sort(r)) for r in rows.reshape(4, 12)}) > 1  # other pictures for the same sentences
    assert np.array_equal(rows, mr.gallery_rows(GROUPS, Gallery(100, 4))[0])
    rows, gallery = mr.gallery_rows(GROUPS, Gallery(7, 4))
    assert gallery == Gallery(7, 4)
    assert all(len(np.unique(GROUPS[r])) == 7 for r in rows.reshape(4, 7))


def planted(pictures, seed):
    """Pictures and captions that hold the same hidden vector; two captions of each, of which the second is noise."""
    rng = torch.Generator().manual_seed(seed)
    world = torch.Generator().manual_seed(99)
    to_image, to_text = torch.randn(8, 16, generator=world), torch.randn(8, 12, generator=world)
    hidden = torch.randn(pictures, 8, generator=rng)
    image, text = hidden @ to_image, hidden @ to_text
    noise = torch.randn(text.shape, generator=rng)
    text = torch.stack([text, noise], 1)  # (P, 2, 12)
    mask = torch.ones(pictures, 2, 3, dtype=torch.bool)
    tokens = image.unsqueeze(1).expand(-1, 2, -1), text.unsqueeze(2).expand(-1, -1, 3, -1)
    return mr.Encoded(tokens[0], image, tokens[1], mask, text, torch.arange(pictures))


def test_captions_are_chosen_as_asked():
    part = planted(6, 0)
    both = part.of("published", [4, 2], slice(None))
    assert torch.equal(both.text[:, :, 0], part.text_one[[4, 2]])
    second = part.of("tokens", [4, 2], slice(1, 2))
    assert torch.equal(second.text[:, 0], part.text[[4, 2], 1])
    assert torch.equal(second.image, part.image[[4, 2]])
    assert second.image_mask.all()
    one = part.of("pairwise", slice(0, 3))
    assert one.image.shape == (3, 1, 16)
    assert one.text_mask.shape == (3, 1, 1)


@pytest.mark.parametrize("protocol", mr.PROTOCOLS)
def test_training_finds_what_was_planted(protocol):
    part = planted(200, 1)
    part = part._replace(text=part.text[:, :1], text_mask=part.text_mask[:, :1], text_one=part.text_one[:, :1])
    recipe = Recipe("in_batch" if protocol == "published" else "pairwise", protocol == "published", 60, 1e-2)
    spec = Spec("matching_real", f"x.{protocol}.v2", 0, "smoke", None, Model("v2", 16, 2), recipe)
    losses = []
    matchers = mr.train(spec, protocol, part, lambda step, now, _: losses.append(now))
    assert len(losses) == 60
    assert len(matchers) == 2
    test = planted(40, 2).of(protocol, slice(None))
    for matcher in matchers:
        found, hits = mr.measure(matcher, test, Gallery(20, 2))
        assert found["r1"] > 0.5  # chance is 0.05
        assert hits.shape == (2, 2, 20)
    assert not torch.equal(matchers[0].image_projection.weight, matchers[1].image_projection.weight)
    shared = mr.recall_on_held_out(matchers[0], protocol, part, Gallery(20, 1), 0)
    assert shared > 0.5


def test_held_out_pairs_are_not_trained_on():
    """Held-out captions that are noise cannot be found, whatever was trained."""
    part = planted(60, 3)
    wrong = part._replace(text_one=part.text_one[:, 1:], text=part.text[:, 1:], text_mask=part.text_mask[:, 1:])
    recipe = Recipe("in_batch", True, 300, 1e-2)
    spec = Spec("matching_real", "x.published.v2", 0, "smoke", None, Model("v2", 64, 1), recipe)
    (matcher,) = mr.train(spec, "published", wrong)
    train = mr.leaky_split(60, 1, 0)[0][:24, 0]
    learnt = mr.recall_both_ways(mr.pair_cosines(matcher, wrong.of("published", train), slice(None)), 1)
    assert learnt > 0.6  # chance is 0.04
    assert mr.recall_on_held_out(matcher, "published", wrong, Gallery(12, 1), 0) < 0.5


# ------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("unit", ["nlvr.published.v5", "nlvr.tokens.v9"])
def test_a_run_on_nlvr_keeps_its_contract(with_nlvr, unit):
    spec = spec_of(unit)
    record = run_spec(spec, "code", with_nlvr / "results")
    seeds, details = spec.model.seeds, record.details
    assert record.arrays["hits"].shape == (seeds, 2, 2, 5)
    assert record.arrays["group"].shape == (2, 5)
    assert all(len(set(groups)) == 5 for groups in record.arrays["group"].tolist())
    for name in set(record.arrays) - {"hits", "group"}:
        assert record.arrays[name].shape == (seeds,)
        assert record.metrics[name].value == pytest.approx(record.arrays[name].mean())
        assert record.metrics[name].n == seeds
    assert record.metrics["r10"].value == pytest.approx(record.arrays["hits"].mean())
    assert ("r1_shared" in record.metrics) == ("published" in unit)
    assert not any(name.startswith("cat.") for name in record.metrics)
    assert details["image_tokens"] == (12 if "tokens" in unit else 1)
    assert (details["gallery"], details["queries"]) == (5, 20)
    assert details["curve"][-1]["step"] == 3
    if unit == "nlvr.published.v5":
        assert record.metrics["in_batch_accuracy"].value == 1.0  # the module leaks, on real data too
        assert record.metrics["five.trained"].value == pytest.approx(0.2)
    assert load_record(spec, "code", with_nlvr / "results").metrics == record.metrics
    again = mr.run(spec)
    np.testing.assert_array_equal(again.arrays["r1"], record.arrays["r1"])


@pytest.mark.parametrize("unit", ["flickr8k.published.v2", "flickr8k.tokens.v3"])
def test_a_run_on_flickr8k_has_the_cat_test(with_flickr, unit):
    Image.fromarray(np.full((9, 9, 3), 90, np.uint8)).save(with_flickr / "flickr8k" / "cat.jpg")
    outcome = mr.run(spec_of(unit))
    assert outcome.details["cat"] == "cat.jpg"
    assert outcome.details["pictures"] == {"train": 12, "val": 4, "test": 6}
    assert outcome.details["image_tokens"] == (4 if "tokens" in unit else 1)  # 64 pixels
    for s in range(2):
        five = np.array([outcome.arrays[f"cat.{name}"][s] for name in mr.CAT_TEST])
        best = np.sort(five)[::-1]
        assert outcome.arrays["cat.gap"][s] == pytest.approx(best[0] - best[1], abs=1e-4)
        assert outcome.arrays["cat.trained"][s] == (five.argmax() == mr.CAT)


def test_flickr_tokens_are_those_of_the_frozen_encoders(with_flickr):
    data = mr.PROFILES["smoke"].data["flickr8k"]
    raw = mr._encode_flickr("smoke", data)
    train, about = raw.splits["train"], raw.about
    torch.testing.assert_close(train.image_one, train.image.float().mean(1))
    assert train.image.shape == (12, 4, 512)
    assert train.text_one.shape == (12, 5, 16)
    assert "cat" not in raw.splits
    assert "no caption" in about["cat"]
    first = mr.told(data)["train"]
    bert = mr.BertText(mr.bert_folder(), "pooled")
    ids, mask = bert.encode(first.captions[3])
    with torch.no_grad():
        torch.testing.assert_close(train.text_one[3], bert(ids, mask).tokens[:, 0])
    assert torch.equal(train.text_mask[3, :, : mask.shape[1]], mask)


def test_flickr_tokens_are_made_anew_when_weights_or_the_cat_change(with_flickr):
    data = mr.PROFILES["smoke"].data["flickr8k"]

    def made_from():
        mr._digest.cache_clear()
        return mr._made_from("smoke", data)

    first = made_from()
    torch.save(ResNet("grid", 18).backbone.state_dict(), with_flickr / "resnet.pth")
    second = made_from()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(with_flickr / "flickr8k" / "cat.jpg")
    third = made_from()
    assert first == made_from()[:3] + first[3:]
    assert len({tuple(x) for x in (first, second, third)}) == 3


class Said(nn.Module):
    """A matcher whose cosines are given."""

    def __init__(self, cosines):
        super().__init__()
        self.cosines, self.temperature = torch.tensor([cosines]), nn.Parameter(torch.tensor(0.1))

    def used_temperature(self):
        return self.temperature

    def forward(self, *sides):
        return self.cosines / self.temperature


@pytest.mark.parametrize(
    ("cosines", "trained", "gap"),
    [
        ([0.1, 0.5, -0.2, 0.3, 0.0], 1.0, 2.0),
        ([0.7, 0.5, -0.2, 0.3, 0.0], 0.0, 2.0),
        ([0.4] * 5, 0.2, 0.0),
        ([0.5, 0.5, 0.1, 0.1, 0.1], 0.5, 0.0),
    ],
)
def test_cat_test(cosines, trained, gap):
    empty = torch.zeros(1, 1, 1)
    found = mr.cat_test(Said(cosines), MatchingTokens(empty, empty[0], empty[None], empty))
    assert found["cat.trained"] == pytest.approx(trained)
    assert found["cat.gap"] == pytest.approx(gap, abs=1e-4)
    assert found["cat.similarity"] == pytest.approx(10 * max(cosines), rel=1e-4)
    assert [found[f"cat.{name}"] for name in mr.CAT_TEST] == pytest.approx([10 * c for c in cosines], rel=1e-4)


def test_the_picture_of_the_cat_test(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(tmp_path))
    folder = write_flickr8k(tmp_path)
    assert mr.cat_picture() is None
    lines = (folder / "Flickr8k.token.txt").read_text()
    lines = lines.replace("17_x.jpg#2\ta man", "17_x.jpg#2\tcattle, a man").replace(
        "19_x.jpg#4\ta", "19_x.jpg#4\tA Cat, a"
    )
    (folder / "Flickr8k.token.txt").write_text(lines)
    picture, name = mr.cat_picture()
    assert name == "19_x.jpg"
    assert picture.shape == (20, 30, 3)
    Image.fromarray(np.full((7, 7, 3), 3, np.uint8)).save(folder / "cat.jpg")
    assert mr.cat_picture()[1] == "cat.jpg"


# ------------------------------------------------------------------------------------------------------ end to end


def raw_of(pictures, captions=1, size=32):
    """Pictures of one colour each and captions of three words, no two alike."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (pictures, 1, 1, 3))
    images = np.broadcast_to(colours, (pictures, size, size, 3)).astype(np.uint8)
    words = torch.from_numpy(rng.integers(2, 30, (pictures, captions, 3)))
    mask = torch.ones(words.shape, dtype=torch.bool)
    return mr.Raw(torch.from_numpy(images.copy()), words, mask, np.arange(pictures))


def end_to_end(version="v8"):
    torch.manual_seed(0)
    return mr.EndToEnd(ResNet("grid", 18), RecurrentText(30, 16), VERSIONS[version](16))


def test_a_feed_of_pairs_draws_one_of_each_group():
    raw = raw_of(6, captions=2)._replace(group=np.array([0, 0, 1, 1, 1, 2]))
    feed = mr.PairFeed(raw)
    assert len(feed) == 3
    colour = {tuple(p[0, 0].tolist()): i for i, p in enumerate(raw.pictures)}
    seen = set()
    for _ in range(60):
        batch = feed.batch([2, 0])
        pixels = ((batch.pictures[:, :, 0, 0] + 1) * 127.5).round().int()
        rows = [colour[tuple(p.tolist())] for p in pixels]
        assert raw.group[rows].tolist() == [2, 0]
        captions = [(raw.words[r] == w).all(1).nonzero()[0, 0].item() for r, w in zip(rows, batch.words)]
        seen |= set(zip(rows, captions))
    assert seen == set(itertools.product([0, 1, 5], [0, 1]))


def test_gradients_reach_both_encoders_and_batch_norm_stays_as_it_came():
    raw, model = raw_of(4), end_to_end().train()
    before = model.image_encoder.backbone.bn1.running_mean.clone()
    contrastive_loss(model(as_float(raw.pictures), raw.words[:, 0], raw.word_mask[:, 0])).backward()
    for encoder in (model.image_encoder, model.text_encoder):
        for name, p in encoder.named_parameters():
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name
    assert model.training
    assert not model.image_encoder.backbone.bn1.training
    assert torch.equal(model.image_encoder.backbone.bn1.running_mean, before)


def test_end_to_end_scores_come_from_their_pairs_alone():
    raw, model = raw_of(5), end_to_end("v9").eval()
    with torch.no_grad():
        logits = model(as_float(raw.pictures), raw.words[:, 0], raw.word_mask[:, 0])
        for i, j in ((0, 0), (1, 3), (4, 2)):
            alone = model(as_float(raw.pictures[[i]]), raw.words[[j], 0], raw.word_mask[[j], 0])
            torch.testing.assert_close(alone[0, 0], logits[i, j], rtol=1e-3, atol=1e-4)
    tokens = mr.encoded_pairs(model, raw, np.array([3, 1]))
    assert tokens.text.shape == (2, 1, 3, 16)
    with torch.no_grad():
        cosines = mr.pair_cosines(model.matcher, tokens, slice(None))
    expected = logits[[3, 1]][:, [3, 1]] * model.matcher.used_temperature()
    np.testing.assert_allclose(cosines, expected.detach().numpy(), atol=1e-4)


def test_fine_tuning_overfits_eight_pairs():
    raw, model = raw_of(8), end_to_end()
    start = model.image_encoder.backbone.conv1.weight.clone()
    rows = np.arange(8)

    def r1():
        return mr.recall_both_ways(mr.pair_cosines(model.matcher, mr.encoded_pairs(model, raw, rows), slice(None)), 1)

    history, best = mr.finetune(model, {"train": raw, "val": raw}, Training(25, 8, 5e-4), 0)
    assert history[-1]["loss"] < 0.3 * history[0]["loss"]
    assert r1() == history[best]["validation"] > 0.9
    assert not torch.equal(model.image_encoder.backbone.conv1.weight, start)


@pytest.mark.parametrize("name", ["nlvr", "flickr8k"])
def test_a_fine_tuned_run_has_the_metrics_of_the_others(with_flickr, with_nlvr, monkeypatch, name):
    Image.fromarray(np.full((9, 9, 3), 90, np.uint8)).save(with_flickr / "flickr8k" / "cat.jpg")
    tuning = mr.FineTuning(16, 1, Training(1, 6, 1e-4))
    monkeypatch.setitem(mr.PROFILES, "smoke", replace(mr.PROFILES["smoke"], finetuning=tuning))
    outcome = mr.run(spec_of(f"{name}.finetuned.v2"))
    assert outcome.arrays["r1"].shape == (1,)
    assert outcome.arrays["hits"].shape == (1, 2, 2, 5)
    assert ("cat.trained" in outcome.metrics) == (name == "flickr8k")
    assert len(outcome.details["history"]) == 1
    assert outcome.details["protocol"] == "finetuned"
    assert {"r1", "r5", "r10", "median_rank", "leak", "temperature"} <= set(outcome.metrics)
