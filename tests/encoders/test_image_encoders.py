"""The small CNN, ResNet with its head removed, and tokens that are made once."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.encoders.cnn import GridCNN, coordinates
from vqa_core.encoders.resnet import ResNet, load_backbone
from vqa_core.encoders.tokens import CachedTokens, Frozen, encode_in_batches


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return load_backbone(18, None).eval()


@pytest.mark.parametrize(("size", "tokens"), [(64, 64), (56, 49), (96, 144)])
def test_grid_cnn_gives_a_grid_of_tokens(size, tokens):
    encoder = GridCNN(out_dim=16, size=size, width=8)
    output = encoder(torch.randn(2, 3, size, size))
    assert output.tokens.shape == (2, tokens, 16)
    assert output.mask is None
    assert encoder.grid[0] * encoder.grid[1] == tokens
    assert output.tokens.is_contiguous()


def test_grid_cnn_tokens_are_in_reading_order_and_look_at_their_own_cell():
    encoder = GridCNN(out_dim=16, width=8, add_coordinates=False).eval()
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)  # then the gradient counts the paths from a pixel to a token
    pictures = torch.ones(1, 3, 64, 64, requires_grad=True)
    for row, column in ((2, 5), (4, 3)):
        (paths,) = torch.autograd.grad(encoder(pictures).tokens[0, 8 * row + column].sum(), pictures)
        paths = paths[0, 0] / paths[0, 0].sum()
        pixels = torch.arange(64.0)
        assert (paths.sum(1) * pixels).sum().item() == pytest.approx(8 * row + 3.5, abs=1e-3)
        assert (paths.sum(0) * pixels).sum().item() == pytest.approx(8 * column + 3.5, abs=1e-3)
        assert paths[0].sum() == 0  # and does not see all of the picture


def test_grid_cnn_knows_where_only_with_coordinates():
    for add_coordinates in (True, False):
        encoder = GridCNN(out_dim=16, width=8, add_coordinates=add_coordinates).eval()
        grid = encoder(torch.zeros(1, 3, 64, 64)).tokens.view(8, 8, 16)
        inner = grid[2:6, 2:6].flatten(0, 1)  # without the border, where the zero padding shows
        assert (inner.std(0).max() > 1e-3) == add_coordinates


def test_coordinates():
    where = coordinates(3, 5)
    assert_close(where[0, :, 0], torch.tensor([-1.0, 0.0, 1.0]))
    assert_close(where[1, 0], torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))


def test_grid_cnn_has_four_convolutions_and_trains_all_of_them():
    encoder = GridCNN(out_dim=16, width=8)
    assert sum(isinstance(m, nn.Conv2d) for m in encoder.modules()) == 4
    assert sum(p.numel() for p in encoder.parameters()) == 16 * (3 * 8 + 8 * 16 + 16 * 32) + 9 * 34 * 16 + 2 * (
        8 + 16 + 32 + 16
    )
    tokens = encoder(torch.randn(4, 3, 64, 64)).tokens
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in encoder.parameters())


def test_grid_cnn_batch_split_and_errors():
    encoder = GridCNN(out_dim=16, width=8).eval()
    pictures = torch.randn(3, 3, 64, 64)
    parts = torch.cat([encoder(p[None]).tokens for p in pictures])
    assert_close(parts, encoder(pictures).tokens, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(3, 3, 32, 32\), expected \(B, 3, 64, 64\)"):
        encoder(pictures[..., :32, :32])
    for size in (48, 60):
        with pytest.raises(ValueError, match="multiple of 8, at least 56"):
            GridCNN(size=size)


def test_resnet_forms_agree():
    grid = ResNet("grid").eval()
    pooled = ResNet("pooled").eval()
    pooled.load_state_dict(grid.state_dict())
    pictures = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens, one = grid(pictures).tokens, pooled(pictures).tokens
    assert tokens.shape == (1, 49, 512)  # 7 × 7
    assert one.shape == (1, 1, 512)
    assert_close(tokens.mean(1, keepdim=True), one, rtol=1e-4, atol=1e-5)
    assert grid.out_dim == pooled.out_dim == 512


def test_writing_fn_leaves_the_classifier_in_place(resnet18):
    pictures = torch.randn(1, 3, 64, 64)
    wrong, right = copy.deepcopy(resnet18), copy.deepcopy(resnet18)
    wrong.fn = nn.Identity()  # a new attribute; nobody reads it
    right.fc = nn.Identity()
    with torch.no_grad():
        assert torch.equal(wrong(pictures), resnet18(pictures))  # still 1000 class logits
        assert wrong(pictures).shape == (1, 1000)
        assert right(pictures).shape == (1, 512)
        assert_close(resnet18.fc(right(pictures)), wrong(pictures))
    encoder = ResNet("pooled")
    assert isinstance(encoder.backbone.fc, nn.Identity)
    assert not hasattr(encoder.backbone, "fn")


def test_resnet_reads_a_state_dict(tmp_path, resnet18):
    state = resnet18.state_dict()
    path = tmp_path / "resnet18.pt"
    torch.save(state, path)
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first = ResNet("pooled", weights=path).eval()(pictures).tokens
        state["conv1.weight"] = state["conv1.weight"] * 2 + 0.01
        torch.save({k: v for k, v in state.items() if not k.startswith("fc.")}, path)  # the classifier may be missing
        second = ResNet("pooled", weights=path).eval()(pictures).tokens
    reference = copy.deepcopy(resnet18)
    reference.fc = nn.Identity()
    with torch.no_grad():
        assert_close(first[:, 0], reference(pictures))
    assert (first - second).abs().max() > 1e-4


def test_resnet_refuses_what_is_not_its_weights(tmp_path, resnet18):
    with pytest.raises(FileNotFoundError, match="no ResNet weights at"):
        ResNet(weights=tmp_path / "missing.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"is not a ResNet-18: missing .*unexpected \['a'\]"):
        ResNet(weights=tmp_path / "other.pt")
    torch.save(resnet18, tmp_path / "pickled.pt")  # a pickled module could run code on loading
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        ResNet(weights=tmp_path / "pickled.pt")
    with pytest.raises(ValueError, match="depth is 101, allowed are 18, 34, 50"):
        ResNet(depth=101)
    with pytest.raises(ValueError, match="allowed are 'grid' and 'pooled'"):
        ResNet("tokens")


@pytest.mark.parametrize(("depth", "out_dim"), [(18, 512), (34, 512), (50, 2048)])
def test_resnet_depths(depth, out_dim):
    with torch.device("meta"):
        encoder = ResNet(depth=depth)
        assert encoder(torch.empty(1, 3, 224, 224)).tokens.shape == (1, 49, out_dim)
    assert encoder.out_dim == out_dim


def test_cached_tokens_pass_through():
    tokens = torch.randn(2, 49, 16)
    assert CachedTokens(16)(tokens).tokens is tokens
    with pytest.raises(ValueError, match=r"expected \(B, N, 16\)"):
        CachedTokens(16)(torch.randn(2, 49, 8))


def test_frozen_encoder_learns_nothing_not_even_batch_statistics():
    encoder = GridCNN(out_dim=16, width=8)
    before = copy.deepcopy(encoder.state_dict())
    frozen = Frozen(encoder).train()
    model = nn.Sequential(frozen).train()
    tokens = model(torch.randn(4, 3, 64, 64)).tokens
    assert not tokens.requires_grad
    assert frozen.out_dim == 16
    assert_close(dict(encoder.state_dict()), dict(before))
    thawed = GridCNN(out_dim=16, width=8).requires_grad_(False).train()  # the plant: no gradients, but batch norm moves
    mean = thawed.last[1].running_mean.clone()
    thawed(torch.randn(4, 3, 64, 64))
    assert (thawed.last[1].running_mean - mean).abs().max() > 1e-4


def test_encode_in_batches_gives_tokens_that_can_be_trained_on():
    encoder = GridCNN(out_dim=16, width=8)
    pictures = torch.randn(5, 3, 64, 64)
    tokens = encode_in_batches(encoder, pictures, batch_size=2)
    assert encoder.training
    assert_close(tokens, encoder.eval()(pictures).tokens, rtol=1e-5, atol=1e-5)
    nn.Linear(16, 2)(tokens).sum().backward()  # inference tensors refuse this
