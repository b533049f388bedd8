"""Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) as an image encoder."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from vqa_core.encoders.pretrained import load_model
from vqa_core.encoders.tokens import Tokens


def normalisation(folder: str | Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel on the scale from 0 to 1, as ``preprocessor_config.json`` in a folder says."""
    path = Path(folder) / "preprocessor_config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; it is published with the weights and says how to normalise pictures"
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["image_mean"], found["image_std"]


class ViTImage(nn.Module):
    """A pretrained ``ViTModel`` from a local folder.

    Parameters
    ----------
    folder
        A saved ``transformers.ViTModel``.
    form
        ``"patches"``: the last states of the patches, in reading order, without the class token; 14 × 14 = 196 tokens
        for 224 pixels and 16-pixel patches. ``"class"``: the last state of the class token, one token (N = 1).

    Attributes
    ----------
    grid
        (rows, columns) of the patches.
    """

    def __init__(self, folder: str | Path, form: str = "patches") -> None:
        from transformers import ViTModel

        super().__init__()
        if form not in ("patches", "class"):
            raise ValueError(f"form is {form!r}, allowed are 'patches' and 'class'")
        self.form = form
        self.model = load_model(ViTModel, folder, add_pooling_layer=False)
        config = self.model.config
        self.out_dim, self.size = config.hidden_size, config.image_size
        self.grid = (config.image_size // config.patch_size,) * 2

    def forward(self, pictures: Tensor) -> Tokens:
        """Pictures (B, 3, size, size), normalised as the folder's image processor says → tokens (B, N, out_dim)."""
        if pictures.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"pictures have shape {tuple(pictures.shape)}, expected (B, 3, {self.size}, {self.size})")
        states = self.model(pixel_values=pictures).last_hidden_state  # (B, 1 + patches, D)
        return Tokens(states[:, 1:] if self.form == "patches" else states[:, :1])  # (B, N, D)
