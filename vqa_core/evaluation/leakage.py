"""What leaks between the splits of a data set, found without knowing which data set it is.

:func:`audit` compares every training split with every test split. Four things can be wrong: a *picture* is in both
(under its own name, under another, or slightly changed), a *question* is in both (in the same words or in others), an
*answer* of the test never occurs in training, or the *language* alone gives the answer away.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vqa_core.data.types import Dataset, Sample
from vqa_core.evaluation import baselines
from vqa_core.evaluation.accuracy import plain
from vqa_core.evaluation.statistics import Interval, wilson

#: From this cosine of TF-IDF vectors on, two questions with one picture and one answer say the same.
SAME_WORDING = 0.7
#: Re-wordings are looked for this far from a question in the numbering of a release.
OFFSETS = (-3, -2, -1, 1, 2, 3)
#: Evidence, in nats, that makes neighbours re-wordings: a million to one.
EVIDENCE = math.log(1e6)
#: A field of ``meta`` with at most this many values sorts rows into groups.
GROUPS = 12
#: Bits of 64 in which the perceptual hashes of near-duplicates may differ; least correlation of their thumbnails.
NEAR_BITS, NEAR_CORRELATION = 10, 0.99
#: The language prior learns this many most frequent answers, from at most this many questions.
PRIOR_ANSWERS, PRIOR_QUESTIONS = 128, 8000

Pair = tuple[str, str]
_WORD = r"[a-z0-9'\-]+"  # as in the baselines


@dataclass(frozen=True, slots=True)
class Share:
    """``count`` of ``n``, with Wilson's 95 % interval.

    >>> str(Share(284, 451))
    '284 of 451, 63.0 % [58.4, 67.3]'
    """

    count: int
    n: int

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.count <= self.n:
            raise ValueError(f"{self.count} of {self.n} is no share: it needs n of at least 1 and 0 <= count <= n")

    @property
    def interval(self) -> Interval:
        """The share, a fraction of 1, with its interval."""
        return wilson(self.count, self.n)

    def __str__(self) -> str:
        i = self.interval
        return f"{self.count:,} of {self.n:,}, {100 * i.mean:.1f} % [{100 * i.low:.1f}, {100 * i.high:.1f}]"


class Rewordings(NamedTuple):
    """Test questions that training asks in other words, about the same picture and with the same answer.

    Attributes
    ----------
    pairs
        (question id in test, question id in training), in the order of the test split.
    rule
        What gave them away, in words.
    """

    pairs: tuple[tuple[str, str], ...]
    rule: str


class Fingerprints(NamedTuple):
    """What is kept of P pictures to know them again.

    Attributes
    ----------
    digests
        P digests of shape and pixels; equal only for identical pictures.
    hashes
        uint64 (P,), perceptual hashes (:func:`perceptual_hash`).
    thumbnails
        uint8 (P, 3072), RGB thumbnails of 32 × 32.
    """

    digests: tuple[bytes, ...]
    hashes: np.ndarray
    thumbnails: np.ndarray

    def take(self, places: Sequence[int]) -> Fingerprints:
        """The fingerprints at these positions."""
        return Fingerprints(tuple(self.digests[i] for i in places), self.hashes[places], self.thumbnails[places])


# --- questions ------------------------------------------------------------------------------------------------------


def repeated_sentences(train: Sequence[Sample], test: Sequence[Sample]) -> Share:
    """Distinct sentences of the test that training also has, about whatever picture; upper and lower case are equal."""
    asked = {s.question.strip().lower() for s in test}
    return Share(len(asked & {s.question.strip().lower() for s in train}), len(asked))


def repeated_rows(train: Sequence[Sample], test: Sequence[Sample]) -> Share:
    """Test questions that training has with the same picture, words and answer."""
    known = {(s.picture_id, plain(s.question), plain(s.answer)) for s in train}
    return Share(sum((s.picture_id, plain(s.question), plain(s.answer)) in known for s in test), len(test))


def rewordings_by_wording(train: Sequence[Sample], test: Sequence[Sample]) -> Rewordings:
    """Test questions with a *similarly worded* training question about the same picture, with the same answer.

    Similar is a cosine of at least :data:`SAME_WORDING` between TF-IDF vectors as in
    :func:`~vqa_core.evaluation.baselines.lookup`; questions in the same words count. What shares few words is missed:
    "is there free air underneath the diaphragm" and "is/are there pneumoperitoneum".
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    rule = f"similar words (cosine of at least {SAME_WORDING:g})"
    about = defaultdict(list)
    for i, s in enumerate(train):
        about[s.picture_id, plain(s.answer)].append(i)
    asked = [s for s in test if (s.picture_id, plain(s.answer)) in about]
    if not asked:
        return Rewordings((), rule)
    vectorizer = TfidfVectorizer(token_pattern=_WORD, sublinear_tf=True)
    known = vectorizer.fit_transform(s.question for s in train)  # (train, words)
    wanted = vectorizer.transform(s.question for s in asked)  # (asked, words)
    pairs = []
    for row, s in enumerate(asked):
        candidates = about[s.picture_id, plain(s.answer)]
        similarity = (known[candidates] @ wanted[row].T).toarray()[:, 0].round(9)  # (candidates,)
        if similarity.max() >= SAME_WORDING:
            pairs.append((s.question_id, train[candidates[similarity.argmax()]].question_id))
    return Rewordings(tuple(pairs), rule)


def rewordings_by_numbering(train: Sequence[Sample], test: Sequence[Sample]) -> Rewordings | None:
    """Test questions whose *neighbour in the numbering* of the release is a training question that says the same.

    Whoever re-words a question writes the new one next to it. So, for each offset (:data:`OFFSETS`) and each group of
    training rows (by kind, family or a field of ``meta``): how often does a question's neighbour, where it is about the
    same picture, also have the same answer? A group that agrees far more often than two questions about one picture
    do is a group of re-wordings. The offset and the field with the most evidence are taken; below
    :data:`EVIDENCE` per group nothing is.

    Returns
    -------
    Rewordings or None
        None where the question ids of the two splits are not whole numbers of one numbering.

    Notes
    -----
    The evidence of a group of n neighbours, a of which agree, is its log-likelihood ratio n·KL(a/n ‖ c) against the
    agreement c of any two questions about one picture, less :data:`EVIDENCE` for having looked at many groups. It finds
    re-wordings that share no word with their question, and needs about twenty of them.
    """
    if not all(s.question_id.isdecimal() for s in (*train, *test)):
        return None
    numbered = {int(s.question_id): s for s in train}
    if any(int(s.question_id) in numbered for s in test):
        return None
    chance = _agreement(train, test)
    best: tuple[float, tuple[tuple[str, str], ...], str] = (0.0, (), "no group of neighbours agrees beyond chance")
    for offset in OFFSETS if chance is not None else ():
        neighbours = [
            (s, other)
            for s in test
            if (other := numbered.get(int(s.question_id) + offset)) and other.picture_id == s.picture_id
        ]
        for field, value_of in _groupings(train):
            evidence, pairs, named = 0.0, [], []
            for value in dict.fromkeys(value_of(other) for _, other in neighbours):
                group = [(s, other) for s, other in neighbours if value_of(other) == value]
                same = [
                    (s.question_id, other.question_id) for s, other in group if plain(s.answer) == plain(other.answer)
                ]
                found = _evidence(len(same), len(group), chance) - EVIDENCE
                if found > 0:
                    evidence, pairs, named = evidence + found, pairs + same, [*named, str(value)]
            if evidence > best[0]:
                order = {s.question_id: i for i, s in enumerate(test)}
                rule = f"numbered {offset:+d}" + (f", {field} = {', '.join(sorted(named))}" if field else "")
                best = (evidence, tuple(sorted(pairs, key=lambda pair: order[pair[0]])), rule)
    return Rewordings(best[1], best[2])


def _agreement(train: Sequence[Sample], test: Sequence[Sample]) -> float | None:
    """How often a training and a test question about one picture have the same answer; None if no picture is shared."""
    answers = {}
    for part, samples in (("train", train), ("test", test)):
        for s in samples:
            answers.setdefault(s.picture_id, {"train": Counter(), "test": Counter()})[part][plain(s.answer)] += 1
    both = sum(a["train"].total() * a["test"].total() for a in answers.values())
    agree = sum(n * a["train"][answer] for a in answers.values() for answer, n in a["test"].items())
    return agree / both if both else None


def _evidence(agree: int, n: int, chance: float) -> float:
    """Log-likelihood ratio, in nats, of ``agree`` of ``n`` against ``chance``; 0 where they agree no more than that."""
    share = agree / n
    if share <= chance:
        return 0.0
    disagree = (n - agree) * math.log((1 - share) / (1 - chance)) if agree < n else 0.0
    return agree * math.log(share / chance) + disagree if chance > 0 else math.inf


def _groupings(train: Sequence[Sample]) -> Iterator[tuple[str, Any]]:
    """Ways to sort training rows: all in one group, by kind, by family, by every field of ``meta`` with few values."""
    yield "", lambda s: ""
    yield "kind", lambda s: s.kind
    yield "family", lambda s: s.family
    values: dict[str, set] = {}
    for s in train:
        for field, value in s.meta.items():
            values.setdefault(field, set()).add(value if isinstance(value, str | bool) else None)
    for field, found in values.items():
        if 1 < len(found) <= GROUPS and None not in found:
            yield field, lambda s, field=field: s.meta.get(field)


# --- pictures -------------------------------------------------------------------------------------------------------


def perceptual_hash(picture: np.ndarray) -> int:
    """A 64-bit hash that survives scaling, compression and changes of brightness (pHash; Zauner 2010).

    The signs, about their median, of the 8 × 8 lowest frequencies of the cosine transform of a 32 × 32 grey thumbnail.

    Parameters
    ----------
    picture
        RGB, uint8 (H, W, 3).
    """
    from PIL import Image
    from scipy.fft import dctn

    grey = Image.fromarray(picture).convert("L").resize((32, 32), Image.Resampling.BOX)
    low = dctn(np.asarray(grey, dtype=float), norm="ortho")[:8, :8].round(6)  # (8, 8); rounded: 0 is 0 everywhere
    return int.from_bytes(np.packbits(low.ravel() > np.median(low)).tobytes())


def fingerprints(pictures: Iterable[np.ndarray]) -> Fingerprints:
    """Fingerprints of pictures, each uint8 (H, W, 3); one picture is held at a time."""
    from PIL import Image

    digests, hashes, thumbnails = [], [], []
    for picture in pictures:
        digests.append(hashlib.sha256(str(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).digest())
        hashes.append(perceptual_hash(picture))
        small = Image.fromarray(picture).resize((32, 32), Image.Resampling.BOX)
        thumbnails.append(np.asarray(small).ravel())  # (3072,)
    return Fingerprints(tuple(digests), np.array(hashes, dtype=np.uint64), np.array(thumbnails, dtype=np.uint8))


def near_duplicates(train: Fingerprints, test: Fingerprints) -> np.ndarray:
    """Which test pictures have a near-duplicate in training, bool (P,).

    Hashes that differ in at most :data:`NEAR_BITS` make a candidate; a correlation of the thumbnails of at least
    :data:`NEAR_CORRELATION` confirms it. The hash alone sees no colour, and takes one simple drawing for another.
    """
    found = np.zeros(len(test.digests), dtype=bool)
    for i, (hash_, thumbnail) in enumerate(zip(test.hashes, test.thumbnails)):
        candidates = np.flatnonzero(np.bitwise_count(train.hashes ^ hash_) <= NEAR_BITS)
        if len(candidates):
            similarity = _standard(train.thumbnails[candidates]) @ _standard(thumbnail[None])[0]  # (candidates,)
            found[i] = similarity.max() >= NEAR_CORRELATION
    return found


def _standard(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails (P, 3072) with mean 0 and length 1, float32; one of a single colour stays 0."""
    x = thumbnails - thumbnails.mean(axis=1, keepdims=True, dtype=np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-3)


def shared_pictures(
    train_ids: Sequence[str],
    test_ids: Sequence[str],
    train: Fingerprints | None = None,
    test: Fingerprints | None = None,
) -> dict[str, Share | None]:
    """Test pictures that are also in training: by id, pixel for pixel, and as near-duplicates.

    Parameters
    ----------
    train_ids, test_ids
        Ids of the different pictures of the two splits.
    train, test
        Their fingerprints in the same order; None when the pictures are not to be read.

    Returns
    -------
    dict
        ``same_id``; ``exact``, also under another id; ``near``, also changed a little (so that each contains the one
        before it). The last two are None without fingerprints.
    """
    same = np.isin(np.array(test_ids, dtype=object), np.array(list(train_ids), dtype=object))
    counts: dict[str, Share | None] = {"same_id": Share(int(same.sum()), len(same)), "exact": None, "near": None}
    if train is not None and test is not None:
        known = set(train.digests)
        exact = same | np.array([digest in known for digest in test.digests])
        near = exact | near_duplicates(train, test)
        counts |= {"exact": Share(int(exact.sum()), len(same)), "near": Share(int(near.sum()), len(same))}
    return counts


# --- answers and language -------------------------------------------------------------------------------------------


def unreachable_answers(train: Sequence[Sample], test: Sequence[Sample]) -> Share:
    """Test questions whose answer never occurs in training: no classifier over training answers can give it."""
    known = {plain(s.answer) for s in train}
    return Share(sum(plain(s.answer) not in known for s in test), len(test))


def language_prior(train: Sequence[Sample], test: Sequence[Sample]) -> baselines.Baseline:
    """:func:`~vqa_core.evaluation.baselines.question_only`, with bounded cost.

    It learns the :data:`PRIOR_ANSWERS` most frequent answers from at most :data:`PRIOR_QUESTIONS` training questions,
    evenly spaced. On VQA-RAD's 1,797 questions it gives 39.7 % (40.1 % unbounded, in six times the time).
    """
    frequent = {a for a, _ in Counter(plain(s.answer) for s in train).most_common(PRIOR_ANSWERS)}
    kept = [s for s in train if plain(s.answer) in frequent]
    places = np.linspace(0, len(kept) - 1, min(len(kept), PRIOR_QUESTIONS)).astype(int)
    return baselines.question_only([kept[i] for i in places], test)


# --- the whole data set ---------------------------------------------------------------------------------------------


def split_pairs(splits: Sequence[str]) -> list[Pair]:
    """Every (training split, test split); for training are the first split and those named ``train…``.

    >>> split_pairs(["train", "train_3064", "test"])
    [('train', 'test'), ('train_3064', 'test')]
    """
    training = [s for s in splits if s == splits[0] or s.startswith("train")]
    return [(a, b) for a in training for b in splits if b not in training]


def audit(
    name: str, root: str | Path | None = None, *, pictures: bool = True, progress: bool = True
) -> Mapping[str, Any]:
    """What leaks between the splits of a data set.

    Parameters
    ----------
    name
        One of :data:`vqa_core.data.catalogue.NAMES` that holds questions.
    root
        See :func:`vqa_core.data.load`.
    pictures
        Whether to open the pictures; without, they are compared by id only.
    progress
        Show bars.

    Returns
    -------
    Mapping
        ``name``; ``pairs``, all (training split, test split); and for every pair, as ``audit(…)[finding][pair]``:

        ``reworded_across_splits``
            ``{"numbering": …, "wording": …}``, shares of the test questions (:func:`rewordings_by_numbering`, None
            where it does not apply; :func:`rewordings_by_wording`);
        ``rewordings``
            the same with the pairs of ids and the rule, :class:`Rewordings`;
        ``repeated_rows``, ``repeated_sentences``
            shares of test questions, and of distinct test sentences;
        ``shared_pictures``
            ``{"same_id": …, "exact": …, "near": …}`` (:func:`shared_pictures`);
        ``unreachable_answers``, ``lookup_accuracy``, ``question_only_accuracy``, ``majority_accuracy``
            shares of the test questions.

    Raises
    ------
    FileNotFoundError, ValueError
        Where the data set, or one of its pictures, is missing or damaged; for an unknown name; for captions.
    """
    from vqa_core.data import catalogue

    if name not in catalogue.NAMES:
        raise ValueError(f"no data set {name!r}; allowed are {', '.join(catalogue.NAMES)}")
    info = catalogue.NAMES[name]
    if info.holds != "questions":
        raise ValueError(f"{name} holds {info.holds}; an audit needs questions with answers")
    present = list(info.splits if info.find is None else info.expected(info.find(root)))
    if not split_pairs(present):
        raise ValueError(f"{name} has here only {', '.join(present)}; an audit needs a training and a test split")
    return audit_splits(name, [info.load(split, root) for split in present], pictures=pictures, progress=progress)


def audit_splits(
    name: str, splits: Sequence[Dataset], *, pictures: bool = True, progress: bool = False
) -> Mapping[str, Any]:
    """:func:`audit` of splits that are at hand; the same picture id must mean the same picture in all of them."""
    from tqdm import tqdm

    by_name = {d.split: d for d in splits}
    pairs = split_pairs(list(by_name))
    owner = {i: d for d in splits for i in d.picture_ids}
    place = {picture_id: n for n, picture_id in enumerate(owner)}
    prints = None
    if pictures:
        bar = tqdm(owner.items(), desc=f"{name} pictures", leave=False, disable=not progress)
        prints = fingerprints(d.picture(i) for i, d in bar)

    found: dict[str, Any] = {"name": name, "pairs": pairs}
    bar = tqdm(list(dict.fromkeys(a for a, _ in pairs)), desc=f"{name} questions", leave=False, disable=not progress)
    for first in bar:
        train = by_name[first]
        tests = [by_name[b] for a, b in pairs if a == first]
        prior = language_prior(train.samples, [s for d in tests for s in d]).correct  # one fit for all test splits
        ends = np.cumsum([len(d) for d in tests])
        for test, right in zip(tests, np.split(prior, ends[:-1])):
            known, seen = (prints and prints.take([place[i] for i in d.picture_ids]) for d in (train, test))
            for finding, value in _findings(train, test, right, known, seen).items():
                found.setdefault(finding, {})[first, test.split] = value
    return found


def _findings(
    train: Dataset, test: Dataset, prior: np.ndarray, known: Fingerprints | None, seen: Fingerprints | None
) -> dict[str, Any]:
    a, b, n = train.samples, test.samples, len(test)
    rewordings = {"numbering": rewordings_by_numbering(a, b), "wording": rewordings_by_wording(a, b)}
    return {
        "reworded_across_splits": {how: r and Share(len(r.pairs), n) for how, r in rewordings.items()},
        "rewordings": rewordings,
        "repeated_rows": repeated_rows(a, b),
        "repeated_sentences": repeated_sentences(a, b),
        "shared_pictures": shared_pictures(train.picture_ids, test.picture_ids, known, seen),
        "unreachable_answers": unreachable_answers(a, b),
        "lookup_accuracy": Share(int(baselines.lookup(a, b).correct.sum()), n),
        "question_only_accuracy": Share(int(prior.sum()), n),
        "majority_accuracy": Share(int(baselines.majority(a, b).correct.sum()), n),
    }


# --- printing -------------------------------------------------------------------------------------------------------

#: Finding (and its part) → how it is named in a table.
_LINES = {
    ("reworded_across_splits", "numbering"): "questions re-worded, by numbering",
    ("reworded_across_splits", "wording"): "questions re-worded, by words",
    ("repeated_rows", None): "rows repeated (picture, words, answer)",
    ("repeated_sentences", None): "distinct sentences repeated",
    ("shared_pictures", "same_id"): "pictures shared, same id",
    ("shared_pictures", "exact"): "pictures shared, same pixels",
    ("shared_pictures", "near"): "pictures shared, near-duplicates too",
    ("unreachable_answers", None): "answers not in training",
    ("lookup_accuracy", None): "right by lookup (no pixels)",
    ("question_only_accuracy", None): "right from the question alone",
    ("majority_accuracy", None): "right by the commonest answer",
}


def rows(found: Mapping[str, Any], pair: Pair) -> list[tuple[str, Share | None]]:
    """What was found for one pair of splits, line by line; None where a finding does not apply."""
    return [
        (title, found[finding][pair] if part is None else found[finding][pair][part])
        for (finding, part), title in _LINES.items()
    ]


def as_json(found: Mapping[str, Any]) -> dict[str, Any]:
    """The findings as plain dictionaries, lists, numbers and texts; a pair becomes ``"train -> test"``."""

    def plainly(value: Any) -> Any:
        if isinstance(value, Share):
            i = value.interval
            return {"count": value.count, "n": value.n, "share": i.mean, "low": i.low, "high": i.high}
        if isinstance(value, Rewordings):
            return {"rule": value.rule, "pairs": [list(pair) for pair in value.pairs]}
        if isinstance(value, Mapping):
            return {k if isinstance(k, str) else " -> ".join(k): plainly(v) for k, v in value.items()}
        return value

    return plainly(found) | {"pairs": [" -> ".join(pair) for pair in found["pairs"]]}


def show(found: Mapping[str, Any]) -> None:
    """Print one table per pair of splits: count, n, per cent and Wilson's interval."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for pair in found["pairs"]:
        table = Table(box=box.SIMPLE, title=f"{found['name']}: {pair[0]} → {pair[1]}", title_justify="left")
        table.add_column("finding")
        for column in ("count", "of", "%", "95 % interval"):
            table.add_column(column, justify="right")
        for title, share in rows(found, pair):
            if share is None:
                table.add_row(title, "-", "-", "-", "-")
                continue
            i = share.interval
            interval = f"{100 * i.low:.1f} to {100 * i.high:.1f}"
            table.add_row(title, f"{share.count:,}", f"{share.n:,}", f"{100 * i.mean:.1f}", interval)
        console.print(table)
        numbering = found["rewordings"][pair]["numbering"]
        if numbering and numbering.pairs:
            console.print(f"  re-worded questions of training: {numbering.rule}\n", highlight=False)
