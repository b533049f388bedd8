"""The vision transformer from its parts (Dosovitskiy et al. 2021, arXiv 2010.11929); weights from and to torchvision.

:class:`vqa_core.encoders.vit.ViTImage` reads published weights through transformers; this one can be read line by line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqa_core.encoders.attention import SelfAttention
from vqa_core.encoders.patches import PatchEmbedding
from vqa_core.encoders.tokens import Tokens

if TYPE_CHECKING:
    from torchvision.models import VisionTransformer as TorchvisionViT

NORMS = ("pre", "post")
EPSILON = 1e-6  # of the layer norms, as in torchvision


class Block(nn.Module):
    """Attention, then a feed-forward part; each is added to what came in.

    ``pre``: x + f(norm(x)), as in ViT. ``post``: norm(x + f(x)), as in the first transformer (arXiv 1706.03762).

    Parameters
    ----------
    dim, heads
        See :class:`~vqa_core.encoders.attention.SelfAttention`.
    hidden
        Features between the two layers of the feed-forward part.
    norm
        Where the layer norms are: ``"pre"`` or ``"post"``.
    """

    def __init__(self, dim: int, heads: int, hidden: int, norm: str = "pre") -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}, allowed are {', '.join(map(repr, NORMS))}")
        self.pre = norm == "pre"
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim, eps=EPSILON), nn.LayerNorm(dim, eps=EPSILON)
        self.attention = SelfAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, T, D) → tokens (B, T, D), and attention weights (B, H, T, T) or None."""
        if self.pre:
            read, weights = self.attention(self.attention_norm(x), need_weights=need_weights)
            x = x + read
            return x + self.mlp(self.mlp_norm(x)), weights
        read, weights = self.attention(x, need_weights=need_weights)
        x = self.attention_norm(x + read)
        return self.mlp_norm(x + self.mlp(x)), weights


class VisionTransformer(nn.Module):
    """Patches and a class token, positions added, transformer blocks, a linear head on the class token.

    Parameters
    ----------
    size
        Side of the square pictures in pixels; a multiple of patch.
    patch
        Side of a patch in pixels.
    depth, heads, hidden
        Blocks, attention heads in each, features inside their feed-forward parts.
    dim
        D, features of a token; a multiple of heads.
    classes
        Of the head, which an encoder does not use.
    norm
        ``"pre"`` (ViT) or ``"post"``; see :class:`Block`.

    Attributes
    ----------
    grid
        (rows, columns) of the patches.
    positions
        (1, 1 + N, D): learnt, one for the class token and one for each place of the grid.
    """

    def __init__(
        self,
        size: int = 224,
        patch: int = 16,
        depth: int = 12,
        dim: int = 768,
        heads: int = 12,
        hidden: int = 3072,
        classes: int = 1000,
        norm: str = "pre",
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"size={size} is not a multiple of patch={patch}")
        self.size, self.out_dim, self.grid = size, dim, (size // patch, size // patch)
        self.patches = PatchEmbedding(dim, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + self.grid[0] * self.grid[1], dim))
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, norm) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=EPSILON) if norm == "pre" else nn.Identity()  # Post-LN ends with one already
        self.head = nn.Linear(dim, classes)
        for name, p in self.named_parameters():
            if name.endswith("weight") and p.ndim > 1:
                nn.init.xavier_uniform_(p.view(len(p), -1))  # Glorot and Bengio 2010; a patch is one flat input
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, size, size) → class token and patches with their positions, (B, 1 + N, D)."""
        if pictures.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"pictures have shape {tuple(pictures.shape)}, expected (B, 3, {self.size}, {self.size})")
        tokens = self.patches(pictures)  # (B, N, D)
        first = self.class_token.expand(len(tokens), -1, -1)  # (B, 1, D)
        return torch.cat([first, tokens], dim=1) + self.positions  # (B, 1 + N, D)

    def encode(self, pictures: Tensor, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Pictures (B, 3, size, size) → last states (B, 1 + N, D), and weights (B, L, H, 1 + N, 1 + N) or None."""
        x, maps = self.embed(pictures), []
        for block in self.blocks:
            x, weights = block(x, need_weights)  # (B, 1 + N, D), (B, H, 1 + N, 1 + N)
            maps.append(weights)
        return self.norm(x), torch.stack(maps, dim=1) if need_weights else None

    def classify(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, size, size) → logits (B, classes), read from the class token."""
        return self.head(self.encode(pictures)[0][:, 0])  # (B, classes)

    def forward(self, pictures: Tensor) -> Tokens:
        """Pictures (B, 3, size, size) → last states of the patches in reading order, without the class token."""
        return Tokens(self.encode(pictures)[0][:, 1:])  # (B, N, D)


def torchvision_names(depth: int) -> dict[str, str]:
    """Name of each parameter here → its name in torchvision's ``VisionTransformer``. Shapes are the same."""
    names = {"class_token": "class_token", "positions": "encoder.pos_embedding"}
    layers = {"patches.projection": "conv_proj", "norm": "encoder.ln", "head": "heads.head"}
    for i in range(depth):
        own, theirs = f"blocks.{i}", f"encoder.layers.encoder_layer_{i}"
        layers |= {f"{own}.attention_norm": f"{theirs}.ln_1", f"{own}.mlp_norm": f"{theirs}.ln_2"}
        layers |= {f"{own}.attention.out": f"{theirs}.self_attention.out_proj"}
        layers |= {f"{own}.mlp.0": f"{theirs}.mlp.0", f"{own}.mlp.2": f"{theirs}.mlp.3"}  # theirs has dropout between
        names |= {
            f"{own}.attention.qkv.{kind}": f"{theirs}.self_attention.in_proj_{kind}" for kind in ("weight", "bias")
        }
    return names | {f"{a}.{kind}": f"{b}.{kind}" for a, b in layers.items() for kind in ("weight", "bias")}


def from_torchvision(model: TorchvisionViT) -> VisionTransformer:
    """A copy of torchvision's model, such as ``vit_b_16(weights=…)``; in evaluation both give the same logits.

    Raises
    ------
    ValueError
        When it has a convolutional stem, or more than one layer in its head.
    """
    layers, head = model.encoder.layers, model.heads
    if not isinstance(model.conv_proj, nn.Conv2d) or len(head) != 1:
        raise ValueError("only a ViT with one convolution before and one linear layer behind its blocks can be copied")
    own = VisionTransformer(
        model.image_size,
        model.patch_size,
        len(layers),
        model.hidden_dim,
        layers[0].num_heads,
        model.mlp_dim,
        model.num_classes,
    )
    theirs = model.state_dict()
    own.load_state_dict({a: theirs[b] for a, b in torchvision_names(len(layers)).items()})
    return own.train(model.training)


def to_torchvision(model: VisionTransformer) -> TorchvisionViT:
    """The same model as torchvision's class; the inverse of :func:`from_torchvision`. Only Pre-LN has one."""
    from torchvision.models import VisionTransformer as TorchvisionViT

    block = model.blocks[0]
    if not block.pre:
        raise ValueError("torchvision's VisionTransformer is Pre-LN; a model with norm='post' has no counterpart")
    theirs = TorchvisionViT(
        model.size,
        model.patches.patch,
        len(model.blocks),
        block.attention.heads,
        model.out_dim,
        block.mlp[0].out_features,
        num_classes=model.head.out_features,
    )
    own = model.state_dict()
    theirs.load_state_dict({b: own[a] for a, b in torchvision_names(len(model.blocks)).items()})
    return theirs.train(model.training)
