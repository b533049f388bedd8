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
    """Columns protocol (``"3064 → 308"``), model, metric (all, closed, open), mean, low, high, n, seeds."""
    import pandas as pd

    rows = []
    for unit, some in by_unit(records).items():
        model, train, *rest = unit.split(".")
        for test in TESTS:
            for part in ("all", "closed", "open"):
                about = {"protocol": f"{train} → {test}", "model": ".".join([f"mevf+{model}", *rest]), "metric": part}
                rows.append(about | row(accuracy(some, test, part)) | {"seeds": len(some)})
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
