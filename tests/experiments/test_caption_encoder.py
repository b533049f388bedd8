"""Experiment ``caption_encoder``: true sizes of the data, losses by their formulas, weights that are really loaded."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vqa_core.data.scenes.captions import captions
from vqa_core.data.text import encode_questions, tokenize
from vqa_core.experiments import caption_encoder as ce
from vqa_core.experiments import runner, scene_encoders
from vqa_core.experiments.caption_encoder import CaptionReader, MatchingTokens, Reader
from vqa_core.experiments.records import load_record, save_record
from vqa_core.training.feed import as_float

SPLITS = ("train", "val", "test")
WORDS = 11


@pytest.fixture(scope="module")
def _made(tmp_path_factory, shrink_captions, forget_captions):
    root = tmp_path_factory.mktemp("captions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQA_RESULTS", str(root))
        shrink_captions(patch)
        runner.run_experiment("caption_encoder", "smoke", workers=1, progress=False)
    forget_captions()
    return root


@pytest.fixture
def made(_made, tmp_path, monkeypatch, shrink_captions, forget_captions):
    """A folder of results in which both encoders are trained (a copy); VQA_RESULTS points to it."""
    root = tmp_path / "results"
    shutil.copytree(_made, root)
    monkeypatch.setenv("VQA_RESULTS", str(root))
    shrink_captions(monkeypatch)
    yield root
    forget_captions()


# ---------------------------------------------------------------------------------------------------------- the data


def test_every_picture_has_five_different_captions():
    for split in SPLITS:
        found, told = ce.captioned("smoke", split)
        assert len(found.images) == len(told) == getattr(ce.PROFILES["smoke"].data, split)
        assert {len(set(five)) for five in told} == {ce.CAPTIONS}


def test_splits_share_no_picture():
    seen = {split: {p.tobytes() for p in ce.captioned("smoke", split)[0].images} for split in SPLITS}
    ids = {split: set(ce.captioned("smoke", split)[0].picture_ids) for split in SPLITS}
    for found in (seen, ids):
        assert len(set.union(*found.values())) == sum(map(len, found.values()))
    assert {s: len(x) for s, x in seen.items()} == {s: len(ce.captioned("smoke", s)[1]) for s in SPLITS}


def test_pictures_and_captions_come_again_and_are_of_their_scene():
    found, told = ce.captioned("smoke", "val")
    ce.captioned.cache_clear()
    again, told_again = ce.captioned("smoke", "val")
    assert again is not found
    assert told_again == told
    assert again.content_hash() == found.content_hash()

    class FirstAlways:
        """Chance that changes no order, so that all captions of a scene can be listed."""

        def shuffle(self, x):
            pass

    for scene, five in list(zip(found.scenes, told))[:10]:
        assert set(five) <= set(captions(scene, 10_000, FirstAlways()))


def test_all_profiles_have_pictures_and_captions_for_the_galleries():
    from vqa_core.experiments import cross_attention

    for profile, config in ce.PROFILES.items():
        (spec,) = ce.specs(profile)
        assert spec.path().parts[-3:] == ("caption_encoder", "captions", "seed0.json")
        gallery = cross_attention.PROFILES[profile].gallery
        assert gallery.pictures * gallery.galleries <= config.data.test
        assert config.data.val >= cross_attention.CURVE_PICTURES or profile == "smoke"


# --------------------------------------------------------------------------------------------------------- the losses


def reader(seed=0):
    torch.manual_seed(seed)
    return CaptionReader(Reader(dim=8, embedding_dim=6), WORDS)


def batch(rows=4, length=7, full=False):
    """Word ids 2 … 10 (B, T) and their mask; every row has another length unless ``full``."""
    chance = torch.Generator().manual_seed(1)
    words = torch.randint(2, WORDS, (rows, length), generator=chance)
    lengths = torch.full((rows,), length) if full else torch.arange(3, 3 + rows)
    mask = torch.arange(length) < lengths[:, None]
    return words * mask, mask


def test_a_model_that_knows_nothing_pays_for_every_word_alike():
    """log V nats for the next word, V log 2 for which words are said."""
    model = reader()
    for head in (model.next_word, model.all_words):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    guessed, named = model.losses(*batch())
    assert guessed.item() == pytest.approx(math.log(WORDS))
    assert named.item() == pytest.approx(WORDS * math.log(2))


def test_a_model_that_knows_pays_nothing():
    """The last state names the words of this one caption; the next word is always the same."""
    model, words = reader(), torch.tensor([[3, 4, 4, 4]])
    for head in (model.next_word, model.all_words):
        nn.init.zeros_(head.weight)
    model.next_word.bias.data = 50 * F.one_hot(torch.tensor(4), WORDS).float()
    model.all_words.bias.data = torch.where(torch.isin(torch.arange(WORDS), words), 50.0, -50.0)
    for loss in model.losses(words, torch.ones(1, 4, dtype=torch.bool)):
        assert loss.item() == pytest.approx(0, abs=1e-6)
    assert model.losses(words.flip(1), torch.ones(1, 4, dtype=torch.bool))[0].item() == pytest.approx(50 / 3)


def test_losses_are_those_of_a_loop_over_words():
    model, (words, mask) = reader(), batch()
    guessed, _ = model.losses(words, mask)
    nats = []
    for row, real in zip(words, mask):
        sentence = row[real]
        states = model.encoder(sentence[None], torch.ones(1, len(sentence), dtype=torch.bool)).tokens[0]  # (T, D)
        for state, following in zip(states, sentence[1:]):  # the last state has no next word
            nats.append(-model.next_word(state).log_softmax(0)[following])
    assert guessed.item() == pytest.approx(torch.stack(nats).mean().item(), rel=1e-5)
    words, mask = batch(full=True)
    _, named = model.losses(words, mask)
    total = 0.0
    for state, sentence in zip(model.encoder(words, mask).tokens[:, -1], words):
        p = model.all_words(state).sigmoid().tolist()
        total -= sum(math.log(p[w] if w in sentence else 1 - p[w]) for w in range(WORDS)) / len(words)
    assert named.item() == pytest.approx(total, rel=1e-5)


def test_padding_changes_no_state_and_no_guess():
    model, (words, mask) = reader(), batch()
    expected = model.encoder(words, mask).tokens[mask]
    wider, wide_mask = F.pad(words, (0, 4)), F.pad(mask, (0, 4))
    for rubbish in (0, 9):
        filled = wider.masked_fill(~wide_mask, rubbish)
        torch.testing.assert_close(model.encoder(filled, wide_mask).tokens[wide_mask], expected)
        torch.testing.assert_close(model.losses(filled, wide_mask)[0], model.losses(words, mask)[0])


def test_gradient_reaches_every_parameter():
    model = reader()
    sum(model.losses(*batch())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_eight_captions_are_learned_by_heart():
    model, (words, mask) = reader(), batch(8, 10)
    words[:, 0] = torch.arange(2, 10)  # the first word says which caption it is
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for step in range(300):
        loss = sum(model.losses(words, mask))
        if step == 0:
            first = loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first > 8
    assert loss.item() < 0.1


# --------------------------------------------------------------------------------------------------------- one token


def test_as_one_is_the_sum_of_real_cells_and_the_last_real_state():
    chance = torch.Generator().manual_seed(2)
    image, text = torch.randn(3, 4, 19, generator=chance), torch.randn(3, 5, 6, 8, generator=chance)
    image_mask = torch.rand(3, 4, generator=chance) < 0.6
    image_mask[1] = False  # nothing was seen
    lengths = torch.randint(1, 7, (3, 5, 1), generator=chance)
    tokens = MatchingTokens(image, image_mask, text, torch.arange(6) < lengths)
    one = tokens.as_one()
    assert [tuple(x.shape) for x in one] == [(3, 1, 19), (3, 1), (3, 5, 1, 8), (3, 5, 1)]
    assert one.image_mask.dtype == one.text_mask.dtype == torch.bool
    assert one.image_mask.all()
    assert one.text_mask.all()
    for p in range(3):
        torch.testing.assert_close(one.image[p, 0], image[p, image_mask[p]].sum(0))
        for c in range(5):
            torch.testing.assert_close(one.text[p, c, 0], text[p, c, lengths[p, c, 0] - 1])
    again = one.as_one()
    assert all(torch.equal(a, b) for a, b in zip(again, one))
    wrong = tokens._replace(
        image=image.masked_fill(~image_mask.unsqueeze(-1), 1e3),
        text=text.masked_fill(~tokens.text_mask.unsqueeze(-1), 1e3),
    )
    assert all(torch.equal(a, b) for a, b in zip(wrong.as_one(), one))


# -------------------------------------------------------------------------------------------------- runs, and loading


def test_what_is_not_there_is_named_with_the_line_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RESULTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="python -m vqa_core run caption_encoder --profile smoke") as error:
        ce.load_caption_encoder("smoke")
    assert str(tmp_path / "smoke" / "caption_encoder") in str(error.value)


def test_the_weights_of_a_run_are_the_ones_loaded(made):
    (spec,) = ce.specs("smoke")
    record = load_record(spec)
    encoder, words = ce.load_caption_encoder("smoke")
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert words.symbols == tuple(record.details["words"])
    told = ce.captioned("smoke", "train")[1]
    assert set(words.symbols[2:]) == {w for five in told for c in five for w in tokenize(c)}
    for name, weight in encoder.state_dict().items():
        np.testing.assert_array_equal(weight, record.arrays[f"encoder.{name}"])
    ids, mask = map(torch.from_numpy, encode_questions(["a large red circle", "nonsense"], words))
    before = encoder(ids, mask).tokens
    record.arrays["encoder.embedding.weight"][words.id("red")] += 1
    save_record(record)
    after = ce.load_caption_encoder("smoke")[0](ids, mask).tokens
    assert torch.equal(after[0, :2], before[0, :2])  # "a large"
    assert not torch.allclose(after[0, 2], before[0, 2])
    assert torch.equal(after[1], before[1])


def test_a_run_has_learned_and_says_how_well_on_unseen_captions(made):
    (spec,) = ce.specs("smoke")
    record = load_record(spec)
    words = ce.load_caption_encoder("smoke")[1]
    model = CaptionReader(spec.model, len(words))
    model.load_state_dict({k: torch.from_numpy(v) for k, v in record.arrays.items()})
    found = ce.scores(model, ce._feed("smoke", "test", words))
    assert found.keys() == record.metrics.keys()
    for name, metric in found.items():
        assert metric.value == pytest.approx(record.metrics[name].value, rel=1e-5)
        assert metric.n == record.metrics[name].n
    told = ce.captioned("smoke", "test")[1]
    assert found["nats_per_set_of_words"].n == 5 * len(told)
    assert found["nats_per_next_word"].n == sum(len(tokenize(c)) - 1 for five in told for c in five)
    assert found["nats_per_next_word"].value < 0.9 * math.log(len(words))
    assert found["nats_per_set_of_words"].value < 0.8 * len(words) * math.log(2)
    assert record.provenance["data_hash"] == ce.captioned("smoke", "train")[0].content_hash()
    assert len(record.details["history"]) == spec.training.epochs


def test_the_same_run_gives_the_same_weights(made):
    (spec,) = ce.specs("smoke")
    record, again = load_record(spec), ce.run(spec)
    for name, weight in record.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], weight)


def test_tokens_are_those_of_the_frozen_encoders(made):
    tokens = ce.matching_tokens("smoke", "val")
    found, told = ce.captioned("smoke", "val")
    reader, words = ce.load_caption_encoder("smoke")
    assert tokens.image.shape[::2] == (len(told), 19)
    assert tokens.text.shape[:2] == tokens.text_mask.shape[:2] == (len(told), 5)
    for p, c in ((0, 0), (7, 3), (len(told) - 1, 4)):
        ids, mask = map(torch.from_numpy, encode_questions([told[p][c]], words))  # alone: nothing is padded
        states = reader(ids, mask).tokens[0]
        assert tokens.text_mask[p, c].sum() == len(states)
        torch.testing.assert_close(tokens.text[p, c, : len(states)], states)
    cells = scene_encoders.NamedCells(scene_encoders.load_encoders("smoke")[0])
    with torch.no_grad():
        everywhere = cells(as_float(torch.from_numpy(found.images))).tokens  # (P, N, 19)
    there = scene_encoders.is_present(everywhere)
    assert torch.equal(tokens.image_mask.sum(1), there.sum(1))
    assert tokens.image_mask.any()
    for p in range(0, len(told), 9):
        expected, seen = everywhere[p, there[p]], tokens.image[p, tokens.image_mask[p]]
        torch.testing.assert_close(seen.sort(0).values, expected.sort(0).values, atol=1e-5, rtol=1e-5)


def test_tokens_are_kept_and_made_anew_when_an_encoder_changes(made, monkeypatch):
    first, calls = ce.matching_tokens("smoke", "test"), []
    make = ce._make_tokens
    monkeypatch.setattr(ce, "_make_tokens", lambda *a: calls.append(a) or make(*a))
    ce.matching_tokens.cache_clear()
    second = ce.matching_tokens("smoke", "test")
    assert calls == []
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    (spec,) = ce.specs("smoke")
    record = load_record(spec)
    record.arrays["encoder.embedding.weight"][:] += 0.1
    save_record(record)
    index = made / "smoke" / "caption_encoder" / "index.json"
    rows = json.loads(index.read_text())
    rows[0]["found"] = "another"  # as the runner writes it when what was found is another
    index.write_text(json.dumps(rows))
    ce.matching_tokens.cache_clear()
    third = ce.matching_tokens("smoke", "test")
    assert calls == [("smoke", "test")]
    assert torch.equal(third.image, first.image)
    assert not torch.allclose(third.text, first.text)
