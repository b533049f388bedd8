"""Experiment ``attention_maps``: maps of every method, on models of several kinds, held against the true regions.

Models of scenes read the frozen tokens of ``scene_encoders``: one token for each cell of the picture that holds an
object. They are trained on the questions of :attr:`Data.families`, all seeds in one pass; ``fusion.kept`` is the model
of experiment ``fusion`` that ``ask`` uses. Those of ``phantoms`` read every cell of a frozen encoder of
``medical_encoders`` and the words of the question, without their order. **Phantoms are not patients.**

A record holds, for every method that fits the model, the scores of its maps on all test questions whose answer depends
on something in the picture, and what the checks found:

- whether the logits are the same with and without explanation (else the run fails);
- deletion and insertion curves, and for the model's own attention what the removal of the most attended tokens does;
- agreement of the maps with those of the same model when its weights are set back from the head down, of the same
  model trained on shuffled answers, of another seed; and of the methods with one another.

The units :data:`BASELINES` have the scores of maps that know no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vqa_core.data import phantoms
from vqa_core.data.text import Vocabulary, encode_questions
from vqa_core.data.types import Batch, Sample
from vqa_core.encoders.tokens import CachedTokens
from vqa_core.evaluation.statistics import Interval, seeds_and_questions
from vqa_core.experiments import Metric, Outcome, Spec, fusion, medical
from vqa_core.experiments.medical_encoders import SIZE, load_encoder, rgb
from vqa_core.experiments.rejection_tokens import kept_fusion, trained_fusion
from vqa_core.experiments.scene_encoders import PROFILES as ENCODERS
from vqa_core.experiments.scene_encoders import MaskedCells, is_present
from vqa_core.experiments.transformers import Data, answers_of, feed_of, questions_of
from vqa_core.explain import scores
from vqa_core.explain.cells import cell_scores, shares_of
from vqa_core.explain.deletion import Remover, curves, drops
from vqa_core.explain.maps import TokenMaps, explain_tokens, methods_for
from vqa_core.explain.randomisation import agreement, cascading_agreement, shuffled_labels, stages_of
from vqa_core.fusion.bilinear import BAN
from vqa_core.fusion.nonlocal_ import CMSA
from vqa_core.fusion.stacked import SAN
from vqa_core.fusion.transformer import LAYOUTS
from vqa_core.heads.classifier import LinearHead, MLPHead
from vqa_core.model import VQAModel
from vqa_core.training.feed import Feed
from vqa_core.training.loop import Training
from vqa_core.training.together import fit_together, predict_together

REQUIRES = ("scene_encoders", "fusion", "medical_encoders")
BASELINES = ("baselines", "phantoms.baselines")
KEPT = "fusion.kept"
CELL = 8  # side of a cell of a scene in pixels
ENCODER = "maml"  # of the phantoms: the one of MEVF
STEPS = 12  # of deletion and insertion, where there are more tokens than that
SHARE = 0.2  # of the tokens, removed to see whether attention is faithful


@dataclass(frozen=True)
class Method:
    """A model of the experiment.

    Attributes
    ----------
    title
        As it stands in figures and tables.
    text
        What it reads of the question: its slots, one token each, behind a token for the whole ``sentence`` (their sum,
        as a transformer's class token would be); only this sum, one ``vector``; or how often each word comes, a
        ``bag``.
    build
        ``build(image_dim, text_dim, model)`` → fusion.
    """

    title: str
    text: str
    build: Callable[[int, int, Model], nn.Module] | None


@dataclass(frozen=True)
class Model:
    """A fusion and its sizes, and how many seeds are trained, from 0."""

    fusion: str
    dim: int = 32
    depth: int = 2
    heads: int = 4
    mlp_ratio: float = 2.0
    hidden: int = 128
    seeds: int = 5


@dataclass(frozen=True)
class Looking:
    """How much is explained.

    Attributes
    ----------
    steps
        Points on the path of integrated gradients.
    curves
        How many questions have deletion and insertion curves.
    checked
        How many questions the randomisation checks look at.
    checked_seeds
        How many seeds are checked; as many are trained on shuffled answers.
    shown
        How many questions keep their maps of seed 0, for figures; the word-by-word and head-by-head maps of
        the first :attr:`gallery` of them too.
    gallery
        See :attr:`shown`.
    regions
        Training pictures whose regions make the centre bias.
    """

    steps: int
    curves: int
    checked: int
    checked_seeds: int
    shown: int
    gallery: int
    regions: int


@dataclass(frozen=True)
class Drawn:
    """Numbers of phantoms.

    ``cells`` is the side of the grid of their tokens, ``features`` how many principal components a token has. A
    question is explained when its region takes at most ``largest`` of the picture; larger ones are the whole body.
    """

    train: int
    val: int
    test: int
    cells: int = 6
    features: int = 24
    largest: float = 0.25


@dataclass(frozen=True)
class Asked:
    """The questions, and how much of them is explained."""

    questions: Data | Drawn
    looking: Looking


@dataclass(frozen=True)
class Config:
    """Sizes of a profile.

    ``model.fusion`` is replaced unit by unit; ``training`` is that of the transformers, ``simple`` that of all others.
    """

    pictures: tuple[int, int, int]  # train, val, test
    drawn: Drawn
    model: Model
    training: Training
    simple: Training
    looking: Looking


def _layout(name: str):
    return lambda i, t, m: LAYOUTS[name](i, t, m.dim, depth=m.depth, heads=m.heads, mlp_ratio=m.mlp_ratio)


def _ban(i: int, t: int, m: Model) -> nn.Module:
    return BAN(i, t, m.dim, glimpses=2)


def _san(i: int, t: int, m: Model) -> nn.Module:
    return SAN(i, t, m.dim, hidden=m.dim)


METHODS: dict[str, Method] = {  # those that take longest come first
    "early_concatenation": Method("early concatenation", "sentence", _layout("early_concatenation")),
    "cross_attention": Method("co-attention", "sentence", _layout("cross_attention")),
    "cmsa": Method("CMSA", "vector", lambda i, t, m: CMSA(i, t, 2 * m.dim, blocks=1, hidden=m.dim)),
    "ban": Method("BAN", "vector", _ban),
    "san": Method("SAN", "vector", _san),
    KEPT: Method("attend, concat (ask)", "vector", None),
    "phantoms.ban": Method("BAN, phantoms", "bag", _ban),
    "phantoms.san": Method("SAN, phantoms", "bag", _san),
}
FAMILIES = ("attribute_query", "existence")  # one object is asked about; a "no" has no region and is left out

PROFILES = {
    "smoke": Config(
        (60, 20, 30),
        Drawn(20, 8, 12),
        Model("", dim=16, heads=2, hidden=16, seeds=2),
        Training(epochs=2, batch_size=64, learning_rate=8e-3),
        Training(epochs=2, batch_size=64, learning_rate=8e-3),
        Looking(steps=4, curves=20, checked=20, checked_seeds=1, shown=45, gallery=8, regions=30),
    ),
    "cpu": Config(
        (4000, 300, 1000),
        Drawn(600, 100, 250),
        Model(""),
        Training(epochs=8, batch_size=64, learning_rate=5e-3, warmup=0.1),
        Training(epochs=12, batch_size=128, learning_rate=8e-3, weight_decay=0.1),
        Looking(steps=8, curves=300, checked=200, checked_seeds=2, shown=1500, gallery=24, regions=500),
    ),
    "gpu": Config(
        (20000, 1000, 4000),
        Drawn(4000, 500, 1000),
        Model("", dim=64, depth=3, heads=8, seeds=10),
        Training(epochs=20, batch_size=256, learning_rate=3e-3, warmup=0.1),
        Training(epochs=20, batch_size=256, learning_rate=5e-3, weight_decay=0.1),
        Looking(steps=32, curves=2000, checked=1000, checked_seeds=3, shown=4000, gallery=24, regions=2000),
    ),
}


def specs(profile: str) -> list[Spec]:
    """One spec for each model, with its seeds inside, and one for the baselines of each data set."""
    config = PROFILES[profile]
    scenes = Data(ENCODERS[profile].data, *config.pictures, FAMILIES)

    def training(unit: str) -> Training | None:
        return None if unit in (KEPT, *BASELINES) else config.training if unit in LAYOUTS else config.simple

    return [
        Spec(
            "attention_maps",
            unit,
            0,
            profile,
            Asked(config.drawn if is_phantom(unit) else scenes, config.looking),
            None if unit in BASELINES else replace(config.model, fusion=unit),
            training(unit),
        )
        for unit in (*METHODS, *BASELINES)
    ]


def is_phantom(unit: str) -> bool:
    """Whether a unit is about phantoms, not scenes."""
    return unit.startswith("phantoms.")


# ------------------------------------------------------------------------------------------------------ the questions


@lru_cache(maxsize=4)
def regions_of(data: Data, split: str, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """Questions about the first pictures whose answer depends on something that is there, and where that is.

    Returns
    -------
    rows
        int (Q,), positions among the questions of the split.
    inside
        float (Q, rows, columns), share of each cell that lies in the region.
    """
    found, _ = questions_of(data, split)
    near = [i for i, s in enumerate(found) if found.picture_index(s.picture_id) < pictures]
    masks = np.stack([found.region_mask(i) for i in near])  # (n, H, W)
    there = masks.any(axis=(1, 2))  # (n,)
    side = data.scenes.size // CELL
    return np.array(near)[there], shares_of(masks[there], (side, side))


def with_vector(feed: Feed) -> Feed:
    """The same questions, each as one token: the sum of its slots, which do not overlap."""
    words, mask = feed.words.sum(1, keepdim=True), feed.word_mask.any(1, keepdim=True)  # (U, 1, D), (U, 1)
    return Feed(feed.pictures, feed.picture_index, words, mask, feed.answers, feed.question_index)


def with_sentence(feed: Feed) -> Feed:
    """The same questions, with this sum as one more token in front of the slots."""
    whole = with_vector(feed)
    words, mask = torch.cat([whole.words, feed.words], 1), torch.cat([whole.word_mask, feed.word_mask], 1)
    return Feed(feed.pictures, feed.picture_index, words, mask, feed.answers, feed.question_index)


AS = {"vector": with_vector, "sentence": with_sentence}


def feed_for(spec: Spec, split: str) -> Feed:
    """The questions as the spec's model reads them."""
    if is_phantom(spec.unit):
        return phantom_material(spec.profile, spec.data.questions).feeds[split]
    return AS[METHODS[spec.unit].text](feed_of(spec.profile, spec.data.questions, split))


def answers_for(spec: Spec) -> Sequence[str]:
    """The answers that the spec's model can give."""
    if is_phantom(spec.unit):
        return phantom_material(spec.profile, spec.data.questions).answers
    return answers_of(spec.data.questions).symbols


class PhantomMaterial(NamedTuple):
    """Phantoms by split, their questions as feeds, and the answers of training questions."""

    sets: dict[str, phantoms.PhantomSet]
    feeds: dict[str, Feed]
    answers: Sequence[str]


@lru_cache(maxsize=2)
def phantom_material(profile: str, data: Drawn) -> PhantomMaterial:
    """Draw the phantoms, and run the frozen encoder over them once."""
    sets = {split: phantoms.load(split, n=getattr(data, split), size=SIZE) for split in ("train", "val", "test")}
    pictures = np.concatenate([rgb(found) for found in sets.values()])  # (P, H, W, 3)
    sizes = replace(medical.PROFILES[profile].sizes, cells=data.cells, features=data.features)
    train = np.arange(len(pictures)) < data.train
    tokens = medical.encode(*load_encoder(profile, ENCODER), pictures, train, sizes)  # (P, cells², features)
    words = Vocabulary.of_words(s.question for s in sets["train"])
    answers = Vocabulary.of_answers(s.answer for s in sets["train"])
    feeds, start = {}, 0
    for split, found in sets.items():
        index = start + np.array([found.picture_index(s.picture_id) for s in found])
        bag = bags(found, words)  # (Q, 1, V)
        feeds[split] = Feed(tokens, index, bag, torch.ones(bag.shape[:2]), answers.ids(s.answer for s in found))
        start += len(found.images)
    return PhantomMaterial(sets, feeds, answers.symbols)


def bags(samples: Sequence[Sample], words: Vocabulary) -> Tensor:
    """How often each word comes in each question, as one token: float (Q, 1, V)."""
    ids, mask = (torch.from_numpy(a) for a in encode_questions([s.question for s in samples], words))  # (Q, T) each
    counts = torch.zeros(len(ids), len(words))
    return counts.scatter_add_(1, ids.long(), mask.float()).unsqueeze(1)


class Case(NamedTuple):
    """Test questions with the truth about them.

    Attributes
    ----------
    samples
        All test questions.
    images
        uint8 (P, H, W, 3), and ``picture`` int (Q,), which of them each explained question is about.
    rows
        int (Q,), positions among the samples of those that are explained.
    inside
        float (Q, side, side), share of each cell that lies in the region.
    learned
        float (n, side, side), the same of training questions.
    cells, real
        Which cell each image token is, long (Q, N), and whether it is one, bool (Q, N).
    data_hash
        Of the test questions.
    """

    samples: Sequence[Sample]
    images: np.ndarray
    picture: np.ndarray
    rows: np.ndarray
    inside: np.ndarray
    learned: np.ndarray
    cells: Tensor
    real: Tensor
    data_hash: str

    @property
    def side(self) -> int:
        """Cells in a row."""
        return self.inside.shape[1]

    @property
    def groups(self) -> list[str]:
        """Picture id of each explained question."""
        return [self.samples[i].picture_id for i in self.rows]


@lru_cache(maxsize=4)
def case_of(profile: str, asked: Asked) -> Case:
    """The test questions that are explained."""
    if isinstance(asked.questions, Drawn):
        return _phantom_case(profile, asked)
    data = asked.questions
    found, _ = questions_of(data, "test")
    rows, inside = regions_of(data, "test", data.test)
    _, learned = regions_of(data, "train", asked.looking.regions)
    picture = np.array([found.picture_index(found.samples[i].picture_id) for i in rows])
    tokens = feed_of(profile, data, "test").batch(rows).pictures  # (Q, N, D)
    cells = cells_of(tokens, inside.shape[1])
    return Case(
        found.samples, found.images, picture, rows, inside, learned, cells, is_present(tokens), found.content_hash()
    )


def _phantom_case(profile: str, asked: Asked) -> Case:
    data, sets = asked.questions, phantom_material(profile, asked.questions).sets

    def regions(split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
        found = sets[split]
        near = [i for i, s in enumerate(found) if found.picture_index(s.picture_id) < n]
        masks = np.stack([found.region_mask(i) for i in near])  # (n, H, W)
        share = masks.mean(axis=(1, 2))
        keep = (share > 0) & (share <= data.largest)
        return np.array(near)[keep], shares_of(masks[keep], (data.cells, data.cells))

    test = sets["test"]
    (rows, inside), (_, learned) = regions("test", data.test), regions("train", asked.looking.regions)
    picture = np.array([test.picture_index(test.samples[i].picture_id) for i in rows])
    cells = torch.arange(data.cells**2).expand(len(rows), -1)  # (Q, N): tokens are all cells
    real = torch.ones_like(cells, dtype=torch.bool)
    return Case(test.samples, rgb(test), picture, rows, inside, learned, cells, real, test.content_hash())


def cells_of(tokens: Tensor, side: int) -> Tensor:
    """Which cell of the grid each token is, long (B, N): its last two features are row and column in [−1, 1]."""
    row, column = ((tokens[..., -2:] + 1) / 2 * (side - 1)).round().long().unbind(-1)  # (B, N) each
    return row * side + column


def on_grid(maps: Tensor, cells: Tensor, side: int) -> np.ndarray:
    """Weights of tokens (B, N) put where they belong, float64 (B, side, side); cells without a token weigh 0."""
    grid = torch.zeros(len(maps), side * side, dtype=torch.float64)
    return grid.scatter_add_(1, cells, maps.double()).unflatten(1, (side, side)).numpy()


# ---------------------------------------------------------------------------------------------------------- the models


def build(model: Model, image_dim: int, text_dim: int, answers: int, seed: int = 0) -> VQAModel:
    """The model of a unit, with the weights that a seed gives it."""
    torch.manual_seed(seed)
    made = METHODS[model.fusion].build(image_dim, text_dim, model)
    layout = model.fusion in LAYOUTS
    head = LinearHead(made.out_dim, answers) if layout else MLPHead(made.out_dim, answers, model.hidden, depth=2)
    image = CachedTokens(image_dim) if is_phantom(model.fusion) else MaskedCells(image_dim)
    return VQAModel(image, CachedTokens(text_dim), made, head)


@dataclass
class Trained:
    """All seeds of a unit, what they were before training, and those trained on shuffled answers."""

    models: Sequence[VQAModel]
    fresh: Sequence[VQAModel]
    shuffled: Sequence[VQAModel]
    answers: Sequence[str]
    details: dict


def train(spec: Spec) -> Trained:
    """Train all seeds in one pass, then a few on shuffled answers, as long."""
    feeds = {split: feed_for(spec, split) for split in ("train", "val")}
    of_train, answers = feeds["train"], answers_for(spec)
    shape = of_train.pictures.shape[-1], of_train.words.shape[-1], len(answers)
    seeds, checked = range(spec.model.seeds), range(spec.data.looking.checked_seeds)
    models, shuffled = ([build(spec.model, *shape, seed) for seed in some] for some in (seeds, checked))
    fits = fit_together(models, of_train, feeds["val"], spec.training, seeds, label=spec.unit)
    exchanged = shuffled_labels(of_train)
    # nothing can be learned for new pictures: the epoch is chosen by how well the exchanged answers are known
    known = Feed(
        exchanged.pictures, exchanged.picture_index[:500], exchanged.words, exchanged.word_mask,
        exchanged.answers[:500], exchanged.question_index[:500],
    )  # fmt: skip
    of_shuffled = fit_together(shuffled, exchanged, known, spec.training, checked, label=f"{spec.unit}, shuffled")
    details = {
        "history": [f.history for f in fits],
        "accuracy_val": [f.best_score for f in fits],
        "known_shuffled": [f.best_score for f in of_shuffled],
        "parameters": sum(p.numel() for p in models[0].parameters()),
    }
    fresh = [build(spec.model, *shape, 1000 + seed) for seed in checked]
    return Trained([m.eval() for m in models], fresh, [m.eval() for m in shuffled], answers, details)


def kept(spec: Spec) -> Trained:
    """The model of experiment ``fusion``: every seed that was trained; none on shuffled answers."""
    _, records = kept_fusion(spec.profile)
    feed = feed_for(spec, "test")
    shape = feed.pictures.shape[-1], feed.words.shape[-1]
    models = [trained_fusion(record, *shape) for record in records]
    torch.manual_seed(1000)
    answers = records[0].details["answers"]
    fresh = [fusion.build(r.spec.model, *shape, len(answers)) for r in records[: spec.data.looking.checked_seeds]]
    return Trained(models, fresh, [], answers, {"parameters": sum(p.numel() for p in models[0].parameters())})


# ---------------------------------------------------------------------------------------------------------- the runs


def explained(
    model: nn.Module, batch: Batch, method: str, looking: Looking, targets: Tensor | None = None
) -> TokenMaps:
    """Maps of one method on all questions of a batch, with the options of the experiment."""
    options = {"steps": looking.steps, "level": "tokens"} if method == "integrated_gradients" else {}
    return explain_tokens(model, batch, method, targets=targets, **options)


def measured(name: str, interval: Interval) -> dict[str, Metric]:
    """A mean with the ends of its interval, as three metrics."""
    ends = {"": interval.mean, ".low": interval.low, ".high": interval.high}
    return {f"{name}{end}": Metric(value, interval.n) for end, value in ends.items()}


def run(spec: Spec) -> Outcome:
    """Train and explain one model, or score the maps that know no model."""
    if spec.unit in BASELINES:
        return _run_baselines(spec)
    return Examination(spec, kept(spec) if spec.unit == KEPT else train(spec)).outcome()


class Examination:
    """Everything that is found out about one unit's maps.

    Parameters
    ----------
    spec
        The unit.
    trained
        Its models.
    """

    def __init__(self, spec: Spec, trained: Trained) -> None:
        self.spec, self.trained, self.looking = spec, trained, spec.data.looking
        self.case = case_of(spec.profile, spec.data)
        self.feed, self.rows, self.real = feed_for(spec, "test"), self.case.rows, self.case.real
        self.batch = self.feed.batch(self.rows)
        self.methods = methods_for(trained.models[0])
        self.own = self.methods[0]  # the model's own attention
        self.pictures = self.case.groups
        self.truth = np.array([self.case.samples[i].answer for i in self.rows])

    def outcome(self) -> Outcome:
        """The record's content."""
        said, self.maps, self.targets = self._explain()
        arrays = {"right": np.asarray(self.trained.answers)[said] == self.truth}  # (S, Q)
        arrays |= self._scores() | self._curves() | self._faithfulness()
        arrays |= self._randomised() | self._agreements() | self._for_figures()
        metrics = {"accuracy": Metric(float(arrays["right"].mean()), len(self.rows))}
        metrics["accuracy_test"] = self._accuracy()
        metrics["same_logits"] = Metric(1.0, len(self.rows) * len(self.methods) * len(self.trained.models))
        for method in self.methods:
            interval = seeds_and_questions(arrays[f"{method}.pointing_game"], self.pictures)
            metrics |= measured(f"{method}.pointing_game", interval)
        metrics |= measured("centre_bias.pointing_game", self._centre_bias())
        details = self.trained.details | {
            "methods": list(self.methods),
            "own": self.own,
            "answers": list(self.trained.answers),
            "rows": self.rows.tolist(),
            "stages": [" + ".join(stage) for stage in stages_of(self.trained.models[0])],
            "data_hash": self.case.data_hash,
        }
        return Outcome(metrics, arrays, details)

    def _accuracy(self) -> Metric:
        """Of all test questions, those without a region too."""
        truth = np.array([s.answer for s in self.case.samples])
        best = predict_together(self.trained.models, self.feed).argmax(-1).numpy()  # (S, Q)
        return Metric(float((np.asarray(self.trained.answers)[best] == truth).mean()), len(truth))

    def _explain(self) -> tuple[np.ndarray, dict[str, Tensor], Tensor]:
        """Answers (S, Q), maps (S, Q, N) of every method, the explained answers (S, Q).

        Raises
        ------
        RuntimeError
            When an explanation belongs to other logits than those of the model.
        """
        found: dict[str, list[Tensor]] = {method: [] for method in self.methods}
        said = []
        for seed, model in enumerate(self.trained.models):
            with torch.no_grad():
                logits = model(*self.batch[:3]).logits  # (Q, A)
            said.append(logits.argmax(-1))
            for method in self.methods:
                explanation = explained(model, self.batch, method, self.looking)
                if not torch.equal(explanation.logits, logits):
                    raise RuntimeError(
                        f"{self.spec.unit}, seed {seed}: the logits with {method} differ from those without by up to "
                        f"{float((explanation.logits - logits).abs().max()):.3g}; the map belongs to another answer"
                    )
                found[method].append(explanation.maps)
        answers = torch.stack(said)  # (S, Q)
        return answers.numpy(), {m: torch.stack(of) for m, of in found.items()}, answers

    def _scores(self) -> dict[str, np.ndarray]:
        arrays = {}
        for method, maps in self.maps.items():
            of_seeds = [scored(self.case, on_grid(m, self.case.cells, self.case.side)) for m in maps]
            for score in scores.SCORES:
                arrays[f"{method}.{score}"] = np.stack([s[score] for s in of_seeds]).astype(np.float32)  # (S, Q)
        return arrays

    def _part(self, n: int) -> Batch:
        """The first n questions; words are not cut anew, so that maps have the same shape."""
        return Batch(*(part[:n] for part in self.batch))

    def _curves(self) -> dict[str, np.ndarray]:
        n, arrays = min(self.looking.curves, len(self.rows)), {}
        removers = [
            Remover(model, self._part(n), targets[:n]) for model, targets in zip(self.trained.models, self.targets)
        ]
        unknowing = torch.full((n, self.real.shape[1]), 1.0)  # equal weights: a random order
        for method, maps in {**self.maps, "random": unknowing.expand(len(removers), -1, -1)}.items():
            found = [curves(remover, m[:n], min(STEPS, m.shape[1])) for remover, m in zip(removers, maps)]
            for kind in ("deletion", "insertion"):
                of_seeds = torch.stack([getattr(f, kind).mean(0) for f in found])  # (S, J + 1)
                areas = torch.stack([getattr(f, f"{kind}_area") for f in found])  # (S, n)
                arrays[f"{method}.{kind}"] = of_seeds.numpy()
                arrays[f"{method}.{kind}_area"] = areas.numpy()
        return arrays

    def _faithfulness(self) -> dict[str, np.ndarray]:
        found = [
            drops(Remover(model, self.batch, targets), maps, SHARE)
            for model, targets, maps in zip(self.trained.models, self.targets, self.maps[self.own])
        ]
        return {f"drop.{kind}": torch.stack([getattr(f, kind) for f in found]).numpy() for kind in found[0]._fields}

    def _randomised(self) -> dict[str, np.ndarray]:
        """Agreement with the trained model's maps: stage by stage (S', stages + 1, n), and after shuffling (S', n)."""
        n, arrays = min(self.looking.checked, len(self.rows)), {}
        part, real = self._part(n), self.real[:n].numpy()
        for method in self.methods:
            stages, labels = [], []
            for seed, fresh in enumerate(self.trained.fresh):
                model, targets = self.trained.models[seed], self.targets[seed, :n]

                def of(some, method=method, targets=targets):
                    return explained(some, part, method, self.looking, targets).maps.numpy()

                stages.append(cascading_agreement(of, model, fresh, stages_of(model), real))  # (stages + 1, n)
                labels += [agreement(of(model), of(m), real) for m in self.trained.shuffled[seed : seed + 1]]
            arrays[f"{method}.cascade"] = np.stack(stages).astype(np.float32)
            if labels:
                arrays[f"{method}.labels"] = np.stack(labels).astype(np.float32)
        return arrays

    def _agreements(self) -> dict[str, np.ndarray]:
        """Mean rank agreement of every two methods (S, M, M), and of every two neighbouring seeds (S, M)."""
        real, maps = self.real.numpy(), {m: of.numpy() for m, of in self.maps.items()}
        seeds, m = len(self.trained.models), len(self.methods)
        between, other = np.ones((seeds, m, m)), np.zeros((seeds, m))
        for s in range(seeds):
            for i, a in enumerate(self.methods):
                other[s, i] = agreement(maps[a][s], maps[a][(s + 1) % seeds], real).mean()
                for j in range(i):
                    of_pair = agreement(maps[a][s], maps[self.methods[j]][s], real).mean()
                    between[s, i, j] = between[s, j, i] = of_pair
        return {"agreement": between, "agreement.seeds": other}

    def _for_figures(self) -> dict[str, np.ndarray]:
        """What figures draw, all of seed 0: maps by method, word by word, layer by layer and head by head."""
        shown, gallery = (min(k, len(self.rows)) for k in (self.looking.shown, self.looking.gallery))
        arrays = {f"maps.{m}": of[0, :shown].half().numpy() for m, of in self.maps.items()}
        arrays["cells"] = self.case.cells[:shown].numpy().astype(np.int16)
        arrays["real"] = self.real[:shown].numpy()
        arrays["said"] = self.targets[0, :shown].numpy().astype(np.int16)
        part, model = self._part(gallery), self.trained.models[0]
        if METHODS[self.spec.unit].text == "sentence":
            arrays["words"] = explain_tokens(model, part, self.own, per_word=True).maps.numpy()  # (G, T, N)
            arrays["word_tokens"] = part.words.half().numpy()
            arrays["word_mask"] = part.word_mask.numpy()
        if self.spec.unit in LAYOUTS:
            arrays["heads"] = np.stack(
                [
                    [
                        explain_tokens(model, part, "raw_attention", layer=layer, head=head).maps.numpy()
                        for head in range(self.spec.model.heads)
                    ]
                    for layer in range(self.spec.model.depth)
                ]
            )  # (L, H, G, N)
        return arrays

    def _centre_bias(self) -> Interval:
        hits = scored(self.case, baseline_maps(self.case)["centre_bias"])["pointing_game"]  # (Q,)
        return seeds_and_questions(hits[None], self.pictures)


# ---------------------------------------------------------------------------------------- maps that know no model


def scored(case: Case, maps: np.ndarray) -> dict[str, np.ndarray]:
    """All scores (Q,) of maps of cells (Q, side, side)."""
    return cell_scores(maps, case.inside, touching=True)


def baseline_maps(case: Case) -> dict[str, np.ndarray]:
    """Maps of cells (Q, side, side) that know nothing of a model; ``ceiling`` knows the region."""
    side = case.side
    present = on_grid(case.real.float(), case.cells, side)  # (Q, side, side)
    of_cells = shares_of(scores.edges(case.images), (side, side))  # (P, side, side)
    return {
        "centre_bias": np.broadcast_to(case.learned.mean(axis=0), case.inside.shape),
        "random": scores.random_maps(case.inside.shape),
        "edges": of_cells[case.picture],
        "objects": present,
        "ceiling": present * (case.inside + 1e-6),
    }


def _run_baselines(spec: Spec) -> Outcome:
    case = case_of(spec.profile, spec.data)
    arrays, metrics = {}, {}
    for name, maps in baseline_maps(case).items():
        for score, values in scored(case, maps).items():
            arrays[f"{name}.{score}"] = values[None].astype(np.float32)  # (1, Q)
        interval = seeds_and_questions(arrays[f"{name}.pointing_game"], case.groups)
        metrics |= measured(f"{name}.pointing_game", interval)
    return Outcome(metrics, arrays, {"rows": case.rows.tolist(), "data_hash": case.data_hash})
