"""Pretrained models that answer and caption: ViLT and BLIP, through transformers, from a local folder.

Nothing is downloaded here. ``huggingface_hub.snapshot_download`` fills a folder before, for instance with
``dandelin/vilt-b32-finetuned-vqa``, ``Salesforce/blip-vqa-base`` or ``Salesforce/blip-image-captioning-base``; the
environment variables of :data:`FOLDERS` then name it. The folder holds the weights as safetensors, and the files of the
image processor and the tokenizer, so that pictures and words are prepared as they were in training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqa_core.encoders.pretrained import load_model

#: Environment variable → what the folder that it names holds.
FOLDERS = {
    "VQA_VILT": "a ViltForQuestionAnswering",
    "VQA_BLIP": "a BlipForQuestionAnswering",
    "VQA_BLIP_CAPTION": "a BlipForConditionalGeneration",
}


class Answer(NamedTuple):
    """An answer, and how probable the model thinks it (0 to 1; each model's docstring says of what)."""

    text: str
    probability: float


def folder_of(variable: str) -> Path | None:
    """The folder that an environment variable of :data:`FOLDERS` names; None where it is not set.

    Raises
    ------
    FileNotFoundError
        It is set, but names no folder with a model.
    """
    if variable not in FOLDERS:
        raise ValueError(f"variable is {variable!r}, allowed are {', '.join(FOLDERS)}")
    named = os.environ.get(variable)
    if not named:
        return None
    if not (Path(named) / "config.json").is_file():
        raise FileNotFoundError(
            f"{variable} is {named!r}, which holds no config.json; let it name a folder with {FOLDERS[variable]}, "
            "or unset it"
        )
    return Path(named)


def _processor(processor_class: type, folder: str | Path) -> Any:
    """Image processor and tokenizer of a folder, with a clear error where a file is missing."""
    folder = Path(folder)
    for names in (("preprocessor_config.json", "processor_config.json"), ("tokenizer_config.json",)):
        if not any((folder / name).is_file() for name in names):
            raise FileNotFoundError(
                f"{folder} has no {' or '.join(names)}; it is published with the weights: copy the whole snapshot"
            )
    return processor_class.from_pretrained(folder, local_files_only=True)


def _check_type(folder: str | Path, expected: str) -> None:
    """Refuse a folder whose ``config.json`` names another kind of model."""
    path = Path(folder) / "config.json"
    if path.is_file():  # where it is not, load_model says so
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
        if kind != expected:
            raise ValueError(f"{folder} holds a model of type {kind!r}, expected {expected!r}")


def _check_pairs(pictures: Sequence[np.ndarray], questions: Sequence[str] | None = None) -> None:
    """Pictures must be RGB arrays, and as many as questions."""
    for i, picture in enumerate(pictures):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"picture {i} is {picture.dtype} {picture.shape}; give RGB, uint8 (H, W, 3)")
    if not len(pictures):
        raise ValueError("no picture was given")
    if questions is not None and len(questions) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures but {len(questions)} questions; give one question for each picture")


class ViltAnswerer:
    """ViLT (Kim et al. 2021, arXiv 2102.03334) that was trained for VQA v2: patches and words in one transformer.

    It chooses among the answers that its configuration lists (3,129 in the published weights). They were trained one by
    one, with a binary cross-entropy, since people's answers differ: a probability is that of *this* answer being
    accepted, and they do not sum to 1.

    Parameters
    ----------
    folder
        A saved ``ViltForQuestionAnswering`` with its processor.
    device
        Where to run.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        from transformers import ViltForQuestionAnswering, ViltProcessor

        _check_type(folder, "vilt")
        self.model = load_model(ViltForQuestionAnswering, folder).to(device)
        self.processor = _processor(ViltProcessor, folder)
        self.answers = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]

    @torch.inference_mode()
    def logits(self, pictures: Sequence[np.ndarray], questions: Sequence[str]) -> Tensor:
        """Pictures, uint8 (H, W, 3), and a question about each → (B, answers), float32 on the CPU."""
        _check_pairs(pictures, questions)
        inputs = self.processor(
            list(pictures), list(questions), padding=True, truncation=True, input_data_format="channels_last",
            max_length=self.model.config.max_position_embeddings, return_tensors="pt",
        )  # fmt: skip
        return self.model(**inputs.to(self.model.device)).logits.float().cpu()

    def answer(self, pictures: Sequence[np.ndarray], questions: Sequence[str], best: int = 5) -> list[list[Answer]]:
        """The ``best`` answers to each question, the most probable first."""
        probability, index = self.logits(pictures, questions).sigmoid().topk(min(best, len(self.answers)))
        rows = zip(probability.tolist(), index.tolist())
        return [[Answer(self.answers[i], p) for p, i in zip(*row)] for row in rows]


class BlipAnswerer:
    """BLIP (Li et al. 2022, arXiv 2201.12086) that was trained for VQA: a text encoder reads question and picture, a
    text decoder says the answer word by word.

    Any answer has a probability, the product of those of its word pieces and of the end, and all possible sequences sum
    to 1. :meth:`rank` compares given answers, which is how the paper evaluates.

    Parameters
    ----------
    folder
        A saved ``BlipForQuestionAnswering`` with its processor.
    device
        Where to run.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        from transformers import BlipForQuestionAnswering, BlipProcessor

        _check_type(folder, "blip")
        self.model = load_model(BlipForQuestionAnswering, folder).to(device)
        self.processor = _processor(BlipProcessor, folder)

    @torch.inference_mode()
    def _read(self, picture: np.ndarray, question: str) -> Tensor:
        """States (1, T, D) of the question's word pieces that have read the picture."""
        inputs = self.processor(picture, question, input_data_format="channels_last", return_tensors="pt")
        inputs = inputs.to(self.model.device)
        seen = self.model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state  # (1, 1 + patches, D)
        return self.model.text_encoder(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            encoder_hidden_states=seen,
            encoder_attention_mask=seen.new_ones(seen.shape[:2], dtype=torch.long),
        ).last_hidden_state

    @torch.inference_mode()
    def log_probabilities(self, picture: np.ndarray, question: str, answers: Sequence[str]) -> Tensor:
        """Nats of each given answer (A,), float32 on the CPU."""
        _check_pairs([picture])
        config, read = self.model.config.text_config, self._read(picture, question)
        ids = [[*self.processor.tokenizer(a, add_special_tokens=False).input_ids, config.sep_token_id] for a in answers]
        length = max(map(len, ids))
        target = torch.tensor([row + [-100] * (length - len(row)) for row in ids], device=read.device)  # (A, T)
        begin = target.new_full((len(ids), 1), config.bos_token_id)  # (A, 1)
        words = torch.cat([begin, target[:, :-1].masked_fill(target[:, :-1] < 0, config.pad_token_id)], dim=1)  # (A, T)
        told = read.expand(len(ids), -1, -1)  # (A, T', D)
        logits = self.model.text_decoder(
            input_ids=words,
            attention_mask=torch.ones_like(words),  # padding follows the answer, and no word sees what follows it
            encoder_hidden_states=told,
            encoder_attention_mask=torch.ones(told.shape[:2], dtype=torch.long, device=told.device),
        ).logits  # (A, T, V)
        each = F.cross_entropy(logits.float().transpose(1, 2), target, ignore_index=-100, reduction="none")  # (A, T)
        return -each.sum(1).cpu()

    def answer(self, picture: np.ndarray, question: str, beams: int = 3, max_pieces: int = 10) -> Answer:
        """The answer that a beam search finds, and the probability of its word pieces and the end after them."""
        _check_pairs([picture])
        inputs = self.processor(picture, question, input_data_format="channels_last", return_tensors="pt")
        ids = self.model.generate(
            **inputs.to(self.model.device), num_beams=beams, do_sample=False, max_new_tokens=max_pieces
        )
        text = self.processor.tokenizer.decode(ids[0, 1:], skip_special_tokens=True).strip()  # the first one starts
        return Answer(text, float(self.log_probabilities(picture, question, [text]).exp()))

    def rank(self, picture: np.ndarray, question: str, answers: Sequence[str]) -> list[Answer]:
        """The given answers, the most probable first; probabilities are those among all sequences."""
        found = [Answer(a, float(p)) for a, p in zip(answers, self.log_probabilities(picture, question, answers).exp())]
        return sorted(found, key=lambda answer: -answer.probability)


class BlipCaptioner:
    """BLIP that was trained to caption: a text decoder with cross-attention to the picture's patches.

    Parameters
    ----------
    folder
        A saved ``BlipForConditionalGeneration`` with its processor.
    device
        Where to run.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        from transformers import BlipForConditionalGeneration, BlipProcessor

        _check_type(folder, "blip")
        self.model = load_model(BlipForConditionalGeneration, folder).to(device)
        self.processor = _processor(BlipProcessor, folder)

    def caption(
        self, pictures: Sequence[np.ndarray], prompt: str | None = None, beams: int = 3, max_pieces: int = 20
    ) -> list[str]:
        """A caption for each picture, uint8 (H, W, 3), that begins with ``prompt`` where one is given."""
        _check_pairs(pictures)
        text = None if prompt is None else [prompt] * len(pictures)
        inputs = self.processor(list(pictures), text, input_data_format="channels_last", return_tensors="pt")
        ids = self.model.generate(
            **inputs.to(self.model.device), num_beams=beams, do_sample=False, max_new_tokens=max_pieces
        )
        said = self.processor.batch_decode(ids[:, 1:], skip_special_tokens=True)  # the first one only starts
        return [sentence.strip() for sentence in said]
