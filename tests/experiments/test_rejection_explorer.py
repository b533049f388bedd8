"""What the fragment holds: the ranks and sums of Python, data that stay data, and nothing from elsewhere."""

import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from vqa_core.evaluation import rejection
from vqa_core.experiments.rejection_explorer import Answers, fragment
from vqa_core.figures import fragment_problems

N = 40


def questions(n: int = N) -> pd.DataFrame:
    words = {"question": "What is this?", "picture": "p.png", "right": "lung"}
    return pd.DataFrame({k: [f"{v} {i}" for i in range(n)] for k, v in words.items()})


def answers(n: int = N, decimals: int = 1, seed: int = 0, **more) -> Answers:
    rng = np.random.default_rng(seed)
    confidence = rng.random(n).round(decimals)
    return Answers(["liver"] * n, (rng.random(n) > confidence).astype(int), confidence, **more)


class Scripts(HTMLParser):
    """The texts of all script elements, and every attribute of every element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts, self.attributes, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "script"
        self.attributes += [name for name, _ in attrs]

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.texts.append(data)


def held(text: str) -> dict:
    return json.loads(Scripts(text).texts[0])


@pytest.mark.parametrize("decimals", [0, 1, 17])
def test_levels_are_the_thresholds_of_python(decimals):
    a = answers(decimals=decimals)
    (model,) = held(fragment(questions(), {"m": a}, title="T"))["models"]
    rank, errors = np.array(model["rank"]), np.array(model["errors"])
    curve = rejection.risk_coverage(a.errors, a.confidence)
    for level, threshold in enumerate(np.unique(a.confidence)[::-1]):
        kept = rank <= level
        assert (kept == (a.confidence >= threshold)).all()
        assert errors[kept].mean() == pytest.approx(curve.risk[kept.sum() - 1], abs=1e-12)
        assert model["confidence"][level] == pytest.approx(threshold, abs=1e-6)


def test_confidences_that_differ_by_little_stay_apart():
    close = np.nextafter(0.9, 1)
    a = Answers(["a", "b", "c"], np.array([0, 1, 0]), np.array([0.9, close, 0.9]))
    assert held(fragment(questions(3), {"m": a}, title="T"))["models"][0]["rank"] == [1, 0, 1]


def test_guarantee_answers_what_the_threshold_answers():
    a = answers(2000, 2)
    found = rejection.sgr(a.errors, a.confidence, 0.3, 0.1)
    a = a._replace(threshold=found.threshold)
    nothing = a._replace(threshold=np.inf)
    text = fragment(questions(2000), {"a": a, "b": nothing}, title="T", max_risk=0.3, delta=0.1)
    model, other = held(text)["models"]
    levels = model["guaranteed"]["groups"]
    assert (np.array(model["rank"]) < levels).mean() == found.coverage > 0
    assert model["guaranteed"]["threshold"] == found.threshold
    assert other["guaranteed"] == {"groups": 0, "threshold": None}


def test_texts_stay_texts():
    evil = '</script><script src="http://a.example/x.js"></script><!-- onclick=f() fetch("x")'
    asked = questions().assign(question=evil, group="a & b")
    text = fragment(asked, {evil: answers()._replace(given=[evil] * N)}, title=f'"{evil}')
    parsed = Scripts(text)
    assert len(parsed.texts) == 2
    data = json.loads(parsed.texts[0])
    assert data["questions"][0] == [evil] * N
    assert data["models"][0]["given"] == [evil] * N
    assert not {"src", "onclick"} & set(parsed.attributes)


def test_fragment_is_whole_small_and_without_ids():
    asked = questions(1500).assign(question="Is there evidence of a fracture in the right lower lobe?", group="open")
    models = {name: answers(1500, 17, seed, threshold=0.5) for seed, name in enumerate(("softmax", "Bayes head"))}
    text = fragment(asked, models, title="T", max_risk=0.1, delta=0.05)
    assert fragment_problems(text) == []
    assert len(text.encode()) < 300_000
    assert "id" not in Scripts(text).attributes
    assert text == fragment(asked, models, title="T", max_risk=0.1, delta=0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"questions": questions().drop(columns="picture")}, r"lack \['picture'\]"),
        ({"questions": questions().iloc[:0]}, "lack rows"),
        ({"questions": questions(3)}, "m: there are 3 questions"),
        ({"models": {}}, "at least one"),
        ({"models": {"m": answers()._replace(errors=np.full(N, 1.5))}}, "between 0 and 1"),
        ({"models": {"m": answers()._replace(confidence=np.full(N, np.inf))}}, "40 confidences are not finite"),
        ({"models": {"m": answers(threshold=0.5)}}, r"go together: give all or none; see \['m'\]"),
        ({"max_risk": 0.1, "delta": 0.1}, r"see \['m'\]"),
        ({"models": {"m": answers(threshold=0.5)}, "max_risk": 0.1}, r"delta \(None\) go together"),
        ({"models": {"m": answers(threshold=np.nan)}, "max_risk": 0.1, "delta": 0.1}, "threshold is NaN"),
    ],
)
def test_what_does_not_fit_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        fragment(**{"questions": questions(), "models": {"m": answers()}, "title": "T"} | change)
