"""What chapter 7 reads from experiment ``mevf``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from vqa_core.evaluation.statistics import Interval, paired_difference, seeds_and_questions
from vqa_core.experiments.readout import by_unit, row
from vqa_core.experiments.records import Record

if TYPE_CHECKING:
    import pandas as pd

TESTS = {"308": "freeform_test", "451": None}
SEEDS = 3  # a claim is judged from so many on


def _rows(record: Record, test: str, part: str) -> np.ndarray:
    """Which of the 451 test questions count, bool (451,)."""
    arrays = record.arrays
    keep = np.ones(len(arrays["correct_test"]), dtype=bool) if TESTS[test] is None else arrays[TESTS[test]]
    return keep & {"all": True, "closed": arrays["closed_test"], "open": ~arrays["closed_test"]}[part]


def accuracy(records: list[Record], test: str = "308", part: str = "all") -> Interval:
    """Accuracy of a unit with its interval over seeds and pictures."""
    keep = _rows(records[0], test, part)
    right = np.stack([r.arrays["correct_test"][keep] for r in records])  # (S, Q)
    return seeds_and_questions(right, records[0].arrays["picture_test"][keep])


def table(records: Iterable[Record]) -> pd.DataFrame:
    """Columns protocol (``"3064 → 308"``), model, metric (all, closed, open), mean, low, high, n, seeds, ceiling.

    ``ceiling`` is the share of questions whose answer is among the training answers.
    """
    import pandas as pd

    rows = []
    for unit, some in by_unit(records).items():
        model, train, *rest = unit.split(".")
        for test in TESTS:
            for part in ("all", "closed", "open"):
                about = {"protocol": f"{train} → {test}", "model": ".".join([f"mevf+{model}", *rest]), "metric": part}
                ceiling = some[0].arrays["reachable_test"][_rows(some[0], test, part)].mean()
                rows.append(about | row(accuracy(some, test, part)) | {"seeds": len(some), "ceiling": float(ceiling)})
    return pd.DataFrame(rows)


def costs(records: Iterable[Record]) -> pd.DataFrame:
    """What the runs cost, and what became of the auto-encoder.

    Returns
    -------
    pandas.DataFrame
        Columns protocol, model, encoders (``fine-tuned`` or ``frozen``), minutes (of one core, mean of a run),
        per_second (training questions in a second of one core), alive_start, alive_end (share of the features of the
        auto-encoder's code that are not zero, before and after training; ``"–"`` where it is frozen), seeds.
    """
    import pandas as pd

    rows = []
    for unit, some in by_unit(records).items():
        model, train, *rest = unit.split(".")
        speed = np.array([r.details["samples_per_processor_second"] for r in some])
        questions = [len(r.details["history"]) * r.details["questions"]["train"] for r in some]
        shares = [r.details["decoder_share"] for r in some if r.details["decoder_share"]]
        alive = {w: float(np.mean([s[w]["alive"] for s in shares])) if shares else None for w in ("start", "end")}
        rows.append(
            {
                "protocol": train,
                "model": f"mevf+{model}",
                "encoders": "frozen" if "frozen" in rest else "fine-tuned",
                "minutes": float(np.mean(np.array(questions) / speed)) / 60,
                "per_second": float(speed.mean()),
                **{f"alive_{w}": "–" if a is None else f"{a:.0%}" for w, a in alive.items()},
                "seeds": len(some),
            }
        )
    return pd.DataFrame(rows)


def effects(records: Iterable[Record]) -> dict[str, Interval | None]:
    """M1a, M1b (accuracy of BAN and SAN, 3064 → 308) and M2 (BAN on 451: trained on 1797 minus on 3064).

    None where a unit has fewer than :data:`SEEDS` seeds.
    """
    found = {unit: some for unit, some in by_unit(records).items() if len(some) >= SEEDS}
    values: dict[str, Interval | None] = {
        "M1a": accuracy(found["ban.3064"]) if "ban.3064" in found else None,
        "M1b": accuracy(found["san.3064"]) if "san.3064" in found else None,
        "M2": None,
    }
    if {"ban.3064", "ban.1797"} <= set(found):
        clean, leaky = (np.stack([r.arrays["correct_test"] for r in found[f"ban.{t}"]]) for t in ("1797", "3064"))
        # the two have picture numbers of their own: those of the first are used for both
        values["M2"] = paired_difference(clean, leaky, found["ban.1797"][0].arrays["picture_test"]).interval
    return values
