"""The dual encoder: unit vectors, a scale within its bounds, padding that does nothing, parts that are used."""

import math

import pytest
import torch
from torch.testing import assert_close

from vqa_core.dual import DualEncoder
from vqa_core.encoders.cnn import GridCNN
from vqa_core.encoders.compact import CompactResNet, CompactViT
from vqa_core.encoders.text import BagOfWords, RecurrentText, TransformerText
from vqa_core.fusion.output import last_token
from vqa_core.training.contrastive import clip_loss

PICTURES = {
    "resnet": lambda: CompactResNet(32, 8),
    "vit": lambda: CompactViT(32, 8, 16, 1, 2),
    "cnn": lambda: GridCNN(16, 64, 4),
}
TEXTS = {
    "words": lambda: (BagOfWords(20, 12), None),
    "gru": lambda: (RecurrentText(20, 12), last_token),
    "transformer": lambda: (TransformerText(20, 12, 1, 2), None),
}


def make(image="vit", text="transformer", **options):
    torch.manual_seed(0)
    encoder, pool = TEXTS[text]()
    options |= {} if pool is None else {"text_pool": pool}
    return DualEncoder(PICTURES[image](), encoder, 8, **options).eval()


def batch(model, pairs=6):
    chance = torch.Generator().manual_seed(1)
    size = model.image_encoder.size
    mask = torch.arange(5) < torch.randint(1, 6, (pairs, 1), generator=chance)
    words = torch.randint(2, 20, (pairs, 5), generator=chance) * mask
    return torch.randn(pairs, 3, size, size, generator=chance), words, mask


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("image", PICTURES)
def test_any_two_encoders_meet_in_unit_vectors(image, text):
    model = make(image, text)
    pictures, words, mask = batch(model)
    with torch.no_grad():
        a, b = model.encode_image(pictures), model.encode_text(words, mask)
        assert a.shape == b.shape == (6, 8)
        assert_close(a.norm(dim=1), torch.ones(6))
        assert_close(b.norm(dim=1), torch.ones(6))
        assert_close(model(pictures, words, mask), a @ b.T / 0.07, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", TEXTS)
def test_padding_and_the_rest_of_the_batch_change_nothing(text):
    model = make(text=text)
    pictures, words, mask = batch(model)
    more = torch.cat([words, torch.zeros(6, 3, dtype=torch.long)], 1), torch.cat([mask, torch.zeros(6, 3) > 0], 1)
    with torch.no_grad():
        whole = model.encode_text(words, mask)
        assert_close(model.encode_text(*more), whole, rtol=1e-4, atol=1e-5)
        assert_close(torch.cat([model.encode_text(words[i : i + 1], mask[i : i + 1]) for i in range(6)]), whole)
        alone = torch.cat([model.encode_image(p[None]) for p in pictures])
        assert_close(alone, model.encode_image(pictures), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("image", PICTURES)
def test_every_parameter_learns(image, text):
    model = make(image, text).train()
    pictures, words, mask = batch(model)
    clip_loss(model.encode_image(pictures), model.encode_text(words, mask), model.scale()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("image", ["resnet", "vit"])
def test_eight_pairs_are_learned_by_heart(image):
    model = make(image).train()
    pictures, words, mask = batch(model, 8)
    words[:, 0] = torch.arange(2, 10)  # eight different captions
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = clip_loss(model.encode_image(pictures), model.encode_text(words, mask), model.scale())
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    with torch.no_grad():
        assert model(pictures, words, mask).argmax(1).tolist() == list(range(8))


def test_scale_starts_at_clips_and_stays_within_its_bounds():
    model = make()
    assert model.log_scale.item() == pytest.approx(math.log(1 / 0.07))
    for outside, inside in ((9.0, 100.0), (-1.0, 1.0)):
        with torch.no_grad():
            model.log_scale.fill_(outside)
        found = model.scale()
        assert found.item() == pytest.approx(inside, rel=1e-5)
        found.backward()
        assert model.log_scale.grad != 0  # it finds its way back: the parameter is at the bound, not beyond
        model.log_scale.grad = None


def test_a_fixed_temperature_is_fixed():
    model = make(temperature=0.5, learned=False)
    assert model.scale().item() == pytest.approx(2.0)
    assert "log_scale" not in [n for n, p in model.named_parameters() if p.requires_grad]


def test_a_bias_is_added_to_the_logits():
    plain, shifted = make(), make(bias=-10.0)
    sides = batch(plain)
    with torch.no_grad():
        assert_close(shifted(*sides), plain(*sides) - 10)
    assert shifted.bias.requires_grad


def test_a_temperature_out_of_bounds_is_refused():
    for wrong in (0.0, 0.005, 2.0):
        with pytest.raises(ValueError, match=r"must lie within 0\.01 and 1"):
            make(temperature=wrong)
