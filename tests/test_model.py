"""The whole composition: picture and question in, answer logits out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from vqa_core.encoders.cnn import GridCNN
from vqa_core.encoders.text import RecurrentText, TransformerText
from vqa_core.encoders.tokens import CachedTokens
from vqa_core.fusion.bilinear import BAN
from vqa_core.fusion.stacked import SAN
from vqa_core.fusion.stages import CrossAttentionReader, EarlyFusion, LateFusion, TokenFusion
from vqa_core.fusion.vector import ConcatFusion, FiLM
from vqa_core.heads.classifier import LinearHead, MLPHead
from vqa_core.model import VQAModel

ANSWERS = 5


def model_with(fusion: nn.Module, head: nn.Module | None = None, text: type[nn.Module] = RecurrentText) -> VQAModel:
    return VQAModel(GridCNN(16, width=8), text(20, 12), fusion, head or MLPHead(fusion.out_dim, ANSWERS))


MODELS = {
    "concat": lambda: model_with(ConcatFusion(16, 12, 8), LinearHead(8, ANSWERS)),
    "token film": lambda: model_with(TokenFusion(FiLM(16, 12, 8))),
    "san": lambda: model_with(SAN(16, 12, 8)),
    "ban": lambda: model_with(BAN(16, 12, 8), text=TransformerText),
    "early": lambda: model_with(EarlyFusion(16, 12, 8)),
    "reader": lambda: model_with(CrossAttentionReader(16, 12, 8)),
    "late": lambda: model_with(LateFusion(16, 12, ANSWERS), nn.Identity()),
}


@pytest.fixture
def batch():
    words = torch.randint(2, 20, (4, 6))
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, 3:] = False
    return torch.randn(4, 3, 64, 64), words * mask, mask


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_logits_gradients_and_padding(make, batch):
    model = make()
    output = model(*batch)
    assert output.logits.shape == (4, ANSWERS)
    F.cross_entropy(output.logits, torch.tensor([0, 1, 2, 3])).backward()
    # a linear layer that feeds ReLUs may be dead by chance in so small a model; every *part* must learn
    for part in (model.image_encoder, model.text_encoder, model.fusion):
        assert all(p.grad is not None for p in part.parameters())
        assert sum(p.grad.abs().sum() for p in part.parameters()) > 0

    model.eval()
    pictures, words, mask = batch
    padded = torch.cat([words, torch.full((4, 3), 7)], 1), torch.cat([mask, torch.zeros(4, 3, dtype=torch.bool)], 1)
    with torch.no_grad():
        assert_close(model(pictures, *padded).logits, model(*batch).logits, rtol=1e-5, atol=1e-6)


def test_cached_tokens_give_the_same_answers(batch):
    model = MODELS["san"]().eval()
    pictures, words, mask = batch
    with torch.no_grad():
        want = model(*batch)
        tokens = model.image_encoder(pictures).tokens
        cached = VQAModel(CachedTokens(16), model.text_encoder, model.fusion, model.head).eval()
        got = cached(tokens, words, mask)
    assert_close(got.logits, want.logits)
    assert_close(got.fusion.attention, want.fusion.attention)
    assert got.fusion.attention.shape == (4, 2, 1, 64)


def test_a_small_model_learns_to_look_where_it_is_asked():
    """One of 49 tokens has the colour that the word names; the answer is what else that token has.

    Only a fusion before pooling can bind colour to answer; 40 steps on a fixed set are enough for the loss to fall.
    """
    count, colours = 64, 3
    answers, asked = torch.randint(ANSWERS, (count,)), torch.randint(colours, (count,))
    tokens = torch.zeros(count, 49, colours + ANSWERS)
    places = torch.rand(count, 49).argsort(1)[:, :colours]
    for colour in range(colours):
        attribute = torch.where(asked == colour, answers, torch.randint(ANSWERS, (count,)))
        tokens[torch.arange(count), places[:, colour], colour] = 3.0
        tokens[torch.arange(count), places[:, colour], colours + attribute] = 3.0
    words, mask = asked[:, None] + 2, torch.ones(count, 1, dtype=torch.bool)

    def loss_after(fusion, steps=40):
        model = VQAModel(CachedTokens(8), RecurrentText(8, 16), fusion, MLPHead(fusion.out_dim, ANSWERS, hidden=32))
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(steps):
            loss = F.cross_entropy(model(tokens, words, mask).logits, answers)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return loss.item()

    assert loss_after(TokenFusion(FiLM(8, 16, 32))) < 0.3
