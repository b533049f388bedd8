"""What experiment ``similarity_maps`` found, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqa_core.evaluation.statistics import seeds_and_questions
from vqa_core.experiments.readout import row
from vqa_core.experiments.records import Record
from vqa_core.experiments.similarity_maps import MAPS
from vqa_core.explain.scores import SCORES

if TYPE_CHECKING:
    import pandas as pd


def similarity_table(record: Record) -> pd.DataFrame:
    """Every score of every map: columns map, metric, mean, low, high, n; intervals over pictures, of one model."""
    import pandas as pd

    rows = []
    for name, title in MAPS.items():
        for metric in SCORES:
            values = record.arrays[f"{name}.{metric}"]  # (Q,)
            interval = seeds_and_questions(values[None], record.arrays["group"].tolist(), resamples=2000)
            rows.append({"map": title, "metric": metric, **row(interval)})
    return pd.DataFrame(rows)
