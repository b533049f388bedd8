"""Cost of fusions: slopes of known power laws, counts that grow as they should, a clock that measures."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from vqa_core.experiments import fusion_cost as fc
from vqa_core.experiments.records import Metric, Record, Spec


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponent_of_a_power_law(power):
    tokens = np.array(fc.LADDER)
    assert fc.exponent(tokens, 3e-6 * tokens**power) == pytest.approx(power)


def test_exponent_looks_at_the_larger_half():
    tokens = np.array([1, 10, 100, 1000, 10000, 100000])
    cost = np.array([5, 5, 5, 1, 100, 10000])
    assert fc.exponent(tokens, cost) == pytest.approx(2)
    with pytest.raises(ValueError, match="at least 3 positive"):
        fc.exponent([1, 2], [1, 2])


def record(value, unit="early", seed=0):
    return Record(Spec("fusion_cost", unit, seed, "smoke"), {"exponent": Metric(value, 4)})


def test_interval_over_repeats():
    found = fc.exponent_interval([record(v, seed=i) for i, v in enumerate([1.9, 2.0, 2.1, 2.0, 2.0])])
    assert found.mean == pytest.approx(2.0)
    assert 1.9 <= found.low < 2.0 < found.high <= 2.1
    assert found.n == 5
    with pytest.raises(ValueError, match="at least two repeats of one method"):
        fc.exponent_interval([record(1.0), record(1.0, "san")])


def test_clock_sees_work_and_not_waiting():
    class Busy(nn.Module):
        def forward(self, *_):
            end = time.process_time() + 0.01
            while time.process_time() < end:
                pass

    class Asleep(nn.Module):
        def forward(self, *_):
            time.sleep(0.01)

    sizes = fc.Model("early", 4, 2)
    feed, clock = fc.inputs(fc.Tokens((16,), 4), 16, sizes, seed=0), fc.Clock(0.0, 3)
    assert fc.seconds_of(Busy(), feed, clock) == pytest.approx(0.01, rel=0.5)
    assert fc.seconds_of(Asleep(), feed, clock) < 0.005
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("unit", fc.METHODS)
def test_a_run_keeps_its_contract(unit):
    spec = next(s for s in fc.specs("smoke") if s.unit == unit)
    outcome = fc.run(spec)
    arrays = outcome.arrays
    np.testing.assert_array_equal(arrays["image_tokens"] + arrays["text_tokens"], arrays["tokens"])
    assert {len(a) for a in arrays.values()} == {len(spec.data.together)}
    assert (arrays["seconds"] > 0).all()
    assert set(outcome.metrics) == {"exponent", "exponent_flops", "exponent_bytes", "seconds_at_largest"}
    assert outcome.details["fitted_from"] == 256


def test_joint_attention_counts_quadratically_and_reading_linearly():
    """Operations are exact numbers: doubling N must quadruple the attention of ``early`` and double the rest."""
    growth = {}
    for unit in ("early", "cross_attention", "ban", "san", "token_film", "attend_film"):
        model = fc.Model(unit, 4, 1)
        tokens = fc.Tokens((1024, 2048, 4096), 16)
        counts = []
        for together in tokens.together:
            fusion = fc.METHODS[unit].build(4, together - 16, 16)
            whole = fc.VQAModel(fc.CachedTokens(4), fc.CachedTokens(4), fusion, nn.Identity())
            counts.append(fc.floating_point_operations(whole, fc.inputs(tokens, together, model, 0)))
        growth[unit] = np.log2((counts[2] - counts[1]) / (counts[1] - counts[0]))
    for unit, found in growth.items():
        assert found == pytest.approx(fc.METHODS[unit].predicted, abs=0.15), unit


def test_every_method_has_its_repeats():
    for profile, config in fc.PROFILES.items():
        specs = fc.specs(profile)
        assert len(specs) == config.repeats * len(fc.METHODS)
        assert all(t > config.tokens.text for t in config.tokens.together)
    assert min(fc.LADDER) == 64
    assert max(fc.LADDER) == 4096
