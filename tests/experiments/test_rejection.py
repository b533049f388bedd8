"""Heads that can decline: what runs, on which questions, how it is trained and what is kept; and the simulation."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vqa_core.experiments import PROFILES as PROFILE_NAMES
from vqa_core.experiments import fusion, medical
from vqa_core.experiments import rejection as rj
from vqa_core.experiments import rejection_tokens as rt
from vqa_core.experiments.records import load_record
from vqa_core.experiments.scene_encoders import scene_split
from vqa_core.fusion.output import FusionOutput
from vqa_core.heads.bayes import BayesHead, Deterministic, Posterior, Predictor
from vqa_core.model import VQAOutput
from vqa_core.training.feed import Feed

SPLIT = {"train": "train", "val": "val", "calibration": "test", "test": "test"}  # of the scenes
ROWS = ("predicted", "correct", "probability", "total", "aleatoric", "epistemic", "log_true", "squares")


def spec_of(unit, seed=0):
    return next(s for s in rj.specs("smoke") if s.unit == unit and s.seed == seed)


# ------------------------------------------------------------------------------------------------------------ the grid


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_grid_holds_every_comparison_once(profile, monkeypatch):
    monkeypatch.setattr(medical, "absent", dict)
    specs, config = rj.specs(profile), rj.PROFILES[profile]
    heads = [s for s in specs if s.unit != "simulation"]
    assert len({s.path() for s in specs}) == len(specs)
    assert len({(s.data, s.model, s.training, s.seed) for s in heads}) == len(heads)  # no two units are the same
    assert [s.seed for s in specs if s.unit == "simulation"] == [0]
    for data in rj.DATASETS:
        for kind in rj.HEADS:
            units = [s for s in heads if s.unit == f"{data}.{kind}"]
            assert [s.seed for s in units] == list(range(config.seeds))
            assert units[0].model.kind == kind
            assert units[0].model.alpha == (1.0 if kind == "bound" else config.head.alpha)
            assert units[0].data.pictures == (config.pictures if data == "phantoms" else None)
    for s in heads:
        data, kind, *keys = s.unit.split(".", 2)
        assert (data, kind) == (s.data.name, s.model.kind)
        assert s.training.weight_decay == 0
        if not keys or keys[0].startswith("sigma"):
            assert s.training == config.training[data]
        if keys and keys[0].startswith("n"):
            assert s.data.pictures == int(keys[0][1:]) != config.pictures
        elif keys:
            assert keys[0] == f"sigma{s.model.prior_sigma:g}.alpha{s.model.alpha:g}"
            assert s.seed < config.sweep_seeds
    swept = {
        (s.model.prior_sigma, s.model.alpha)
        for s in heads
        if s.unit.startswith(("phantoms.full", "phantoms.bound")) and s.data.pictures == config.pictures
    }
    assert swept >= {(sigma, alpha) for sigma in config.sigmas for alpha in config.alphas}
    assert max(config.amounts) <= rt.PROFILES[profile].phantoms.train
    for training in config.training.values():  # as many steps for a short ensemble as for one model
        total = config.head.members * max(1, round(training.epochs / config.head.members))
        assert total == pytest.approx(training.epochs, rel=0.05)
    assert rj.KEPT in {s.unit for s in heads}
    assert set(rj.METHODS) == {method for methods in rj.HEADS.values() for method in methods}


def test_real_data_are_left_out_where_they_are_absent(monkeypatch):
    monkeypatch.setattr(medical, "absent", lambda: {"vqa_rad": "not here"})
    assert [s.unit for s in rt.specs("cpu")] == ["scenes", "phantoms"]
    assert not any(s.unit.startswith("vqa_rad") for s in rj.specs("cpu"))
    with pytest.raises(FileNotFoundError, match="there are scenes, phantoms"):
        rt.material_of("cpu", "vqa_rad")


def test_without_tokens_the_line_that_makes_them_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run rejection_tokens --profile smoke"):
        rt.material_of("smoke", "scenes", tmp_path)
    with pytest.raises(FileNotFoundError, match="run fusion --profile smoke"):
        rt.kept_fusion("smoke", tmp_path)


# ------------------------------------------------------------------------------------------------------------- tokens


def test_scene_parts_share_no_picture(tiny_rejection):
    material = rt.material_of("smoke", "scenes")
    seen: set[bytes] = set()
    for part, split in SPLIT.items():
        images = scene_split("smoke", split).images
        shown = {images[i].tobytes() for i in np.unique(material.pictures[part])}
        assert len(shown) == len(np.unique(material.pictures[part]))
        assert not seen & shown, part
        seen |= shown
    assert {part: len(feed) for part, feed in material.feeds.items()} == {
        "train": 240, "val": 160, "calibration": 80, "test": 80, "noise_0": 24, "noise_0.2": 24,
    }  # fmt: skip


def test_phantom_parts_share_no_picture(tiny_rejection):
    material = rt.material_of("smoke", "phantoms")
    tokens = material.feeds["test"].pictures.flatten(1).numpy()  # (P, N · D)
    rows = {part: np.unique(material.pictures[part]) for part in SPLIT}
    assert {part: len(r) for part, r in rows.items()} == {"train": 12, "val": 4, "calibration": 6, "test": 6}
    every = tokens[np.concatenate([*rows.values()])]
    assert len(np.unique(every.round(4), axis=0)) == len(every) == 28
    assert material.shifted == ["severity_2", "unanswerable", "unseen"]
    noisy = material.feeds["severity_2"]
    assert noisy.answers.tolist() == material.feeds["test"].answers.tolist()  # the same questions, other pictures
    assert not set(material.pictures["severity_2"]) & set(material.pictures["test"])


def test_calibration_questions_have_chosen_nothing(tiny_rejection):
    """The fusion's epoch and seed are chosen on all validation pictures; a promise needs others."""
    validation = {picture.tobytes() for picture in scene_split("smoke", "val").images}
    images = scene_split("smoke", SPLIT["calibration"]).images
    assert not any(images[i].tobytes() in validation for i in rt.material_of("smoke", "scenes").pictures["calibration"])


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_calibration_has_whole_pictures_and_not_few(profile):
    asked = 8 * next(s for s in fusion.specs(profile) if s.unit == fusion.KEPT).data.test  # 8 questions a picture
    answered = rt.PROFILES[profile].scenes.test
    assert answered % 8 == 0
    assert asked - answered >= answered


def test_noise_of_zero_changes_nothing(tiny_rejection):
    feeds = rt.material_of("smoke", "scenes").feeds
    clean, same, noisy = (feeds[part].pictures[:24] for part in ("test", "noise_0", "noise_0.2"))
    torch.testing.assert_close(same, clean, atol=1e-5, rtol=0)
    assert (noisy - clean).abs().max() > 0.1


def test_fused_vectors_are_those_of_the_best_fusion(tiny_rejection):
    best, every = rt.kept_fusion("smoke")
    scores = {r.spec.seed: r.details["history"][r.details["best_epoch"]]["validation"] for r in every}
    material = rt.material_of("smoke", "scenes")
    assert material.details["fusion_seed"] == best.spec.seed == max(scores, key=scores.get)
    assert material.details["fusion_hash"] == rt.weights_hash(best)
    assert load_record(spec_of(rj.KEPT)).details["fusion_hash"] == rt.weights_hash(best)  # which head fits it
    other = {name: a + np.float32(name.endswith("bias")) for name, a in best.arrays.items()}
    assert rt.weights_hash(dataclasses.replace(best, arrays=other)) != rt.weights_hash(best)
    feed = fusion.feed_of("smoke", "test", "grid", "vector")
    model = rt.trained_fusion(best, feed.pictures.shape[-1], feed.words.shape[-1])
    test = material.feeds["test"].pictures.squeeze(1)
    np.testing.assert_array_equal(model.head(test).argmax(1), best.arrays["predicted_test"][: len(test)])


def test_model_is_back_on_the_cpu_when_its_vectors_are_made(monkeypatch):
    """Its head then reads these vectors, which are on the CPU."""

    class Moved(nn.Module):
        def to(self, where):
            self.at = torch.device(where).type
            return self

        def cpu(self):
            return self.to("cpu")

        def forward(self, pictures, words, mask):
            fused = torch.zeros(len(pictures), 3)
            return VQAOutput(fused, FusionOutput(fused, fused, fused))

    monkeypatch.setattr(rt, "pick_device", lambda: torch.device("meta"))  # no CUDA is needed to be elsewhere
    model = Moved()
    assert rt.fused_of(model, rt.fused_feed(torch.zeros(5, 3), np.zeros(5))).shape == (5, 3)
    assert model.at == "cpu"


def test_small_amounts_are_the_first_pictures(tiny_rejection):
    material = rt.material_of("smoke", "phantoms")
    few, more = (rj.parts_of(rj.Data("phantoms", n), "smoke") for n in (4, 8))
    for n, feeds in ((4, few), (8, more)):
        train = feeds["train"]
        assert train.picture_index.unique().tolist() == np.unique(material.pictures["train"])[:n].tolist()
        for name in ("picture_index", "answers"):
            whole = getattr(material.feeds["train"], name)
            assert torch.equal(getattr(train, name), whole[: len(train)])
        last = train.batch([len(train) - 1])
        whole = material.feeds["train"].batch([len(train) - 1])
        assert all(torch.equal(a, b) for a, b in zip(last, whole))
    assert len(few["train"]) < len(more["train"]) < len(material.feeds["train"])
    assert few["test"] is material.feeds["test"]


# ------------------------------------------------------------------------------------------------------------ training


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_last_epoch_is_kept(tiny_rejection, monkeypatch):
    """Not the best one: accuracies are planted, and the weights do not depend on them."""
    spec = dataclasses.replace(
        spec_of("scenes.full"), training=dataclasses.replace(spec_of("scenes.full").training, epochs=3)
    )
    feeds, found = rj.parts_of(spec.data, "smoke"), {}
    for name, planted in (("falls", [0.9, 0.5, 0.1]), ("rises", [0.1, 0.5, 0.9])):
        coming = iter(planted)
        monkeypatch.setattr(rj, "accuracy", lambda m, feed, coming=coming: next(coming))
        (model,), (history,), _ = rj.train(spec, feeds)
        assert [row["validation"] for row in history] == planted
        found[name] = weights_of(model)
    assert same(found["falls"], found["rises"])


def test_a_short_ensemble_takes_as_many_steps_as_one_model(tiny_rejection, monkeypatch):
    steps, real = {}, torch.optim.AdamW.step
    feeds = rj.parts_of(rj.Data("scenes"), "smoke")
    for kind in ("deterministic", "short_ensemble", "ensemble"):
        steps[kind] = 0

        def counted(self, *args, kind=kind):
            steps[kind] += 1
            return real(self, *args)

        monkeypatch.setattr(torch.optim.AdamW, "step", counted)
        models, _, _ = rj.train(spec_of(f"scenes.{kind}"), feeds)
        if "ensemble" in kind:
            assert len(models) == 2
            assert not same(*(weights_of(m) for m in models))
    assert steps["short_ensemble"] == steps["deterministic"] == steps["ensemble"] / 2


def test_bayes_heads_minimise_the_negative_elbo(tiny_rejection, monkeypatch):
    """KL counts α / N with N the training questions whose answer can be given."""
    spec = spec_of("scenes.bound")
    feeds = rj.parts_of(spec.data, "smoke")
    train = feeds["train"]
    feeds["train"] = Feed(
        train.pictures, train.picture_index, train.words, train.word_mask,
        torch.where(torch.arange(len(train)) < 40, -100, train.answers), train.question_index,
    )  # fmt: skip
    calls, real = [], rj.negative_elbo

    def watched(logits, answers, kl, questions, alpha):
        value = real(logits, answers, kl, questions, alpha)
        calls.append((questions, alpha))
        by_hand = F.cross_entropy(logits, answers, ignore_index=-100) + kl / (len(train) - 40)
        torch.testing.assert_close(value, by_hand)
        return value

    monkeypatch.setattr(rj, "negative_elbo", watched)
    (model,), _, _ = rj.train(spec, feeds)
    assert set(calls) == {(len(train) - 40, 1.0)}
    layers = model.head.layers
    torch.testing.assert_close(model.head.kl(), layers[0].kl() + layers[1].kl())  # a sum over all layers
    calls.clear()
    rj.train(spec_of("scenes.deterministic"), feeds)
    assert not calls


# ----------------------------------------------------------------------------------------------------------- answering


@pytest.mark.parametrize("data", ["scenes", "phantoms"])
@pytest.mark.parametrize("kind", [*rj.HEADS])
def test_a_run_keeps_what_each_method_said(tiny_rejection, data, kind):
    outcome, feeds = rj.run(spec_of(f"{data}.{kind}")), rt.material_of("smoke", data).feeds
    arrays, metrics = outcome.arrays, outcome.metrics
    parts = [p for p in feeds if p not in ("train", "val")]
    assert outcome.details["parts"] == parts
    assert tuple(outcome.details["methods"]) == rj.HEADS[kind] == tuple(outcome.details["seconds_per_question"])
    for method in rj.HEADS[kind]:
        assert f"accuracy.{method}.val" in metrics  # by which a model can be chosen
        for part in parts:
            y, (found) = feeds[part].answers.numpy(), {name: arrays[f"{method}.{part}.{name}"] for name in ROWS}
            assert {values.shape for values in found.values()} == {(len(y),)}
            np.testing.assert_array_equal(found["correct"], found["predicted"] == y)
            assert not found["correct"][y < 0].any()
            assert (found["probability"] > 0).all()
            assert (found["probability"] <= 1 + 1e-6).all()
            np.testing.assert_allclose(found["total"], found["aleatoric"] + found["epistemic"], atol=1e-5)
            assert (found["log_true"][y < 0] == 0).all()
            reachable = int((y >= 0).sum())
            assert metrics[f"accuracy.{method}.{part}"].n == len(y)
            assert metrics[f"accuracy.{method}.{part}"].value == pytest.approx(found["correct"].mean())
            if reachable:
                assert metrics[f"nll.{method}.{part}"].n == metrics[f"brier.{method}.{part}"].n == reachable
            np.testing.assert_array_equal(arrays[f"answers.{part}"], y)
            if method in ("deterministic", "temperature"):
                assert (found["epistemic"] < 1e-6).all()  # one opinion
        for part in ("calibration", "test"):
            assert (f"{method}.{part}.mean" in arrays) is (method in rj.SETS_OF)
            if method in rj.SETS_OF:
                mean = arrays[f"{method}.{part}.mean"]  # (Q, A)
                np.testing.assert_allclose(mean.sum(1), 1, atol=1e-5)
                np.testing.assert_array_equal(mean.argmax(1), arrays[f"{method}.{part}.predicted"])
    assert any(name.startswith("head.") for name in arrays) is (f"{data}.{kind}" == rj.KEPT)
    again = rj.run(spec_of(f"{data}.{kind}"))
    assert set(again.arrays) == set(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(again.arrays[name], values, err_msg=name)


class Says(Predictor):
    """The same logits (A,) for every question, S times."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def sample_logits(self, inputs, samples):
        return self.logits.expand(samples, len(inputs), -1)


def test_unreachable_answers_are_wrong_and_have_no_likelihood():
    p = np.array([0.7, 0.2, 0.1])
    y = torch.tensor([0, 1, -100])
    said = rj.answered(Says(np.log(p).tolist()), torch.zeros(3, 4), y, samples=2, chunk=2)
    assert said["predicted"].tolist() == [0, 0, 0]
    assert said["correct"].tolist() == [True, False, False]
    metrics = rj._summary(said, y, "m")
    assert metrics["accuracy.m"].value == pytest.approx(1 / 3)
    assert metrics["nll.m"].value == pytest.approx(-np.log([0.7, 0.2]).mean(), abs=1e-6)
    assert metrics["brier.m"].value == pytest.approx(np.mean([0.09 + 0.04 + 0.01, 0.49 + 0.64 + 0.01]), abs=1e-6)
    assert (metrics["accuracy.m"].n, metrics["nll.m"].n) == (3, 2)
    assert "nll.m" not in rj._summary(said, torch.full((3,), -100), "m")


def test_members_of_an_ensemble_read_their_own_vectors(tiny_rejection):
    spec = spec_of("phantoms.ensemble")
    feeds = rj.parts_of(spec.data, "smoke")
    models, _, _ = rj.train(spec, feeds)
    fused = {"val": torch.cat([rt.fused_of(m, feeds["val"]) for m in models], dim=1)}
    said = rj.predictors_of(spec.model, models, fused, feeds["val"])["ensemble"].predict(fused["val"], 2)
    batch = feeds["val"].batch(range(len(feeds["val"])))
    for member, logits in zip(models, said.logits):
        torch.testing.assert_close(logits, member(*batch[:3]).logits, atol=1e-5, rtol=1e-4)


def test_kept_weights_are_those_that_answered(tiny_rejection):
    spec = spec_of(rj.KEPT)
    record = load_record(spec)
    test = rt.material_of("smoke", "scenes").feeds["test"].pictures.squeeze(1)
    head = BayesHead(test.shape[1], len(rt.material_of("smoke", "scenes").details["answers"]), spec.model.hidden)
    head.load_state_dict(
        {k.removeprefix("head."): torch.from_numpy(v) for k, v in record.arrays.items() if k[:5] == "head."}
    )
    torch.manual_seed(0)
    mean = head.predict(test, 2000).mean
    np.testing.assert_allclose(mean.amax(1), record.arrays["full.test.probability"], atol=0.1)  # 5 samples there


def test_temperature_and_sample_numbers(tiny_rejection):
    head = spec_of("scenes.deterministic").model
    assert rj.samples_of("deterministic", head) == rj.samples_of("temperature", head) == 1
    assert rj.samples_of("ensemble", head) == rj.samples_of("short_ensemble", head) == head.members
    assert rj.samples_of("mc_dropout", head) == rj.samples_of("laplace", head) == head.samples
    feeds = rj.parts_of(rj.Data("scenes"), "smoke")
    models, _, _ = rj.train(spec_of("scenes.deterministic"), feeds)
    fused = {part: rt.fused_of(models[0], feeds[part]) for part in ("train", "val")}
    found = rj.predictors_of(head, models, fused, feeds["val"])
    y, nll = feeds["val"].answers, {}
    for name in ("deterministic", "temperature"):
        nll[name] = float(F.cross_entropy(found[name].predict(fused["val"], 1).log_mean, y, ignore_index=-100))
    assert isinstance(found["temperature"], Deterministic)
    assert nll["temperature"] <= nll["deterministic"] + 1e-6  # on the questions that it was fitted on


# ------------------------------------------------------------------------------------------------ inside a Bayes head


def bayes_model(in_dim=6, answers=4):
    torch.manual_seed(0)
    return rj.HeadOnly(BayesHead(in_dim, answers, 8, initial_sigma=0.2)).eval().requires_grad_(False)


def test_pruning_leaves_the_weights_as_they_were():
    model, fused = bayes_model(), torch.randn(50, 6)
    before, answers = weights_of(model), model.head(fused).argmax(1)
    answers[:10] = (answers[:10] + 1) % 4
    found = rj._pruned(model, fused, answers)
    assert same(before, weights_of(model))
    assert set(found) == {"signal_to_noise", "pruned.signal_to_noise", "pruned.magnitude"}
    assert found["signal_to_noise"].shape == (6 * 8 + 8 * 4,)
    for name in ("signal_to_noise", "magnitude"):
        assert found[f"pruned.{name}"].shape == (len(rj.PRUNED),)
        assert found[f"pruned.{name}"][0] == pytest.approx(0.8)
        assert found[f"pruned.{name}"][-1] < 0.8


def test_pruning_takes_the_least_weights_first():
    model, fused = bayes_model(), torch.randn(200, 6)
    first = model.head.layers[0]
    first.weight_mu[:, 3:] = 1e-6  # three inputs without effect
    last = model.head.layers[1]
    answers = model.head(fused).argmax(1)
    share = 24 / (first.weight_mu.numel() + last.weight_mu.numel())
    found = rj._pruned(model, fused, answers)["pruned.magnitude"]
    kept = [accuracy for accuracy, s in zip(found, rj.PRUNED) if s <= share]
    assert kept == [1.0] * len(kept)
    assert len(kept) > 1


def test_chosen_questions_are_the_extreme_ones(monkeypatch):
    class Two(nn.Module):
        layers = ()

        def predict(self, fused, samples):
            """0 sure and right, 1 sure and wrong, 2 samples disagree, 3 every sample is unsure."""
            sure, wrong = torch.tensor([9.0, 0, 0]), torch.tensor([8.0, 0, 0])
            flat = torch.zeros(3)
            rows = [torch.stack([sure, wrong, sure if s % 2 else sure.roll(1), flat]) for s in range(samples)]
            return Posterior(torch.stack(rows))

    monkeypatch.setattr(rj, "_pruned", lambda *a: {})
    model = rj.HeadOnly(Two())
    test = rt.fused_feed(torch.zeros(4, 2), np.array([0, 1, 0, -100]))
    found = rj._looked_into(model, torch.zeros(4, 2), test)
    assert found["chosen"].tolist() == [2, 3, 0, 1]
    assert found["chosen_probabilities"].shape == (100, 4, 3)
    assert {len(found[f"growing.{n}"]) for n in ("nll", "accuracy", "epistemic", "epistemic_jackknife")} == {7}
    assert found["growing.epistemic"][0] == pytest.approx(0, abs=1e-6)  # one sample agrees with itself
    assert found["growing.epistemic"][-1] == pytest.approx(np.log(2) / 4, abs=0.01)


# --------------------------------------------------------------------------------------------- promise and guarantee


def test_simulated_risks_are_those_of_the_world():
    """Of the answers above t: coverage 1 − t, and the mean of (1 − c)^power over c from t to 1."""
    world = rj.Simulation((400,), (0.1,), 150, power=2.5)
    arrays = rj._simulate(world).arrays
    for rule in rj.RULES:
        for coverage, risk in zip(arrays[f"{rule}.400.0.1.coverage"], arrays[f"{rule}.400.0.1.risk"]):
            c = np.linspace(1 - coverage, 1, 2001)
            assert risk == pytest.approx(float(np.mean((1 - c) ** 2.5)), abs=1e-3)


def test_guarantees_keep_what_they_promise_and_the_empirical_rule_does_not():
    world = rj.Simulation((400,), (0.1,), 300)
    metrics = rj._simulate(world).metrics
    broken = {rule: metrics[f"broken.{rule}.400.0.1"].value for rule in rj.RULES}
    noise = 3 * np.sqrt(world.delta * (1 - world.delta) / world.repeats)
    assert broken["sgr"] <= world.delta + noise
    assert broken["learn_then_test"] <= world.delta + noise
    assert broken["empirical"] > 0.3
    assert metrics["broken.sgr.400.0.1"].n == 300
