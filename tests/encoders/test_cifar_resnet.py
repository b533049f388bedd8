"""The ResNet for 32 pixels: its size, its shortcut, its cells, and the published weights at work."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vqa_core.encoders.cifar_resnet import CIFAR_MEAN, CIFAR_STD, DEPTHS, CifarResNet, load_published

PUBLISHED = "resnet20-12fca82f.th"


def plainly(state, pictures):
    """The network once more, from its weights alone and without a class."""

    def norm(x, name):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])

    x = norm(F.conv2d(pictures, state["conv1.weight"], padding=1), "bn1").relu()
    for stage in (1, 2, 3):
        for block in range(3):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1").relu()
            y = norm(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if stride == 2:
                zeros = torch.zeros(len(x), x.shape[1] // 2, *y.shape[2:])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
            x = (x + y).relu()
    return x


def perturbed(model):
    """Batch norms that do something."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand_like(value) + (0.5 if "var" in name else 0.0))
    return model.eval()


def test_it_is_the_network_of_the_paper():
    assert sum(p.numel() for p in CifarResNet().parameters()) == 269_722
    layers = [m for m in CifarResNet(56).modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 56
    with pytest.raises(ValueError, match="21"):
        CifarResNet(21)
    assert DEPTHS == (20, 32, 44, 56)


@torch.no_grad()
def test_it_agrees_with_the_equations_and_cells_are_in_reading_order():
    model, pictures = perturbed(CifarResNet()), torch.randn(2, 3, 32, 32)
    expected = plainly(model.state_dict(), pictures)  # (2, 64, 8, 8)
    tokens = model(pictures).tokens
    torch.testing.assert_close(tokens[:, 11], expected[:, :, 1, 3], rtol=1e-4, atol=1e-4)
    logits = expected.mean((2, 3)) @ model.linear.weight.T + model.linear.bias
    torch.testing.assert_close(model.classify(pictures), logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"\(2, 3, 30, 32\)"):
        model(pictures[:, :, :30])


def test_gradient_reaches_every_parameter():
    model = CifarResNet()
    model.classify(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_published_file_is_read_and_anything_else_refused(tmp_path):
    model = perturbed(CifarResNet())
    state = {f"module.{k}": v for k, v in model.state_dict().items() if "num_batches" not in k}
    torch.save({"best_prec1": 91.7, "state_dict": state}, tmp_path / "good.th")
    pictures = torch.randn(1, 3, 32, 32)
    loaded = load_published(tmp_path / "good.th")
    torch.testing.assert_close(loaded(pictures).tokens, model(pictures).tokens)
    del state["module.layer2.1.conv1.weight"]
    torch.save({"state_dict": state}, tmp_path / "short.th")
    with pytest.raises(ValueError, match=r"layer2\.1\.conv1"):
        load_published(tmp_path / "short.th")
    with pytest.raises(ValueError, match="ResNet-32"):
        load_published(tmp_path / "good.th", depth=32)
    with pytest.raises(FileNotFoundError, match=r"none\.th"):
        load_published(tmp_path / "none.th")
    (tmp_path / "text.th").write_text("weights")
    with pytest.raises(ValueError, match=r"text\.th"):
        load_published(tmp_path / "text.th")


@pytest.mark.realdata("cifar_resnet_weights", "cifar10")
@torch.no_grad()
def test_published_weights_name_what_a_photograph_shows(data_root):
    model = load_published(data_root / "cifar_resnet_weights" / PUBLISHED)
    with zipfile.ZipFile(data_root / "cifar10" / "test.zip") as file:
        names = sorted(n for n in file.namelist() if n.endswith(".jpg"))[::40]
        read = np.stack([np.asarray(Image.open(io.BytesIO(file.read(n))).convert("RGB")) for n in names])
    x = torch.from_numpy(read).permute(0, 3, 1, 2) / 255  # (P, 3, 32, 32)
    x = (x - torch.tensor(CIFAR_MEAN).view(3, 1, 1)) / torch.tensor(CIFAR_STD).view(3, 1, 1)
    classes = sorted({n.split("/")[0] for n in names})
    right = model.classify(x).argmax(1).numpy() == [classes.index(n.split("/")[0]) for n in names]
    assert len(names) == 125
    assert right.mean() > 0.7  # published: 91.7 % of the original pictures; these are JPEGs of 850 bytes
