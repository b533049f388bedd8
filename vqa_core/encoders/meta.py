"""The small CNN that MAML meta-trained on radiology pictures (Finn et al. 2017; Nguyen et al. 2019, MEVF)."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from vqa_core.encoders.conversion import read_weights
from vqa_core.encoders.tokens import Tokens

SIZE, WIDTH, LAYERS = 84, 64, 4


class MetaCNN(nn.Module):
    """Four times [3 × 3 convolution with stride 2, ReLU, batch norm]: 84 × 84 grey pixels become 6 × 6 cells.

    Sides are 84 → 42 → 21 → 11 → 6; 111,936 parameters. It is MAML's network for small pictures (arXiv 1703.03400) in
    the form of MEVF (arXiv 1909.11867). :mod:`vqa_core.training.meta_learning` trains it.

    Parameters
    ----------
    form
        ``"pooled"``: the mean over the cells, one token, as in MEVF. Attention over one token is the constant 1.
        ``"grid"``: 36 tokens, in reading order.

    Attributes
    ----------
    grid
        (rows, columns) of the cells.
    """

    def __init__(self, form: str = "pooled") -> None:
        super().__init__()
        if form not in ("pooled", "grid"):
            raise ValueError(f"form is {form!r}, allowed are 'pooled' and 'grid'")
        self.form, self.out_dim, self.size, self.grid = form, WIDTH, SIZE, (6, 6)
        self.blocks = nn.Sequential(*(self._block(1 if i == 0 else WIDTH) for i in range(LAYERS)))

    @staticmethod
    def _block(inputs: int) -> nn.Sequential:
        layers = {
            "conv": nn.Conv2d(inputs, WIDTH, kernel_size=3, stride=2, padding=1),
            "relu": nn.ReLU(),
            "norm": nn.BatchNorm2d(WIDTH, eps=1e-5, momentum=0.05),
        }
        return nn.Sequential(OrderedDict(layers))

    def forward(self, pictures: Tensor) -> Tokens:
        """Grey pictures (B, 1, 84, 84) in [0, 1] → tokens (B, 1, 64) or (B, 36, 64)."""
        if pictures.shape[1:] != (1, SIZE, SIZE):
            raise ValueError(f"pictures have shape {tuple(pictures.shape)}, expected grey (B, 1, {SIZE}, {SIZE})")
        features = self.blocks(pictures)  # (B, 64, 6, 6)
        # flatten(2).transpose(1, 2) would do, but for one picture (B = 1) PyTorch's batch norm misreads its gradient's
        # strides and gives a wrong gradient, without an error (CPU, PyTorch 2.15)
        tokens = features.permute(0, 2, 3, 1).flatten(1, 2)  # (B, 36, 64)
        return Tokens(tokens.mean(1, keepdim=True) if self.form == "pooled" else tokens)


def load_published(path: str | Path, form: str = "pooled") -> MetaCNN:
    """The encoder with the published MAML weights of MEVF.

    The file has the four convolutions, ``conv1`` … ``conv4`` as (height, width, inputs, outputs) and ``b1`` … ``b4``;
    PyTorch wants (outputs, inputs, height, width). It has *no* batch norm: scale 1, shift 0, and no statistics. In
    training mode that is complete, since MAML uses the statistics of the batch. Before freezing the encoder, let it see
    pictures: ``torch.optim.swa_utils.update_bn(batches, encoder)``; as loaded, evaluation mode would normalise nothing.

    Parameters
    ----------
    path
        ``pretrained_maml.weights``, a pickle, of which only arrays are read
        (:class:`~vqa_core.encoders.conversion.ArrayUnpickler`); or what ``python -m vqa_core weights convert`` made of
        it.
    form
        See :class:`MetaCNN`.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it holds anything else than these eight arrays, or asks to run code.
    """
    arrays, encoder = read_weights(path), MetaCNN(form)
    expected = {f"{kind}{i}" for kind in ("conv", "b") for i in range(1, LAYERS + 1)}
    if set(arrays) != expected:
        raise ValueError(f"{path} holds {sorted(arrays)[:8]}, expected the MAML weights {sorted(expected)}")
    with torch.no_grad():
        for i, block in enumerate(encoder.blocks, start=1):
            weight = arrays[f"conv{i}"]  # HWIO
            if weight.ndim != 4 or weight.permute(3, 2, 0, 1).shape != block.conv.weight.shape:
                wanted = tuple(block.conv.weight.permute(2, 3, 1, 0).shape)
                raise ValueError(f"{path}: conv{i} has shape {tuple(weight.shape)}, expected {wanted} (HWIO)")
            if arrays[f"b{i}"].shape != block.conv.bias.shape:
                raise ValueError(f"{path}: b{i} has shape {tuple(arrays[f'b{i}'].shape)}, expected ({WIDTH},)")
            block.conv.weight.copy_(weight.permute(3, 2, 0, 1))  # OIHW
            block.conv.bias.copy_(arrays[f"b{i}"])
    return encoder
