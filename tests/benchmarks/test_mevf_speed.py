"""Speed of the MEVF reproduction: questions per second of one core's time in a step of training, at full size.

``make bench`` runs and prints it; ``extra_info`` has the figure. Set the allocator as ``make mevf`` does, or page
faults are measured too.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from vqa_core.encoders.denoising import DenoisingAutoEncoder
from vqa_core.encoders.meta import MetaCNN
from vqa_core.experiments import mevf
from vqa_core.experiments.mevf import Model, Pictures, Questions, Recipe

QUESTIONS, LENGTH, WORDS, ANSWERS = 32, 12, 1143, 458


@pytest.mark.parametrize("reconstruction", [0.0, 0.001], ids=["", "decoder"])
@pytest.mark.parametrize("fusion", mevf.FUSIONS)
def test_a_step_of_training(benchmark, fusion, reconstruction):
    """One step of 32 questions about 32 pictures; two thirds of the words are real, as in VQA-RAD."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(WORDS, 300)).astype(np.float32)
    matrix[:2] = 0
    lengths = torch.from_numpy(rng.integers(4, LENGTH + 1, QUESTIONS))
    mask = torch.arange(LENGTH) < lengths[:, None]  # (32, 12)
    words = torch.from_numpy((WORDS * rng.random((QUESTIONS, LENGTH)) ** 3).astype(np.int64)) * mask  # few are frequent
    pictures = Pictures(*(torch.randint(0, 256, (QUESTIONS, 1, s, s), dtype=torch.uint8) for s in (84, 128)))
    asked = Questions(pictures, torch.arange(QUESTIONS), words, mask, torch.randint(0, ANSWERS, (QUESTIONS,)))
    model = mevf.build(Model(fusion), mevf.EnhancedFeatures(MetaCNN(), DenoisingAutoEncoder()), matrix, ANSWERS)
    recipe = Recipe(epochs=1, reconstruction=reconstruction)
    history = benchmark.pedantic(lambda: mevf.train(model, asked, recipe, seed=0), rounds=5, warmup_rounds=1)
    assert np.isfinite(history[0]["loss"])
    if benchmark.enabled:
        start = time.process_time()
        mevf.train(model, asked, Recipe(epochs=5, reconstruction=reconstruction), seed=0)
        benchmark.extra_info["questions_per_core_second"] = round(5 * QUESTIONS / (time.process_time() - start), 1)
