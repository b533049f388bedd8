"""Steps of training of MEVF's released code, on numbers in the shapes of VQA-RAD; prints questions per second.

``python released_mevf.py FOLDER FUSION STEPS``, where FOLDER is a checkout of the released repository and FUSION is
``ban`` or ``san``. Nothing of it is changed on disk: what newer versions of torch lack is put into place here, and
its weights are drawn instead of read (its loader would run a pickle). The speed does not depend on them.
"""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path

import numpy as np
import torch

QUESTIONS, LENGTH, WORDS, ANSWERS = 32, 12, 1143, 458


def main(folder: str, fusion: str, steps: str) -> None:
    """Measure; the first step is not counted."""
    six = types.ModuleType("torch._six")
    six.string_classes = (str,)
    sys.modules["torch._six"] = six  # gone from torch since 1.13
    sys.path.insert(0, str(Path(folder)))
    import base_model
    import simple_cnn
    import trainer as released
    import utils

    utils.move_to_cuda = lambda sample: sample
    rng = np.random.default_rng(0)

    def weights(self, path):
        drawn = {}
        for k, (into, out) in enumerate(((1, 64), (64, 64), (64, 64), (64, 64)), start=1):
            drawn[f"conv{k}"] = rng.normal(0, 0.05, (3, 3, into, out)).astype(np.float32)
            drawn[f"b{k}"] = np.zeros(out, np.float32)
        return drawn

    simple_cnn.SimpleCNN.load_weight = weights
    simple_cnn.SimpleCNN.convert_to_torch_weight = lambda self, w: np.ascontiguousarray(w.transpose(3, 2, 0, 1))
    torch.load = lambda path, **_: base_model.Auto_Encoder_Model().state_dict()
    args = types.SimpleNamespace(
        op="c", gamma=2, maml=True, autoencoder=True, num_hid=1024, num_stacks=2, rnn="LSTM", dropout=0.5, RAD_dir="",
        maml_model_path="", ae_model_path="", eps_cnn=1e-5, momentum_cnn=0.05, use_counter=False, activation="relu",
        device="cpu", ae_alpha=0.001, clip_norm=0.25, update_freq="1", print_interval=20,
    )  # fmt: skip
    dictionary = types.SimpleNamespace(ntoken=WORDS)
    dataset = types.SimpleNamespace(dictionary=dictionary, v_dim=128, num_ans_candidates=ANSWERS)
    torch.manual_seed(0)
    model = {"ban": base_model.build_BAN, "san": base_model.build_SAN}[fusion](dataset, args)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.inplace = False  # behind a ReLU, which today's autograd refuses
    optimizer = torch.optim.Adamax([p for p in model.parameters() if p.requires_grad], lr=0.005)
    train = released.Trainer(args, model, torch.nn.BCEWithLogitsLoss(reduction="sum"), optimizer, torch.nn.MSELoss())
    model.train()
    pictures = [torch.rand(QUESTIONS, 1, side, side) for side in (84, 128)]
    words = torch.randint(0, WORDS, (QUESTIONS, LENGTH))
    answers = torch.zeros(QUESTIONS, ANSWERS)
    answers[torch.arange(QUESTIONS), torch.randint(0, ANSWERS, (QUESTIONS,))] = 1
    start = 0.0
    for step in range(int(steps) + 1):
        if step == 1:
            start = time.perf_counter()
        train.train_step([pictures, words, answers], update_params=True)
    print(int(steps) * QUESTIONS / (time.perf_counter() - start))


if __name__ == "__main__":
    main(*sys.argv[1:])
