"""Experiment ``cross_attention``: splits, scores and defects are what they are called, a class of one's own runs."""

import math
import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn

from vqa_core.__main__ import main
from vqa_core.experiments import caption_encoder, runner
from vqa_core.experiments import cross_attention as ca
from vqa_core.experiments.caption_encoder import CAPTIONS, MatchingTokens
from vqa_core.experiments.cross_attention import BATCH, Gallery, Model, Recipe
from vqa_core.experiments.records import Spec, load_record
from vqa_core.fusion.cross_attention import VERSIONS
from vqa_core.training.matching import Matcher

every = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(scope="module")
def _made(tmp_path_factory, shrink_captions, forget_captions):
    root = tmp_path_factory.mktemp("matching")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQA_RESULTS", str(root))
        shrink_captions(patch)
        runner.run_experiment("caption_encoder", "smoke", workers=1, progress=False)
        for split in ("train", "val", "test"):
            caption_encoder.matching_tokens("smoke", split)
    forget_captions()
    return root


@pytest.fixture
def made(_made, tmp_path, monkeypatch, shrink_captions, forget_captions):
    """A folder of results in which both encoders are trained (a copy); VQA_RESULTS points to it."""
    root = tmp_path / "results"
    shutil.copytree(_made, root)
    monkeypatch.setenv("VQA_RESULTS", str(root))
    shrink_captions(monkeypatch)
    yield root
    forget_captions()


# --------------------------------------------------------------------------------------------------- splits and draws


def as_set(pairs):
    return {tuple(p) for p in pairs.reshape(-1, 2).tolist()}


def test_the_published_split_parts_all_pairs_and_shares_pictures():
    train, held = ca.leaky_split(50, seed=3)
    assert (len(train), len(held)) == (200, 50)
    assert as_set(train) | as_set(held) == {(p, c) for p in range(50) for c in range(CAPTIONS)}
    assert not as_set(train) & as_set(held)
    shared = set(held[:, 0].tolist()) & set(train[:, 0].tolist())
    assert len(shared) > 0.95 * len(set(held[:, 0].tolist()))  # all five captions of a picture are rarely held out
    assert np.array_equal(ca.leaky_split(50, 3)[0], train)
    assert not np.array_equal(ca.leaky_split(50, 4)[0], train)


def test_a_leaky_draw_is_from_the_published_split_and_shows_all_of_it_each_epoch():
    recipe = Recipe("in_batch", True, 30, 1e-3, batch_size=20)
    drawn = ca.draw_pairs(recipe, 50, seed=3)
    assert drawn.shape == (30, 20, 2)
    train, held = ca.leaky_split(50, 3)
    for epoch in drawn.reshape(3, 200, 2):
        assert as_set(epoch) == as_set(train)
    assert not as_set(drawn) & as_set(held)
    assert any(len(set(b[:, 0].tolist())) < 20 for b in drawn)  # two captions of one picture in a batch
    assert not np.array_equal(drawn[:10], drawn[10:20])  # in another order


def test_a_clean_draw_shows_every_picture_once_each_epoch_with_any_caption():
    recipe = Recipe("pairwise", False, 40, 1e-3, batch_size=10)
    drawn = ca.draw_pairs(recipe, 50, seed=0)
    for epoch in drawn.reshape(8, 50, 2):
        assert sorted(epoch[:, 0].tolist()) == list(range(50))
    assert all(len(set(b[:, 0].tolist())) == 10 for b in drawn)
    assert set(drawn[..., 1].ravel().tolist()) == set(range(CAPTIONS))
    assert len(as_set(drawn)) > 180  # captions are drawn anew: 8 epochs see most of 250 pairs
    assert np.array_equal(ca.draw_pairs(recipe, 50, 0), drawn)
    assert not np.array_equal(ca.draw_pairs(recipe, 50, 1), drawn)


@pytest.mark.parametrize("leaky", [True, False])
@pytest.mark.parametrize(("pictures", "size"), [(24, 24), (31, 7), (30, 24)])
def test_no_pair_is_twice_in_a_batch_of_any_size(leaky, pictures, size):
    drawn = ca.draw_pairs(Recipe("pairwise", leaky, 25, 1e-3, batch_size=size), pictures, 0)
    assert drawn.shape == (25, size, 2)
    assert all(len(as_set(b)) == size for b in drawn)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size=24 is more than the 23 to draw from; take more pictures"):
        ca.draw_pairs(Recipe("pairwise", False, 1, 1e-3), 23, 0)
    with pytest.raises(ValueError, match="batch_size=24 is more than the 20 to draw from"):
        ca.draw_pairs(Recipe("in_batch", True, 1, 1e-3), 5, 0)
    assert ca.draw_pairs(Recipe("in_batch", True, 1, 1e-3), 6, 0).shape == (1, 24, 2)


def test_standardised_has_mean_0_and_spread_1_over_what_it_is_like():
    like = torch.randn(500, 3) * torch.tensor([1.0, 10, 0]) + torch.tensor([5.0, -3, 2])
    x = torch.stack([like[:4], like[4:8]])  # (2, 4, F)
    found = ca.standardised(like, like)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(0), torch.tensor([1.0, 1, 0]))
    assert found[:, 2].eq(0).all()  # a feature that never changes says nothing, and divides by nothing
    torch.testing.assert_close(ca.standardised(x, like), found[:8].reshape(2, 4, 3))


@pytest.mark.parametrize("protocol", ca.PROTOCOLS)
def test_tokens_are_standardised_by_the_training_split_alone(made, protocol):
    train, test = (ca.tokens_of("smoke", split, protocol) for split in ("train", "test"))
    for real in (train.image[train.image_mask], train.text[train.text_mask]):
        torch.testing.assert_close(real.mean(0), torch.zeros(real.shape[1]), atol=1e-4, rtol=0)
        assert ((real.std(0) - 1).abs() < 1e-3).logical_or(real.std(0) < 1e-3).all()
    raw, of_train = (caption_encoder.matching_tokens("smoke", split) for split in ("test", "train"))
    if protocol != "tokens":
        raw, of_train = raw.as_one(), of_train.as_one()
        assert test.image.shape[1] == test.text.shape[2] == 1
    else:
        assert test.text.shape[2] > 1
    seen = of_train.text[of_train.text_mask]
    torch.testing.assert_close(test.text, (raw.text - seen.mean(0)) / seen.std(0))
    assert torch.equal(test.image_mask, raw.image_mask)


# ----------------------------------------------------------------------------------------------------------- measures


def test_accuracy_in_a_batch_of_scores_made_by_hand():
    assert ca.batch_accuracy(np.eye(2 * BATCH)) == 1
    assert ca.batch_accuracy(np.full((2 * BATCH, 2 * BATCH), 0.3)) == pytest.approx(1 / BATCH)
    assert ca.batch_accuracy(-np.eye(2 * BATCH)) == 0
    half = np.eye(2 * BATCH)
    half[:BATCH, :BATCH] = 0.3
    assert ca.batch_accuracy(half) == pytest.approx((1 + 1 / BATCH) / 2)
    only_columns = np.tile(np.arange(BATCH)[:, None], BATCH) + 0.5 * np.eye(BATCH)  # by row right, by column the last
    assert ca.batch_accuracy(only_columns) == pytest.approx((1 + 1 / BATCH) / 2)


def test_each_batch_is_a_question_of_its_own():
    elsewhere = np.ones((2 * BATCH, 2 * BATCH))  # every wrong candidate of another batch scores higher
    for i in (0, BATCH):
        elsewhere[i : i + BATCH, i : i + BATCH] = 0.5 * np.eye(BATCH)
    assert ca.batch_accuracy(elsewhere) == 1
    assert ca.recall_both_ways(elsewhere, 1) == 0
    rest = np.pad(np.eye(BATCH), (0, 7), constant_values=3)  # seven pictures fill no batch
    assert ca.batch_accuracy(rest) == 1
    assert ca.batch_accuracy(np.zeros((10, 10))) == pytest.approx(1 / 10)  # a gallery smaller than a batch is one


def test_five_captions_with_identical_outputs_are_chance():
    found = ca.caption_test(np.full((20, 20), 0.9), temperature=0.1)
    assert found["trained"] == pytest.approx(1 / 5)
    assert found["ratio"] == 1
    assert found["gap"] == found["spread"] == 0
    assert found["similarity"] == pytest.approx(9)
    rounded = np.full((20, 20), 0.9) + 1e-7 * np.random.default_rng(0).standard_normal((20, 20))
    assert ca.caption_test(rounded, 0.01)["trained"] == pytest.approx(1 / 5)  # though an argmax would find a best one


def test_five_captions_of_a_picture_are_its_own_and_the_next_four():
    """By picture: own first; own second; own equal to another, both best."""
    cosines = np.full((6, 6), -1.0)
    cosines[0, :5] = [0.9, 0.3, 0.2, 0.1, 0.0]
    cosines[1, [1, 2, 3, 4, 5]] = [0.3, 0.6, 0.2, 0.1, 0.0]
    cosines[2, [2, 3, 4, 5, 0]] = [0.5, 0.1, 0.1, 0.1, 0.5]
    cosines[0, 5] = cosines[1, 0] = 1.0  # not among the five
    rows = [0, 1, 2]
    temperature = 0.1
    five = np.array([cosines[i, [(i + k) % 6 for k in range(5)]] for i in rows])
    best = -np.sort(-five, axis=1) / temperature
    cosines[3:] = cosines[:3][:, [3, 4, 5, 0, 1, 2]]  # the same three once more, three places on
    found = ca.caption_test(cosines, temperature)
    assert found["trained"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert best[:, 0].tolist() == pytest.approx([9, 6, 5])
    assert found["ratio"] == pytest.approx(np.median([9 / 3, 6 / 3, 1]))
    assert found["gap"] == pytest.approx(np.median([6, 3, 0]))
    assert found["spread"] == pytest.approx(np.median([9, 6, 4]))
    assert found["similarity"] == pytest.approx(6)


class Says(nn.Module):
    """A matcher whose cosine is the product of the two sides; in the batch, it may know which pairs are right."""

    def __init__(self, leaks=False, temperature=0.07):
        super().__init__()
        self.leaks, self.temperature = leaks, nn.Parameter(torch.tensor(temperature))

    def used_temperature(self):
        return self.temperature.clamp(min=0.01)

    def forward(self, image, text, image_mask, text_mask, scoring="pairwise"):
        cosines = image.sum(1) @ text.sum(1).T  # (P, C)
        if self.leaks and scoring == "in_batch":
            cosines = torch.eye(len(image))
        return cosines / self.used_temperature()


def one_token(image, text):
    """Tokens of one per side, from image (P, F) and first captions (P, F); other captions are rubbish."""
    others = torch.full((len(text), CAPTIONS - 1, text.shape[1]), 1e3)
    text = torch.cat([text.unsqueeze(1), others], 1).unsqueeze(2)  # (P, 5, 1, F)
    return MatchingTokens(
        image.unsqueeze(1), torch.ones(len(image), 1, dtype=torch.bool), text, text[..., 0] == text[..., 0]
    )


def test_a_perfect_matcher_is_measured_as_one():
    found, hits = ca.measure(Says(), one_token(torch.eye(50), 0.1 + 0.9 * torch.eye(50)), Gallery(25, 2))
    assert hits.shape == (2, 2, 25)
    assert hits.dtype == np.float32
    assert (hits == 1).all()
    ones = ("r1", "r5", "r10", "median_rank", "in_batch_accuracy", "pairwise_accuracy", "five.trained")
    assert {found[name] for name in ones} == {1}
    assert found["leak"] == 0
    assert found["similarity_of_pairs"] == pytest.approx(1)
    assert found["score_spread"] == pytest.approx(0.9 * math.sqrt(1 / 25 * 24 / 25))
    assert found["five.gap"] == pytest.approx(0.9 / 0.07)
    assert found["five.ratio"] == pytest.approx(10)


@pytest.mark.parametrize("leaks", [False, True])
def test_a_constant_matcher_is_at_chance_whatever_it_knows_in_the_batch(leaks):
    constant = torch.full((60, 3), 0.5)
    found, hits = ca.measure(Says(leaks), one_token(constant, constant), Gallery(30, 2))
    assert hits == pytest.approx(np.full((2, 2, 30), 1 / 30))
    for name, chance in {
        "r1": 1 / 30,
        "r5": 5 / 30,
        "r10": 10 / 30,
        "median_rank": 15.5,
        "five.trained": 1 / 5,
    }.items():
        assert found[name] == pytest.approx(chance), name
    assert found["pairwise_accuracy"] == pytest.approx(1 / BATCH)
    assert found["in_batch_accuracy"] == pytest.approx(1 if leaks else 1 / BATCH)
    assert found["leak"] == pytest.approx(found["in_batch_accuracy"] - found["pairwise_accuracy"])
    assert (found["five.gap"], found["five.ratio"], found["score_spread"]) == (0, 1, 0)


def test_galleries_have_pictures_of_their_own_and_are_averaged():
    """The first is matched, the second knows nothing; pictures beyond them do not matter."""
    text = 0.1 + 0.9 * torch.eye(30)
    text[10:20] = 0.1
    found, hits = ca.measure(Says(), one_token(torch.eye(30), text), Gallery(10, 2))
    assert found["r1"] == pytest.approx((1 + 1 / 10) / 2)
    assert found["median_rank"] == pytest.approx((1 + 5.5) / 2)
    np.testing.assert_allclose(hits[0], 1)
    np.testing.assert_allclose(hits[1], 1 / 10, rtol=1e-6)
    _, among_three = ca.measure(Says(), one_token(torch.eye(30), text), Gallery(10, 2), first=3)
    np.testing.assert_allclose(among_three[1], 3 / 10, rtol=1e-6)


def test_cosines_are_logits_without_their_temperature():
    torch.manual_seed(0)
    matcher, image, text = Matcher(7, 6, VERSIONS["v9"](16)), torch.randn(9, 7), torch.randn(9, 6)
    matcher.temperature.data.fill_(0.3)
    tokens = one_token(image, text)
    for scoring in ("pairwise", "in_batch"):
        found = ca.pair_cosines(matcher.train(), tokens, slice(2, 7), scoring)
        with torch.no_grad():
            logits = matcher.eval()(image[2:7, None], text[2:7, None], scoring=scoring)
        np.testing.assert_allclose(found, 0.3 * logits.numpy(), atol=1e-6)
        assert np.abs(found).max() <= 1 + 1e-6


# ------------------------------------------------------------------------------------------------------------ defects


def trained(version, dim=16):
    """A matcher, no parameter of which is as at the start."""
    torch.manual_seed(1)
    matcher = Matcher(7, 6, VERSIONS[version](dim))
    with torch.no_grad():
        for p in matcher.module.parameters():
            p.normal_(2, 0.5)
    return matcher, Model(version, dim, 1)


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


@every
@pytest.mark.parametrize("defect", ["as_v0", "dropped"])
def test_a_defect_changes_the_module_alone_and_the_original_not_at_all(version, defect):
    matcher, model = trained(version)
    before, module = state(matcher), matcher.module
    broken = ca.with_defect(matcher, model, defect, seed=4)
    assert matcher.module is module
    assert all(torch.equal(v, before[k]) for k, v in matcher.state_dict().items())
    outside = [k for k in before if not k.startswith("module.")]
    assert len(outside) == 5  # two projections, and the temperature
    assert all(torch.equal(broken.state_dict()[k], before[k]) for k in outside)
    with torch.no_grad():
        for p in broken.parameters():
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in matcher.state_dict().items())  # nothing is shared


@every
def test_as_v0_is_the_module_without_parameters(version):
    matcher, model = trained(version)
    broken = ca.with_defect(matcher, model, "as_v0", 0)
    assert type(broken.module) is VERSIONS["v0"]
    assert not state(broken.module)
    tokens = one_token(torch.randn(6, 7), torch.randn(6, 6))
    by_hand = Matcher(7, 6, VERSIONS["v0"](16))
    by_hand.load_state_dict({k: v for k, v in state(matcher).items() if not k.startswith("module.")})
    found, expected = (ca.pair_cosines(m, tokens, slice(None)) for m in (broken, by_hand))
    np.testing.assert_array_equal(found, expected)


LOST = {
    "v0": set(),
    "v2": {"norm.weight", "norm.bias"},
    "v4": {"norm.weight", "norm.bias"} | {f"project.{s}.{p}" for s in ("image", "text") for p in ("weight", "bias")},
    "v6": {"norm.weight", "norm.bias"},
    "v9": {f"{n}.{p}" for n in ("norm", "out", "feed_norm") for p in ("weight", "bias")},
    "v10_5": {f"{n}.{p}" for n in ("out", "feed_norm") for p in ("weight", "bias")}
    | {f"levels.{i}.{j}.{p}" for i in range(3) for j in range(2) for p in ("weight", "bias")},
}


@pytest.mark.parametrize("version", LOST)
def test_dropped_weights_are_fresh_and_all_others_are_kept(version):
    matcher, model = trained(version)
    before, now = state(matcher.module), state(ca.with_defect(matcher, model, "dropped", 4).module)
    assert now.keys() == before.keys()
    assert {k for k in now if not torch.equal(now[k], before[k])} == LOST[version]
    again, other = (state(ca.with_defect(matcher, model, "dropped", s).module) for s in (4, 5))
    assert all(torch.equal(again[k], v) for k, v in now.items())
    drawn = {k for k in LOST[version] if "norm" not in k and k.split(".")[-2] != "1"}  # norms start at 1 and 0
    assert {k for k in now if not torch.equal(other[k], now[k])} == drawn
    if version == "v9":
        assert now["norm.weight"].eq(1).all()
        assert now["norm.bias"].eq(0).all()


def test_another_defect_is_refused():
    with pytest.raises(ValueError, match="defect is 'lost', allowed are 'as_v0' and 'dropped'"):
        ca.with_defect(*trained("v2"), "lost", 0)


# --------------------------------------------------------------------------------------------------------------- cost


def test_cost_of_v2_with_one_token_is_its_closed_form():
    """Per pair one product of two vectors of D numbers, the score; projections once per picture and per caption.

    What is weighted by the one weight is a multiplication by a number, which the counter leaves out, as it does norms.
    """
    dim, pictures = 32, 30
    spec = Spec("cross_attention", "pairwise.v2", 0, "smoke", None, Model("v2", dim, 1))
    matcher = Matcher(7, 6, VERSIONS["v2"](dim))
    found = ca.cost(spec, matcher.train(), one_token(torch.randn(pictures, 7), torch.randn(pictures, 6)))
    assert found["parameters"] == 2 * dim
    assert found["flops"] == pytest.approx(2 * dim + (7 + 6) * 2 * dim / BATCH)
    assert 0 < found["seconds"] < 1
    assert matcher.training  # measured on a copy


def test_cost_counts_all_versions_and_more_for_more_tokens():
    def cost_of(version, length):
        tokens = MatchingTokens(
            torch.randn(4, length, 7), torch.ones(4, length, dtype=torch.bool),
            torch.randn(4, 5, length, 6), torch.ones(4, 5, length, dtype=torch.bool),
        )  # fmt: skip
        spec = Spec("cross_attention", f"tokens.{version}", 0, "smoke", None, Model(version, 16, 1))
        return ca.cost(spec, Matcher(7, 6, VERSIONS[version](16)), tokens)

    flops = {(v, n): cost_of(v, n)["flops"] for v in ("v2", "v9") for n in (2, 4)}
    assert flops["v9", 2] > 3 * flops["v2", 2]
    assert 2 * flops["v2", 2] < flops["v2", 4] < 4 * flops["v2", 2]  # attention by N², projections by N
    assert cost_of("v9", 2)["parameters"] == sum(p.numel() for p in VERSIONS["v9"](16).parameters())


# --------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("profile", ca.PROFILES)
def test_specs_are_all_different(profile):
    specs = ca.specs(profile)
    assert len(specs) == len(ca.PROTOCOLS) * len(VERSIONS)
    assert len({s.path() for s in specs}) == len({s.hash for s in specs}) == len({s.unit for s in specs}) == len(specs)
    config = ca.PROFILES[profile]
    for spec in specs:
        protocol, version = spec.unit.split(".")
        assert spec.model == Model(version, config.dim[protocol], config.seeds)
        assert (spec.training.scoring == "in_batch") is spec.training.leaky is (protocol == "published")
        assert ca.make_module(spec.model).dim == spec.model.dim
    assert set(ca.KEPT) <= {s.unit for s in specs}


def planted(pictures, seed):
    """Tokens of one per side that hold the same hidden vector, each in its own way."""
    world, chance = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    to_image, to_text = torch.randn(8, 16, generator=world), torch.randn(8, 12, generator=world)
    hidden = torch.randn(pictures, 8, generator=chance)
    tokens = one_token(hidden @ to_image, hidden @ to_text)
    return tokens._replace(text=tokens.text[:, :1].expand(-1, CAPTIONS, -1, -1))


def test_pairwise_training_finds_what_was_planted():
    spec = Spec("cross_attention", "x", 0, "smoke", None, Model("v2", 16, 2), Recipe("pairwise", False, 80, 1e-2))
    seen = []
    matchers = ca.train(spec, planted(100, 1), lambda step, losses, now: seen.append((step, len(losses), len(now))))
    assert seen == [(step, 2, 2) for step in range(80)]
    for matcher in matchers:
        assert ca.measure(matcher, planted(40, 2), Gallery(40, 1))[0]["r1"] > 0.5  # chance is 0.025
    first, second = (m.image_projection.weight for m in matchers)
    assert not torch.equal(first, second)
    again = ca.train(spec, planted(100, 1))
    assert torch.equal(again[0].image_projection.weight, first)


def test_published_training_of_v5_finds_nothing_though_it_was_planted():
    spec = Spec("cross_attention", "x", 0, "smoke", None, Model("v5", 16, 1), Recipe("in_batch", True, 80, 1e-2))
    losses = []
    (matcher,) = ca.train(spec, planted(100, 1), lambda step, now, _: losses.append(now[0]))
    assert losses[-1] < 0.3  # log 24 is 3.2: it looks learned
    found = ca.measure(matcher, planted(40, 2), Gallery(40, 1))[0]
    assert found["in_batch_accuracy"] == 1
    assert found["r1"] == pytest.approx(1 / 40)


def test_held_out_captions_of_the_published_split_are_looked_for_among_shared_pictures():
    """A matcher that knows the training captions alone finds no held-out one, and the other way round."""
    train, held = (as_set(part) for part in ca.leaky_split(40, 0))
    spec = Spec("cross_attention", "x", 0, "smoke", Gallery(10, 1), Model("v2", 16, 1))

    def share(known):
        text = torch.zeros(40, CAPTIONS, 1, 40)
        for p, c in known:
            text[p, c, 0, p] = 1
        tokens = one_token(torch.eye(40), torch.eye(40))._replace(text=text)
        return ca._recall_on_shared(Says(), tokens, spec, 0)

    assert share(held) == 1
    assert share(train) == pytest.approx(1 / 10)


def test_a_run_of_published_v5_leaks_and_keeps_its_contract(made):
    spec = ca.spec_of("smoke", "published", "v5")
    record = runner.run_spec(spec, "code", made)
    arrays, seeds = record.arrays, spec.model.seeds
    assert (arrays["in_batch_accuracy"] > 0.99).all()
    assert arrays["pairwise_accuracy"] == pytest.approx(np.full(seeds, 1 / spec.data.pictures))  # one batch of 20
    assert (arrays["leak"] > 0.9).all()
    assert arrays["r1"] == pytest.approx(np.full(seeds, 1 / spec.data.pictures))
    assert arrays["five.trained"] == pytest.approx(np.full(seeds, 0.2))
    assert arrays["hits"].shape == (seeds, spec.data.galleries, 2, spec.data.pictures)
    for name in set(arrays) - {"hits"}:
        assert arrays[name].shape == (seeds,), name
        assert record.metrics[name].value == pytest.approx(arrays[name].mean()), name
        assert record.metrics[name].n == seeds
    assert record.metrics["r1"].value == pytest.approx(arrays["hits"].mean())
    assert set(ca.HEADLINES) <= set(record.metrics)
    forensic = {f"{d}.{k}" for d in ("as_v0", "dropped") for k in ("trained", "ratio", "gap", "spread", "r1")}
    assert forensic | {"r1_shared", "temperature", "five.spread"} <= set(arrays)
    curve = record.details["curve"]
    assert [p["step"] for p in curve] == [2, 4, 6, 8, 10]
    assert all(len(p["loss"]) == len(p["val_r1"]) == seeds for p in curve)
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert (record.details["gallery"], record.details["queries"]) == (20, 80)
    again = ca.run(spec)
    for name in arrays:
        np.testing.assert_array_equal(again.arrays[name], arrays[name])


@pytest.mark.parametrize("unit", ["tokens.v2", "pairwise.v9"])
def test_a_clean_run_has_no_published_numbers_and_keeps_the_weights_that_are_drawn(made, unit):
    protocol, version = unit.split(".")
    spec = ca.spec_of("smoke", protocol, version)
    record = runner.run_spec(spec, "code", made)
    assert not any(name.startswith(("as_v0", "dropped", "r1_shared")) for name in record.arrays)
    weights = {k.removeprefix("model."): v for k, v in record.arrays.items() if k.startswith("model.")}
    assert bool(weights) is (unit in ca.KEPT)
    if weights:
        test = ca.tokens_of("smoke", "test", protocol)
        matcher = Matcher(test.image.shape[-1], test.text.shape[-1], ca.make_module(spec.model))
        matcher.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
        found, hits = ca.measure(matcher, test, spec.data)
        np.testing.assert_array_equal(hits, record.arrays["hits"][0])
        assert found["score_spread"] == pytest.approx(record.arrays["score_spread"][0], rel=1e-5)


# --------------------------------------------------------------------------------------------- a class of one's own


MINE = """
from torch import nn
from vqa_core.fusion.cross_attention import CrossAttended

class MyAttention(nn.Module):
    '''Nothing is attended to: each side is itself, scaled.'''

    def __init__(self, dim):
        super().__init__()
        self.dim, self.scale = dim, nn.Linear(dim, dim)

    def forward(self, image, text, image_mask=None, text_mask=None):
        return CrossAttended(SIGN * self.scale(image), self.scale(text))

SIGN = 1
"""


@pytest.fixture
def mine(made, tmp_path, monkeypatch):
    """A module ``my_module`` that can be imported, and afterwards cannot."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "my_module.py"
    sys.modules.pop("my_module", None)


def command(unit):
    sys.modules.pop("my_module", None)  # as in a process of its own
    return main(["run", "cross_attention", "--unit", unit, "--profile", "smoke", "--workers", "1"])


def test_a_class_of_ones_own_runs_under_all_protocols_and_again_when_its_file_changes(mine, made, capsys):
    mine.write_text(MINE)
    assert command("my_module:MyAttention") == 0
    told = capsys.readouterr().out
    specs = ca.specs_of_class("smoke", "my_module:MyAttention")
    assert [s.unit for s in specs] == [f"{p}.my_module.myattention" for p in ca.PROTOCOLS]
    assert ca.file_of_class("my_module:MyAttention") == mine
    first = [load_record(s) for s in specs]
    for record in first:
        assert f"{record.spec.unit}, seed 0: r1 {record.metrics['r1'].value:.4g}" in told
        assert record.spec.model.module == "my_module:MyAttention"
        assert record.details["parameters"] == 16 * 16 + 16
        assert record.metrics["leak"].value == pytest.approx(0)  # no side reads the other
    assert not (made / "smoke" / "cross_attention" / "index.json").exists()  # the book's index is of its own units
    stamps = [s.path().stat().st_mtime_ns for s in specs]
    assert command("my_module:MyAttention") == 0
    assert [s.path().stat().st_mtime_ns for s in specs] == stamps

    mine.write_text(MINE + "# a comment changes nothing\n")
    assert command("my_module:MyAttention") == 0
    assert [s.path().stat().st_mtime_ns for s in specs] == stamps
    mine.write_text(MINE.replace("SIGN = 1", "SIGN = -1"))
    stale = runner.code_hash_of("cross_attention", mine)
    assert [load_record(s, stale) for s in specs] == [None] * 3
    assert command("my_module:MyAttention") == 0
    for spec, before in zip(specs, first):
        now = load_record(spec, stale)
        assert now.metrics["similarity_of_pairs"].value != pytest.approx(before.metrics["similarity_of_pairs"].value)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("no_such_module:Attention", "no module 'no_such_module' .* PYTHONPATH"),
        ("my_module:Attention", "module 'my_module' has no class 'Attention'; write package.module:Class"),
        ("my_module:", "module 'my_module' has no class ''"),
        ("needs_more:MyAttention", "no module 'not_installed' for 'needs_more:MyAttention'"),
    ],
)
def test_a_class_that_is_not_there_is_said_in_one_line(mine, capsys, unit, message):
    mine.write_text(MINE)
    mine.with_name("needs_more.py").write_text("import not_installed\n" + MINE)
    assert command(unit) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    with pytest.raises(ValueError, match=message) as error:
        ca.own_class(unit)
    assert str(error.value) in told


def test_an_experiment_without_the_extension_point_says_so(made, capsys):
    assert main(["run", "caption_encoder", "--unit", "my_module:MyAttention", "--profile", "smoke"]) == 2
    assert "takes no class of your own" in capsys.readouterr().err
