"""The vision transformer from its parts: torchvision's numbers with torchvision's weights, in both directions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import VisionTransformer as TorchvisionViT

from vqa_core.encoders.patches import cut_patches, join_patches
from vqa_core.encoders.vision_transformer import Block, VisionTransformer, from_torchvision, to_torchvision

SIZES = {"size": 32, "patch": 8, "depth": 3, "dim": 24, "heads": 4, "hidden": 40, "classes": 7}


def theirs():
    """A small ViT of torchvision in which no parameter is zero: its head and class token start as zeros."""
    model = TorchvisionViT(32, 8, 3, 4, 24, 40, num_classes=7).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def pictures(n=2):
    return torch.randn(n, 3, 32, 32)


def test_with_torchvisions_weights_the_logits_are_torchvisions():
    model, x = theirs(), pictures()
    with torch.no_grad():
        torch.testing.assert_close(from_torchvision(model).classify(x), model(x), atol=1e-5, rtol=0)


def test_and_the_other_way_round():
    model, x = VisionTransformer(**SIZES).eval(), pictures()
    back = to_torchvision(model)
    with torch.no_grad():
        torch.testing.assert_close(back(x), model.classify(x), atol=1e-5, rtol=0)
    again = from_torchvision(back).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[k], v) for k, v in model.state_dict().items())


def test_every_weight_is_copied_and_in_use():
    """Changing any one of torchvision's parameters changes our copy's logits as it changes theirs."""
    model, x = theirs(), pictures()
    for name, p in model.named_parameters():
        kept = p.detach().clone()
        with torch.no_grad():
            before = model(x)
            p.add_(0.5 * torch.randn_like(p))
            after = model(x)
            if "in_proj_bias" not in name:  # a key's bias adds the same to all scores; queries and values do not
                assert not torch.allclose(before, after, atol=1e-6), name
            torch.testing.assert_close(from_torchvision(model).classify(x), after, atol=1e-5, rtol=1e-5)
            p.copy_(kept)


def test_base_model_has_the_published_number_of_parameters():
    with torch.device("meta"):
        base = VisionTransformer()
    assert sum(p.numel() for p in base.parameters()) == 86_567_656  # torchvision's table for vit_b_16


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_is_its_formula(norm):
    block, x = Block(24, 4, 40, norm), torch.randn(2, 5, 24)
    if norm == "pre":
        middle = x + block.attention(block.attention_norm(x))[0]
        expected = middle + block.mlp(block.mlp_norm(middle))
    else:
        middle = block.attention_norm(x + block.attention(x)[0])
        expected = block.mlp_norm(middle + block.mlp(middle))
    torch.testing.assert_close(block(x)[0], expected)


def test_shapes_maps_and_grid():
    model = VisionTransformer(**SIZES)
    states, maps = model.encode(pictures(), need_weights=True)
    assert states.shape == (2, 17, 24)
    assert maps.shape == (2, 3, 4, 17, 17)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 4, 17))
    tokens = model(pictures())
    assert tokens.tokens.shape == (2, 16, model.out_dim)
    assert tokens.mask is None
    assert model.grid == (4, 4)


def test_fused_and_explicit_attention_agree():
    model, x = VisionTransformer(**SIZES).eval(), pictures()
    torch.testing.assert_close(model.encode(x)[0], model.encode(x, need_weights=True)[0], atol=1e-5, rtol=1e-5)


def test_only_the_positions_know_where_a_patch_was():
    """Shuffled patches give other logits; with all positions alike they give the same."""
    model, x = VisionTransformer(**SIZES).eval(), pictures()
    shuffled = join_patches(cut_patches(x, 8)[:, torch.randperm(16)], 8, (32, 32))
    with torch.no_grad():
        assert not torch.allclose(model.classify(x), model.classify(shuffled), atol=1e-3)
        model.positions.zero_()
        torch.testing.assert_close(model.classify(x), model.classify(shuffled), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_every_parameter_learns_and_eight_pictures_are_learnt_by_heart(norm):
    model, x, y = VisionTransformer(**SIZES, norm=norm), pictures(8), torch.arange(8) % 7
    F.cross_entropy(model.classify(x), y).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for _ in range(80):
        loss = F.cross_entropy(model.classify(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.classify(x).argmax(1) == y).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="size=30 is not a multiple of patch=8"):
        VisionTransformer(**SIZES | {"size": 30})
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\)"):
        VisionTransformer(**SIZES)(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="norm is 'mid'"):
        Block(24, 4, 40, "mid")
    with pytest.raises(ValueError, match="no counterpart"):
        to_torchvision(VisionTransformer(**SIZES, norm="post"))
    with pytest.raises(ValueError, match="can be copied"):
        from_torchvision(TorchvisionViT(32, 8, 1, 4, 24, 40, num_classes=7, representation_size=12))
