"""Small encoders: shapes, sizes that match, tokens in reading order, no picture that depends on its batch."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.encoders.compact import CompactResNet, CompactViT, Standardised

BOTH = {"resnet": lambda size: CompactResNet(size, 8), "vit": lambda size: CompactViT(size, 8, 16, 2, 2)}
both = pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)


@both
@pytest.mark.parametrize("size", [32, 48])
def test_tokens_are_cells_in_reading_order(make, size):
    """What changes in one cell of the picture is seen most by the token of that cell."""
    encoder, cells = make(size).eval(), size // 8
    assert encoder.grid == (cells, cells)
    pictures = torch.zeros(1, 3, size, size)
    changed = pictures.clone()
    changed[:, :, 8:16, 16:24] = 3.0  # row 1, column 2
    with torch.no_grad():
        moved = (encoder(changed).tokens - encoder(pictures).tokens).norm(dim=-1)[0]
        assert encoder(pictures).tokens.shape == (1, cells**2, encoder.out_dim)
    assert moved.argmax() == cells + 2


@both
def test_a_picture_does_not_depend_on_its_batch(make):
    encoder, pictures = make(32).train(), torch.randn(3, 3, 32, 32)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
    alone = torch.cat([encoder(p[None]).tokens for p in pictures])
    assert_close(alone, encoder(pictures).tokens, rtol=1e-4, atol=1e-5)


@both
def test_gradient_reaches_everything(make):
    encoder = make(32)
    tokens = encoder(torch.randn(2, 3, 32, 32)).tokens
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@both
def test_another_size_of_picture_is_refused(make):
    with pytest.raises(ValueError, match=r"\(2, 3, 48, 48\), expected \(B, 3, 32, 32\)"):
        make(32)(torch.zeros(2, 3, 48, 48))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="size=36 must be a multiple of 8"):
        CompactResNet(36)
    with pytest.raises(ValueError, match="width=10 one of 4"):
        CompactResNet(32, 10)
    with pytest.raises(ValueError, match="size=32 must be a multiple of patch=7"):
        CompactViT(32, 7)
    with pytest.raises(ValueError, match="dim=50 one of heads=4"):
        CompactViT(32, 8, 50)


def test_standardised_pictures_have_mean_0_and_spread_1():
    pictures = 3 + 2 * torch.randn(8, 3, 32, 32)
    seen = []
    encoder = CompactViT(32, 8, 16, 1, 2)
    encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    made = Standardised(encoder, pictures.mean((0, 2, 3)), pictures.std((0, 2, 3)))
    assert_close(made(pictures).tokens, encoder(seen[0]).tokens)
    assert_close(seen[0].mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    assert_close(seen[0].std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
    assert (made.out_dim, made.size) == (16, 32)
    assert {"mean", "deviation"} <= set(made.state_dict())  # saved with the weights
    with pytest.raises(ValueError, match="three channels, above 0"):
        Standardised(encoder, torch.zeros(3), torch.zeros(3))
