"""A denoising auto-encoder: what is left of a picture when it has to be rebuilt from a damaged copy."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.encoders.conversion import read_weights
from vqa_core.encoders.tokens import Tokens

CODE = 16  # channels of the code


def corrupt(
    pictures: Tensor, noise: float = 0.1, erased: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """A damaged copy: Gaussian noise on every pixel, some pixels erased (Vincent et al. 2008), then cut to [0, 1].

    Parameters
    ----------
    pictures
        float (B, C, H, W) in [0, 1].
    noise
        Standard deviation of the noise, at least 0; 0.1 in the published code, where it is defined but not used.
    erased
        Share of pixels that become 0, from 0 to 1.
    generator
        Of the random numbers, on the device of the pictures.
    """
    if noise < 0 or not 0 <= erased <= 1:
        raise ValueError(f"noise is {noise} and erased {erased}; allowed are noise ≥ 0 and 0 ≤ erased ≤ 1")
    options = {"generator": generator, "device": pictures.device, "dtype": pictures.dtype}
    kept = torch.rand(pictures.shape[0], 1, *pictures.shape[2:], **options) >= erased  # (B, 1, H, W)
    return ((pictures + noise * torch.randn(pictures.shape, **options)) * kept).clamp(0, 1)


class DenoisingAutoEncoder(nn.Module):
    """Grey pictures → 16 channels at a quarter of the side → the picture again; as an encoder, the code as tokens.

    Channels are 64, 32, 16, then 32, 32, 64, 1; layers have the names of the published state dict (MEVF, Nguyen et al.
    2019, arXiv 1909.11867): 56,689 parameters. At 128 × 128 pixels the code has 16 × 32 × 32 = 16,384 numbers.

    Parameters
    ----------
    form
        ``"vector"``: the whole code through a linear layer to 64 features, one token, as in MEVF. This layer is part
        of the VQA model, not of the published auto-encoder, and is larger than it: 1,048,640 more parameters.
        ``"grid"``: one token of 16 features per cell, 1,024 of them at 128 pixels, in reading order.
    size
        Side of the square pictures in pixels, a multiple of 4.
    out_dim
        Features of the vector.

    Attributes
    ----------
    grid
        (rows, columns) of the code.
    """

    def __init__(self, form: str = "vector", size: int = 128, out_dim: int = 64) -> None:
        super().__init__()
        if form not in ("vector", "grid"):
            raise ValueError(f"form is {form!r}, allowed are 'vector' and 'grid'")
        if size % 4 or size < 4:
            raise ValueError(f"size is {size}; give a multiple of 4, at least 4")
        self.form, self.size, self.grid = form, size, (size // 4, size // 4)
        self.conv1 = nn.Conv2d(1, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, CODE, 3, padding=1)
        self.tran_conv1 = nn.ConvTranspose2d(CODE, 32, 3, stride=2, padding=1, output_padding=1)
        self.conv4 = nn.Conv2d(32, 32, 3, padding=1)
        self.tran_conv2 = nn.ConvTranspose2d(32, 64, 3, stride=2, padding=1, output_padding=1)
        self.conv5 = nn.Conv2d(64, 1, 3, padding=1)
        self.out_dim = out_dim if form == "vector" else CODE
        self.project = nn.Linear(CODE * self.grid[0] * self.grid[1], out_dim) if form == "vector" else None

    def code(self, pictures: Tensor) -> Tensor:
        """Grey pictures (B, 1, size, size) in [0, 1] → code (B, 16, size/4, size/4), not negative."""
        if pictures.shape[1:] != (1, self.size, self.size):
            expected = f"grey (B, 1, {self.size}, {self.size})"
            raise ValueError(f"pictures have shape {tuple(pictures.shape)}, expected {expected}")
        x = F.relu(F.max_pool2d(self.conv1(pictures), 2))  # (B, 64, size/2, size/2); pooling first: ReLU on a quarter
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (B, 32, size/4, size/4)
        return F.relu(self.conv3(x))  # (B, 16, size/4, size/4)

    def decode(self, code: Tensor) -> Tensor:
        """Code (B, 16, size/4, size/4) → pictures (B, 1, size, size) in (0, 1)."""
        x = F.relu(self.tran_conv1(code))  # (B, 32, size/2, size/2)
        x = F.relu(self.conv4(x))
        x = F.relu(self.tran_conv2(x))  # (B, 64, size, size)
        return self.conv5(x).sigmoid()  # (B, 1, size, size)

    def reconstruct(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 1, size, size) → code → pictures (B, 1, size, size)."""
        return self.decode(self.code(pictures))

    def encode(self, pictures: Tensor) -> Tokens:
        """Pictures (B, 1, size, size) → tokens (B, 1, out_dim) or (B, (size/4)², 16); the decoder is not run."""
        code = self.code(pictures)
        if self.project is not None:
            return Tokens(self.project(code.flatten(1)).unsqueeze(1))  # (B, 1, out_dim)
        return Tokens(code.flatten(2).transpose(1, 2))  # (B, (size/4)², 16)

    def forward(self, pictures: Tensor) -> Tokens:
        """The same as :meth:`encode`."""
        return self.encode(pictures)


def reconstruction(
    model: DenoisingAutoEncoder,
    pictures: Tensor,
    noise: float = 0.1,
    erased: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean squared error between the clean pictures and those rebuilt from damaged copies; a scalar.

    With ``noise=0`` and ``erased=0`` it is the loss with which MEVF fine-tunes (times 0.001): nothing is denoised.
    Mostly dark pictures need a low learning rate: a few large steps drive the sigmoid to 0 everywhere, and no gradient
    leads back from black.

    Parameters
    ----------
    model, pictures
        The pictures are clean: float (B, 1, size, size) in [0, 1].
    noise, erased, generator
        See :func:`corrupt`.
    """
    return F.mse_loss(model.reconstruct(corrupt(pictures, noise, erased, generator)), pictures)


def load_published(path: str | Path, form: str = "vector") -> DenoisingAutoEncoder:
    """The auto-encoder with the published weights of MEVF; the linear layer of ``form="vector"`` stays random.

    Parameters
    ----------
    path
        ``pretrained_ae.pth``, read with ``weights_only=True``, or what ``python -m vqa_core weights convert`` made of
        it.
    form
        See :class:`DenoisingAutoEncoder`.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is not this auto-encoder, or asks to run code.
    """
    model, state = DenoisingAutoEncoder(form), read_weights(path)
    own = {name: value.shape for name, value in model.state_dict().items() if not name.startswith("project.")}
    found = {name: value.shape for name, value in state.items()}
    if own != found:
        wrong = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
        raise ValueError(f"{path} is not the auto-encoder: missing, unknown or of other shape are {wrong[:4]}")
    model.load_state_dict(state, strict=False)  # the names were compared above; only ``project`` is left out
    return model
