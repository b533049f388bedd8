"""Readout of ``mevf``: planted accuracies come out, by test set and kind, and a claim waits for its seeds."""

import numpy as np
import pytest

from vqa_core.experiments import Metric, Record, Spec, mevf_readout

Q = 40
CLOSED = np.arange(Q) % 2 == 0
FREEFORM = np.arange(Q) < 30


def record(unit: str, seed: int, right: np.ndarray) -> Record:
    arrays = {
        "correct_test": right,
        "closed_test": CLOSED,
        "freeform_test": FREEFORM,
        "picture_test": np.arange(Q) // 2,
        "reachable_test": FREEFORM,
    }
    frozen = unit.endswith("frozen")
    details = {
        "samples_per_processor_second": 50.0 + 10 * seed,
        "history": [{}] * 20,
        "questions": {"train": 300},
        "decoder_share": {} if frozen else {"start": {"alive": 0.8}, "end": {"alive": 0.1 * seed}},
    }
    return Record(Spec("mevf", unit, seed, "cpu"), {"right": Metric(0.5, Q)}, arrays, details)


def three(unit: str, right: np.ndarray) -> list[Record]:
    return [record(unit, seed, right) for seed in range(3)]


def test_accuracy_counts_only_the_questions_of_its_test_and_kind():
    right = FREEFORM & CLOSED  # right on all closed freeform questions, on nothing else
    runs = three("ban.3064", right)
    assert mevf_readout.accuracy(runs, "308", "closed").mean == 1
    assert mevf_readout.accuracy(runs, "308", "open").mean == 0
    assert mevf_readout.accuracy(runs, "308").mean == pytest.approx(0.5)
    assert mevf_readout.accuracy(runs, "451").mean == pytest.approx(15 / 40)
    table = mevf_readout.table(runs).set_index(["protocol", "metric"])
    assert table.loc[("3064 → 451", "closed"), "mean"] == pytest.approx(15 / 20)
    assert set(table["model"]) == {"mevf+ban"}
    assert set(table["seeds"]) == {3}
    assert table.loc[("3064 → 308", "all"), "ceiling"] == 1
    assert table.loc[("3064 → 451", "all"), "ceiling"] == pytest.approx(30 / 40)


def test_what_the_leak_is_worth_is_the_difference_on_the_same_questions():
    leaky, clean = np.arange(Q) < 28, np.arange(Q) < 18
    found = mevf_readout.effects([*three("ban.3064", leaky), *three("ban.1797", clean), *three("san.3064", leaky)])
    assert found["M2"].mean == pytest.approx(-10 / 40)
    assert found["M1a"].mean == found["M1b"].mean == pytest.approx(28 / 30)


def test_a_claim_waits_for_three_seeds():
    found = mevf_readout.effects([record("ban.3064", 0, CLOSED), *three("ban.1797", CLOSED)])
    assert found == {"M1a": None, "M1b": None, "M2": None}
    assert mevf_readout.effects([]) == {"M1a": None, "M1b": None, "M2": None}


def test_costs_tell_frozen_from_tuned_and_what_became_of_the_encoder():
    costs = mevf_readout.costs([*three("ban.3064", CLOSED), *three("ban.3064.frozen", CLOSED)]).set_index("encoders")
    tuned, frozen = costs.loc["fine-tuned"], costs.loc["frozen"]
    assert tuned["per_second"] == pytest.approx(60)
    assert tuned["minutes"] == pytest.approx(np.mean([6000 / v for v in (50, 60, 70)]) / 60)
    assert (tuned["alive_start"], tuned["alive_end"]) == ("80%", "10%")
    assert (frozen["alive_start"], frozen["alive_end"]) == ("–", "–")
