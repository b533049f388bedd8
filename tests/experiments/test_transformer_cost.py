"""Cost of transformers: slopes of power laws, a clock that sees attention only, counts that are the closed form."""

import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vqa_core.experiments import transformer_cost as tc

SMALL = tc.Model(dim=8, depth=2, heads=2, bottlenecks=2, latents=4, latent_blocks=2)
CLOCK = tc.Clock(0.0, 2, 4)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponent_looks_at_the_range_where_the_term_dominates(power):
    tokens = np.array(tc.LADDER, float)
    cost = 3e-6 * tokens**power
    cost[tokens < tc.RANGE[0]] = 1.0  # what does not grow hides what does
    assert tc.exponent(tokens, cost) == pytest.approx(power)
    assert tc.exponent([10, 20, 40], 5 * np.array([10.0, 20, 40]) ** power) == pytest.approx(power)
    with pytest.raises(ValueError, match="at least 2 positive"):
        tc.exponent([1024], [1.0])


def test_the_clock_sees_attention_and_nothing_else():
    fusion = tc.CURVES["early_concatenation"].build(SMALL)
    layer = fusion.layers[0].block

    def busy(*_):
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    with tc.AttentionClock(fusion.modules()) as inside:
        layer.mlp.register_forward_hook(busy)  # outside of attention
        fusion(*tc.inputs(1, 4, 3, 8, 0))
    assert 0 < inside.seconds < 0.02
    layer.attention.out.register_forward_hook(busy)
    with tc.AttentionClock(fusion.modules()) as inside:
        fusion(*tc.inputs(1, 4, 3, 8, 0))
    assert 0.02 <= inside.seconds < 0.04
    before = inside.seconds
    fusion(*tc.inputs(1, 4, 3, 8, 0))
    assert inside.seconds == before  # the hooks are gone


def test_a_perceivers_reading_is_timed_and_not_its_thinking():
    perceiver = tc.CURVES["perceiver"].build(SMALL)
    layers = tc.AttentionClock(tc.CURVES["perceiver"].timed(perceiver)).layers
    assert layers == [perceiver.reading[0].attention]
    assert len(tc.AttentionClock(perceiver.modules()).layers) == 1 + SMALL.latent_blocks


def test_the_shortest_turn_counts_and_the_first_does_not():
    calls = {"a": iter([0.1, 5.0, 3.0, 4.0]), "b": iter([0.1, 2.0, 7.0, 6.0])}
    got = tc.turns([lambda: next(calls["a"]), lambda: next(calls["b"])], tc.Clock(0.0, 3, 1))
    assert got.tolist() == [3.0, 2.0]
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("unit", tc.CURVES)
def test_operations_are_counted_without_computing(unit):
    method = tc.CURVES[unit]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        method.build(SMALL).eval()(*tc.inputs(1, 9, 5, 8, 0))
    assert tc.flops_of(method.build(SMALL), 9, 5, 8) == counter.get_total_flops() > 0


@pytest.mark.parametrize("unit", tc.CURVES)
def test_counted_operations_grow_as_predicted(unit):
    """What the fitted exponents of time stand beside: operations, whose differences have no constant term."""
    method = tc.CURVES[unit]
    counts = [tc.flops_of(method.build(SMALL), *tc.tokens_of(n, method.words), 8) for n in (1024, 2048, 4096)]
    assert np.log2(np.diff(counts)[1] / np.diff(counts)[0]) == pytest.approx(method.predicted, abs=0.1)


def test_written_out_attention_keeps_the_square_and_fused_attention_does_not():
    early = tc.CURVES["early_concatenation"].build(SMALL)
    kept = {
        explicit: [tc.kept_bytes(early, *tc.inputs(1, n, n, 8, 0), explicit) for n in (32, 64, 128)]
        for explicit in (False, True)
    }
    fused, written = (np.diff(kept[e])[1] / np.diff(kept[e])[0] for e in (False, True))
    assert fused == pytest.approx(2, rel=0.05)
    assert written > 3
    assert kept[True][2] - kept[False][2] > 0.95 * 2 * 2 * 256 * 256 * 4  # layers, heads, pairs, bytes


@pytest.mark.parametrize("unit", tc.CURVES)
def test_a_curve_keeps_its_contract(unit):
    spec = next(s for s in tc.specs("smoke") if s.unit == unit)
    outcome = tc.run(spec)
    assert len({len(a) for a in outcome.arrays.values()}) == 1
    assert (outcome.arrays["seconds"] >= outcome.arrays["seconds_attention"]).all()
    assert (outcome.arrays["seconds_attention"] > 0).all()
    assert max(outcome.arrays["tokens"]) == (128 if unit == "explicit" else 256)
    assert set(outcome.metrics) == {"exponent", "exponent_whole", "exponent_flops", "exponent_bytes"}
    assert outcome.details["predicted"] == tc.CURVES[unit].predicted


def test_steps_give_the_ratios_that_claims_need():
    spec = next(s for s in tc.specs("smoke") if s.unit == "steps")
    outcome = tc.run(spec)
    assert set(outcome.metrics) == set(tc.RATIOS)
    for name, (_, a, b) in tc.RATIOS.items():
        ratio = outcome.arrays[f"seconds.{a}"][0] / outcome.arrays[f"seconds.{b}"][0]
        assert outcome.metrics[name].value == pytest.approx(ratio)
    assert {claim for claim, *_ in tc.RATIOS.values() if claim} == {"F6b", "F7", "F8a"}


def test_a_step_trains():
    module = tc.CURVES["early_concatenation"].build(SMALL)
    before = [p.clone() for p in module.parameters()]
    tc.step_of(module, *tc.inputs(2, 4, 3, 8, 0))()
    changed = [not torch.equal(p, b) for p, b in zip(module.parameters(), before)]
    assert sum(changed) > len(changed) / 2
    assert all(p.grad is None for p in module.parameters())


def test_claims_are_measured_at_the_sizes_they_name():
    lengths, model = tc.PROFILES["cpu"].lengths, tc.PROFILES["cpu"].model
    assert (lengths.together[0], lengths.together[-1]) == (64, 4096)
    assert tc.RANGE == (1024, 4096)
    assert lengths.side == 1024
    assert lengths.inputs == (512, 4096)
    assert (model.latents, model.latent_blocks) == (512, 6)
    assert tc.PROFILES["cpu"].repeats >= 5
    for profile, config in tc.PROFILES.items():
        assert len(tc.specs(profile)) == config.repeats * (1 + len(tc.CURVES))
        assert all(n > (m.words or 0) for n in config.lengths.together for m in tc.CURVES.values())
    assert isinstance(tc.CURVES["explicit"].build(SMALL), nn.Module)
    assert tc.tokens_of(64, None) == (32, 32)
    assert tc.tokens_of(64, 16) == (48, 16)
