"""What a set of phantoms holds, as tables: questions by category, findings, and views."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from vqa_core.data import phantoms
from vqa_core.data.types import CLOSED

if TYPE_CHECKING:
    import pandas as pd


def categories(data: phantoms.PhantomSet) -> pd.DataFrame:
    """Questions of a set by category.

    Returns
    -------
    pandas.DataFrame
        A row for each category of the set, columns

        ``category``
            as VQA-RAD spells it;
        ``questions``, ``closed``
            number of questions, and the fraction of them that are closed;
        ``answers``
            number of different answers;
        ``commonest``
            fraction of the questions that have the commonest answer;
        ``words``
            accuracy that the best predictor can expect from the words alone (:meth:`PhantomSet.chance`).
    """
    import pandas as pd

    asked = defaultdict(list)
    for s in data:
        asked[s.family].append(s)
    rows = []
    for family in data.families:
        answers = Counter(s.answer for s in asked[family])
        n = len(asked[family])
        rows.append(
            {
                "category": family,
                "questions": n,
                "closed": sum(s.kind == CLOSED for s in asked[family]) / n,
                "answers": len(answers),
                "commonest": answers.most_common(1)[0][1] / n,
                "words": data.chance(family),
            }
        )
    return pd.DataFrame(rows)


def pictures(data: phantoms.PhantomSet) -> pd.DataFrame:
    """Pictures of a set by what they show.

    Returns
    -------
    pandas.DataFrame
        Columns ``of``, ``row``, ``column``, ``pictures``: how many pictures have the finding ``row`` in the body region
        ``column`` (``of`` is ``"finding"``; ``row`` ``"none"`` has no finding at all), and how many have the modality
        ``row`` in the plane ``column`` (``of`` is ``"view"``). All combinations are there, with 0 too.
    """
    import pandas as pd

    views = Counter((p.modality, p.plane) for p in data.plans)
    found = Counter((kind, p.region) for p in data.plans for kind in {f.kind for f in p.present} or {"none"})
    modalities = [m for m in (*phantoms.MODALITIES, phantoms.UNSEEN_MODALITY) if any(m == v for v, _ in views)]
    rows = [
        ("finding", kind, region, found[kind, region])
        for kind in (*phantoms.KINDS, "none")
        for region in phantoms.REGIONS
    ]
    rows += [("view", modality, plane, views[modality, plane]) for modality in modalities for plane in phantoms.PLANES]
    return pd.DataFrame(rows, columns=["of", "row", "column", "pictures"])
