"""The MAML encoder: its size, its cells, and that the published tensors are the ones that compute."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from vqa_core.encoders.conversion import convert
from vqa_core.encoders.meta import MetaCNN, load_published


def published(seed=0):
    """Arrays under the names and with the axes of the published file; every one is different."""
    rng = np.random.default_rng(seed)
    arrays = {f"conv{i}": rng.normal(size=(3, 3, 1 if i == 1 else 64, 64)) / 10 for i in range(1, 5)}
    arrays |= {f"b{i}": rng.normal(size=64) for i in range(1, 5)}
    return {name: a.astype(np.float32) for name, a in arrays.items()}


def write(path, arrays):
    path.write_bytes(pickle.dumps(arrays, 3))
    return path


def by_hand(arrays, pictures):
    """The published network from the arrays alone, with the statistics of the batch: (B, 64, 6, 6)."""
    x = pictures
    for i in range(1, 5):
        weight = torch.einsum("hwio->oihw", torch.from_numpy(arrays[f"conv{i}"]))
        x = F.relu(F.conv2d(x, weight, torch.from_numpy(arrays[f"b{i}"]), stride=2, padding=1))
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
        x = (x - mean) / (variance + 1e-5).sqrt()
    return x


def test_size_tokens_and_forms():
    pictures = torch.rand(3, 1, 84, 84)
    grid, pooled = MetaCNN("grid").eval(), MetaCNN().eval()
    pooled.load_state_dict(grid.state_dict())
    assert sum(p.numel() for p in grid.parameters()) == 111_936
    tokens = grid(pictures).tokens
    assert tokens.shape == (3, 36, 64)
    assert grid.grid == (6, 6)
    assert grid.out_dim == pooled.out_dim == 64
    assert_close(pooled(pictures).tokens, tokens.mean(1, keepdim=True))
    assert pooled(pictures).mask is None
    sides = [84]
    x = pictures
    for block in grid.blocks:
        x = block(x)
        sides.append(x.shape[-1])
    assert sides == [84, 42, 21, 11, 6]
    assert all(block.norm.eps == 1e-5 and block.norm.momentum == 0.05 for block in grid.blocks)


@pytest.mark.parametrize("training", [False, True])
def test_the_gradient_of_one_picture_is_right(training):
    """PyTorch's CPU batch norm misreads one layout of gradients, which a batch of one can have (see the encoder)."""
    encoder = MetaCNN("grid").double().train(training)
    pictures = torch.rand(1, 1, 84, 84, dtype=torch.double, requires_grad=True)
    chosen = torch.randn(1, 36, 64, dtype=torch.double)
    (gradient,) = torch.autograd.grad((encoder(pictures).tokens * chosen).sum(), pictures)
    direction = torch.randn_like(pictures)
    with torch.no_grad():
        ends = [(encoder(pictures + s * 1e-6 * direction).tokens * chosen).sum() for s in (1, -1)]
    assert ((ends[0] - ends[1]) / 2e-6).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-2)


def test_cells_are_in_reading_order():
    encoder = MetaCNN("grid").eval()
    pictures = torch.rand(1, 1, 84, 84, requires_grad=True)
    for row, column in ((1, 4), (2, 3)):
        (paths,) = torch.autograd.grad(encoder(pictures).tokens[0, 6 * row + column].sum(), pictures)
        seen = (paths[0, 0] != 0).nonzero().double()  # (pixels, 2)
        assert len(seen) > 500  # of 31 × 31
        assert_close(seen.mean(0), torch.tensor([16.0 * row, 16.0 * column]).double(), atol=0.5, rtol=0)


def test_batches_may_be_split_in_evaluation_and_gradients_reach_everything():
    encoder = MetaCNN("grid")
    pictures = torch.rand(4, 1, 84, 84)
    tokens = encoder(pictures).tokens
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())
    encoder.eval()
    parts = torch.cat([encoder(p[None]).tokens for p in pictures])
    assert_close(parts, encoder(pictures).tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("converted", [False, True])
def test_loaded_tensors_are_the_ones_in_use(tmp_path, converted):
    arrays, pictures = published(), torch.rand(4, 1, 84, 84)
    path = write(tmp_path / "maml.weights", arrays)
    if converted:
        convert(path, tmp_path / "maml.safetensors")
        path = tmp_path / "maml.safetensors"
    encoder = load_published(path, "grid")
    for i, block in enumerate(encoder.blocks, start=1):
        assert_close(block.conv.weight.data, torch.from_numpy(arrays[f"conv{i}"].transpose(3, 2, 0, 1).copy()))
        assert_close(block.conv.bias.data, torch.from_numpy(arrays[f"b{i}"]))
    with torch.no_grad():
        expected = by_hand(arrays, pictures).flatten(2).transpose(1, 2)
        assert_close(encoder.train()(pictures).tokens, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [f"{kind}{i}" for kind in ("conv", "b") for i in range(1, 5)])
def test_every_array_of_the_file_changes_the_output(tmp_path, name):
    """Batch norm takes away a constant shift, not what the ReLU before it makes of the shift: biases count too."""
    arrays, pictures = published(), torch.rand(2, 1, 84, 84)
    before = load_published(write(tmp_path / "a", arrays))(pictures).tokens
    assert_close(load_published(tmp_path / "a")(pictures).tokens, before)  # nothing random is left
    arrays[name] = arrays[name] + np.random.default_rng(1).normal(size=arrays[name].shape).astype(np.float32)
    after = load_published(write(tmp_path / "b", arrays))
    assert (after.eval()(pictures).tokens - load_published(tmp_path / "a").eval()(pictures).tokens).abs().max() > 1e-3


def test_other_files_are_refused(tmp_path):
    arrays = published()
    missing = {name: a for name, a in arrays.items() if name != "b3"}
    with pytest.raises(ValueError, match="expected the MAML weights"):
        load_published(write(tmp_path / "a", missing))
    turned = arrays | {"conv1": arrays["conv1"].transpose(3, 2, 0, 1)}
    with pytest.raises(ValueError, match=r"conv1 has shape \(64, 1, 3, 3\), expected \(3, 3, 1, 64\) \(HWIO\)"):
        load_published(write(tmp_path / "b", turned))
    with pytest.raises(ValueError, match=r"b2 has shape \(1,\), expected \(64,\)"):
        load_published(write(tmp_path / "c", arrays | {"b2": np.zeros(1, np.float32)}))
    with pytest.raises(FileNotFoundError, match="no weights file"):
        load_published(tmp_path / "nothing")
    (tmp_path / "evil").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=r"asks for os\.system"):
        load_published(tmp_path / "evil")


def test_shapes_and_forms_are_checked():
    with pytest.raises(ValueError, match=r"expected grey \(B, 1, 84, 84\)"):
        MetaCNN()(torch.rand(2, 3, 84, 84))
    with pytest.raises(ValueError, match="allowed are 'pooled' and 'grid'"):
        MetaCNN("mean")


@pytest.mark.realdata("vqa_rad")
def test_published_weights(data_root):
    path = data_root / "vqa_rad" / "mevf_weights" / "pretrained_maml.weights"
    with path.open("rb") as file:
        arrays = pickle.load(file)  # this very file has been looked at: three numpy names, nothing else
    encoder, pictures = load_published(path, "grid"), torch.rand(4, 1, 84, 84)
    for i, block in enumerate(encoder.blocks, start=1):
        np.testing.assert_array_equal(block.conv.weight.detach().numpy(), arrays[f"conv{i}"].transpose(3, 2, 0, 1))
        np.testing.assert_array_equal(block.conv.bias.detach().numpy(), arrays[f"b{i}"])
    with torch.no_grad():
        expected = by_hand(arrays, pictures).flatten(2).transpose(1, 2)
        assert_close(encoder.train()(pictures).tokens, expected, rtol=1e-3, atol=1e-3)
