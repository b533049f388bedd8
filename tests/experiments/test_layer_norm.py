"""Pre-LN and Post-LN: layers are what they are called, gradients start as the paper says, runs keep their contract."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vqa_core.experiments import layer_norm as ln
from vqa_core.experiments.records import Metric, Record, Spec
from vqa_core.experiments.scene_encoders import scene_split
from vqa_core.training.feed import Feed
from vqa_core.training.loop import Training, answer_loss

IMAGE_DIM, TEXT_DIM, ANSWERS = 19, 11, 5
SMALL = ln.Model("pre", layers=3, dim=16, heads=2, hidden=32)


def model_of(norm: str, **sizes):
    torch.manual_seed(0)
    return ln.build(replace(SMALL, norm=norm, **sizes), IMAGE_DIM, TEXT_DIM, ANSWERS)


def random_feed(questions: int = 32) -> Feed:
    """Pictures of 4 tokens of which at least one is real, one text token."""
    chance = torch.Generator().manual_seed(1)
    pictures = torch.rand(questions, 4, IMAGE_DIM, generator=chance)
    pictures[:, 0, 0] = 1.0
    words = torch.randn(questions, 1, TEXT_DIM, generator=chance)
    answers = torch.randint(0, ANSWERS, (questions,), generator=chance)
    return Feed(pictures, torch.arange(questions), words, torch.ones(questions, 1, dtype=torch.bool), answers)


# --------------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("norm", ln.NORMS)
def test_a_layer_is_its_formula(norm):
    """norm(x + f(x)) or x + f(norm(x)), with attention and feed-forward part as f, written out."""
    layer, x = model_of(norm).fusion.layers[0], torch.randn(2, 5, 16)

    def attend(h):
        return layer.self_attn(h, h, h, need_weights=False)[0]

    def feed_forward(h):
        return layer.linear2(F.relu(layer.linear1(h)))

    if norm == "pre":
        middle = x + attend(layer.norm1(x))
        expected = middle + feed_forward(layer.norm2(middle))
    else:
        middle = layer.norm1(x + attend(x))
        expected = layer.norm2(middle + feed_forward(middle))
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_only_the_place_of_the_norms_differs():
    """At one seed both start from the same weights, and answer differently; Pre-LN alone has a norm at the end."""
    pre, post = model_of("pre"), model_of("post")
    both = set(pre.state_dict()) & set(post.state_dict())
    assert set(pre.state_dict()) - both == {"fusion.norm.weight", "fusion.norm.bias"}
    assert set(post.state_dict()) == both
    assert all(torch.equal(pre.state_dict()[k], post.state_dict()[k]) for k in both)
    batch = random_feed().batch(range(8))
    assert not torch.allclose(pre(*batch[:3]).logits, post(*batch[:3]).logits, atol=1e-2)


def test_layers_start_from_different_weights():
    first, second, third = (layer.linear2.weight for layer in model_of("pre").fusion.layers)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    bound = (6 / (16 + 32)) ** 0.5  # Xavier
    assert 0.9 * bound < first.abs().max() <= bound


@pytest.mark.parametrize("norm", ln.NORMS)
def test_every_parameter_learns(norm):
    model, batch = model_of(norm), random_feed().batch(range(32))
    answer_loss(model(*batch[:3]).logits, batch.answers).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("norm", ln.NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_padding_and_order_of_cells_change_nothing(norm, training):
    model, (pictures, words, mask, _) = model_of(norm).train(training), random_feed().batch(range(8))
    with torch.no_grad():  # torch takes another path through its layers here, in evaluation
        expected = model(pictures, words, mask).logits
        empty = torch.full((8, 3, IMAGE_DIM), 7.0)
        empty[..., 0] = 0.1  # no object there
        rubbish = torch.full((8, 2, TEXT_DIM), 7.0)
        padded = model(
            torch.cat([empty, pictures.flip(1)], 1),
            torch.cat([words, rubbish], 1),
            torch.cat([mask, torch.zeros(8, 2, dtype=torch.bool)], 1),
        ).logits
        parts = torch.cat([model(pictures[i : i + 3], words[i : i + 3], mask[i : i + 3]).logits for i in (0, 3, 6)])
    torch.testing.assert_close(padded, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts, expected, atol=1e-5, rtol=1e-5)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="norm is 'mid'"):
        replace(SMALL, norm="mid")
    with pytest.raises(ValueError, match="multiple of heads"):
        replace(SMALL, heads=3)


# ----------------------------------------------------------------------------------------------------- the gradients


@pytest.mark.parametrize("norm", ln.NORMS)
def test_gradient_norms_are_those_of_the_weights(norm):
    """For the last layer by finite differences along the gradient; nothing changes and no gradient stays."""
    model, feed = model_of(norm).double(), random_feed()
    feed.pictures, feed.words = feed.pictures.double(), feed.words.double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = ln.gradient_norms(model, feed)
    assert found.shape == (3,)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    batch, weight = feed.batch(range(32)), model.fusion.layers[-1].linear2.weight

    def loss():
        return F.cross_entropy(model(*batch[:3]).logits, batch.answers)

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction, step = gradient / gradient.norm(), 1e-5
    with torch.no_grad():
        weight += step * direction
        up = loss()
        weight -= 2 * step * direction
        down = loss()
    assert found[-1] == pytest.approx(float((up - down) / (2 * step)), rel=1e-3)


def test_top_gradient_is_larger_in_post_ln():
    """Theorem 1 of Xiong et al.: O(d √ln d) against O(d √(ln d / L)); so the ratio grows with the depth L."""
    feed = random_feed(128)

    def ratio(layers: int) -> float:
        pairs = []
        for seed in range(3):
            torch.manual_seed(seed)
            models = [ln.build(replace(SMALL, norm=n, layers=layers), IMAGE_DIM, TEXT_DIM, ANSWERS) for n in ln.NORMS]
            pre, post = (ln.gradient_norms(m, feed)[-1] for m in models)
            pairs.append(post / pre)
        assert min(pairs) > 1 or layers < 12
        return float(np.mean(pairs))

    shallow, deep = ratio(3), ratio(24)
    assert deep > 2
    assert deep > 1.5 * shallow


# ------------------------------------------------------------------------------------------------------------ the run


@pytest.mark.parametrize("profile", ln.PROFILES)
def test_specs_cover_every_combination(profile):
    specs, config = ln.specs(profile), ln.PROFILES[profile]
    assert len(specs) == len({s.hash for s in specs}) == 12 * config.seeds
    for s in specs:
        norm, warmup, rate = s.unit.split(".", 2)
        assert (s.model.norm, s.training.learning_rate) == (norm, float(rate))
        warm = round(s.training.warmup * 100)
        assert warm == {"warm": 20, "cold": 0}[warmup]
    assert sorted(ln.RATES)[1] == ln.SAME_RATE
    cold = next(s.training for s in specs if ".cold." in s.unit)
    assert cold.rate(0, 100) == cold.learning_rate  # at once the full rate


def spec_of(unit: str = "pre.warm.0.002", seed: int = 0) -> Spec:
    return next(s for s in ln.specs("smoke") if (s.unit, s.seed) == (unit, seed))


def test_a_run_keeps_its_contract(tiny, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    spec, test = spec_of(), scene_split("smoke", "test")
    outcome = ln.run(spec)
    asked = [s for s in test if s.family == ln.FAMILY and test.picture_index(s.picture_id) < spec.data.test]
    n = len(asked)
    a, m, d = outcome.arrays, outcome.metrics, outcome.details
    assert a["correct_test"].dtype == bool
    assert n == len(a["correct_test"]) == m["accuracy_test"].n == d["questions"]["test"] > 0
    assert list(a["picture_test"]) == [test.picture_index(s.picture_id) for s in asked]
    right = [d["answers"][p] == s.answer for p, s in zip(a["predicted_test"], asked)]
    assert right == list(a["correct_test"])
    assert m["accuracy_test"].value == pytest.approx(np.mean(right))
    assert m["accuracy_val"].value == pytest.approx(max(e["validation"] for e in d["history"]))
    assert a["gradient_norm"].shape == (spec.model.layers,)
    assert (a["gradient_norm"] > 0).all()
    assert d["diverged"] is False
    assert d["data_hash"] == test.content_hash()
    # again, the other norm, another rate, another seed
    assert ln.run(spec).details["history"] == d["history"]
    other = ln.run(spec_of("pre.cold.0.008"))
    assert (other.arrays["gradient_norm"] == a["gradient_norm"]).all()  # the same start
    assert other.details["history"] != d["history"]
    assert (ln.run(spec_of("post.warm.0.002")).arrays["gradient_norm"] != a["gradient_norm"]).all()
    assert (ln.run(spec_of(seed=1)).arrays["gradient_norm"] != a["gradient_norm"]).all()
    # a run that ends in NaN, in its second epoch, is a result
    real, calls = ln.gradient_norms, []

    def poisoned(model, feed):
        def break_weights(module, inputs):
            if module.training:
                calls.append(1)
                if len(calls) > -(-len(feed) // spec.training.batch_size):
                    module.layers[0].linear1.weight.data.fill_(float("nan"))

        norms = real(model, feed)
        model.fusion.register_forward_pre_hook(break_weights)
        return norms

    monkeypatch.setattr(ln, "gradient_norms", poisoned)
    broken = ln.run(replace(spec, training=replace(spec.training, epochs=3)))
    train = ln.part_of("smoke", "train", spec.data.train)
    usual = int(torch.bincount(train.answers[train.answers >= 0]).argmax())
    assert broken.details["diverged"] is True
    assert len(broken.details["history"]) == 1
    assert set(broken.arrays["predicted_test"]) == {usual}
    assert list(broken.arrays["correct_test"]) == [s.answer == d["answers"][usual] for s in asked]
    assert not list(tmp_path.glob("not_finite*"))  # what the loop kept for inspection is gone with its folder
    with pytest.raises(ValueError, match="41 pictures of split 'train'"):
        ln.part_of("smoke", "train", 41)


# -------------------------------------------------------------------------------------------------------- the readout


def planted(
    right: dict[str, float], validation: dict[str, float], seeds: int = 3, questions: int = 400
) -> list[Record]:
    """Records in which every unit answers its share of questions rightly: the first ones, but for one by seed."""
    records = []
    for (norm, warmup, rate), seed in product(product(ln.NORMS, ln.WARMUPS, ln.RATES), range(seeds)):
        unit = ln.unit_of(norm, warmup, rate)
        correct = np.arange(questions) < round(right.get(unit, 0.5) * questions)
        correct[-1 - seed] = True
        records.append(
            Record(
                Spec("layer_norm", unit, seed, "smoke", None, replace(SMALL, norm=norm), Training(learning_rate=rate)),
                {"accuracy_val": Metric(validation.get(unit, 0.1), 100)},
                {
                    "correct_test": correct,
                    "picture_test": np.arange(questions, dtype=np.int32) // 2,
                    "gradient_norm": np.array([1.0, 2.0 + seed]) * (2 if norm == "post" else 1),
                },
                {"diverged": unit == "post.cold.0.008" and seed == 0, "history": []},
            )
        )
    return records


RIGHT = {"pre.cold.0.002": 0.8, "post.cold.0.002": 0.6, "pre.warm.0.008": 0.75, "post.warm.0.0005": 0.7}
# test accuracy must not choose: units with a better one have a lower validation accuracy
RIGHT |= {"pre.warm.0.002": 0.95, "post.warm.0.002": 0.99}
VALIDATION = {"pre.warm.0.008": 0.6, "post.warm.0.0005": 0.6, "pre.warm.0.002": 0.5, "post.warm.0.002": 0.5}
VALIDATION |= {"pre.cold.0.008": 0.9, "post.cold.0.008": 0.9}  # not asked about


def test_comparison_finds_what_was_planted():
    found = ln.comparison(planted(RIGHT, VALIDATION))
    assert found.without_warmup.interval.mean == pytest.approx(0.2)
    assert found.best == {"pre": "pre.warm.0.008", "post": "post.warm.0.0005"}
    assert found.with_warmup.interval.mean == pytest.approx(-0.05)
    for d in (found.without_warmup, found.with_warmup):
        assert d.interval.low < d.interval.mean < d.interval.high
        assert (d.interval.n, d.interval.seeds) == (400, 3)
        assert "200 groups" in d.interval.method
    assert found.without_warmup.interval.low > 0.01
    assert list(found.table) == ["unit", "mean", "low", "high", "n", "seeds", "diverged"]
    table = found.table.set_index("unit")
    assert len(table) == 12
    assert table.loc["pre.cold.0.002", "mean"] == pytest.approx(0.8 + 1 / 400)
    assert table["diverged"].sum() == table.loc["post.cold.0.008", "diverged"] == 1


def test_comparison_takes_the_rate_it_is_given():
    records = planted(RIGHT | {"pre.cold.0.008": 0.3, "post.cold.0.008": 0.4}, VALIDATION)
    assert ln.comparison(records, rate=8e-3).without_warmup.interval.mean == pytest.approx(-0.1)


def test_comparison_refuses_what_is_not_paired():
    records = planted(RIGHT, VALIDATION)
    with pytest.raises(ValueError, match=r"no records of post\.cold\.0\.002"):
        ln.comparison([r for r in records if r.spec.unit != "post.cold.0.002"])
    with pytest.raises(ValueError, match=r"post\.cold\.0\.002 has seeds \[0, 2\]"):
        ln.comparison([r for r in records if (r.spec.unit, r.spec.seed) != ("post.cold.0.002", 1)])
    last = records[-1]
    moved = replace(last, arrays=last.arrays | {"picture_test": last.arrays["picture_test"] + 1})
    with pytest.raises(ValueError, match="other questions"):
        ln.comparison([*records[:-1], moved])


def test_gradient_table_counts_each_start_once():
    table = ln.gradient_table(planted(RIGHT, VALIDATION)).set_index(["norm", "layer"])
    assert len(table) == 4
    assert (table["n"] == 3).all()
    assert table.loc[("pre", 2), "mean"] == pytest.approx(3.0)
    assert table.loc[("post", 2), "mean"] == pytest.approx(6.0)
    assert table.loc[("pre", 1), "low"] == table.loc[("pre", 1), "high"] == 1.0
