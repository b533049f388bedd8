"""Steps of training of our MEVF in the shapes of VQA-RAD; prints questions per second.

``python our_mevf.py FUSION ENCODERS STEPS``, where ENCODERS is ``tuned``, ``frozen``, or ``decoder`` (fine-tuned, with
the published reconstruction loss).
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from torch import nn

from vqa_core.encoders.denoising import DenoisingAutoEncoder
from vqa_core.encoders.meta import MetaCNN
from vqa_core.experiments import mevf
from vqa_core.experiments.mevf import Model, Pictures, Questions, Recipe

QUESTIONS, LENGTH, WORDS, ANSWERS = 32, 12, 1143, 458


def main(fusion: str, encoders: str, steps: str) -> None:
    """Measure; the first step is not counted. Two thirds of the words are real, as in VQA-RAD."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(WORDS, 300)).astype(np.float32)
    matrix[:2] = 0
    lengths = torch.from_numpy(rng.integers(4, LENGTH + 1, QUESTIONS))
    mask = torch.arange(LENGTH) < lengths[:, None]  # (32, 12)
    words = torch.from_numpy((WORDS * rng.random((QUESTIONS, LENGTH)) ** 3).astype(np.int64)) * mask  # few are frequent
    if encoders == "frozen":
        pictures = Pictures(torch.rand(QUESTIONS, 64), torch.rand(QUESTIONS, 16384))
        image = mevf.FrozenFeatures(nn.Linear(16384, 64))
    else:
        pictures = Pictures(*(torch.randint(0, 256, (QUESTIONS, 1, s, s), dtype=torch.uint8) for s in (84, 128)))
        image = mevf.EnhancedFeatures(MetaCNN(), DenoisingAutoEncoder())
    asked = Questions(pictures, torch.arange(QUESTIONS), words, mask, torch.randint(0, ANSWERS, (QUESTIONS,)))
    model = mevf.build(Model(fusion, frozen=encoders == "frozen"), image, matrix, ANSWERS)
    reconstruction = 0.001 if encoders == "decoder" else 0.0
    mevf.train(model, asked, Recipe(epochs=1, reconstruction=reconstruction), seed=0)
    start = time.perf_counter()
    mevf.train(model, asked, Recipe(epochs=int(steps), reconstruction=reconstruction), seed=0)
    print(int(steps) * QUESTIONS / (time.perf_counter() - start))


if __name__ == "__main__":
    main(*sys.argv[1:])
