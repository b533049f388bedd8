"""The denoising auto-encoder: its size, its damage, that it learns to undo it, and the published weights."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from vqa_core.encoders.conversion import convert
from vqa_core.encoders.denoising import DenoisingAutoEncoder, corrupt, load_published, reconstruction


def blobs(n, size):
    """Smooth grey pictures in [0, 1]: bright discs of other place and radius."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centre, radius = size * (0.3 + 0.4 * torch.rand(n, 2, 1, 1)), size * (0.1 + 0.2 * torch.rand(n, 1, 1))
    distance = ((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2).sqrt()
    return (radius - distance).sigmoid().unsqueeze(1)  # (n, 1, size, size)


def test_sizes_of_the_published_network():
    grid = DenoisingAutoEncoder("grid")
    assert sum(p.numel() for p in grid.parameters()) == 56_689
    vector = DenoisingAutoEncoder()
    assert sum(p.numel() for p in vector.parameters()) == 56_689 + 16_384 * 64 + 64
    pictures = torch.rand(2, 1, 128, 128)
    with torch.no_grad():
        assert vector.code(pictures).shape == (2, 16, 32, 32)
        assert vector.reconstruct(pictures).shape == (2, 1, 128, 128)
        assert vector(pictures).tokens.shape == (2, 1, 64)
        assert grid(pictures).tokens.shape == (2, 1024, 16)
    assert (vector.out_dim, grid.out_dim, grid.grid) == (64, 16, (32, 32))


def test_pooling_before_relu_is_the_published_order():
    model = DenoisingAutoEncoder("grid", size=16)
    pictures = torch.rand(3, 1, 16, 16)
    x = F.max_pool2d(F.relu(model.conv1(pictures)), 2)
    x = F.max_pool2d(F.relu(model.conv2(x)), 2)
    assert_close(model.code(pictures), F.relu(model.conv3(x)))


def test_tokens_are_the_code_in_reading_order_and_the_vector_reads_all_of_it():
    grid = DenoisingAutoEncoder("grid", size=16)
    pictures = torch.rand(2, 1, 16, 16)
    code = grid.code(pictures)
    assert_close(grid.encode(pictures).tokens[:, 4 * 1 + 3], code[:, :, 1, 3])
    vector = DenoisingAutoEncoder(size=16)
    one = vector.encode(pictures).tokens
    assert_close(one[:, 0], vector.project(vector.code(pictures).flatten(1)))
    assert_close(torch.cat([vector(p[None]).tokens for p in pictures]), one)


def test_corruption_is_what_it_says():
    grey = torch.full((1, 1, 256, 256), 0.5)
    damage = corrupt(grey, noise=0.1) - grey
    assert damage.mean().abs() < 0.002
    assert damage.std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(corrupt(grey, noise=0), grey)
    erased = corrupt(grey, noise=0, erased=0.3)
    assert (erased == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert erased.unique().tolist() == [0, 0.5]
    assert not corrupt(grey, noise=0, erased=1).any()
    for end in (0.0, 1.0):
        cut = corrupt(torch.full_like(grey, end), noise=0.5)
        assert cut.min() >= 0
        assert cut.max() <= 1
    a, b = (corrupt(grey, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(grey, torch.full_like(grey, 0.5))  # the clean pictures stay clean
    for noise, erased in ((-0.1, 0), (0, 1.5)):
        with pytest.raises(ValueError, match="allowed are noise ≥ 0 and 0 ≤ erased ≤ 1"):
            corrupt(grey, noise, erased)


def test_training_learns_to_remove_noise():
    model = DenoisingAutoEncoder("grid", size=8)
    seen, new = blobs(16, 8), blobs(32, 8)
    damaged = corrupt(new, 0.3)
    noise = F.mse_loss(damaged, new)  # the error of leaving the picture as it is
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(200):
        loss = reconstruction(model, seen, 0.3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    with torch.no_grad():
        rebuilt = F.mse_loss(model.reconstruct(damaged), new)
    assert rebuilt < 0.5 * noise  # pictures and noise that it has never seen
    assert rebuilt < 0.5 * new.var()  # and not by painting them grey


def test_the_loss_compares_with_the_clean_picture():
    model, pictures = DenoisingAutoEncoder("grid", size=16), torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        for p in model.parameters():
            p *= 3  # as it starts, every picture comes out grey, whatever goes in
    generator = torch.Generator().manual_seed(5)
    found = reconstruction(model, pictures, 0.2, 0.1, generator)
    damaged = corrupt(pictures, 0.2, 0.1, torch.Generator().manual_seed(5))
    assert_close(found, (model.reconstruct(damaged) - pictures).square().mean())
    assert (found - reconstruction(model, pictures, 0)).abs() > 1e-3
    assert_close(reconstruction(model, pictures, 0), (model.reconstruct(pictures) - pictures).square().mean())


def test_gradients_reach_everything():
    model, pictures = DenoisingAutoEncoder(size=16, out_dim=8), torch.rand(4, 1, 16, 16)
    reconstruction(model, pictures).backward()
    assert model.project.weight.grad is None  # the loss does not need the vector
    model(pictures).tokens.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    model.zero_grad()
    model(pictures).tokens.square().sum().backward()
    assert model.conv5.weight.grad is None  # and the vector does not run the decoder


def test_loaded_tensors_are_the_ones_in_use(tmp_path):
    source, pictures = DenoisingAutoEncoder("grid"), torch.rand(1, 1, 128, 128)
    state = source.state_dict()
    path = tmp_path / "ae.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)  # as the published file
    convert(path, tmp_path / "ae.safetensors")
    with torch.no_grad():
        expected = source(pictures).tokens, source.reconstruct(pictures)
        for file in (path, tmp_path / "ae.safetensors"):
            model = load_published(file, "grid")
            assert_close((model(pictures).tokens, model.reconstruct(pictures)), expected)
            assert_close(load_published(file).reconstruct(pictures), expected[1])
        for name in ("conv3.bias", "conv5.weight"):
            torch.save(state | {name: state[name] + 0.1}, path)
            changed = load_published(path, "grid")
            assert (changed.reconstruct(pictures) - expected[1]).abs().max() > 1e-5
            assert torch.equal(changed(pictures).tokens, expected[0]) == (name == "conv5.weight")


def test_other_files_are_refused(tmp_path):
    state = DenoisingAutoEncoder("grid").state_dict()
    path = tmp_path / "ae.pth"
    for wrong in ({"other": torch.zeros(1)}, {"conv5.bias": torch.zeros(2)}):
        torch.save(state | wrong, path)
        with pytest.raises(ValueError, match=f"other shape are .*{next(iter(wrong))}"):
            load_published(path)
    del state["conv1.bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"\['conv1.bias'\]"):
        load_published(path)
    torch.save(DenoisingAutoEncoder("grid", size=8), path)
    with pytest.raises(ValueError, match="more than a state dict"):
        load_published(path)


def test_shapes_and_forms_are_checked():
    with pytest.raises(ValueError, match=r"expected grey \(B, 1, 128, 128\)"):
        DenoisingAutoEncoder("grid")(torch.rand(1, 1, 84, 84))
    with pytest.raises(ValueError, match="allowed are 'vector' and 'grid'"):
        DenoisingAutoEncoder("pooled")
    with pytest.raises(ValueError, match="multiple of 4"):
        DenoisingAutoEncoder(size=30)


@pytest.mark.realdata("vqa_rad")
def test_published_weights_rebuild_radiology_pictures(data_root):
    """If a layer were swapped, turned or left random, the picture would not come back."""
    from PIL import Image

    folder = data_root / "vqa_rad"
    pictures = []
    for path in sorted((folder / "images").glob("*.jpg"))[:8]:
        with Image.open(path) as image:
            pictures.append(
                torch.frombuffer(bytearray(image.convert("L").resize((128, 128)).tobytes()), dtype=torch.uint8)
            )
    pictures = torch.stack(pictures).view(-1, 1, 128, 128) / 255
    model = load_published(folder / "mevf_weights" / "pretrained_ae.pth", "grid")
    with torch.no_grad():
        clean, noisy = reconstruction(model, pictures, 0), reconstruction(model, pictures, 0.1)
        random = reconstruction(DenoisingAutoEncoder("grid"), pictures, 0)
        print(
            f"mean squared error: clean {clean:.5f}, noise 0.1 {noisy:.5f} (left as it is: 0.01), random {random:.3f}"
        )
        variance = pictures.var()
    assert clean < 0.05 * variance
    assert noisy < 0.3 * variance
    assert random > 0.5 * variance
