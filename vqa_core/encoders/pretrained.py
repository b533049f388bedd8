"""Pretrained transformers from a local folder, and BERT as a text encoder.

Nothing is downloaded here: ``huggingface_hub.snapshot_download`` (or ``save_pretrained``) fills the folder before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqa_core.encoders.text import check_words
from vqa_core.encoders.tokens import Tokens


def load_model(model_class: type, folder: str | Path, **options: Any) -> nn.Module:
    """A transformers model with the weights of a local folder, all of them.

    ``from_pretrained`` itself only warns when the folder's weights do not fill the model, and leaves the rest random;
    here this is an error. Weights must be safetensors: nothing is unpickled.

    Parameters
    ----------
    model_class
        For instance ``transformers.BertModel``.
    folder
        Holds ``config.json`` and ``model.safetensors``.
    options
        Passed on to ``from_pretrained``.

    Returns
    -------
    nn.Module
        In float32 and evaluation mode.

    Raises
    ------
    FileNotFoundError
        When the folder has no ``config.json``.
    ValueError
        When weights are missing or have other shapes than the model.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no config.json in {folder}; fill the folder with save_pretrained or huggingface_hub.snapshot_download"
        )
    model, info = model_class.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        **options,
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(
            f"{folder} does not fill a {model_class.__name__}: missing {sorted(info['missing_keys'])[:3]}, "
            f"of other shape {sorted(map(str, info['mismatched_keys']))[:3]}"
        )
    return model.eval()


class BertText(nn.Module):
    """BERT (Devlin et al. 2019, arXiv 1810.04805) as a text encoder.

    Parameters
    ----------
    folder
        A saved ``BertModel`` with its tokeniser.
    form
        ``"states"``: ``last_hidden_state``, one token for each word piece, with ``[CLS]`` and ``[SEP]``: (B, N, 768).
        ``"pooled"``: ``pooler_output``, one vector: tanh(W h + b) of the state h of ``[CLS]``, with W, b trained for
        next-sentence prediction. It is *not* the state of ``[CLS]``, nor the mean of the states: (B, 1, 768).
    """

    def __init__(self, folder: str | Path, form: str = "states") -> None:
        from transformers import AutoTokenizer, BertModel

        super().__init__()
        if form not in ("states", "pooled"):
            raise ValueError(f"form is {form!r}, allowed are 'states' and 'pooled'")
        self.form = form
        self.model = load_model(BertModel, folder, add_pooling_layer=form == "pooled")
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.out_dim = self.model.config.hidden_size

    def encode(self, questions: Sequence[str], max_words: int | None = None) -> tuple[Tensor, Tensor]:
        """Sentences → word-piece ids, long (n, N), and their mask, bool (n, N)."""
        batch = self.tokenizer(
            list(questions),
            padding=True,
            truncation=max_words is not None,
            max_length=max_words,
            return_tensors="pt",
        )
        return batch["input_ids"], batch["attention_mask"].bool()

    def forward(self, words: Tensor, word_mask: Tensor) -> Tokens:
        """Word-piece ids (B, N) and their mask → states (B, N, D) with the mask, or the pooled vector (B, 1, D)."""
        check_words(words, word_mask)
        output = self.model(input_ids=words, attention_mask=word_mask.long())
        if self.form == "pooled":
            return Tokens(output.pooler_output.unsqueeze(1))  # (B, 1, D)
        return Tokens(output.last_hidden_state, word_mask)  # (B, N, D)
