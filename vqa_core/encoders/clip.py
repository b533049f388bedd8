"""CLIP's image side (Radford et al. 2021, arXiv 2103.00020), and PubMedCLIP's, which is CLIP trained on with ROCO.

Which published ones: every vision *transformer* that is saved for ``transformers``, for instance
``openai/clip-vit-base-patch32``, ``openai/clip-vit-base-patch16``, ``openai/clip-vit-large-patch14`` and
``flaviagiammarino/pubmed-clip-vit-base-patch32``. The convolutional ones (RN50, RN101, RN50x4, RN50x16, RN50x64, and
with them the RN50 and RN50x4 of PubMedCLIP) are *not* among them: transformers has no code for CLIP's ResNet with
attention pooling, and torchvision's ResNet-50 is another network. A page that compares encoders says so beside the
table: "RN50 and RN50x4 are left out: transformers cannot load them", and gives no number in their place.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from vqa_core.encoders.pretrained import load_model
from vqa_core.encoders.tokens import Tokens

CONVOLUTIONAL = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILES = ("config.json", "model.safetensors")
FORMS = ("projected", "patches")


def find_folder(name: str | Path, local_files_only: bool = True) -> Path:
    """The local folder of a saved model.

    Parameters
    ----------
    name
        A folder, or a name on the Hugging Face hub such as ``"openai/clip-vit-base-patch32"``, which is looked up among
        what was downloaded before.
    local_files_only
        False downloads what is missing.

    Raises
    ------
    ValueError
        For a name of a convolutional CLIP, which transformers cannot load.
    FileNotFoundError
        When there is no such folder and nothing was downloaded under this name.
    """
    if Path(name).name.removesuffix(".pt").removesuffix(".pth") in CONVOLUTIONAL:
        raise ValueError(
            f"{name} is a ResNet CLIP; transformers only has CLIP's vision transformers (for instance "
            "openai/clip-vit-base-patch32). Leave it out, and say so where results are shown"
        )
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=FILES, local_files_only=local_files_only))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{name} is no folder, and nothing was downloaded under this name; give a folder with "
            f"{' and '.join(FILES)}, or allow the download with local_files_only=False"
        ) from error


class CLIPImage(nn.Module):
    """The image encoder of a CLIP or PubMedCLIP that is a vision transformer.

    Parameters
    ----------
    name
        A local folder, or a name on the Hugging Face hub: see :func:`find_folder`. It holds a whole ``CLIPModel`` or
        only its vision part, as safetensors. A checkpoint that exists only as ``pytorch_model.bin`` is converted first:
        ``python -m vqa_core weights convert pytorch_model.bin model.safetensors``.
    form
        ``"projected"``: CLIP's image vector, the one that is compared with texts: final state of the class token,
        LayerNorm, projection, one token; 512 features for ViT-B/32. PubMedCLIP's VQA models use this one.
        ``"patches"``: last states of the patches, in reading order, before the projection: 7 × 7 = 49 tokens of 768
        features for ViT-B/32 at 224 pixels. CLIP's loss does not train what the last layer makes of them.
    local_files_only
        False downloads what is missing.

    Attributes
    ----------
    size, grid
        Side of the pictures in pixels; (rows, columns) of the patches.
    mean, deviation
        What CLIP's pictures are normalised with; the published PubMedCLIP code for VQA leaves this out.

    Raises
    ------
    FileNotFoundError
        See :func:`find_folder`.
    ValueError
        When the folder's model is not a CLIP, or its weights do not fill the model.
    """

    mean, deviation = CLIP_MEAN, CLIP_STD

    def __init__(self, name: str | Path, form: str = "projected", local_files_only: bool = True) -> None:
        from transformers import AutoConfig, CLIPVisionModel, CLIPVisionModelWithProjection
        from transformers.utils import logging

        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form is {form!r}, allowed are {' and '.join(map(repr, FORMS))}")
        folder = find_folder(name, local_files_only)
        if (folder / "config.json").is_file():
            kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
            if kind not in ("clip", "clip_vision_model"):
                raise ValueError(f"{folder} holds a model of type {kind!r}, expected a CLIP vision transformer")
        self.form = form
        loudness = logging.get_verbosity()
        logging.set_verbosity_error()  # else it lists the weights of CLIP's text side, which are not wanted here
        try:
            self.model = load_model(CLIPVisionModelWithProjection if form == "projected" else CLIPVisionModel, folder)
        finally:
            logging.set_verbosity(loudness)
        if form == "patches":
            self.model.post_layernorm = nn.Identity()  # is for the class token, which is not read
        config = self.model.config
        self.out_dim = config.projection_dim if form == "projected" else config.hidden_size
        self.size, self.grid = config.image_size, (config.image_size // config.patch_size,) * 2

    def forward(self, pictures: Tensor) -> Tokens:
        """Pictures (B, 3, size, size), normalised with ``mean`` and ``deviation`` → tokens (B, N, out_dim)."""
        if pictures.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"pictures have shape {tuple(pictures.shape)}, expected (B, 3, {self.size}, {self.size})")
        output = self.model(pixel_values=pictures)
        if self.form == "projected":
            return Tokens(output.image_embeds.unsqueeze(1))  # (B, 1, out_dim)
        return Tokens(output.last_hidden_state[:, 1:])  # (B, patches, out_dim), without the class token
