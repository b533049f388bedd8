"""Sanity checks: does a map notice when the model forgets what it has learned? (Adebayo et al. 2018, arXiv 1810.03292)

Two experiments. *Weights*: the model's layers are set back to fresh random weights one after another, from the head
down; a map that stays as it was has not looked at them. *Labels*: the same model is trained on shuffled answers; a map
that looks the same explains the picture, not what was learned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from vqa_core.explain.scores import rank_agreement
from vqa_core.training.feed import Feed

#: Model → maps (Q, N) of always the same questions.
Explainer = Callable[[nn.Module], np.ndarray]


def stages_of(model: nn.Module) -> list[tuple[str, ...]]:
    """Parts of a model with parameters, from the head down to the inputs, each a tuple of prefixes of their names.

    The parts of ``fusion`` come in the reverse of the order in which they were made; of a list of layers each is a part
    of its own.
    """
    found: dict[str, None] = {}
    for name, _ in model.named_parameters():
        parts = name.split(".")
        depth = 1 if parts[0] == "head" else 3 if len(parts) > 3 and parts[2].isdecimal() else 2
        found[".".join(parts[:depth])] = None
    below = [part for part in reversed(found) if part != "head"]
    return [(part,) for part in (["head"] if "head" in found else []) + below]


def cascade(
    model: nn.Module, fresh: nn.Module, stages: Sequence[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """The model with more and more of its weights set back: after the first stage, after the first two, and so on.

    Parameters
    ----------
    model
        Trained; it stays as it is.
    fresh
        The same model before training, with another seed.
    stages
        Prefixes of the parameters that each stage sets back.

    Yields
    ------
    stage, model
        A copy in evaluation mode.

    Raises
    ------
    ValueError
        When the two models differ in their parameters, a stage has none, or all stages together leave some out.
    """
    new, kept = dict(fresh.named_parameters()), dict(model.named_parameters())
    if {n: p.shape for n, p in new.items()} != {n: p.shape for n, p in kept.items()}:
        raise ValueError("fresh has other parameters than model; build both with the same sizes")
    members = [[n for n in kept if any(n == p or n.startswith(f"{p}.") for p in stage)] for stage in stages]
    if empty := [stage for stage, names in zip(stages, members) if not names]:
        raise ValueError(f"no parameter begins with {empty[0]}; there are {', '.join(kept)}")
    if left := kept.keys() - {n for names in members for n in names}:
        raise ValueError(f"these parameters are in no stage: {', '.join(sorted(left))}")
    changed = copy.deepcopy(model).eval()
    for stage, names in zip(stages, members):
        with torch.no_grad():
            for name in names:
                changed.get_parameter(name).copy_(new[name])
        yield stage, changed


def agreement(a: np.ndarray, b: np.ndarray, real: np.ndarray | None = None) -> np.ndarray:
    """Spearman's correlation of two maps of each question over its real tokens, float (Q,) in [−1, 1].

    Parameters
    ----------
    a, b
        (Q, N) weights.
    real
        bool (Q, N); padding, which is 0 in every map, would make all maps agree. None: all tokens are real.

    Notes
    -----
    0 where one of the maps is constant, or there is a single token.
    """
    a, b = np.asarray(a), np.asarray(b)
    real = np.ones(a.shape, dtype=bool) if real is None else np.asarray(real)
    if not a.shape == b.shape == real.shape or a.ndim != 2:
        raise ValueError(f"maps are {a.shape} and {b.shape}, real tokens {real.shape}; give (Q, N) three times")
    found, n = np.zeros(len(a)), real.sum(axis=1)
    for count in np.unique(n[n > 1]):  # questions with as many tokens go together
        rows = np.flatnonzero(n == count)
        of_rows = [m[rows][real[rows]].reshape(len(rows), count) for m in (a, b)]
        found[rows] = rank_agreement(*of_rows)
    return found


def cascading_agreement(
    explainer: Explainer,
    model: nn.Module,
    fresh: nn.Module,
    stages: Sequence[tuple[str, ...]],
    real: np.ndarray | None = None,
) -> np.ndarray:
    """Agreement with the trained model's maps after each stage of :func:`cascade`, (stages + 1, Q); row 0 is 1.

    Row 0 compares the trained model with itself, so it is 0 for questions whose map is constant.
    """
    first = explainer(model)
    rows = [agreement(first, first, real)]
    rows += [agreement(first, explainer(changed), real) for _, changed in cascade(model, fresh, stages)]
    return np.stack(rows)


def shuffled_labels(feed: Feed, seed: int = 0) -> Feed:
    """The same questions with their answers exchanged at random: how often an answer comes stays, its reason goes."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(feed)))
    return Feed(feed.pictures, feed.picture_index, feed.words, feed.word_mask, feed.answers[order], feed.question_index)
