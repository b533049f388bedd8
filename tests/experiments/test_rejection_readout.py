"""Readout of ``rejection``: planted numbers come out, thresholds come from where they may, claims wait for records."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vqa_core.evaluation.rejection import aurc
from vqa_core.experiments import Metric, Record, Spec
from vqa_core.experiments import rejection as rj
from vqa_core.experiments import rejection_readout as readout

Q = 40
EARLY = np.arange(Q)  # questions by falling confidence
PICTURES = EARLY // 2


def answers_of(method, part, correct, **given):
    """Arrays of a method on Q questions about half as many pictures: the confidence falls from question to question."""
    n = len(correct)
    found = {
        "correct": np.asarray(correct, bool),
        "probability": np.linspace(0.9, 0.5, n),
        "total": np.linspace(0, 1, n),
        "aleatoric": np.full(n, 0.3),
        "epistemic": np.linspace(0, 0.7, n),
        "log_true": np.full(n, np.log(0.5)),
        "squares": np.full(n, 0.5),
    } | given
    arrays = {f"{method}.{part}.{name}": values for name, values in found.items()}
    return arrays | {f"answers.{part}": np.ones(n, np.int16), f"pictures.{part}": np.arange(n) // 2}


def record(unit, arrays, seed=0, metrics=None, sigma=0.1, alpha=1e-4, **details):
    head = dataclasses.replace(rj.PROFILES["cpu"].head, prior_sigma=sigma, alpha=alpha)
    spec = Spec("rejection", unit, seed, "cpu", model=head)
    return Record(spec, {k: Metric(v, Q) for k, v in (metrics or {}).items()}, arrays, details)


def runs(unit, *parts, **about):
    """The same run with two seeds."""
    arrays = {name: values for part in parts for name, values in part.items()}
    return [record(unit, arrays, seed, **about) for seed in (0, 1)]


def pair(data, bayes, point, **about):
    """Runs of ``full`` and ``deterministic`` with these right answers."""
    return [
        *runs(f"{data}.full", answers_of("full", "test", bayes), **about),
        *runs(f"{data}.deterministic", answers_of("deterministic", "test", point), **about),
    ]


def history(*validation):
    return [{"epoch": i, "validation": v} for i, v in enumerate(validation)]


# ------------------------------------------------------------------------------------------------------------- methods


def test_curves_end_at_the_accuracy():
    right = EARLY % 3 > 0
    records = pair("vqa_rad", right, EARLY < 20)
    table = readout.overview(records).set_index(["method", "metric"])
    curves = readout.curves(records, ["full", "deterministic"]).set_index(["method", "coverage"])
    assert table.loc[("full", "accuracy"), "mean"] == pytest.approx(right.mean())
    for method, share in (("full", right.mean()), ("deterministic", 0.5), ("oracle", right.mean())):
        assert curves.loc[(method, 1.0), "mean"] == pytest.approx(share)
    assert curves.loc[("oracle", 0.5), "mean"] == 1
    np.testing.assert_allclose(curves.loc["random", "mean"], right.mean())
    assert curves.loc[("deterministic", 0.5), "mean"] == 1  # its wrong answers are the unsure ones
    assert table.loc[("deterministic", "accuracy_80"), "mean"] == pytest.approx(20 / 32)
    assert table.loc[("deterministic", "gain_80"), "mean"] == pytest.approx(20 / 32 - 1 / 2)
    assert table.loc[("full", "aurc"), "mean"] == pytest.approx(aurc(~right, -EARLY))
    assert table.loc[("full", "nll"), "mean"] == pytest.approx(np.log(2))
    assert table.loc[("full", "brier"), "mean"] == pytest.approx(0.5 - 2 * 0.5 + 1)
    assert (curves["low"] <= curves["mean"] + 1e-12).all()
    assert (curves["high"] >= curves["mean"] - 1e-12).all()


def test_answers_out_of_reach_have_no_likelihood_but_are_wrong():
    arrays = answers_of("full", "test", EARLY < 20, log_true=np.where(EARLY < 30, np.log(0.25), 0.0))
    arrays["answers.test"] = np.where(EARLY < 30, 1, -100).astype(np.int16)
    table = readout.overview(runs("phantoms.full", arrays)).set_index("metric")
    assert (table.loc["nll", "mean"], table.loc["nll", "n"]) == (pytest.approx(np.log(4)), 30)
    assert (table.loc["accuracy", "mean"], table.loc["accuracy", "n"]) == (0.5, Q)


def test_methods_are_compared_with_the_base_on_the_same_questions():
    table = readout.against(pair("scenes", EARLY < 30, EARLY < 20)).set_index("metric")
    assert set(table["method"]) == {"full"}
    assert table.loc["accuracy", "mean"] == pytest.approx(0.25)
    assert table.loc["aurc", "mean"] == pytest.approx(aurc(EARLY >= 30, -EARLY) - aurc(EARLY >= 20, -EARLY))
    assert table.loc["aurc", "mean"] < 0  # less area is better
    assert table.loc["nll", "mean"] == 0


def test_open_and_closed_questions_apart():
    arrays = answers_of("full", "test", EARLY % 2 == 0) | {"closed.test": EARLY % 2 == 0}
    table = readout.by_kind(runs("vqa_rad.full", arrays), "vqa_rad", "full")
    assert set(table.loc[table["kind"] == "closed", "mean"]) == {1.0}
    assert set(table.loc[table["kind"] == "open", "mean"]) == {0.0}
    assert len(readout.by_kind(runs("scenes.full", answers_of("full", "test", EARLY < 9)), "scenes", "full")) == 0


def test_more_uncertainty_is_less_confidence():
    """Wrong answers have the larger uncertainties: every score ranks perfectly, a constant one not at all."""
    right = EARLY < 25
    table = readout.by_score(runs("scenes.full", answers_of("full", "test", right)), "full").set_index("score")
    for score in ("probability", "total", "epistemic"):
        assert table.loc[score, "mean"] == pytest.approx(aurc(~right, right))
    assert table.loc["aleatoric", "mean"] == pytest.approx(15 / 40)


def test_costs_are_medians_of_the_methods_own_time():
    seconds = {m: k * 1e-6 for k, m in enumerate(rj.HEADS["deterministic"], 1)}
    every = [
        record("scenes.deterministic", {}, s, train_seconds=t, seconds_per_question=seconds, parameters=7)
        for s, t in enumerate((1.0, 2.0, 60.0))
    ]
    table = readout.costs(every).set_index("method")
    assert table["microseconds_per_question"].to_dict() == pytest.approx({m: 1e6 * s for m, s in seconds.items()})
    assert set(table["train_seconds"]) == {2.0}


def test_learning_curves_and_inside_of_a_head():
    k = len(rj.GROWING)
    arrays = {f"growing.{m}": np.arange(k) for m in ("nll", "accuracy", "epistemic", "epistemic_jackknife")}
    arrays |= {f"pruned.{by}": np.full(len(rj.PRUNED), v) for by, v in (("signal_to_noise", 0.5), ("magnitude", 0.25))}
    records = runs("phantoms.full", arrays, history=history(0.25, 0.5))
    learned = readout.learning(records)
    assert learned[["epoch", "mean"]].to_numpy().tolist() == [[1, 0.25], [2, 0.5]]
    grown = readout.growing(records).set_index(["metric", "samples"])
    assert [grown.loc[("nll", s), "mean"] for s in rj.GROWING] == list(range(k))
    pruned = readout.pruning(records).set_index(["by", "share"])
    assert pruned.loc[("magnitude", 0.5), "mean"] == 0.25


def test_reliability_counts_every_answer_of_every_seed():
    table = readout.reliability(pair("scenes", EARLY < 20, EARLY < 10), "scenes", ["full", "last"], bins=4)
    assert table["count"].sum() == 2 * Q
    assert set(table["method"]) == {"full"}
    assert table["accuracy"].to_list() == [0, 0, 1, 1]


# --------------------------------------------------------------------------------------------------------------- sweep


def point(sigma, alpha, validation, test, head="full", tail=None):
    tail = f".sigma{sigma:g}.alpha{alpha:g}" if tail is None else tail
    arrays = answers_of(head, "test", EARLY < 20, log_true=np.full(Q, -test))
    metrics = {f"nll.{head}.val": validation, f"accuracy.{head}.test": 0.5}
    return runs(f"phantoms.{head}{tail}", arrays, metrics=metrics, sigma=sigma, alpha=alpha)


#: The point (1, 1e-4) is the best on the test questions, but (0.1, 0.01) on validation.
SWEEP = [
    *point(0.1, 1e-4, 0.6, 0.6, tail=""),
    *point(0.1, 1.0, 0.9, 0.9, head="bound", tail=""),
    *point(1.0, 1e-4, 0.7, 0.1),
    *point(0.1, 0.01, 0.5, 0.55),
]


def test_the_sweeps_best_point_is_chosen_on_validation():
    amounts = runs("phantoms.full.n100", answers_of("full", "test", EARLY < 1))  # no point of the sweep
    table = readout.sweep([*SWEEP, *amounts]).set_index(["sigma", "alpha"])
    assert table["best"].to_dict() == {(0.1, 1e-4): "no", (0.1, 0.01): "yes", (0.1, 1.0): "no", (1.0, 1e-4): "no"}
    assert table.loc[(1.0, 1e-4), "mean"] == pytest.approx(0.1)
    assert table.loc[(0.1, 1.0), "validation_nll"] == pytest.approx(0.9)


def test_points_are_compared_with_as_many_seeds():
    late = point(0.1, 1e-4, 0.0, 0.0, tail="")[0]
    late = dataclasses.replace(late, spec=dataclasses.replace(late.spec, seed=2))
    found = readout._sweep([*SWEEP, late])
    assert {len(some) for some in found.values()} == {2}
    assert readout._best(found) == (0.1, 0.01)


# -------------------------------------------------------------------------------------------------- promise, decisions


def test_guarantees_hold_where_confidence_is_calibrated():
    """An answer of probability p is right with probability p; the rule read off the curve breaks its promise."""
    n, rng, every = 1600, np.random.default_rng(0), []
    for seed in (0, 1):
        arrays = {}
        for part in ("calibration", "test"):
            p = rng.uniform(0.5, 1, n)
            arrays |= answers_of("full", part, rng.random(n) < p, probability=p)
        every.append(record("phantoms.full", arrays, seed))
    table = readout.promises(every, "full", risks=dict.fromkeys(rj.DATASETS, (0.15,)), repeats=25).set_index("rule")
    assert set(table["questions"]) == {n}
    assert table.loc["sgr", "mean"] <= 0.15
    assert table.loc["learn_then_test", "mean"] <= 0.15
    assert table.loc["empirical", "mean"] > 0.3
    assert 0.2 < table.loc["sgr", "coverage"] < table.loc["empirical", "coverage"]
    assert table["low"].min() >= 0
    assert table["high"].max() <= 1


def test_halves_part_pictures_and_not_questions():
    for half in readout._halves(PICTURES, 5):
        assert half.sum() == Q // 2
        assert not set(PICTURES[half]) & set(PICTURES[~half])


def test_simulated_promises_are_counted():
    world = rj.Simulation((100,), (0.1,), 4)
    arrays = {
        f"{rule}.100.0.1.{k}": np.array([0.05, 0.05, 0.05, 0.2]) for rule in rj.RULES for k in ("risk", "coverage")
    }
    table = readout.simulated([Record(Spec("rejection", "simulation", 0, "cpu", world), {}, arrays)])
    assert set(table["mean"]) == {0.25}
    assert set(table["n"]) == {4}


def test_decisions_lie_below_both_lines_where_thresholds_come_from_the_same_questions():
    rng, ask = np.random.default_rng(0), (0.0, 0.1, 0.3, 0.6, 1.0)
    p = rng.uniform(0.3, 1, 400)
    parts = [answers_of("full", part, np.random.default_rng(1).random(400) < p, probability=p)
             for part in ("calibration", "test")]  # fmt: skip
    table = readout.decisions(runs("scenes.full", *parts), ["full"], ask)
    cost = table.set_index(["method", "ask"])["mean"]
    for price in ask:
        assert cost["always_ask", price] == price
        assert cost["never_ask", price] == pytest.approx(1 - parts[0]["full.calibration.correct"].mean())
        assert cost["full", price] <= min(price, cost["never_ask", price]) + 1e-9
    assert cost["full", 0.3] < min(0.3, cost["never_ask", 0.3]) - 0.02


def test_decisions_without_calibration_questions_judge_the_other_half():
    """On the half that chooses all answers are right, on the other half none is."""
    half = next(iter(readout._halves(PICTURES, 1)))
    table = readout.decisions(runs("vqa_rad.full", answers_of("full", "test", half)), ["full"], (0.5,))
    assert table.set_index("method")["mean"].to_dict() == {"full": 1.0, "never_ask": 0.5, "always_ask": 0.5}


def test_effective_reliability_takes_its_threshold_from_the_calibration():
    """Calibration: the surest half is right. Test: so it is too, then nothing; by hand with that threshold."""
    parts = [
        answers_of("full", "calibration", EARLY < 20),
        answers_of("full", "test", EARLY < 10),  # the threshold of the calibration answers 10 wrong ones
    ]
    table = readout.reliable(runs("scenes.full", *parts), ["full"], (0.05, 0.5), (1.0, 10.0)).set_index("metric")
    assert table.loc["coverage at 0.05", "mean"] == pytest.approx(10 / 40)
    assert table.loc["coverage at 0.5", "mean"] == pytest.approx(20 / 40)
    assert table.loc["phi 1", "mean"] == pytest.approx((10 - 10) / 40)
    assert table.loc["phi 10", "mean"] == pytest.approx((10 - 100) / 40)


# ---------------------------------------------------------------------------------------------------- shift, detection


def test_a_shifted_part_keeps_the_threshold_of_the_calibration():
    """Calibration answers are all right and have probability 0.6, which is then the threshold, whatever comes."""
    half = np.where(np.arange(200) % 2, 0.7, 0.5)
    parts = [
        answers_of("full", "calibration", np.ones(200), probability=np.full(200, 0.6)),
        answers_of("full", "test", np.arange(200) % 2, probability=half),
        answers_of("full", "noise_0.2", np.arange(200) % 2 == 0, probability=half),
        answers_of("full", "noise_0.5", np.ones(200), probability=np.full(200, 0.59)),
    ]
    names = ["calibration", "test", "noise_0.2", "noise_0.5"]
    table = readout.shifts(runs("scenes.full", *parts, parts=names), "full", {"scenes": 0.05, "phantoms": 0.05})
    assert set(table["data"]) == {"scenes"}
    found = table.set_index(["part", "metric"])["mean"]
    assert [found[p, "coverage"] for p in names] == [1, 0.5, 0.5, 0]
    assert [found[p, "risk"] for p in names[:3]] == [0, 0, 1]
    assert ("noise_0.5", "risk") not in found  # nothing is answered
    assert found["noise_0.2", "accuracy"] == 0.5
    assert found["test", "aleatoric"] == pytest.approx(0.3)


def test_detection_is_the_auroc_of_an_uncertainty():
    rng = np.random.default_rng(0)
    inside, outside = rng.random(Q), rng.random(Q) + 0.3
    parts = [
        answers_of("full", "test", EARLY < 20, epistemic=inside),
        answers_of("full", "unanswerable", EARLY < 20, epistemic=outside),
    ]
    table = readout.detection(runs("phantoms.full", *parts), ["full"]).set_index("score")
    label = np.repeat([0, 1], Q)
    assert table.loc["epistemic", "mean"] == pytest.approx(roc_auc_score(label, np.append(inside, outside)))
    assert table.loc["probability", "mean"] == pytest.approx(0.5)
    assert "aleatoric" not in table.index  # constant


def test_conformal_sets_cover_and_without_calibration_questions_half_of_the_test_pictures_calibrate():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(4, 0.5), 400)
    y = np.array([rng.choice(4, p=row) for row in p]).astype(np.int16)
    one = {"full.test.mean": p, "answers.test": y, "pictures.test": np.arange(400)}
    two = {"full.calibration.mean": p[::-1].copy(), "answers.calibration": y[::-1].copy()}
    for arrays in (one, one | two):
        table = readout.conformal_sets(runs("scenes.full", arrays), alphas=(0.2,))
        covered = table[table["metric"] == "covered"]["mean"]
        assert len(covered) == 3
        assert covered.between(0.7, 0.95).all()


# ------------------------------------------------------------------------------------------------------------- effects


def test_first_epoch_with_a_share_of_the_last_accuracy():
    assert readout._epochs_to(history(0.1, 0.94, 0.96, 0.2, 1.0)) == 3
    assert readout._epochs_to(history(0.1, 0.94, 0.96, 0.2, 1.0), share=0.9) == 2
    assert readout._epochs_to(history(0.0)) == 1


def test_b1a_and_b5_are_those_of_vqa_rad():
    found = readout.effects(pair("vqa_rad", EARLY < 32, EARLY % 2, history=history(1.0)))
    assert found["B1a"].mean == pytest.approx(32 / 40 - 20 / 40)
    assert found["B5"].mean == pytest.approx(1 - 32 / 40)  # the wrong answers are the unsurest 20 %
    assert {claim for claim, effect in found.items() if effect is not None} == {"B1a", "B1b", "B5"}


def test_b1b_is_the_mean_over_data_sets_of_the_ratio():
    fast, slow = history(1.0, 1.0, 1.0, 1.0), history(0.1, 0.2, 0.3, 1.0)
    records = [
        *runs("scenes.full", history=fast),
        *runs("scenes.deterministic", history=slow),
        *runs("vqa_rad.full", history=slow),
        *runs("vqa_rad.deterministic", history=fast),
        *runs("phantoms.deterministic", history=slow),  # without its pair
    ]
    assert readout.effects(records)["B1b"].mean == pytest.approx((1 / 4 + 4) / 2)


def test_b2_is_positive_where_the_bayes_head_has_the_smaller_area():
    found = readout.effects(pair("phantoms", EARLY < 20, EARLY >= 20, pictures=400, history=history(1.0),
                                 metrics={"nll.full.val": 1.0, "accuracy.full.test": 0.5}))["B2"]  # fmt: skip
    assert found.mean == pytest.approx(aurc(EARLY < 20, -EARLY) - aurc(EARLY >= 20, -EARLY))
    assert found.mean > 0


def amounts_of(pictures, gain, epistemic, aleatoric, tail):
    right = np.arange(Q) < 20 + gain
    bayes = answers_of("full", "test", right, epistemic=np.full(Q, epistemic), aleatoric=np.full(Q, aleatoric))
    point = answers_of("deterministic", "test", EARLY < 20)
    about = {"pictures": pictures, "history": history(1.0)}
    metrics = {"nll.full.val": 1.0, "accuracy.full.test": 0.5}
    return [
        *runs(f"phantoms.full{tail}", bayes, metrics=metrics, **about),
        *runs(f"phantoms.deterministic{tail}", point, **about),
    ]


AMOUNTS = [
    *amounts_of(1600, 2, 0.1, 0.6, ".n1600"),
    *amounts_of(400, 20, 5.0, 5.0, ""),  # in the middle: does not count
    *amounts_of(100, 12, 0.4, 0.5, ".n100"),
]


def test_b3_and_b6_compare_the_smallest_with_the_largest_amount():
    found = readout.effects(AMOUNTS)
    assert found["B3"].mean == pytest.approx((12 - 2) / 40)
    assert found["B6a"].mean == pytest.approx(0.1 / 0.4)
    assert found["B6b"].mean == pytest.approx(0.6 / 0.5)
    table = readout.amounts(AMOUNTS).set_index(["pictures", "method", "metric"])["mean"]
    assert table[100, "full", "accuracy"] == pytest.approx(32 / 40)
    assert table[1600, "full", "epistemic"] == pytest.approx(0.1)
    some = readout.effects(AMOUNTS[4:8])
    assert (some["B3"], some["B4"]) == (None, None)  # one amount has no other, one point is no sweep
    assert readout.effects(AMOUNTS[:10])["B3"] is None  # the deterministic head of one amount is not there


def test_b4_takes_the_point_that_validation_chose():
    records = [dataclasses.replace(r, details={"pictures": 400}) for r in SWEEP]
    assert readout.effects(records)["B4"].mean == pytest.approx(0.6 - 0.55)
    assert readout.effects(records[:4])["B4"] is None  # these two heads alone are no sweep


def test_claims_wait_for_their_records():
    assert readout.effects([]) == dict.fromkeys(readout.CLAIMS)
    assert readout.said([], "scenes", "full") is None
    (bayes, *_) = pair("vqa_rad", EARLY < 20, EARLY < 10, history=history(1.0))
    assert readout.effects([bayes]) == dict.fromkeys(readout.CLAIMS)
