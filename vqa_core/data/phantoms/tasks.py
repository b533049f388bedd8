"""Few-shot tasks on phantoms for meta-learning: n classes, each a finding in an organ; k pictures to learn from.

This is the form of MEVF's pre-training (Nguyen et al. 2019: organ × condition) and of MAML (Finn et al. 2017). The
classes of meta-training, meta-validation and meta-test are disjoint, and so are their pictures. **Phantoms are not
patients.**
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .anatomy import PLANES, REGIONS
from .plan import HOSTS, KINDS, Plan, draw_finding, draw_marker, draw_view, hosts
from .render import draw


class Task(NamedTuple):
    """One class of few-shot learning: a finding in an organ."""

    organ: str
    kind: str


#: All classes in a fixed order: every finding in every organ that can have it.
TASKS = tuple(sorted({Task(o, kind) for r in REGIONS for kind in KINDS for o in HOSTS[r][kind]}))

#: Split → its classes, disjoint. Of every five classes three go to meta-training.
SPLITS: dict[str, tuple[Task, ...]] = {
    "meta_train": tuple(t for i, t in enumerate(TASKS) if i % 5 in (0, 2, 4)),
    "meta_val": tuple(t for i, t in enumerate(TASKS) if i % 5 == 1),
    "meta_test": tuple(t for i, t in enumerate(TASKS) if i % 5 == 3),
}


class Episode(NamedTuple):
    """Pictures of one n-way k-shot task.

    Attributes
    ----------
    support
        Pictures to adapt on, uint8 (ways · shots, H, W), class by class.
    support_labels
        int64 (ways · shots,), 0 to ways − 1.
    query
        Pictures to be scored on, uint8 (ways · queries, H, W), class by class.
    query_labels
        int64 (ways · queries,).
    classes
        What the labels mean, ``ways`` of :data:`TASKS`.
    """

    support: np.ndarray
    support_labels: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray
    classes: tuple[Task, ...]


def draw_task_plan(task: Task, chance: random.Random) -> Plan:
    """Draw what a picture of a class shows: its finding and no other, in any modality and plane that can show it."""
    regions = [r for r in REGIONS if task.organ in HOSTS[r].get(task.kind, ())]
    if not regions:
        raise ValueError(f"{task} is not a finding of an organ; TASKS has them all")
    region = chance.choice(regions)
    able = {
        plane
        for plane in PLANES
        for side in (("",) if plane == "sagittal" else ("left", "right"))
        if task.organ in hosts(region, plane, task.kind, side)
    }
    while True:
        modality, plane = draw_view(False, chance)
        if plane in able:
            break
    finding = draw_finding(region, plane, task.kind, True, chance, task.organ)
    return Plan(region, modality, plane, (finding,), draw_marker(plane, chance))


def episode(
    split: str,
    index: int,
    *,
    ways: int = 5,
    shots: int = 5,
    queries: int = 15,
    seed: int = 0,
    size: int = 84,
    severity: float = 1.0,
) -> Episode:
    """One episode; the same for the same arguments.

    Parameters
    ----------
    split
        ``"meta_train"``, ``"meta_val"`` or ``"meta_test"``.
    index
        Number of the episode, from 0.
    ways, shots, queries
        Classes, and pictures of each to adapt on and to be scored on.
    seed, size, severity
        As for :func:`~vqa_core.data.phantoms.generate`; MAML's encoder reads 84 pixels.

    Raises
    ------
    ValueError
        For an unknown split, or more ways than the split has classes.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r} of tasks, only {', '.join(SPLITS)}")
    if not 2 <= ways <= len(SPLITS[split]):
        raise ValueError(f"ways is {ways}; split {split!r} has {len(SPLITS[split])} classes, so it must be 2 to that")
    if min(shots, queries) < 1 or min(index, seed) < 0:
        raise ValueError(
            f"shots {shots} and queries {queries} must be positive, index {index} and seed {seed} not negative"
        )
    chance = random.Random(f"episode {index} of {split} of seed {seed}")
    classes = tuple(chance.sample(SPLITS[split], ways))
    each = shots + queries
    own_seed = [seed, list(SPLITS).index(split), index]
    pictures = np.stack(
        [
            draw(draw_task_plan(task, chance), size, severity, [*own_seed, label, k, 1]).picture
            for label, task in enumerate(classes)
            for k in range(each)
        ]
    ).reshape(ways, each, size, size)  # (ways, shots + queries, H, W)
    labels = np.arange(ways)
    return Episode(
        pictures[:, :shots].reshape(-1, size, size),  # (ways · shots, H, W)
        labels.repeat(shots),
        pictures[:, shots:].reshape(-1, size, size),  # (ways · queries, H, W)
        labels.repeat(queries),
        classes,
    )


def episodes(split: str, n: int, **knobs) -> Iterator[Episode]:
    """The first n episodes of a split; knobs as for :func:`episode`."""
    return (episode(split, index, **knobs) for index in range(n))
