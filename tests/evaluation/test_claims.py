from pathlib import Path

import pytest
import yaml

from vqa_core.evaluation.claims import Claim, judge, read_claims, record_verdicts
from vqa_core.evaluation.statistics import Interval

LEDGER = Path(__file__).parents[2] / "book" / "claims.yml"
RULE = "supported if low > 0.15; refuted if high < 0.05"

SMALL = """\
# The head of the file stays.

- id: F1  # a comment on the id
  claim: >-
    Early fusion catches interactions
    and "late" fusion can't.
  source: notes
  chapter: 3
  test: early minus late   # what is subtracted
  unit: fraction
  rule: supported if low > 0.15; refuted if high < 0.05
  verdict: not yet run

# -- between the items

- id: F2
  claim: Another.
  verdict: not yet run
  source: notes
  chapter: 3
  test: x
  unit: fraction
  rule: refuted if high < 0
  # a last comment inside

- id: O1
  claim: Far away.
  source: a paper
  chapter: 5
  reason: Needs a cluster.
  verdict: out of reach here

# the end
"""


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "claims.yml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("effect", "low", "high", "verdict"),
    [(0.2, 0.16, 0.24, "supported"), (0.0, -0.1, 0.04, "refuted"), (0.1, 0.02, 0.18, "inconclusive"),
     (0.2, 0.15, 0.25, "inconclusive"), (0.1, 0.06, 0.14, "inconclusive")],
)  # fmt: skip
def test_judge_applies_the_rule(effect, low, high, verdict):
    assert judge(RULE, effect, low, high, 100) == verdict


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ("supported if n >= 100 and low > 0", "supported"),
        ("supported if n > 100 and low > 0", "inconclusive"),
        ("supported if not (low <= 0 or n < 5)", "supported"),
        ("supported if -0.5 < low <= effect <= high < 1e0", "supported"),
        ("refuted if low > -1", "refuted"),
        ("supported if low<0.646 and high>0.606;refuted if low>0.646 or high<0.606", "refuted"),
    ],
)
def test_grammar(rule, verdict):
    assert judge(rule, 0.2, 0.1, 0.3, 100) == verdict


@pytest.mark.parametrize(
    "condition",
    [
        "__import__('os').system('true')", "low.__class__ > 0", "low > ().__class__", "(lambda: 1)() > 0",
        "[x for x in (1,)] > 0", "low > open('x')", "low if high else n", "(low := 3) > 0", "f'{low}' > 0", "'a' > 'b'",
        "low > 9**9**9", "low + high > 0", "low", "1", "True", "low > True", "low == 0.5", "low != 0", "low is n",
        "low in (1, 2)", "low > verdict", "low > 1j", "low > None", "low > ~1", "low > --1", "low and high", "not low",
        "low > 0 and n", "*low > 0", "await low", "low >", "", "low > 0 # x\nimport os", "low > 0\x00",
        "(" * 150, "low > " + "1" * 300,
    ],
)  # fmt: skip
def test_rules_are_not_code(condition):
    with pytest.raises(ValueError, match=r"rule|comparison|number|characters"):
        judge(f"supported if {condition}", 0.2, 0.1, 0.3, 100)


@pytest.mark.parametrize(
    "rule",
    ["", "low > 0", "true if low > 0", "supported when n > 0", "supported if low > 0; supported if n > 1", RULE + ";"],
)  # fmt: skip
def test_rules_are_sentences(rule):
    with pytest.raises(ValueError, match="rule"):
        judge(rule, 0.2, 0.1, 0.3, 100)


def test_judge_refuses_overlap_and_bad_numbers():
    with pytest.raises(ValueError, match="overlap"):
        judge("supported if low > 0; refuted if high > 0", 0.2, 0.1, 0.3, 10)
    for numbers in [
        (0.2, 0.3, 0.1, 10),
        (0.2, 0.1, 0.3, 0),
        (float("nan"), 0.1, 0.3, 10),
        (0.2, 0.1, float("inf"), 10),
    ]:
        with pytest.raises(ValueError, match=r"needed|needs"):
            judge(RULE, *numbers)


GOOD = {"id": "F1", "claim": "c", "source": "s", "chapter": 3, "test": "t", "unit": "fraction", "rule": RULE}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"verdict": "true"}, "allowed are"),
        ({"verdict": "supported"}, "without effect"),
        ({"verdict": "inconclusive", "effect": 0.1, "low": 0.0, "high": 0.2}, "without effect"),
        ({"verdict": "supported", "effect": 0.1, "low": 0.0, "high": 0.2, "n": 9}, "give 'inconclusive'"),
        ({"effect": 0.1, "low": 0.0, "high": 0.2, "n": 9}, "but there are numbers"),
        ({"verdict": "out of reach here"}, "needs a reason"),
        ({"rule": ""}, "fixed before the run"),
        ({"test": ""}, "fixed before the run"),
        ({"rule": "supported if exec"}, "comparison"),
        ({"chapter": "three"}, "chapter is 'three'"),
        ({"claim": None}, "claim is None"),
        ({"n": "many"}, "n is 'many'"),
        ({"effect": True}, "effect is True"),
    ],
)
def test_claims_are_validated(change, match):
    Claim(**GOOD)
    with pytest.raises(ValueError, match=match):
        Claim(**GOOD | change)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("id: F2", "id: F1", "more than once"),
        ("unit: fraction", "units: fraction", "unknown keys"),
        ("  chapter: 5\n", "", "lacks"),
        ("verdict: not yet run", "verdict: supported", "without effect"),
        ("- id: F1", "- !!python/object/apply:os.system ['true']\n- id: F1", "python/object"),
    ],
)
def test_bad_ledgers_are_refused(ledger, old, new, match):
    ledger.write_text(SMALL.replace(old, new, 1), encoding="utf-8")
    with pytest.raises((ValueError, yaml.YAMLError), match=match):
        read_claims(ledger)


def test_record_writes_verdicts_and_leaves_the_rest(ledger):
    results = {"F1": Interval(0.2, 0.16, 0.24, 1200, seeds=5), "F2": Interval(0.0000021, -1e-7, 3e-3, 40)}
    after = {c.id: c for c in record_verdicts(ledger, results, profile="cpu", revision="abc123")}
    assert (after["F1"].verdict, after["F1"].effect, after["F1"].n, after["F1"].profile) == (
        "supported",
        0.2,
        1200,
        "cpu",
    )
    assert (after["F2"].verdict, after["F2"].effect, after["F2"].low) == ("inconclusive", 2e-06, 0)
    assert after["O1"].verdict == "out of reach here"
    assert {c.id: c for c in read_claims(ledger)} == after

    text = ledger.read_text(encoding="utf-8")
    kept = [line for line in SMALL.splitlines() if "verdict: not" not in line]
    rest = iter(text.splitlines())
    assert all(line in rest for line in kept)  # every authored line is there, in its order
    block = "  verdict: supported\n  effect: 0.2\n  low: 0.16\n  high: 0.24\n  n: 1200\n"
    assert block + '  profile: "cpu"\n  revision: "abc123"\n\n# -- between the items' in text

    record_verdicts(ledger, results, profile="cpu", revision="abc123")
    assert ledger.read_text(encoding="utf-8") == text  # twice is once
    record_verdicts(ledger, {"F1": Interval(0.0, -0.1, 0.04, 7)}, profile="gpu")
    changed = {c.id: c for c in read_claims(ledger)}
    assert (changed["F1"].verdict, changed["F1"].n) == ("refuted", 7)
    assert changed["F2"] == after["F2"]
    assert list(ledger.parent.iterdir()) == [ledger]  # no temporary file is left


@pytest.mark.parametrize(
    ("results", "match"),
    [
        ({"F9": Interval(0.2, 0.1, 0.3, 5)}, "no such claims"),
        ({"O1": Interval(0.2, 0.1, 0.3, 5)}, "no rule"),
    ],
)
def test_nothing_is_written_when_a_result_is_wrong(ledger, results, match):
    with pytest.raises(ValueError, match=match):
        record_verdicts(ledger, {"F1": Interval(0.2, 0.16, 0.24, 5)} | results)
    assert ledger.read_text(encoding="utf-8") == SMALL


def test_a_layout_that_would_be_damaged_is_refused(ledger):
    # The block scalar's second line looks like a computed key.
    text = SMALL.replace("  claim: Another.", '  claim: "An\n  n: other"')
    ledger.write_text(text, encoding="utf-8")
    with pytest.raises((ValueError, yaml.YAMLError)):
        record_verdicts(ledger, {"F2": Interval(0.1, 0.0, 0.2, 5)})
    assert ledger.read_text(encoding="utf-8") == text


def test_the_book_ledger_is_valid_and_complete():
    claims = {c.id: c for c in read_claims(LEDGER)}
    stems = {i.rstrip("abc") for i in claims}
    counts = {"X": 14, "F": 11, "C": 6, "M": 9, "B": 6, "E": 4, "P": 4, "O": 3}
    expected = {f"{letter}{k}" for letter, n in counts.items() for k in range(1, n + 1)}
    assert expected | {"V1", "V2"} <= stems  # chapters add theirs
    for c in claims.values():
        assert 1 <= c.chapter <= 12
        assert len(c.claim) < 160
        assert c.claim.endswith(".")


def test_every_rule_of_the_book_can_support_and_can_refute():
    for c in read_claims(LEDGER):
        if c.rule:
            grid = [
                -100,
                -1,
                -0.3,
                -0.01,
                0,
                0.005,
                0.03,
                0.3,
                0.38,
                0.56,
                0.6,
                0.62,
                0.75,
                0.85,
                0.95,
                1.05,
                1.5,
                1.9,
                3,
                100,
            ]
            verdicts = {judge(c.rule, x, x, x, 1000) for x in grid}
            assert {"supported", "refuted"} <= verdicts, c.id


def test_recording_into_the_book_ledger_changes_nothing_but_verdicts(tmp_path):
    copy = tmp_path / "claims.yml"
    copy.write_bytes(LEDGER.read_bytes())
    before = read_claims(copy)
    results = {c.id: Interval(0.5, 0.4, 0.6, 100, seeds=5) for c in before if c.rule}
    after = record_verdicts(copy, results, "cpu", "r")
    assert all(c.n == 100 for c in after if c.rule)
    assert all(c.n is None for c in after if not c.rule)
    once = copy.read_bytes()
    record_verdicts(copy, results, "cpu", "r")
    assert copy.read_bytes() == once
