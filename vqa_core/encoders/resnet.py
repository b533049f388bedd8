"""ResNet (He et al. 2016, arXiv 1512.03385) with its classifier removed, from torchvision."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vqa_core.encoders.tokens import Tokens

DEPTHS = (18, 34, 50)


def load_backbone(depth: int, weights: str | Path | None) -> nn.Module:
    """A torchvision ResNet, with its 1000-way classifier.

    Parameters
    ----------
    depth
        18, 34 or 50.
    weights
        ``None``: random. ``"DEFAULT"``: torchvision's ImageNet weights (downloaded once by torchvision). A path:
        a state dict saved with ``torch.save``, read with ``weights_only=True``; its names must match exactly, except
        that the classifier ``fc`` may be missing.
    """
    from torchvision import models

    if depth not in DEPTHS:
        raise ValueError(f"depth is {depth!r}, allowed are {', '.join(map(str, DEPTHS))}")
    constructor = getattr(models, f"resnet{depth}")
    if weights is None or weights == "DEFAULT":
        return constructor(weights=weights)
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no ResNet weights at {path}; give None, 'DEFAULT' or the path of a state dict")
    backbone = constructor(weights=None)
    missing, unexpected = backbone.load_state_dict(
        torch.load(path, map_location="cpu", weights_only=True), strict=False
    )
    missing = [name for name in missing if not name.startswith("fc.")]
    if missing or unexpected:
        raise ValueError(f"{path} is not a ResNet-{depth}: missing {missing[:3]}, unexpected {unexpected[:3]}")
    return backbone


class ResNet(nn.Module):
    """A ResNet without its classifier.

    The classifier is removed by ``fc = nn.Identity()``. Python lets one write ``.fn`` by mistake, which only adds an
    unused module of that name and leaves the 1000-way classifier in place.

    Parameters
    ----------
    form
        ``"grid"``: the last feature map, one token per cell: 7 × 7 = 49 tokens at 224 pixels, one per 32 pixels.
        ``"pooled"``: its mean, one token (N = 1).
    depth
        18 and 34 have 512 features, 50 has 2048.
    weights
        See :func:`load_backbone`.
    """

    def __init__(self, form: str = "grid", depth: int = 18, weights: str | Path | None = None) -> None:
        super().__init__()
        if form not in ("grid", "pooled"):
            raise ValueError(f"form is {form!r}, allowed are 'grid' and 'pooled'")
        self.form = form
        self.backbone = load_backbone(depth, weights)
        self.out_dim = self.backbone.fc.in_features
        self.backbone.fc = nn.Identity()

    def forward(self, pictures: Tensor) -> Tokens:
        """Pictures (B, 3, H, W), normalised with ImageNet's mean and deviation → tokens (B, N, out_dim)."""
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ValueError(f"pictures have shape {tuple(pictures.shape)}, expected (B, 3, H, W)")
        if self.form == "pooled":
            return Tokens(self.backbone(pictures).unsqueeze(1))  # (B, 1, out_dim)
        net = self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(pictures))))  # (B, 64, H/4, W/4)
        x = net.layer4(net.layer3(net.layer2(net.layer1(x))))  # (B, out_dim, H/32, W/32)
        return Tokens(x.flatten(2).transpose(1, 2))  # (B, H/32 · W/32, out_dim)
