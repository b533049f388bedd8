"""``python -m vqa_core ask PICTURE "QUESTION"``: an answer, with probabilities, from a model that the book trained.

With ``--max-risk`` a Bayes head answers, and declines where its answer is less probable than a stored, guaranteed
threshold. With ``--map`` the picture is written with a map of where the answer comes from.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vqa_core.ask_map import answer_map, check_file, write
from vqa_core.data.root import read_picture
from vqa_core.data.text import Vocabulary, tokenize

if TYPE_CHECKING:
    import torch

    from vqa_core.data.types import Batch
    from vqa_core.experiments.records import Record
    from vqa_core.explain.maps import Explanation
    from vqa_core.heads.bayes import BayesHead
    from vqa_core.model import VQAModel, VQAOutput

MODELS = ("scenes",)
GROUND = 210  # grey of a scene's ground, beside a picture that is not square


@dataclass(frozen=True)
class About:
    """What a model learned from, and how good it is.

    Attributes
    ----------
    profile, title, data
        Profile and name of the fusion, and what its pictures are.
    pictures, questions
        How many it was trained on.
    accuracy, n
        Accuracy on the test split, and its number of questions.
    seed, accuracies
        This model's seed, the best on *validation*, and the test accuracy of every seed that is there.
    current
        False when the code has changed since the model was made.
    """

    profile: str
    title: str
    data: str
    pictures: int
    questions: int
    accuracy: float
    n: int
    seed: int
    accuracies: tuple[float, ...]
    current: bool

    def __str__(self) -> str:
        low, high = min(self.accuracies), max(self.accuracies)
        return (
            f"Fusion: {self.title}. Trained on {self.data} only: {self.pictures:,} pictures, {self.questions:,} "
            f"questions (profile {self.profile}). Test accuracy {self.accuracy:.1%}, n = {self.n:,} questions; "
            f"seed {self.seed}, the best of {len(self.accuracies)} on validation (test accuracy of all: {low:.1%} to "
            f"{high:.1%})."
        )


class Answerer:
    """A trained model from picture and words to answer; made by :meth:`load`.

    Parameters
    ----------
    model
        Pictures float (B, 3, size, size) and words → answer logits.
    words, answers
        What the model can read and say.
    size
        Side of its pictures in pixels.
    about
        What it learned from.
    """

    def __init__(self, model: VQAModel, words: Vocabulary, answers: Sequence[str], size: int, about: About) -> None:
        self.model = model.eval().requires_grad_(False)
        self.words, self.answers, self.size, self.about = words, tuple(answers), size, about

    @classmethod
    def load(cls, profile: str = "auto", root: Path | None = None) -> Answerer:
        """The model of experiment ``fusion`` whose validation accuracy is best, behind the two frozen encoders.

        Parameters
        ----------
        profile
            ``smoke``, ``cpu``, ``gpu``, or ``auto``: ``gpu`` where CUDA is there, else ``cpu``.
        root
            Folder of the records; by default :func:`~vqa_core.experiments.records.results_root`.

        Raises
        ------
        FileNotFoundError
            Nothing was trained at this profile; the message has the line that does it.
        ValueError
            A record is damaged, or holds no weights.
        """
        from vqa_core.experiments import fusion, resolve_profile
        from vqa_core.experiments.records import results_root
        from vqa_core.experiments.rejection_tokens import kept_fusion, trained_fusion
        from vqa_core.experiments.runner import code_hash_of
        from vqa_core.experiments.scene_encoders import NamedCells, SlotTokens, load_encoders
        from vqa_core.model import VQAModel

        profile, root = resolve_profile(profile), root or results_root()
        try:
            best, records = kept_fusion(profile, root)
        except FileNotFoundError:
            first = next(spec for spec in fusion.specs(profile) if spec.unit == fusion.KEPT)
            raise FileNotFoundError(_absent(first.path(root), profile, root)) from None
        namer, reader, words = load_encoders(profile, root)
        cells, slots, answers = NamedCells(namer, "grid"), SlotTokens(reader, "vector"), best.details["answers"]
        trained = trained_fusion(best, cells.out_dim, slots.out_dim, root)
        n, sizes = best.metrics["accuracy_test"].n, best.spec.data
        about = About(
            profile=profile,
            title=fusion.METHODS[fusion.KEPT].title,
            data="generated pictures of coloured shapes",
            pictures=sizes.train,
            questions=sizes.train * n // sizes.test,  # every picture has the same number of questions
            accuracy=best.metrics["accuracy_test"].value,
            n=n,
            seed=best.spec.seed,
            accuracies=tuple(r.metrics["accuracy_test"].value for r in records),
            current=best.provenance["code_hash"] == code_hash_of("fusion"),
        )
        return cls(VQAModel(cells, slots, trained.fusion, trained.head), words, answers, sizes.size, about)

    def logits(self, pictures: np.ndarray, questions: Sequence[str]) -> torch.Tensor:
        """Answer logits (B, answers) of pictures, uint8 (B, size, size, 3), and as many questions."""
        return self._output(pictures, questions).logits

    def fused(self, picture: np.ndarray, question: str) -> torch.Tensor:
        """Fused vector (1, D) of a picture, uint8 (H, W, 3), and a question with at least one word."""
        if not tokenize(question):
            raise ValueError(f"the question {question!r} has no word")
        return self._output(self.fitted(picture), [question]).fusion.fused

    def explain(self, picture: np.ndarray, question: str, method: str, answer: str) -> Explanation:
        """Where an answer comes from, over the cells of the picture.

        Parameters
        ----------
        picture, question
            As in :meth:`answer`.
        method
            Key of :data:`vqa_core.explain.maps.METHODS`.
        answer
            What is explained, one of ``answers``: the model's own, or another.
        """
        import torch

        from vqa_core.experiments.scene_encoders import MaskedCells
        from vqa_core.explain.maps import explain
        from vqa_core.model import VQAModel

        batch, parts = self._batch(self.fitted(picture), [question]), self.model
        with torch.no_grad():
            cells = parts.image_encoder(batch.pictures).tokens  # (1, N, 19)
        # maps of the named cells, made as in the experiment that scores them
        model = VQAModel(MaskedCells(cells.shape[-1]), parts.text_encoder, parts.fusion, parts.head).eval()
        targets = torch.tensor([self.answers.index(answer)])
        grid = parts.image_encoder.namer.encoder.grid
        options = {"level": "tokens"} if method == "integrated_gradients" else {}  # their mask is no part of the path
        return explain(model, batch._replace(pictures=cells), method, targets=targets, grid=grid, **options)

    def _batch(self, pictures: np.ndarray, questions: Sequence[str]) -> Batch:
        import torch

        from vqa_core.data.text import encode_questions
        from vqa_core.data.types import Batch
        from vqa_core.training.feed import as_float

        words, mask = encode_questions(questions, self.words)  # (B, T) each
        images = as_float(torch.from_numpy(pictures))  # (B, 3, size, size)
        unknown = torch.full((len(questions),), -100)  # nobody has told the answers
        return Batch(images, torch.from_numpy(words), torch.from_numpy(mask), unknown)

    def _output(self, pictures: np.ndarray, questions: Sequence[str]) -> VQAOutput:
        import torch

        batch = self._batch(pictures, questions)
        with torch.inference_mode():
            return self.model(batch.pictures, batch.words, batch.word_mask)

    def answer(self, picture: np.ndarray, question: str) -> list[tuple[str, float]]:
        """Every answer that the model can give, with its probability, the likeliest first.

        Parameters
        ----------
        picture
            RGB, uint8 (H, W, 3), of any size.
        question
            A sentence with at least one word.
        """
        logits = self.model.head(self.fused(picture, question))[0]  # (answers,)
        return _sorted(self.answers, logits.softmax(-1))

    def warnings(self, picture: np.ndarray, question: str) -> list[str]:
        """Reasons not to trust the answer: unknown words, a picture without an object, weights of other code."""
        found = []
        if unknown := [w for w in dict.fromkeys(tokenize(question)) if w not in self.words]:
            found.append(
                f"no training question has the word(s) {', '.join(unknown)}; the model does not know what they mean"
            )
        if not self._sees_something(picture):
            found.append("the model finds no object; every picture that it was trained on has several")
        if not self.about.current:
            found.append("the code has changed since this model was trained; `make book` trains it anew")
        return found

    def fitted(self, picture: np.ndarray) -> np.ndarray:
        """A picture, uint8 (H, W, 3), as the model reads it, uint8 (1, size, size, 3)."""
        from vqa_core.data.collate import resize

        return resize(picture, self.size, fill=GROUND)[None]  # (1, size, size, 3)

    def _sees_something(self, picture: np.ndarray) -> bool:
        import torch

        from vqa_core.training.feed import as_float

        with torch.inference_mode():
            cells = self.model.image_encoder(as_float(torch.from_numpy(self.fitted(picture)))).tokens  # (1, N, 19)
        return bool((cells[..., 0] > 0.5).any())  # feature 0 is the probability of presence


@dataclass(frozen=True)
class Promise:
    """A threshold on the probability of an answer, and what is promised about the answers above it.

    Attributes
    ----------
    max_risk
        The largest share of wrong answers among those given.
    delta
        Probability that the promise fails, over the draw of the calibration questions.
    threshold
        Answer from this probability on; None when nothing can be promised.
    coverage
        Share of the calibration questions that is answered.
    questions, pictures
        Of the calibration.
    """

    max_risk: float
    delta: float
    threshold: float | None
    coverage: float
    questions: int
    pictures: int

    def __str__(self) -> str:
        known = f"the n = {self.questions:,} it was calibrated on ({self.pictures:,} pictures)"
        risk, delta = f"{100 * self.max_risk:.3g} %", f"{100 * self.delta:.3g} %"
        if self.threshold is None:
            return (
                f"Nothing can be promised: on questions like {known}, no threshold keeps the share of wrong answers at "
                f"or below {risk} with a probability of failure of {delta}. A larger --max-risk may."
            )
        return (
            f"Answers from probability {self.threshold:.3f} on. Of questions like {known}, at most {risk} of those "
            f"that are answered are wrong; this promise fails with probability {delta}; coverage there "
            f"{self.coverage:.1%}. It takes the questions as independent, and holds only for pictures drawn like these "
            "scenes: a photograph is none."
        )


@dataclass(frozen=True)
class Said:
    """What a posterior says of one question.

    Attributes
    ----------
    answers
        Every answer with its probability, the likeliest first.
    total, aleatoric, epistemic
        Uncertainties in nats; the first is the sum of the others.
    """

    answers: list[tuple[str, float]]
    total: float
    aleatoric: float
    epistemic: float

    def __str__(self) -> str:
        return (
            f"Uncertainty {self.total:.3f} nats: aleatoric (in the question) {self.aleatoric:.3f}, epistemic (of the "
            f"weights) {self.epistemic:.3f}."
        )


class Decliner:
    """The Bayes head of experiment ``rejection`` behind an :class:`Answerer`'s fused vector; made by :meth:`load`.

    Parameters
    ----------
    answerer
        What makes the fused vector.
    head
        Fused vector → posterior.
    record
        Where the head comes from, with its answers to the calibration questions.
    """

    def __init__(self, answerer: Answerer, head: BayesHead, record: Record) -> None:
        self.answerer, self.head, self.record = answerer, head.eval().requires_grad_(False), record

    @classmethod
    def load(cls, answerer: Answerer, root: Path | None = None) -> Decliner:
        """The head of the seed whose validation accuracy is best, at the profile of ``answerer``.

        Raises
        ------
        FileNotFoundError
            No head was trained at this profile; the message has the line that does it.
        ValueError
            The heads were trained behind another fusion.
        """
        import torch

        from vqa_core.experiments import rejection
        from vqa_core.experiments.records import load_record
        from vqa_core.experiments.rejection_tokens import fused_feed, kept_fusion, weights_hash

        profile = answerer.about.profile
        specs = [spec for spec in rejection.specs(profile) if spec.unit == rejection.KEPT]
        line = f"python -m vqa_core run rejection --profile {profile} --unit {rejection.KEPT}"
        records = [record for spec in specs if (record := load_record(spec, root=root)) is not None]
        if not records:
            raise FileNotFoundError(
                f"no head that can decline: {specs[0].path(root)} is missing or was made with other settings; make "
                f"it: `{line}`"
            )
        best = max(records, key=lambda r: r.metrics["accuracy.full.val"].value)
        if best.details["fusion_hash"] != weights_hash(kept_fusion(profile, root)[0]):
            heads = best.spec.path(root).parent
            tokens = heads.parents[1] / "rejection_tokens" / "scenes"
            raise ValueError(
                f"the heads in {heads} were trained behind another fusion than the one that is there now; delete "
                f"{heads} and {tokens}, then `{line}`"
            )
        weights = {k.removeprefix("head."): torch.from_numpy(v) for k, v in best.arrays.items() if k[:5] == "head."}
        feed = fused_feed(torch.zeros(1, weights["layers.0.weight_mu"].shape[1]), [0])  # says how wide it is
        head = rejection.build(best.spec.model, best.spec.data, profile, 0, len(answerer.answers), feed).head
        head.load_state_dict(weights)
        return cls(answerer, head, best)

    def promise(self, max_risk: float, delta: float = 0.05) -> Promise:
        """What the calibration allows to promise; parameters as of :func:`vqa_core.evaluation.rejection.sgr`."""
        from vqa_core.evaluation.rejection import sgr

        a = self.record.arrays
        correct = a["full.calibration.correct"]  # (n,)
        found = sgr(~correct, a["full.calibration.probability"], max_risk, delta)
        threshold = found.threshold if np.isfinite(found.threshold) else None
        pictures = len(np.unique(a["pictures.calibration"]))
        return Promise(max_risk, delta, threshold, found.coverage, len(correct), pictures)

    def ask(self, picture: np.ndarray, question: str) -> Said:
        """The posterior's answers; parameters as of :meth:`Answerer.answer`. The same question has the same answer."""
        import torch

        from vqa_core.evaluation.uncertainty import entropy_split

        fused = self.answerer.fused(picture, question)  # (1, D)
        with torch.random.fork_rng(devices=[]):
            # each question has its own noise, as those of the calibration had
            torch.default_generator.manual_seed(zlib.crc32(picture.tobytes() + question.encode()))
            posterior = self.head.predict(fused, self.record.spec.model.samples)
        split = entropy_split(posterior.probabilities.numpy())  # (1,) each
        return Said(_sorted(self.answerer.answers, posterior.mean[0]), *(float(part[0]) for part in split))

    def warnings(self) -> list[str]:
        """Whether the weights are those of other code."""
        from vqa_core.experiments.runner import code_hash_of

        if self.record.provenance["code_hash"] == code_hash_of("rejection"):
            return []
        return ["the code has changed since this head was trained; `make book` trains it anew"]

    def about(self) -> dict[str, float]:
        """Seed, samples, and accuracy when it answers all n test questions."""
        right = self.record.metrics["accuracy.full.test"]
        spec = self.record.spec
        return {"seed": spec.seed, "samples": spec.model.samples, "accuracy": right.value, "n": right.n}


def _sorted(answers: Sequence[str], probabilities: torch.Tensor) -> list[tuple[str, float]]:
    order = probabilities.argsort(descending=True, stable=True).tolist()
    return [(answers[i], float(probabilities[i])) for i in order]


def _absent(missing: Path, profile: str, root: Path) -> str:
    """What to do about a model that is not there, in one line."""
    from vqa_core.experiments import PROFILES, fusion

    others = [p for p in PROFILES if p != profile and (root / p / "fusion" / fusion.KEPT).is_dir()]
    hint = f" (there is one at another profile: --profile {others[0]})" if others else ""
    return (
        f"no trained model: {missing} is missing or was made with other settings; make it: `make book`, "
        f"or `python -m vqa_core run fusion --profile {profile}`{hint}"
    )


def open_picture(path: str | Path) -> np.ndarray:
    """A picture file of any format that Pillow reads, as RGB, uint8 (H, W, 3); errors name the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    try:
        return read_picture(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a picture: {error.__cause__ or error}") from error


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``ask`` sub-command; its handler is ``arguments.run(arguments)`` and returns the exit code."""
    parser = subparsers.add_parser("ask", help="ask a picture a question; a model that the book trained answers")
    parser.add_argument("picture", metavar="PICTURE", help="a picture file")
    parser.add_argument("question", metavar="QUESTION", help='for example "Is there a red circle?"')
    parser.add_argument("--model", choices=MODELS, default="scenes", help="what the model was trained on")
    parser.add_argument("--profile", default="auto", help="smoke, cpu, gpu or auto (default): which run of the book")
    parser.add_argument("--top", type=int, default=5, help="how many answers to show (default 5)")
    parser.add_argument(
        "--max-risk",
        type=float,
        metavar="RISK",
        help="decline where the answer is not sure enough: at most this share of the answers given is wrong, as 0.05",
    )
    parser.add_argument(
        "--delta", type=float, help="probability that the promise of --max-risk may fail (default 0.05)"
    )
    parser.add_argument(
        "--map", metavar="FILE", help="write the picture with a map of where the answer comes from, as out.png"
    )
    parser.add_argument("--method", help="how the map is made; a wrong name lists those that fit the model")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object")
    parser.set_defaults(run=_ask)


def _ask(args: argparse.Namespace) -> int:
    if args.top < 1:
        raise ValueError(f"--top is {args.top}, it must be at least 1")
    if args.max_risk is None and args.delta is not None:
        raise ValueError(f"--delta is {args.delta:g}, but nothing is promised without --max-risk; give it too")
    if args.max_risk is not None and not 0 <= args.max_risk <= 1:
        raise ValueError(f"--max-risk is {args.max_risk:g}, it must lie between 0 and 1; 0.05 is 5 %")
    if args.delta is not None and not 0 < args.delta < 1:
        raise ValueError(f"--delta is {args.delta:g}, it must lie between 0 and 1, both excluded; 0.05 is 5 %")
    if args.map is None and args.method is not None:
        raise ValueError(f"--method is {args.method!r}, but no map is made without --map FILE; give it too")
    file = None if args.map is None else check_file(args.map)
    picture = open_picture(args.picture)
    answerer = Answerer.load(args.profile)
    warnings = answerer.warnings(picture, args.question)
    found, lines, declined = {}, [], False
    if args.max_risk is None:
        answers = answerer.answer(picture, args.question)
    else:
        decliner = Decliner.load(answerer)
        promise = decliner.promise(args.max_risk, 0.05 if args.delta is None else args.delta)
        said, head = decliner.ask(picture, args.question), decliner.about()
        answers, warnings = said.answers, warnings + decliner.warnings()
        declined = promise.threshold is None or answers[0][1] < promise.threshold
        uncertainty = {k: v for k, v in asdict(said).items() if k != "answers"}
        found = {"declined": declined, "uncertainty": uncertainty}
        found |= {"promise": asdict(promise) | {"words": str(promise)}, "head": head}
        lines = [
            str(said),
            str(promise),
            f"Bayes head, seed {head['seed']}, {head['samples']} samples; accuracy when it answers everything "
            f"{head['accuracy']:.1%}, n = {head['n']:,} questions.",
        ]
    if file is not None:
        shown = answer_map(answerer, picture, args.question, answers[0][0], args.method)
        write(file, picture, answerer.fitted(picture)[0], args.question, shown)
        found["map"] = shown.as_json(args.map)
        lines.append(f"Map of “{shown.answer}” by {shown.method}: {args.map}")
        warnings = [*warnings, shown.words]
    answers = answers[: args.top]
    if args.json:
        listed = [{"answer": a, "probability": p} for a, p in answers]
        asked = {"picture": args.picture, "question": args.question, **found, "answers": listed, "warnings": warnings}
        print(json.dumps({**asked, "model": asdict(answerer.about)}, indent=1))
    else:
        _show(args.question, answers, declined, [*lines, str(answerer.about)], warnings)
    return 0


def _show(
    question: str, answers: Sequence[tuple[str, float]], declined: bool, lines: Sequence[str], warnings: Sequence[str]
) -> None:
    from rich import box
    from rich.bar import Bar
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if declined:
        console.print("declined", style="bold")
    table = Table(title=escape(question), title_justify="left", box=box.SIMPLE, show_header=False)
    for answer, probability in answers:
        table.add_row(answer, f"{probability:6.1%}", Bar(1.0, 0.0, probability, width=30))
    console.print(table)
    for line in lines:
        console.print(line, markup=False)
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False, style="yellow")
