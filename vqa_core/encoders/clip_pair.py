"""The whole of a published CLIP, picture and sentence, with its tokeniser and its image processing, from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.encoders.clip import CONVOLUTIONAL
from vqa_core.encoders.clip import FILES as MODEL_FILES
from vqa_core.encoders.pretrained import load_model

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")


def find_pair(name: str | Path, local_files_only: bool = True) -> Path:
    """The local folder of a saved CLIP with its tokeniser.

    Parameters
    ----------
    name
        A folder, or a name on the Hugging Face hub such as ``"openai/clip-vit-base-patch32"``, which is looked up among
        what was downloaded before.
    local_files_only
        False downloads what is missing.

    Raises
    ------
    FileNotFoundError
        When there is no such folder and nothing was downloaded under this name, or the folder lacks the tokeniser's or
        the image processing's file.
    ValueError
        For a name of a convolutional CLIP, which transformers cannot load.
    """
    if Path(name).name.removesuffix(".pt") in CONVOLUTIONAL:
        raise ValueError(f"{name} is a ResNet CLIP; transformers only has CLIP's vision transformers")
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        files = [*MODEL_FILES, *TOKENIZER_FILES, *IMAGE_FILES]
        try:
            folder = Path(snapshot_download(str(name), allow_patterns=files, local_files_only=local_files_only))
        except (HFValidationError, LocalEntryNotFoundError) as error:
            raise FileNotFoundError(
                f"{name} is no folder, and nothing was downloaded under this name; give a folder that save_pretrained "
                "wrote (model, tokeniser and image processor), or allow the download with local_files_only=False"
            ) from error
    has = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in has and not {"vocab.json", "merges.txt"} <= has:
        raise FileNotFoundError(f"{folder} has neither tokenizer.json nor vocab.json with merges.txt: no tokeniser")
    if not has & set(IMAGE_FILES):
        raise FileNotFoundError(f"{folder} has no {IMAGE_FILES[0]}, which says how pictures are resized and normalised")
    return folder


class CLIPPair(nn.Module):
    """A CLIP that takes pictures and sentences as they are.

    Parameters
    ----------
    name
        See :func:`find_pair`. The model's weights must be safetensors.
    local_files_only
        False downloads what is missing.

    Attributes
    ----------
    model
        ``transformers.CLIPModel``, in evaluation mode.
    out_dim
        D, features of an embedding.

    Raises
    ------
    FileNotFoundError, ValueError
        See :func:`find_pair` and :func:`~vqa_core.encoders.pretrained.load_model`.
    """

    def __init__(self, name: str | Path, local_files_only: bool = True) -> None:
        from transformers import AutoConfig, AutoTokenizer, CLIPImageProcessor, CLIPModel

        super().__init__()
        folder = find_pair(name, local_files_only)
        if (folder / "config.json").is_file():
            kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
            if kind != "clip":
                raise ValueError(f"{folder} holds a model of type {kind!r}, expected a whole CLIP ('clip')")
        self.model = load_model(CLIPModel, folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        self.out_dim = self.model.config.projection_dim
        known = self.model.config.text_config.vocab_size
        if len(self.tokenizer) > known:
            raise ValueError(f"{folder}: the tokeniser has {len(self.tokenizer)} pieces, the model only {known}")

    def inputs(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures, uint8 (H, W, 3) each → resized, cropped and normalised: float (n, 3, size, size)."""
        found = self.processor(images=list(pictures), return_tensors="pt", input_data_format="channels_last")
        return found["pixel_values"].to(self.model.device)  # (n, 3, size, size)

    def encode_image(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures, uint8 (H, W, 3) each, of any sizes → unit vectors (n, D)."""
        vision = self.model.vision_model(pixel_values=self.inputs(pictures))
        return F.normalize(self.model.visual_projection(vision.pooler_output), dim=-1)  # (n, D)

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Sentences → unit vectors (n, D); what is longer than the model's positions (77 pieces) is cut."""
        most = self.model.config.text_config.max_position_embeddings
        batch = self.tokenizer(list(sentences), padding=True, truncation=True, max_length=most, return_tensors="pt")
        text = self.model.text_model(
            input_ids=batch["input_ids"].to(self.model.device),
            attention_mask=batch["attention_mask"].to(self.model.device),
        )
        return F.normalize(self.model.text_projection(text.pooler_output), dim=-1)  # (n, D)

    def scale(self) -> Tensor:
        """exp(s), by which cosines are multiplied: 100 in the published models."""
        return self.model.logit_scale.exp()

    @torch.no_grad()
    def forward(self, pictures: Sequence[np.ndarray], sentences: Sequence[str]) -> Tensor:
        """CLIP's ``logits_per_image``, (n pictures, m sentences), without gradients."""
        return self.scale() * self.encode_image(pictures) @ self.encode_text(sentences).T  # (n, m)
