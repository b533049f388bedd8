"""The MEVF reproduction: the published recipe in numbers, the published weights in use, and a small run from files."""

import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vqa_core.data import vqa_rad
from vqa_core.encoders.conversion import read_weights
from vqa_core.encoders.denoising import DenoisingAutoEncoder
from vqa_core.encoders.meta import MetaCNN
from vqa_core.experiments import mevf
from vqa_core.experiments.mevf import Model, Pictures, Questions, Recipe, Rows
from vqa_core.training.loop import NotFiniteError

TINY = {"dim": 16, "rank": 48, "hidden": 32, "words": 8}
WORDS = ["is", "the", "heart", "large", "?", "lung", "clear", "where", "mass"]


@pytest.fixture(autouse=True)
def _own_caches():
    """What the module remembers of one data folder must not reach the next test."""
    yield
    for cached in (mevf.splits_of, mevf.pictures_of):
        cached.cache_clear()


def small_questions(n=8, answers=4):
    """``n`` questions about four pictures that frozen encoders saw; picture and words together decide the answer."""
    generator = torch.Generator().manual_seed(1)
    seen = Pictures(torch.randn(4, 64, generator=generator), torch.rand(4, 50, generator=generator))
    rows = torch.arange(n) % 4
    words = torch.randint(2, 12, (n, 5), generator=generator)  # 0 is padding, 1 the unknown word
    mask = torch.arange(5) < torch.tensor([[5], [3]]).repeat(n // 2, 1)  # (n, 5)
    return Questions(seen, rows, words * mask, mask, torch.arange(n) * 3 % answers)


def small_model(fusion="ban", answers=4, encoder=None):
    torch.manual_seed(0)
    matrix = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    matrix[:2] = 0  # padding, the unknown word
    encoder = encoder or mevf.FrozenFeatures(nn.Linear(50, 64))
    return mevf.build(Model(fusion, **TINY), encoder, matrix, answers)


# ------------------------------------------------------------------------------------------------------- the recipe


def test_the_rate_rises_for_four_epochs_and_falls_five_times():
    recipe = Recipe(learning_rate=0.005)
    rates = [recipe.rate(epoch) for epoch in range(20)]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[4:10] == pytest.approx([0.01] * 6)
    assert rates[10:] == pytest.approx([0.01 * 0.75 ** (1 + i // 2) for i in range(10)])


def test_the_loss_is_a_sum_over_answers_and_a_mean_over_questions():
    answers = torch.tensor([0, 2, 1])
    assert mevf.answer_loss(torch.zeros(3, 5), answers).item() == pytest.approx(5 * math.log(2))
    sure = torch.full((3, 5), -50.0).scatter(1, answers[:, None], 50.0)
    assert mevf.answer_loss(sure, answers).item() == pytest.approx(0, abs=1e-6)
    assert mevf.answer_loss(-sure, answers).item() == pytest.approx(5 * 50)


@pytest.mark.parametrize(("profile", "seeds", "frozen_seeds"), [("smoke", 1, 1), ("cpu", 3, 2), ("gpu", 5, 5)])
def test_every_unit_has_its_seeds(profile, seeds, frozen_seeds, monkeypatch):
    monkeypatch.setattr(mevf, "present", lambda: True)
    specs = mevf.specs(profile)
    units = {
        f"{fusion}.{train}{end}" for fusion in ("ban", "san") for train in ("3064", "1797") for end in ("", ".frozen")
    }
    units |= {"ban.3064.decoder", "ban.1797.decoder"} if profile == "gpu" else set()
    wanted = {(u, seed) for u in units for seed in range(frozen_seeds if u.endswith("frozen") else seeds)}
    assert {(s.unit, s.seed) for s in specs} == wanted
    assert len(specs) == len(wanted)
    for s in specs:
        assert s.data.train == s.unit.split(".")[1]
        assert (s.model.fusion, s.model.frozen) == (s.unit[:3], s.unit.endswith("frozen"))
        assert s.training.reconstruction == (0.001 if s.unit.endswith("decoder") else 0)
    published = [s for s in specs if s.profile != "smoke"]
    assert all((s.training.epochs, s.training.batch_size, s.training.clip) == (20, 32, 0.25) for s in published)


def test_without_the_data_or_the_weights_there_is_nothing_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(tmp_path))
    assert mevf.specs("cpu") == []
    write_vqa_rad(tmp_path)
    assert len(mevf.specs("smoke")) == 8
    (tmp_path / "vqa_rad" / "mevf_weights" / mevf.MAML).unlink()
    assert mevf.specs("cpu") == []


# -------------------------------------------------------------------------------------------------------- the model


def test_the_size_is_the_published_one():
    """MEVF+BAN has 19.6 million parameters; with 1,143 words and 458 answers so has ours."""
    matrix = np.ones((1143, 300), dtype=np.float32)
    matrix[:2] = 0
    model = mevf.build(Model("ban"), mevf.EnhancedFeatures(MetaCNN(), DenoisingAutoEncoder()), matrix, 458)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(19.6, abs=0.05)


def test_the_token_is_both_encoders_side_by_side():
    encoder = mevf.EnhancedFeatures(MetaCNN(), DenoisingAutoEncoder()).eval()
    pictures = Pictures(torch.rand(2, 1, 84, 84), torch.rand(2, 1, 128, 128))
    token = encoder(pictures).tokens
    assert token.shape == (2, 1, encoder.out_dim) == (2, 1, 128)
    torch.testing.assert_close(token[..., :64], encoder.meta_cnn(pictures.small).tokens)
    torch.testing.assert_close(token[..., 64:], encoder.auto_encoder(pictures.large).tokens)


def test_frozen_encoders_give_the_token_of_the_whole_ones():
    encoder = mevf.EnhancedFeatures(MetaCNN(), DenoisingAutoEncoder())
    pictures = Pictures(
        torch.randint(0, 256, (5, 1, 84, 84), dtype=torch.uint8),
        torch.randint(0, 256, (5, 1, 128, 128), dtype=torch.uint8),
    )
    train = torch.tensor([True, True, True, True, False])
    made = mevf.encoded(encoder, pictures, train)
    frozen = mevf.FrozenFeatures(encoder.auto_encoder.project)(made).tokens
    whole = encoder.eval()(Pictures(*(x.float() / 255 for x in pictures))).tokens
    torch.testing.assert_close(frozen, whole, atol=1e-5, rtol=1e-5)
    mean = encoder.meta_cnn.blocks[0].conv(pictures.small[train].float() / 255).relu().mean(dim=(0, 2, 3))
    torch.testing.assert_close(encoder.meta_cnn.blocks[0].norm.running_mean, mean)  # of the training pictures alone


def test_weight_normalisation_leaves_the_function_and_adds_one_number_per_layer():
    layer, x = nn.Linear(6, 3), torch.randn(4, 6)
    before, count = layer(x), sum(p.numel() for p in layer.parameters())
    mevf.weight_normalised(layer)
    torch.testing.assert_close(layer(x), before)
    assert sum(p.numel() for p in layer.parameters()) == count + 1
    with torch.no_grad():
        layer.parametrizations.weight.original1.mul_(7)  # V; its length says nothing
    torch.testing.assert_close(layer(x), before)


def test_reading_without_padding_is_reading():
    """States and all gradients of the quick reader are those of nn.LSTM, for questions of unequal length."""
    torch.manual_seed(0)
    matrix = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    matrix[:2] = 0
    reader = mevf.QuestionReader(matrix, dim=6, learned_dim=4)
    lengths = torch.tensor([3, 7, 1, 7, 4])
    mask = torch.arange(7) < lengths[:, None]  # (5, 7)
    words = torch.randint(1, 12, (5, 7)) * mask
    weights, found = torch.randn(5, 7, 6), []
    for training in (True, False):  # the quick way, then nn.LSTM
        reader.train(training).zero_grad()
        states = reader(words, mask).tokens * mask.unsqueeze(-1)
        (states * weights).sum().backward()
        found.append([states, *(p.grad for p in reader.parameters())])
    assert len(found[0]) == 7
    for quick, plain in zip(*found, strict=True):
        torch.testing.assert_close(quick, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("fusion", mevf.FUSIONS)
def test_padding_does_not_change_the_answer(fusion):
    model, asked = small_model(fusion).eval(), small_questions()
    short = asked.batch(torch.tensor([1, 3]))  # three words each
    alone, beside = model(*short[:3]).logits, model(*asked.batch(torch.tensor([1, 3, 0]))[:3]).logits
    assert short.words.shape[1] == 3
    torch.testing.assert_close(beside[:2], alone)


def test_gradient_reaches_everything_but_the_decoder():
    encoder = mevf.EnhancedFeatures(MetaCNN(), DenoisingAutoEncoder())
    model, asked = small_model("ban", encoder=encoder), small_questions()
    pictures = Pictures(torch.rand(4, 1, 84, 84), torch.rand(4, 1, 128, 128))
    batch = replace(asked, pictures=pictures).batch(torch.arange(4))
    mevf.answer_loss(model(*batch[:3]).logits, batch.answers).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    decoder = {"tran_conv1", "conv4", "tran_conv2", "conv5"}
    assert without == {f"image_encoder.auto_encoder.{layer}.{kind}" for layer in decoder for kind in ("weight", "bias")}
    mevf.reconstruction_loss(model, batch.pictures).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_unknown_fusion_is_named():
    with pytest.raises(ValueError, match="fusion is 'sum', allowed are ban, san"):
        mevf.fusion_of(Model("sum"), 128)


# --------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("fusion", mevf.FUSIONS)
def test_eight_questions_are_learnt_by_heart(fusion):
    model, asked = small_model(fusion), small_questions()
    history = mevf.train(model, asked, Recipe(epochs=60, batch_size=8), seed=0)
    assert (mevf.predict(model, asked) == asked.answers).all()
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert [row["rate"] for row in history[:4]] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])


def test_the_same_seed_gives_the_same_model_and_another_one_another():
    def trained(seed):
        model = small_model()
        mevf.train(model, small_questions(), Recipe(epochs=2, batch_size=4), seed)
        return nn.utils.parameters_to_vector(model.parameters())

    torch.testing.assert_close(trained(3), trained(3), atol=0, rtol=0)
    assert not torch.equal(trained(3), trained(4))


def test_a_loss_that_is_not_finite_stops_the_training():
    asked = small_questions()
    broken = replace(asked, pictures=Pictures(asked.pictures.small * math.nan, asked.pictures.large))
    with pytest.raises(NotFiniteError, match="epoch 0: the loss is nan"):
        mevf.train(small_model(), broken, Recipe(epochs=2), seed=0)


def test_scores_tell_freeform_from_all_and_open_from_closed():
    right = np.array([True, True, False, False])
    reachable, closed = np.array([True, True, True, False]), np.array([True, False, True, False])
    found = mevf.scores(right, reachable, closed, freeform=np.array([True, True, True, False]))
    values = {name: (metric.value, metric.n) for name, metric in found.items()}
    assert values["accuracy_451"] == (0.5, 4)
    assert values["accuracy_308"] == (pytest.approx(2 / 3), 3)
    assert values["accuracy_308.open"] == (1, 1)
    assert values["accuracy_451.closed"] == (0.5, 2)
    assert values["ceiling_451.open"] == (0.5, 2)
    assert values["ceiling_308.open"] == (1, 1)


# ------------------------------------------------------------------------------------------------------- whole runs


def write_vqa_rad(root):
    """VQA-RAD in small, in its JSON form, with files in the form of the published weights."""
    folder = root / "vqa_rad"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.jpg")

    def row(qid, phrase, picture, question, answer):
        return {
            "qid": qid,
            "image_name": f"{picture}.jpg",
            "image_organ": "CHEST",
            "answer": answer,
            "answer_type": "CLOSED" if answer in ("Yes", "No") else "OPEN",
            "question_type": "PRES",
            "question": question,
            "phrase_type": phrase,
        }

    asked = [("Is the heart large?", "Yes"), ("Where is the mass?", "left lung"), ("Is the lung clear?", "No")]
    phrases = ("freeform", "frame", "para")
    train = [row(10 * i + j, phrases[j], i, *asked[j]) for i in range(4) for j in range(3)]
    test = [row(100 + 10 * i + j, phrases[2 * j], i, *asked[j]) for i in range(4) for j in range(2)]
    (folder / "trainset.json").write_text(json.dumps(train))
    (folder / "testset.json").write_text(json.dumps(test))
    weights = folder / "mevf_weights"
    weights.mkdir()
    shapes = {f"conv{i}": (3, 3, 1 if i == 1 else 64, 64) for i in range(1, 5)} | {f"b{i}": (64,) for i in range(1, 5)}
    arrays = {name: (0.05 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    (weights / mevf.MAML).write_bytes(pickle.dumps(arrays, protocol=2))
    torch.manual_seed(0)
    torch.save(DenoisingAutoEncoder("grid").state_dict(), weights / mevf.AUTO_ENCODER)
    np.save(weights / mevf.GLOVE, rng.normal(size=(len(WORDS), 300)).astype(np.float32))
    (weights / mevf.DICTIONARY).write_bytes(pickle.dumps([{w: i for i, w in enumerate(WORDS)}, WORDS]))


@pytest.fixture
def tiny_rad(tmp_path, monkeypatch):
    write_vqa_rad(tmp_path)
    monkeypatch.setenv("VQA_DATA", str(tmp_path))
    return tmp_path / "vqa_rad"


def spec_of(unit):
    return next(s for s in mevf.specs("smoke") if s.unit == unit)


@pytest.mark.parametrize("unit", ["ban.3064", "san.1797.frozen"])
def test_a_run_scores_every_test_question_once(tiny_rad, unit):
    outcome = mevf.run(spec_of(unit))
    arrays, details = outcome.arrays, outcome.details
    assert all(len(a) == 8 for a in arrays.values())
    assert outcome.metrics["accuracy_451"].value == arrays["correct_test"].mean()
    assert outcome.metrics["accuracy_308"].n == arrays["freeform_test"].sum() == 4
    assert outcome.metrics["accuracy_451.open"].n == (~arrays["closed_test"]).sum() == 4
    tested = vqa_rad.load("test")
    assert [details["pictures"][i] for i in arrays["picture_test"]] == [
        tested[i].picture_id for i in np.random.default_rng(0).permutation(8)
    ]
    # the open answer only occurs in template re-wordings ("frame"), which the 1,797 rows do not have
    assert arrays["reachable_test"].all() == (unit == "ban.3064")
    assert "left lung" in details["answers"] or unit != "ban.3064"
    assert len(details["history"]) == 1
    assert set(details["decoder_share"]) == (set() if unit.endswith("frozen") else {"start", "end"})
    assert details["samples_per_second"] > 0


def test_a_run_again_gives_the_same_answers(tiny_rad):
    first, second = (mevf.run(spec_of("ban.1797")) for _ in range(2))
    np.testing.assert_array_equal(first.arrays["predicted_test"], second.arrays["predicted_test"])
    assert first.details["history"] == second.details["history"]
    assert first.details["data_hash"] == second.details["data_hash"]


def test_other_weights_are_other_data(tiny_rad):
    spec = spec_of("san.3064.frozen")
    first = mevf.run(spec).details["data_hash"]
    vectors = np.load(tiny_rad / "mevf_weights" / mevf.GLOVE)
    np.save(tiny_rad / "mevf_weights" / mevf.GLOVE, vectors + 1)
    assert mevf.run(spec).details["data_hash"] != first


# -------------------------------------------------------------------------------------------------- the published data


@pytest.fixture
def rad(data_root, monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(data_root))
    if not mevf.present():
        pytest.skip("VQA-RAD is not here in its JSON form with the weights of MEVF")
    return data_root / "vqa_rad"


@pytest.mark.realdata("vqa_rad")
@pytest.mark.parametrize(("train", "answers", "reachable"), [("3064", 458, 408), ("1797", 415, 340)])
def test_answers_come_from_the_training_rows(rad, train, answers, reachable):
    rows = Rows(train)
    _, known = mevf.vocabularies(rows)
    assert len(known) == answers
    test = mevf.splits_of(rows)["test"]
    assert (known.ids(s.answer for s in test) >= 0).sum() == reachable
    assert sum(s.meta["phrase_type"] == "freeform" for s in test) == 308


@pytest.mark.realdata("vqa_rad")
def test_the_published_weights_are_in_use_and_the_decoder_does_not_matter(rad):
    rows = Rows("3064", questions=8)
    encoder = mevf.published_encoders(rad / "mevf_weights")
    stored = read_weights(rad / "mevf_weights" / mevf.MAML)
    for i, block in enumerate(encoder.meta_cnn.blocks, start=1):
        torch.testing.assert_close(block.conv.weight, stored[f"conv{i}"].permute(3, 2, 0, 1), atol=0, rtol=0)
    _, pictures = mevf.pictures_of(rows)
    before = encoder.auto_encoder.reconstruct(pictures.large[:4].float() / 255)
    error = (before - pictures.large[:4].float() / 255).square().mean()
    assert error < 0.02  # an untrained auto-encoder gives grey: about 0.1
    words, answers = mevf.vocabularies(rows)
    matrix = np.random.default_rng(0).normal(size=(len(words), 8)).astype(np.float32)
    matrix[:2] = 0
    torch.manual_seed(0)
    model = mevf.build(Model("ban", **TINY), encoder, matrix, len(answers)).eval()
    batch = mevf.questions_of(rows, "train", pictures).batch(torch.arange(8))
    share = mevf.decoder_share(model, batch)
    assert share["encoder"] < 1e-3
    assert share["clipped"] < 1e-3
