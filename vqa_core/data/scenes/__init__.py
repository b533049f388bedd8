"""Scenes: generated pictures of coloured shapes, with balanced questions whose truth is known.

Pictures come in pairs. Every question is asked about both pictures of a pair, in the same words, and has another answer
on each, so that the words alone tell nothing. Truth is computed by one function, :func:`execute`.

The design follows CLEVR (Johnson et al., 2017: programs over scenes), SHAPES (Andreas et al., 2016: coloured shapes)
and the balanced pairs of VQA v2 (Goyal et al., 2017), and takes no data from them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np

from ..types import CLOSED, OPEN, Dataset, Sample
from .captions import captions as _captions
from .grammar import (
    FAMILIES,
    OPEN_FAMILIES,
    TWO_OBJECT_FAMILIES,
    Asker,
    Question,
    Reference,
    depends_on,
    execute,
    references,
)
from .render import PALETTE, draw, visible
from .world import (
    ATTRIBUTES,
    COLOURS,
    RADIUS,
    SHAPES,
    SIZES,
    TEXTURES,
    UNSEEN,
    Plan,
    Scene,
    SceneObject,
    build_scene,
    draw_kinds,
    draw_plan,
    highest_count,
)

__all__ = [
    "ATTRIBUTES",
    "COLOURS",
    "FAMILIES",
    "OPEN_FAMILIES",
    "PALETTE",
    "RADIUS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "TEXTURES",
    "UNSEEN",
    "Scene",
    "SceneObject",
    "SceneSet",
    "depends_on",
    "execute",
    "generate",
    "load",
]

#: Split → (number of pictures, ``pairs`` of :func:`generate`).
SPLITS = {
    "train": (8000, "seen"),
    "val": (1000, "seen"),
    "test": (2000, "seen"),
    "test_composition": (1000, "unseen"),
}

_BLOCK = 16  # pairs that are drawn together; a block depends on the seed and its own number only


class SceneSet(Dataset):
    """Generated pictures and questions; made by :func:`generate`.

    Besides a :class:`~vqa_core.data.types.Dataset`:

    Attributes
    ----------
    images
        All pictures, uint8 (n, H, W, 3).
    scenes
        What is in them, n :class:`Scene`.

    Notes
    -----
    ``Sample.meta`` holds ``program`` (see :mod:`~vqa_core.data.scenes.grammar`), ``partner`` (id of the question in the
    same words about the other picture of the pair, with another answer), ``objects`` (positions in the scene of the
    objects that the answer depends on; empty when there is none of what is asked about), ``options`` (how many
    answers are equally likely given the words) and ``unseen`` (whether one of ``objects`` is a pair of :data:`UNSEEN`).
    """

    def __init__(
        self,
        split: str,
        samples: Sequence[Sample],
        images: np.ndarray,
        scenes: Sequence[Scene],
        picture_index: dict[str, int],
        captions: tuple[int, int],
    ) -> None:
        super().__init__("scenes", split, samples, self._picture)
        self.images, self.scenes = images, tuple(scenes)
        self._index, self._captions = picture_index, captions

    def _picture(self, picture_id: str) -> np.ndarray:
        return self.images[self.picture_index(picture_id)]

    def picture_index(self, picture_id: str) -> int:
        """Position of a picture in ``images`` and ``scenes``."""
        if picture_id not in self._index:
            first, *_, last = self._index
            raise ValueError(f"picture {picture_id!r} is not in this set; its ids run from {first!r} to {last!r}")
        return self._index[picture_id]

    def region_mask(self, index: int) -> np.ndarray:
        """Pixels of the objects that the answer to question ``index`` depends on, bool (H, W)."""
        sample = self.samples[index]
        scene = self.scenes[self.picture_index(sample.picture_id)]
        return np.isin(visible(scene, self.images.shape[1]), sample.meta["objects"])

    def captions(self, picture_id: str) -> tuple[str, ...]:
        """True and different sentences about a picture, as many as ``generate(captions=…)`` allows; always the same."""
        chance = random.Random(f"captions of {picture_id}")
        number = chance.randint(*self._captions)
        return _captions(self.scenes[self.picture_index(picture_id)], number, chance)

    def chance(self, family: str | None = None) -> float:
        """Accuracy that the best question-only predictor can expect on a family (default: on the whole set).

        Given its words, each of a question's ``meta["options"]`` answers is equally likely by construction. With
        ``pairs="unseen"`` this is true up to a few points for colour and shape queries.
        """
        options = [s.meta["options"] for s in self.samples if family in (None, s.family)]
        if not options:
            raise ValueError(f"no question of family {family!r}; this set has {', '.join(self.families)}")
        return float(np.mean(1 / np.array(options)))

    def subset(self, keep: Sequence[int] | np.ndarray, split: str | None = None) -> SceneSet:
        """The same pictures with only the questions at positions ``keep``."""
        samples = [self.samples[i] for i in keep]
        return SceneSet(split or self.split, samples, self.images, self.scenes, self._index, self._captions)

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
    objects: tuple[int, int] = (3, 6),
    noise: float = 0.02,
    clutter: float = 0.2,
    occlusion: float = 0.0,
    pairs: str = "all",
    questions_per_picture: int = 8,
    captions: tuple[int, int] = (1, 5),
    split: str = "generated",
) -> SceneSet:
    """Generate pictures with questions.

    Parameters
    ----------
    n
        Number of pictures; even, because pictures come in pairs. The first pictures do not depend on n.
    seed
        Same seed, same set; different seeds share no picture id.
    size
        Height and width in pixels, at least 32. Scenes and questions do not depend on it, nor on noise and clutter.
    objects
        Least and largest number of objects, within 1 to 8. The larger numbers are more frequent: there must be room
        for what is counted (0 to 4 objects with equal probability, or 0 to one below the largest number) and one
        more.
    noise
        Standard deviation of pixel noise as a share of white, 0 to 1.
    clutter
        Grey strokes on the ground, 0 (none) to 1 (forty).
    occlusion
        0 to 0.5: the share of the sum of their radii by which two objects may overlap.
    pairs
        ``"seen"`` leaves the colour × shape pairs of :data:`UNSEEN` out; ``"unseen"`` puts at least one of them into
        every picture, and one into every counting question that names a colour and a shape; ``"all"`` makes no
        difference between pairs.
    questions_per_picture
        1 to 32. Eight give one question per family; more go round the families except counting (its counts are
        planned, one per picture). In a picture with one object other families take the places of those that need two.
    captions
        Least and largest number of captions per picture, within 1 to 5.
    split
        Name of the split.

    Returns
    -------
    SceneSet
        With n pictures and ``n * questions_per_picture`` questions.

    Raises
    ------
    ValueError
        If an argument is outside its range.
    """
    _check(n, seed, size, objects, noise, clutter, occlusion, pairs, questions_per_picture, captions)
    images = np.empty((n, size, size, 3), dtype=np.uint8)
    scenes: list[Scene] = []
    samples: list[Sample] = []
    top = highest_count(objects)
    for block in range(-(-n // (2 * _BLOCK))):
        pixels = np.random.default_rng([seed, block, 1])
        for asked in _draw_block(seed, block, objects, occlusion, pairs, questions_per_picture):
            if len(scenes) == n:
                break
            pair, questions = asked
            ids = [f"scene-{seed}-{len(scenes) + side:06d}" for side in (0, 1)]
            for side, scene in enumerate(pair):
                images[len(scenes)] = draw(scene, size, noise, clutter, pixels)
                scenes.append(scene)
                for j, (family, (program, words)) in enumerate(questions):
                    samples.append(_sample(ids, side, j, family, program, words, scene, pairs, top))
    index = {f"scene-{seed}-{i:06d}": i for i in range(n)}
    return SceneSet(split, samples, images, scenes, index, captions)


def load(split: str, *, n: int | None = None, seed: int = 0, size: int = 64, **knobs) -> SceneSet:
    """A standard split of the scenes.

    Parameters
    ----------
    split
        ``"train"`` (8,000 pictures), ``"val"`` (1,000), ``"test"`` (2,000) – these have only seen colour × shape
        pairs – or ``"test_composition"`` (1,000 pictures, each with an unseen pair).
    n
        Another number of pictures.
    seed
        Seed of the whole data set; splits never share a picture.
    size, **knobs
        As for :func:`generate`.
    """
    if split not in SPLITS:
        raise ValueError(f"scenes have no split {split!r}, only {', '.join(SPLITS)}")
    default_n, pairs = SPLITS[split]
    own_seed = len(SPLITS) * seed + list(SPLITS).index(split)
    return generate(default_n if n is None else n, own_seed, size, pairs=pairs, split=split, **knobs)


def _check(n, seed, size, objects, noise, clutter, occlusion, pairs, questions_per_picture, captions) -> None:
    if n < 2 or n % 2:
        raise ValueError(f"n is {n}; pictures come in pairs, so it must be an even number from 2")
    if seed < 0:
        raise ValueError(f"seed is {seed}, it must not be negative")
    if size < 32:
        raise ValueError(f"size is {size}; below 32 pixels shapes and stripes cannot be told apart")
    if not 1 <= objects[0] <= objects[1] <= 8:
        raise ValueError(f"objects is {objects}, it must be (least, largest) within 1 to 8")
    if not 1 <= captions[0] <= captions[1] <= 5:
        raise ValueError(f"captions is {captions}, it must be (least, largest) within 1 to 5")
    for name, value, limit in (("noise", noise, 1), ("clutter", clutter, 1), ("occlusion", occlusion, 0.5)):
        if not 0 <= value <= limit:
            raise ValueError(f"{name} is {value}, it must be within 0 to {limit}")
    if pairs not in ("all", "seen", "unseen"):
        raise ValueError(f"pairs is {pairs!r}, allowed are 'all', 'seen' and 'unseen'")
    if not 1 <= questions_per_picture <= 32:
        raise ValueError(f"questions_per_picture is {questions_per_picture}, it must be within 1 to 32")


def _families(number: int, pair: int, objects: int) -> list[str]:
    """Families of the questions about one pair of pictures, by turns where there are not eight of them."""
    able = [f for f in FAMILIES if objects > 1 or f not in TWO_OBJECT_FAMILIES]
    again = [f for f in able if f != "counting"]
    once = [able[(pair * number + j) % len(able)] for j in range(min(number, len(able)))]
    return once + [again[(pair + j) % len(again)] for j in range(number - len(once))]


def _draw_block(
    seed: int, block: int, objects: tuple[int, int], occlusion: float, pairs: str, number: int
) -> list[tuple[tuple[Scene, Scene], list[tuple[str, Question]]]]:
    """Draw the scenes and questions of ``_BLOCK`` pairs of pictures.

    A pair of scenes that does not allow all of its questions is drawn again, but what was planned for it stays: its
    counts, and which picture of the pair is to have the answer "yes". So rejection cannot tilt the balance.
    """
    rng = np.random.default_rng([seed, block, 0])
    chance = random.Random(f"questions of block {block} of seed {seed}")
    plans = [draw_plan(objects, pairs, chance) for _ in range(_BLOCK)]
    coins = [[(chance.random() < 0.5, chance.random() < 0.5) for _ in range(number)] for _ in range(_BLOCK)]
    done: dict[int, tuple] = {}
    for _ in range(1000):
        todo = [k for k in range(_BLOCK) if k not in done]
        if not todo:
            return [done[k] for k in range(_BLOCK)]
        kinds = draw_kinds([plans[k] for k in todo], pairs, rng).tolist()  # (P, 2, N)
        for k, (one, two) in zip(todo, kinds):
            plan = plans[k]
            scenes = tuple(build_scene(row[: plan.objects], occlusion, chance) for row in (one, two))
            families = _families(number, block * _BLOCK + k, plan.objects)
            questions = _ask_all(scenes, families, plan, coins[k], chance)
            if questions is not None:
                done[k] = scenes, questions
    raise RuntimeError(f"no scenes with {objects} objects and {number} questions were found; ask for fewer questions")


def _ask_all(
    scenes: tuple[Scene, Scene],
    families: Sequence[str],
    plan: Plan,
    coins: Sequence[tuple[bool, bool]],
    chance: random.Random,
) -> list[tuple[str, Question]] | None:
    """One question per entry of ``families``, or ``None`` if the scenes do not allow one of them."""
    shared = references(*scenes)
    turned = [Reference(r.attributes, r.values, r.second, r.first) for r in shared]
    asked: dict[str, tuple[str, Question]] = {}
    for family, (flip, agree) in zip(families, coins):
        first, second = scenes[::-1] if flip else scenes
        for _ in range(4):  # the same question may come up twice
            question = Asker(first, second, turned if flip else shared, plan.counted, agree, chance).ask(family)
            if question is None:
                return None
            if question[1] not in asked:
                asked[question[1]] = (family, question)
                break
        else:
            return None
    return list(asked.values())


def _sample(
    ids: list[str], side: int, j: int, family: str, program: list, words: str, scene: Scene, pairs: str, top: int
) -> Sample:
    relevant = depends_on(program, scene)
    meta = {
        "program": program,
        "partner": f"{ids[1 - side]}-{j}",
        "objects": list(relevant),
        "options": _options(family, program, pairs, top),
        "unseen": any(scene.objects[i][2:4] in UNSEEN for i in relevant),
    }
    kind = OPEN if family in OPEN_FAMILIES else CLOSED
    return Sample(f"{ids[side]}-{j}", ids[side], words, execute(program, scene), family, kind, meta=meta)


def _options(family: str, program: list, pairs: str, top: int) -> int:
    """Number of answers that are equally likely given the words of a question."""
    if family == "counting":
        return top + 1
    if family != "attribute_query":
        return 2
    _, attribute, (_, (_, *values)) = program
    options = ATTRIBUTES[attribute]
    if pairs == "seen" and attribute == "colour":
        options = [c for c in options if all((c, v) not in UNSEEN for v in values)]
    if pairs == "seen" and attribute == "shape":
        options = [s for s in options if all((v, s) not in UNSEEN for v in values)]
    return len(options)
