"""Phantoms: drawn pictures with the look of radiology, whose truth is known. **Phantoms are not patients.**

No patient, no scanner and no physics of imaging is in them: organs are deformed ellipsoids, findings are painted, and a
result on them is a result about a method, never about a hospital. What they give is what no hospital can: the exact
region, side, size and number of every finding, questions whose words say nothing about their answers, and as many
pictures as wanted.

The eleven question categories are those of VQA-RAD (Lau et al. 2018, doi:10.1038/sdata.2018.251); no picture and no
sentence is taken from it. :mod:`~vqa_core.data.phantoms.tasks` draws few-shot tasks for meta-learning,
:mod:`~vqa_core.data.phantoms.volumes` volumes with a vector of covariates.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np

from ..types import Dataset, Sample
from .anatomy import MODALITIES, PLANES, REGIONS, UNSEEN_MODALITY
from .plan import ATTRIBUTES, HOSTS, KINDS, Finding, Plan, draw_plan
from .questions import FAMILIES, UNANSWERABLE, Asked, ask, ask_about_absent
from .render import SEVERITY, Drawing, draw

__all__ = [
    "ATTRIBUTES",
    "FAMILIES",
    "HOSTS",
    "KINDS",
    "MODALITIES",
    "PLANES",
    "REGIONS",
    "SEVERITY",
    "SPLITS",
    "UNANSWERABLE",
    "UNSEEN_MODALITY",
    "Drawing",
    "Finding",
    "PhantomSet",
    "Plan",
    "generate",
    "load",
]

#: Split → (number of pictures, its own arguments of :func:`generate`).
SPLITS: dict[str, tuple[int, dict[str, bool]]] = {
    "train": (4000, {}),
    "val": (500, {}),
    "test": (1000, {}),
    "unseen": (500, {"unseen": True}),
    "unanswerable": (500, {"answerable": False}),
}

#: Region → label of ``meta["organ"]``, as VQA-RAD has it.
ORGAN_LABELS = {"head": "HEAD", "chest": "CHEST", "abdomen": "ABD"}


class PhantomSet(Dataset):
    """Generated pictures and questions; made by :func:`generate`.

    Besides a :class:`~vqa_core.data.types.Dataset`:

    Attributes
    ----------
    images
        All pictures in grey, uint8 (n, H, W); :meth:`picture` gives them as RGB with three equal channels.
    plans
        What is in them, n :class:`Plan`.

    Notes
    -----
    ``Sample.meta`` holds ``question_types`` (the family, as VQA-RAD has it), ``organ`` (``"HEAD"``, ``"CHEST"`` or
    ``"ABD"``), ``region``, ``modality``, ``plane``, ``findings`` (kinds that are present), ``named_organ`` (the organ
    in the question's words, or ``""``), ``answerable``, ``chance`` (accuracy of the best guess that knows only the
    words) and ``depends_on`` (see :class:`~vqa_core.data.phantoms.questions.Asked`).
    """

    def __init__(
        self,
        split: str,
        samples: Sequence[Sample],
        images: np.ndarray,
        plans: Sequence[Plan],
        seed: int,
        severity: float,
    ) -> None:
        super().__init__("phantoms", split, samples, self._picture, ("phantoms are drawn: they are not patients",))
        self.images, self.plans = images, tuple(plans)
        self.seed, self.severity = seed, severity
        self._drawn: dict[str, Drawing] = {}  # the last picture only: questions about it follow each other

    def _picture(self, picture_id: str) -> np.ndarray:
        grey = self.images[self.picture_index(picture_id)]
        return np.repeat(grey[:, :, None], 3, axis=2)  # (H, W) → (H, W, 3)

    def picture_index(self, picture_id: str) -> int:
        """Position of a picture in ``images`` and ``plans``."""
        start, _, number = picture_id.rpartition("-")
        if start != f"phantom-{self.seed}" or not number.isdecimal() or int(number) >= len(self.plans):
            first, last = _picture_id(self.seed, 0), _picture_id(self.seed, len(self.plans) - 1)
            raise ValueError(f"picture {picture_id!r} is not in this set; its ids run from {first!r} to {last!r}")
        return int(number)

    def drawing(self, picture_id: str) -> Drawing:
        """Masks of organs, findings and marker of a picture; it is drawn again, so that they need no memory."""
        if picture_id not in self._drawn:
            i = self.picture_index(picture_id)
            self._drawn = {picture_id: draw(self.plans[i], self.images.shape[1], self.severity, [self.seed, i])}
        return self._drawn[picture_id]

    def region_mask(self, index: int) -> np.ndarray:
        """Pixels that the answer to question ``index`` depends on, bool (H, W).

        The findings it asks about where they are present, else the organ where they would be; the whole body for
        modality, plane and region; nothing for an unanswerable question.
        """
        sample = self.samples[index]
        drawn = self.drawing(sample.picture_id)
        mask = np.zeros(drawn.picture.shape, dtype=bool)
        for region in sample.meta["depends_on"]:
            what, _, name = region.partition(":")
            mask |= {
                "body": drawn.body,
                "marker": lambda: drawn.marker,
                "organ": lambda name=name: drawn.organ(name),
                "tissue": lambda name=name: drawn.tissue(name),
                "finding": lambda name=name: drawn.findings[int(name)],
            }[what]()
        return mask

    def chance(self, family: str | None = None) -> float:
        """Accuracy that the best question-only predictor can expect on a family (default: on the whole set)."""
        known = [s.meta["chance"] for s in self.samples if family in (None, s.family)]
        if not known:
            raise ValueError(f"no question of family {family!r}; this set has {', '.join(self.families)}")
        return float(np.mean(known))

    def subset(self, keep: Sequence[int] | np.ndarray, split: str | None = None) -> PhantomSet:
        """The same pictures with only the questions at positions ``keep``."""
        samples = [self.samples[i] for i in keep]
        return PhantomSet(split or self.split, samples, self.images, self.plans, self.seed, self.severity)

    def content_hash(self) -> str:
        """SHA-256 over questions, answers and pixels."""
        digest = hashlib.sha256(super().content_hash().encode())
        digest.update(str(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images))
        return digest.hexdigest()


def generate(
    n: int,
    seed: int = 0,
    size: int = 64,
    *,
    severity: float = 1.0,
    unseen: bool = False,
    answerable: bool = True,
    families: Sequence[str] = FAMILIES,
    split: str = "generated",
) -> PhantomSet:
    """Generate pictures with questions.

    Parameters
    ----------
    n
        Number of pictures. A picture and its questions do not depend on n.
    seed
        Same seed, same set; different seeds share no picture id.
    size
        Height and width in pixels, at least 48. Questions do not depend on it, nor on ``severity``.
    severity
        Noise from 0 (none) to 5: Poisson in X-rays, Gaussian in CT, Rician in MRI, speckle in ultrasound.
    unseen
        Every picture is of the modality that no other set shows (:data:`UNSEEN_MODALITY`); its name is not asked for.
    answerable
        ``False`` asks about organs that the picture does not show, in words of answerable questions (families ABN, PRES
        and SIZE); every answer is :data:`UNANSWERABLE`.
    families
        Those of :data:`FAMILIES` to ask about. A picture gets at most one question of each: one that it does not allow
        (the number of nodules where none was planned) is left out.
    split
        Name of the split.

    Returns
    -------
    PhantomSet
        With n pictures and, with all families, about eight questions per picture.

    Raises
    ------
    ValueError
        If an argument is outside its range.
    """
    _check(n, seed, size, severity, families)
    images = np.empty((n, size, size), dtype=np.uint8)
    plans: list[Plan] = []
    samples: list[Sample] = []
    for i in range(n):
        plan = draw_plan(unseen, random.Random(f"plan of phantom {i} of seed {seed}"))
        plans.append(plan)
        images[i] = draw(plan, size, severity, [seed, i]).picture
        for family in families:
            chance = random.Random(f"{family} of phantom {i} of seed {seed}")
            asked = ask(plan, family, chance) if answerable else _ask_elsewhere(plan, family, chance)
            if asked:
                samples.append(_sample(_picture_id(seed, i), family, plan, asked))
    return PhantomSet(split, samples, images, plans, seed, severity)


def load(split: str, *, n: int | None = None, seed: int = 0, size: int = 64, **knobs) -> PhantomSet:
    """A standard split of the phantoms.

    Parameters
    ----------
    split
        ``"train"`` (4,000 pictures), ``"val"`` (500), ``"test"`` (1,000), ``"unseen"`` (500 of a modality that the
        others lack) or ``"unanswerable"`` (500 with questions about organs that are not in them).
    n
        Another number of pictures.
    seed
        Seed of the whole data set; splits never share a picture.
    size, **knobs
        As for :func:`generate`.
    """
    if split not in SPLITS:
        raise ValueError(f"phantoms have no split {split!r}, only {', '.join(SPLITS)}")
    default_n, own = SPLITS[split]
    own_seed = len(SPLITS) * seed + list(SPLITS).index(split)
    return generate(default_n if n is None else n, own_seed, size, split=split, **own, **knobs)


def _check(n: int, seed: int, size: int, severity: float, families: Sequence[str]) -> None:
    if n < 1:
        raise ValueError(f"n is {n}, it must be at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}, it must not be negative")
    if size < 48:
        raise ValueError(f"size is {size}; below 48 pixels small findings cannot be seen")
    if not 0 <= severity <= 5:
        raise ValueError(f"severity is {severity}, it must be within 0 to 5")
    unknown = [f for f in families if f not in FAMILIES]
    if unknown or not families or len(set(families)) < len(families):
        raise ValueError(f"families is {families!r}; it must hold some of {', '.join(FAMILIES)}, each once")


def _picture_id(seed: int, number: int) -> str:
    return f"phantom-{seed}-{number:06d}"


def _ask_elsewhere(plan: Plan, family: str, chance: random.Random) -> Asked | None:
    others = [region for region in REGIONS if region != plan.region]
    while True:
        asked = ask_about_absent(draw_plan(False, chance, others), family, chance)
        if asked is None or asked.organ != "spine":  # every region shows a part of it
            return asked


def _sample(picture_id: str, family: str, plan: Plan, asked: Asked) -> Sample:
    meta = {
        "question_types": [family],
        "organ": ORGAN_LABELS[plan.region],
        "region": plan.region,
        "modality": plan.modality,
        "plane": plan.plane,
        "findings": [f.kind for f in plan.present],
        "named_organ": asked.organ,
        "answerable": asked.answer != UNANSWERABLE,
        "chance": asked.chance,
        "depends_on": list(asked.regions),
    }
    return Sample(f"{picture_id}-{family}", picture_id, asked.words, asked.answer, family, asked.kind, meta=meta)
