"""The ResNet for pictures of 32 × 32 pixels (He et al. 2016, arXiv 1512.03385, section 4.2), as an image encoder."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.encoders.tokens import Tokens

SIZE = 32
DEPTHS = (20, 32, 44, 56)
CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as the published weights were trained


class Block(nn.Module):
    """Two 3 × 3 convolutions with batch norm, added to what came in.

    Where the block halves the grid and doubles the channels, the shortcut takes every second pixel and fills the new
    channels with zeros, half of them before and half after (option A of the paper): it has no parameters.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H/stride, W/stride)."""
        shortcut = x[:, :, :: self.stride, :: self.stride]  # (B, inputs, H/stride, W/stride)
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.new // 2, self.new // 2))  # (B, outputs, H/stride, W/stride)
        y = F.relu(self.bn1(self.conv1(x)))  # (B, outputs, H/stride, W/stride)
        return F.relu(self.bn2(self.conv2(y)) + shortcut)


class CifarResNet(nn.Module):
    """6 n + 2 layers: a convolution, three stages of n blocks with 16, 32 and 64 channels, a linear classifier.

    ResNet-20 has 269,722 parameters with its classifier of ten classes. Layers have the names of the published state
    dicts.

    Parameters
    ----------
    depth
        6 n + 2: 20, 32, 44 or 56.
    classes
        Of the classifier, which an encoder does not use.

    Attributes
    ----------
    grid
        (rows, columns) of the last stage: one token of 64 features for each of 8 × 8 cells, in reading order.
    """

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth is {depth!r}, allowed are {', '.join(map(str, DEPTHS))}")
        n = (depth - 2) // 6
        self.depth, self.size, self.out_dim, self.grid = depth, SIZE, 64, (8, 8)
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, n)
        self.layer2 = self._stage(16, 32, 2, n)
        self.layer3 = self._stage(32, 64, 2, n)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, n: int) -> nn.Sequential:
        return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(n - 1)))

    def features(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, 32, 32), normalised with :data:`CIFAR_MEAN` and :data:`CIFAR_STD` → (B, 64, 8, 8)."""
        if pictures.shape[1:] != (3, SIZE, SIZE):
            raise ValueError(f"pictures have shape {tuple(pictures.shape)}, expected (B, 3, {SIZE}, {SIZE})")
        x = F.relu(self.bn1(self.conv1(pictures)))  # (B, 16, 32, 32)
        return self.layer3(self.layer2(self.layer1(x)))  # (B, 64, 8, 8)

    def classify(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, 32, 32) → logits (B, classes); those of CIFAR-10 in alphabetical order."""
        return self.linear(self.features(pictures).mean((2, 3)))  # (B, classes)

    def forward(self, pictures: Tensor) -> Tokens:
        """Pictures (B, 3, 32, 32) → tokens (B, 64, 64), one for each cell."""
        return Tokens(self.features(pictures).flatten(2).transpose(1, 2))  # (B, 64 cells, 64)


def load_published(path: str | Path, depth: int = 20) -> CifarResNet:
    """A ResNet with published CIFAR-10 weights.

    Parameters
    ----------
    path
        For example ``resnet20-12fca82f.th``: a dict whose ``state_dict`` has names that start with ``module.``; read
        with ``weights_only=True``.
    depth
        That of the file.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it holds another network, or asks to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no ResNet weights at {path}; they are those of akamaster/pytorch_resnet_cifar10")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong inside, the file must be named
        raise ValueError(f"{path} was not read as a state dict ({type(error).__name__}: {error})") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no state dict")
    model = CifarResNet(depth)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    # files older than PyTorch 0.4.1 do not count batches; the count plays no part in evaluation
    own = {n: v for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    found = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    wrong = sorted(
        n for n in own.keys() | found.keys() if n not in own or n not in found or own[n].shape != found[n].shape
    )
    if wrong:
        raise ValueError(f"{path} is not a ResNet-{depth}: missing, unknown or of other shape are {wrong[:4]}")
    model.load_state_dict(found, strict=False)
    return model.eval()
