"""``python -m vqa_core ask PICTURE "QUESTION"``: an answer, with probabilities, from a model that the book trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vqa_core.data.root import read_picture
from vqa_core.data.text import Vocabulary, tokenize

if TYPE_CHECKING:
    import torch

    from vqa_core.model import VQAModel

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
        import torch

        from vqa_core.experiments import fusion, resolve_profile
        from vqa_core.experiments.records import load_record, results_root
        from vqa_core.experiments.runner import code_hash_of
        from vqa_core.experiments.scene_encoders import NamedCells, SlotTokens, load_encoders
        from vqa_core.model import VQAModel

        profile, root = resolve_profile(profile), root or results_root()
        specs = [spec for spec in fusion.specs(profile) if spec.unit == fusion.KEPT]
        records = [record for spec in specs if (record := load_record(spec, root=root)) is not None]
        if not records:
            raise FileNotFoundError(_absent(specs[0].path(root), profile, root))
        best = max(records, key=lambda r: r.details["history"][r.details["best_epoch"]]["validation"])
        namer, reader, words = load_encoders(profile, root)
        cells, slots, answers = NamedCells(namer, "grid"), SlotTokens(reader, "vector"), best.details["answers"]
        trained = fusion.build(best.spec.model, cells.out_dim, slots.out_dim, len(answers))
        weights = {
            k.removeprefix("model."): torch.from_numpy(v) for k, v in best.arrays.items() if k.startswith("model.")
        }
        if not weights:
            raise ValueError(f"{best.spec.path(root)} holds no weights; delete it and run again")
        trained.load_state_dict(weights)
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
        import torch

        from vqa_core.data.text import encode_questions
        from vqa_core.training.feed import as_float

        words, mask = encode_questions(questions, self.words)  # (B, T) each
        images = as_float(torch.from_numpy(pictures))  # (B, 3, size, size)
        with torch.inference_mode():
            return self.model(images, torch.from_numpy(words), torch.from_numpy(mask)).logits

    def answer(self, picture: np.ndarray, question: str) -> list[tuple[str, float]]:
        """Every answer that the model can give, with its probability, the likeliest first.

        Parameters
        ----------
        picture
            RGB, uint8 (H, W, 3), of any size.
        question
            A sentence with at least one word.
        """
        if not tokenize(question):
            raise ValueError(f"the question {question!r} has no word")
        probabilities = self.logits(self._fitted(picture), [question])[0].softmax(-1)  # (answers,)
        order = probabilities.argsort(descending=True, stable=True).tolist()
        return [(self.answers[i], float(probabilities[i])) for i in order]

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

    def _fitted(self, picture: np.ndarray) -> np.ndarray:
        from vqa_core.data.collate import resize

        return resize(picture, self.size, fill=GROUND)[None]  # (1, size, size, 3)

    def _sees_something(self, picture: np.ndarray) -> bool:
        import torch

        from vqa_core.training.feed import as_float

        with torch.inference_mode():
            cells = self.model.image_encoder(as_float(torch.from_numpy(self._fitted(picture)))).tokens  # (1, N, 19)
        return bool((cells[..., 0] > 0.5).any())  # feature 0 is the probability of presence


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
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object")
    parser.set_defaults(run=_ask)


def _ask(args: argparse.Namespace) -> int:
    if args.top < 1:
        raise ValueError(f"--top is {args.top}, it must be at least 1")
    picture = open_picture(args.picture)
    answerer = Answerer.load(args.profile)
    answers = answerer.answer(picture, args.question)[: args.top]
    warnings = answerer.warnings(picture, args.question)
    if args.json:
        listed = [{"answer": a, "probability": p} for a, p in answers]
        found = {"picture": args.picture, "question": args.question, "answers": listed, "warnings": warnings}
        print(json.dumps({**found, "model": asdict(answerer.about)}, indent=1))
    else:
        _show(args.question, answers, warnings, answerer.about)
    return 0


def _show(question: str, answers: Sequence[tuple[str, float]], warnings: Sequence[str], about: About) -> None:
    from rich import box
    from rich.bar import Bar
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=escape(question), title_justify="left", box=box.SIMPLE, show_header=False)
    for answer, probability in answers:
        table.add_row(answer, f"{probability:6.1%}", Bar(1.0, 0.0, probability, width=30))
    console.print(table)
    console.print(str(about), markup=False)
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False, style="yellow")
