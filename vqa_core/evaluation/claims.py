"""The claims ledger: statements that others made, the rule that decides on each, and the verdict that code computes.

``book/claims.yml`` is a list of mappings. People write ``id, claim, source, chapter, experiment, test, unit, rule``
and, where a claim is out of reach, ``reason``. Code writes ``verdict, effect, low, high, n, profile, revision``
(:func:`record_verdicts`). The rule is fixed before the run; a verdict that does not follow from the rule and the
stored numbers is refused on reading (:func:`read_claims`), so a typed verdict cannot stay unnoticed.

A rule is a sentence such as ``supported if low > 0.02; refuted if high < 0.02``. Its conditions know the names
``effect``, ``low``, ``high`` and ``n``, numbers, the comparisons ``< <= > >=``, ``and``, ``or``, ``not`` and
parentheses. Nothing else is accepted, and nothing is ever executed.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from vqa_core.evaluation.statistics import Interval

SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"
OUT_OF_REACH, NOT_RUN = "out of reach here", "not yet run"
JUDGED = (SUPPORTED, REFUTED, INCONCLUSIVE)
VERDICTS = (*JUDGED, OUT_OF_REACH, NOT_RUN)

COMPUTED = ("verdict", "effect", "low", "high", "n", "profile", "revision")
_COMPARISONS = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
_VARIABLES = ("effect", "low", "high", "n")


@dataclass(frozen=True, slots=True)
class Claim:
    """One row of the ledger.

    Attributes
    ----------
    id
        Short and unique ("F1").
    claim
        The statement, in our words.
    source
        Who made it.
    chapter
        Number of the chapter that judges it.
    experiment
        Name of the experiment whose records decide it; empty while none is planned.
    test
        What the effect is, in words: what is subtracted from what, on which data.
    unit
        Unit of ``effect``, ``low`` and ``high`` ("fraction", "ratio" …).
    rule
        The decision rule; may be empty only where the claim is out of reach.
    reason
        Why it is out of reach and what it would take.
    verdict, effect, low, high, n, profile, revision
        Computed. ``profile`` and ``revision`` say which run the numbers come from.
    """

    id: str
    claim: str
    source: str
    chapter: int
    experiment: str = ""
    test: str = ""
    unit: str = ""
    rule: str = ""
    reason: str = ""
    verdict: str = NOT_RUN
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    profile: str = ""
    revision: str = ""

    def __post_init__(self) -> None:
        def refuse(why: str):
            raise ValueError(f"claim {self.id!r}: {why}")

        for f in fields(self):
            value, number = getattr(self, f.name), f.name in ("chapter", "effect", "low", "high", "n")
            right = (
                type(value) in (int, float) or (value is None and f.name != "chapter") if number else type(value) is str
            )
            if not right:
                refuse(f"{f.name} is {value!r}, needed is {'a number' if number else 'text'}")
        if not (self.id and self.claim and self.source):
            refuse("id, claim and source are needed")
        if self.verdict not in VERDICTS:
            refuse(f"verdict is {self.verdict!r}, allowed are {', '.join(VERDICTS)}")
        if self.verdict == OUT_OF_REACH:
            if not self.reason:
                refuse("a claim that is out of reach needs a reason and what it would take")
        elif not (self.rule and self.test and self.unit):
            refuse("test, unit and rule are needed, fixed before the run")
        if self.rule:
            try:
                _parse(self.rule)
            except ValueError as error:
                refuse(str(error))
        numbers = (self.effect, self.low, self.high, self.n)
        if self.verdict not in JUDGED:
            if any(x is not None for x in numbers):
                refuse(f"verdict is {self.verdict!r} but there are numbers; let record_verdicts write both")
        elif any(x is None for x in numbers):
            refuse(f"verdict {self.verdict!r} without effect, low, high and n; verdicts are computed, never typed")
        elif (computed := judge(self.rule, *numbers)) != self.verdict:
            refuse(f"verdict is {self.verdict!r}, but the rule and the numbers give {computed!r}")


def judge(rule: str, effect: float, low: float, high: float, n: int) -> str:
    """Apply a rule to an effect with interval [low, high] and n.

    Returns
    -------
    str
        ``"supported"`` or ``"refuted"`` when that condition holds, ``"inconclusive"`` when neither does.

    Raises
    ------
    ValueError
        When the rule is not in the grammar, a number is not finite, the interval is upside down, or the numbers
        satisfy both conditions (then the rule contradicts itself).

    Examples
    --------
    >>> judge("supported if low > 0.02; refuted if high < 0.02", effect=0.05, low=0.03, high=0.07, n=1000)
    'supported'
    """
    values = dict(zip(_VARIABLES, (effect, low, high, n)))
    if not all(math.isfinite(v) for v in values.values()):
        raise ValueError(f"a rule needs finite numbers, not {values}")
    if low > high or n < 1:
        raise ValueError(f"needed are low <= high and n of at least 1, given {values}")
    holds = [verdict for verdict, condition in _parse(rule).items() if _evaluate(condition, values)]
    if len(holds) > 1:
        raise ValueError(f"rule {rule!r} both supports and refutes at {values}: its conditions overlap")
    return holds[0] if holds else INCONCLUSIVE


def read_claims(path: str | os.PathLike) -> list[Claim]:
    """Read and validate the ledger; the first bad claim raises a ``ValueError`` that names it."""
    return _claims(Path(path).read_text(encoding="utf-8"), path)


def record_verdicts(
    path: str | os.PathLike, results: Mapping[str, Interval], profile: str = "", revision: str = ""
) -> list[Claim]:
    """Judge claims by their rules and write the outcome into the ledger.

    Parameters
    ----------
    path
        The YAML file. Only the computed keys of the judged claims are rewritten, as text, at the end of their item;
        everything that people wrote keeps its place, form and comments. The same results give the same bytes.
    results
        Claim id → effect with interval (``mean``, ``low``, ``high``, ``n``).
    profile, revision
        Which run the numbers come from.

    Returns
    -------
    list of Claim
        The whole ledger as it is now.

    Raises
    ------
    ValueError
        Before anything is written: unknown id, claim without a rule, numbers that a rule can't judge.

    Notes
    -----
    The file is replaced in one step, but two processes that record at once would overwrite each other: the build
    calls this from one place. Items start with ``- id:`` at the left margin and their keys stand two spaces in.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    ledger = {c.id: c for c in _claims(text, path)}
    if unknown := sorted(set(results) - set(ledger)):
        raise ValueError(f"no such claims in {path}: {', '.join(unknown)}")
    blocks = re.split(r"(?m)^(?=- )", text)  # what precedes the first item, then one block per item
    starts = {_block_id(block): i for i, block in enumerate(blocks) if i > 0}
    for id_, interval in results.items():
        claim = ledger[id_]
        if not claim.rule:
            raise ValueError(f"claim {id_!r} has no rule that could judge it")
        # Rounded before judging, so that the verdict follows from the numbers that readers see (+ 0.0: no "-0.0").
        effect, low, high = (round(float(x), 6) + 0.0 for x in (interval.mean, interval.low, interval.high))
        n = int(interval.n)
        verdict = judge(claim.rule, effect, low, high, n)
        computed = dict(zip(COMPUTED, (verdict, effect, low, high, n, profile, revision)))
        blocks[starts[id_]] = _with_computed(blocks[starts[id_]], computed)
    text = "".join(blocks)
    after = _claims(text, path)
    authored = [f.name for f in fields(Claim) if f.name not in COMPUTED]
    for old, new in zip(ledger.values(), after, strict=True):
        if any(getattr(old, name) != getattr(new, name) for name in authored):
            raise ValueError(
                f"claim {old.id!r} in {path} can't be rewritten; start items with '- id:', keys at column 2"
            )
    _write(path, text)
    return after


def _parse(rule: str) -> dict[str, ast.expr]:
    """Verdict → checked condition."""
    conditions: dict[str, ast.expr] = {}
    for clause in rule.split(";"):
        match = re.fullmatch(r"\s*(supported|refuted) if (.+?)\s*", clause)
        if match is None:
            raise ValueError(f"rule {rule!r}: write 'supported if …; refuted if …', not {clause.strip()!r}")
        verdict, condition = match.groups()
        if verdict in conditions:
            raise ValueError(f"rule {rule!r}: '{verdict} if' occurs twice")
        if len(condition) > 200:
            raise ValueError(f"a condition has {len(condition)} characters, at most 200 are allowed")
        try:
            tree = ast.parse(condition, mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"rule {rule!r}: {condition!r} can't be parsed ({error})") from error
        _check(tree, condition)
        conditions[verdict] = tree
    return conditions


def _check(node: ast.expr, condition: str) -> None:
    """Refuse everything but comparisons of names and numbers, joined by and, or, not."""
    match node:
        case ast.BoolOp(values=parts):
            for part in parts:
                _check(part, condition)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            _check(part, condition)
        case ast.Compare(left=left, ops=ops, comparators=right) if all(type(op) in _COMPARISONS for op in ops):
            for side in (left, *right):
                _number(side, dict.fromkeys(_VARIABLES, 0.0), condition)
        case _:
            raise ValueError(f"{condition!r}: {ast.unparse(node)!r} is not a comparison (<, <=, >, >=, and, or, not)")


def _evaluate(node: ast.expr, values: Mapping[str, float]) -> bool:
    match node:
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_evaluate(part, values) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_evaluate(part, values) for part in parts)
        case ast.UnaryOp(operand=part):
            return not _evaluate(part, values)
        case ast.Compare(left=left, ops=ops, comparators=right):
            sides = [_number(side, values) for side in (left, *right)]
            return all(_COMPARISONS[type(op)](a, b) for op, a, b in zip(ops, sides, sides[1:]))
    raise AssertionError(f"unchecked node {node!r}")


def _number(node: ast.expr, values: Mapping[str, float], condition: str = "") -> float:
    match node:
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.Constant(value=value) if type(value) in (int, float):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)) if type(value) in (int, float):
            return -value
    raise ValueError(f"{condition!r}: {ast.unparse(node)!r} is neither a number nor one of {', '.join(_VARIABLES)}")


def _claims(text: str, path: str | os.PathLike) -> list[Claim]:
    import yaml

    rows = yaml.safe_load(text)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must be a list of mappings, one per claim")
    known = {f.name for f in fields(Claim)}
    claims = []
    for row in rows:
        if wrong := sorted(set(map(str, row)) - known):
            raise ValueError(f"{path}: claim {row.get('id')!r} has unknown keys {wrong}; allowed are {sorted(known)}")
        if lacking := sorted({"id", "claim", "source", "chapter"} - set(row)):
            raise ValueError(f"{path}: claim {row.get('id')!r} lacks {lacking}")
        claims.append(Claim(**row))
    ids = [c.id for c in claims]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise ValueError(f"{path}: ids occur more than once: {', '.join(twice)}")
    return claims


def _block_id(block: str) -> str:
    match = re.match(r"- id:[ \t]*(['\"]?)(.+?)\1[ \t]*(?:#.*)?\n", block)
    if match is None:
        raise ValueError(f"an item must start with '- id:', not {block.splitlines()[0]!r}")
    return match[2]


def _with_computed(block: str, computed: Mapping[str, object]) -> str:
    """The item with its computed keys replaced; comments and blank lines after the item stay after it."""
    old = re.compile(rf"  (?:{'|'.join(COMPUTED)}):")
    lines = [line for line in block.splitlines() if not old.match(line)]
    end = max(i for i, line in enumerate(lines) if line.startswith(("- ", "  ")) and line.strip()) + 1
    new = [f"  {key}: {_scalar(value)}" for key, value in computed.items()]
    return "\n".join([*lines[:end], *new, *lines[end:]]) + "\n"


def _scalar(value: str | int | float) -> str:
    if isinstance(value, float):
        return np.format_float_positional(value, trim="0")  # YAML reads 2e-06 as a string
    return str(value) if value in VERDICTS or isinstance(value, int) else json.dumps(value)  # JSON is YAML


def _write(path: Path, text: str) -> None:
    """Replace the file in one step: a reader sees the old ledger or the new one, nothing between."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(name, path.stat().st_mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
