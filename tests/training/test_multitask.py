"""Training for several tasks: PCGrad in closed form, seeds as if alone, weights as they should be, defects found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.encoders.tokens import CachedTokens
from vqa_core.fusion.vector import ProductFusion
from vqa_core.heads.multitask import SeparateTrunks, TaskHeads
from vqa_core.model import VQAModel
from vqa_core.training.feed import Feed
from vqa_core.training.loop import NotFiniteError, Training
from vqa_core.training.multitask import (
    conflict,
    fit_tasks,
    predict_tasks,
    project_conflicts,
    task_gradients,
    task_losses,
)
from vqa_core.training.weighting import DynamicWeightAverage, FixedWeights, UncertaintyWeighting

CLASSES = {"category": 3, "answer": 4, "organ": 2}
TASKS = tuple(CLASSES)
TRAINING = Training(epochs=3, batch_size=16, learning_rate=1e-2, weight_decay=0.1, clip=0.5)


def feed_of(questions=40, seed=0):
    """Image tokens (4, 5), one to three text tokens of 6; labels of three tasks that both sides tell."""
    chance = torch.Generator().manual_seed(seed)
    pictures = torch.randn(questions, 4, 5, generator=chance)
    words = torch.randn(questions, 3, 6, generator=chance)
    mask = torch.arange(3) < torch.randint(1, 4, (questions, 1), generator=chance)
    one, two = (words[:, 0, 0] > 0).long(), (pictures[:, :, 0].mean(1) > 0).long()
    labels = torch.stack([one + (words[:, 0, 1] > 1), one + 2 * two, two], dim=1)
    return Feed(pictures, torch.arange(questions), words, mask, labels)


def model_of(seed=0, classes=CLASSES, dim=8):
    torch.manual_seed(seed)
    return VQAModel(CachedTokens(5), CachedTokens(6), ProductFusion(5, 6, dim), TaskHeads(dim, classes, (dim,)))


def equal():
    return FixedWeights(dict.fromkeys(TASKS, 1.0))


# -- conflict


def test_two_gradients_that_conflict_become_orthogonal_to_each_other():
    g = torch.tensor([[[1.0, 0.0], [-1.0, 1.0]]])
    found = project_conflicts(g, torch.tensor([[0, 1]]))
    assert_close(found, torch.tensor([[[0.5, 0.5], [0.0, 1.0]]]))  # g₁ − (−1/2) g₂ and g₂ − (−1) g₁
    assert_close((found[:, 0] * g[:, 1]).sum(), torch.tensor(0.0))
    assert_close((found[:, 1] * g[:, 0]).sum(), torch.tensor(0.0))


def test_without_a_conflict_nothing_changes():
    g = torch.rand(4, 3, 9)  # all positive: no negative cosine
    order = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]])
    assert_close(project_conflicts(g, order), g, rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_projection_leaves_no_conflict_with_the_last_one_met(seed):
    torch.manual_seed(seed)
    g, order = torch.randn(6, 3, 4), torch.stack([torch.randperm(3) for _ in range(6)])
    found = project_conflicts(g, order)
    for s in range(6):
        for i in range(3):
            last = [int(j) for j in order[s] if j != i][-1]
            assert float(found[s, i] @ g[s, last]) >= -1e-5


@pytest.mark.parametrize("seed", range(5))
def test_of_two_tasks_each_still_descends_its_own_loss_and_never_climbs_the_other(seed):
    torch.manual_seed(seed)
    g = torch.randn(50, 2, 4)
    found = project_conflicts(g, torch.tensor([[0, 1]]).expand(50, -1))
    products = found @ g.mT  # (50, 2, 2)
    assert float(products.min()) >= -1e-5
    whole = found.sum(1, keepdim=True) @ g.mT  # and so does their sum
    assert float(whole.min()) >= -1e-5


def test_each_model_has_its_own_order():
    g = torch.randn(1, 3, 3).expand(2, -1, -1)
    orders = torch.tensor([[0, 1, 2], [2, 1, 0]])
    together = project_conflicts(g, orders)
    for s in range(2):
        assert_close(together[s : s + 1], project_conflicts(g[:1], orders[s : s + 1]))


def test_conflict_is_cosine_and_length():
    g = torch.tensor([[3.0, 4.0], [-4.0, 3.0], [-3.0, -4.0], [0.0, 0.0]])
    found = conflict(g)
    assert_close(found.norm, torch.tensor([5.0, 5.0, 5.0, 0.0]))
    assert_close(found.cosine[0], torch.tensor([1.0, 0.0, -1.0, 0.0]))


def test_gradients_by_task_are_those_of_each_model_alone():
    models = [model_of(seed) for seed in (0, 1)]
    batch = feed_of(12).batch(range(12))
    names = [name for name, _ in models[0].named_parameters() if "heads" not in name]
    stacked = [torch.stack([m.get_parameter(n).detach() for m in models]).requires_grad_() for n in names]
    losses = []
    for s, model in enumerate(models):
        weights = {n: v[s] for n, v in zip(names, stacked)}
        logits = torch.func.functional_call(model, weights, tuple(batch[:3])).logits
        losses.append(torch.stack(list(task_losses(logits, batch.answers).values())))
    found = task_gradients(torch.stack(losses), stacked)
    for s, model in enumerate(models):
        for k, loss in enumerate(task_losses(model(*batch[:3]).logits, batch.answers).values()):
            alone = torch.autograd.grad(loss, [model.get_parameter(n) for n in names], retain_graph=True)
            assert_close(found[s, k], torch.cat([g.flatten() for g in alone]))


# -- training


def reference(model, train, training, seed, weights):
    """The plain loop of one seed, without vmap; no validation."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate)
    per_epoch = math.ceil(len(train) / training.batch_size)
    for epoch in range(training.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(train))
        for i, batch in enumerate(train.batches(training.batch_size, order)):
            for group in optimizer.param_groups:
                group["lr"] = training.rate(epoch * per_epoch + i, per_epoch * training.epochs)
            losses = task_losses(model(*batch[:3]).logits, batch.answers)
            optimizer.zero_grad()
            sum(weights[name] * loss for name, loss in losses.items()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), training.clip)
            optimizer.step()


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (0.2, 2.0, 0.5)])
def test_together_is_one_after_another(weights):
    train, seeds, named = feed_of(), [0, 3], dict(zip(TASKS, weights))
    together, alone = [model_of(s) for s in seeds], [model_of(s) for s in seeds]
    training = Training(**{**vars(TRAINING), "epochs": 1})  # the last epoch is the best one: the only one
    fit_tasks(together, train, train, training, seeds, [FixedWeights(named) for _ in seeds], device="cpu")
    for seed, model, other in zip(seeds, together, alone):
        reference(other, train, training, seed, named)
        for (name, p), q in zip(model.named_parameters(), other.parameters()):
            assert_close(p, q, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_measuring_changes_nothing():
    found = []
    for measure in (0, 2):
        models = [model_of(s) for s in (0, 1)]
        fits = fit_tasks(models, feed_of(), feed_of(24, 1), TRAINING, [0, 1], [equal(), equal()], measure=measure)
        found.append(torch.cat([p.flatten() for p in models[1].parameters()]))
    assert_close(found[0], found[1])
    assert fits[0].at == [0, 2, 4, 6, 8]
    assert np.stack(fits[0].cosines).shape == (5, 3, 3)
    assert np.stack(fits[1].norms).min() > 0


def test_pcgrad_is_the_plain_sum_where_nothing_conflicts_and_differs_where_something_does():
    train, ends = feed_of(), {}
    for project in (False, True):
        models = [model_of()]
        fit_tasks(models, train, train, TRAINING, [0], [equal()], project=project)
        ends[project] = torch.cat([p.detach().flatten() for p in models[0].parameters()])
    assert not torch.equal(ends[False], ends[True])
    one = {"answer": 4}  # a single task has nothing to conflict with
    train.answers, ends = train.answers[:, 1:2], {}
    for project in (False, True):
        models = [model_of(0, one)]
        fit_tasks(models, train, train, TRAINING, [0], [FixedWeights({"answer": 1.0})], project=project)
        ends[project] = torch.cat([p.detach().flatten() for p in models[0].parameters()])
    assert_close(ends[False], ends[True])


def test_weights_of_each_epoch():
    """DWA starts with two epochs of ones and sums to K; uncertainty weights leave 1; fixed ones stay."""
    long = Training(epochs=4, batch_size=16, learning_rate=2e-2)
    kinds = {
        "dwa": lambda: DynamicWeightAverage(TASKS),
        "uncertainty": lambda: UncertaintyWeighting(TASKS),
        "fixed": lambda: FixedWeights({"category": 0.0, "answer": 2.0, "organ": 1.0}),
    }
    rows = {}
    for name, make in kinds.items():
        (fit,) = fit_tasks([model_of()], feed_of(), feed_of(24, 1), long, [0], [make()])
        rows[name] = np.array([[h[f"weight.{t}"] for t in TASKS] for h in fit.history])
    np.testing.assert_allclose(rows["dwa"].sum(1), 3, rtol=1e-5)
    np.testing.assert_allclose(rows["dwa"][:2], 1)
    assert np.abs(rows["dwa"][2:] - 1).max() > 1e-4
    assert np.abs(rows["uncertainty"][-1] - 1).min() > 1e-3
    np.testing.assert_allclose(rows["fixed"], [[0, 2, 1]] * 4)


def test_eight_samples_are_learnt_by_heart():
    train = feed_of(8)
    many = Training(epochs=150, batch_size=8, learning_rate=2e-2, weight_decay=0.0)
    models = [model_of(s, dim=16) for s in (0, 1)]
    fits = fit_tasks(models, train, train, many, [0, 1], [equal(), equal()], validations=5)
    assert (predict_tasks(models, train, device="cpu") == train.answers).all()
    assert fits[0].best_score == 1.0
    assert len(fits[0].history) == 5


def test_the_best_validation_of_the_scored_tasks_is_kept():
    models, validation = [model_of()], feed_of(24, 1)
    (fit,) = fit_tasks(models, feed_of(), validation, TRAINING, [0], [equal()], scored=["organ"])
    right = (predict_tasks(models, validation, device="cpu")[0] == validation.answers).float().mean(0)
    assert float(right[2]) == pytest.approx(max(h["validation.organ"] for h in fit.history))
    assert fit.best_score == pytest.approx(float(right[2]))


def test_padding_and_batch_split_do_not_change_predictions():
    models, feed = [model_of(s) for s in (0, 1)], feed_of(10)
    longer = Feed(
        feed.pictures,
        feed.picture_index,
        torch.cat([feed.words, torch.full((10, 2, 6), 7.0)], dim=1),
        torch.cat([feed.word_mask, torch.zeros(10, 2, dtype=torch.bool)], dim=1),
        feed.answers,
    )
    whole = predict_tasks(models, feed, device="cpu")
    assert_close(predict_tasks(models, longer, device="cpu"), whole)
    halves = [
        Feed(feed.pictures, feed.picture_index[a:b], feed.words[a:b], feed.word_mask[a:b], feed.answers[a:b])
        for a, b in ((0, 3), (3, 10))
    ]
    assert_close(torch.cat([predict_tasks(models, h, device="cpu") for h in halves], dim=1), whole)


# -- errors


class Listed(nn.Module):
    """The planted defect: heads in a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.heads = nn.Linear(5, 8), {name: nn.Linear(8, n) for name, n in CLASSES.items()}


def test_layers_in_a_plain_dict_are_refused():
    with pytest.raises(ValueError, match=r"heads\['category'\].*use nn.ModuleList"):
        fit_tasks([Listed()], feed_of(), feed_of(), TRAINING, [0], [equal()])


def test_a_layer_that_no_task_uses_is_named():
    model = model_of()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"no task's loss reaches spare\.weight, spare\.bias"):
        fit_tasks([model], feed_of(), feed_of(), TRAINING, [0], [equal()])


def test_nothing_shared_has_no_conflicts():
    def separate():
        return SeparateTrunks({name: model_of(0, {name: n}) for name, n in CLASSES.items()})

    with pytest.raises(ValueError, match="share no parameter"):
        fit_tasks([separate()], feed_of(), feed_of(), TRAINING, [0], [equal()], measure=1)
    assert len(fit_tasks([separate()], feed_of(), feed_of(), TRAINING, [0], [equal()])[0].history) == 3


def test_wrong_arguments_are_named():
    train = feed_of()
    with pytest.raises(ValueError, match="1 models, 2 seeds"):
        fit_tasks([model_of()], train, train, TRAINING, [0, 1], [equal()])
    with pytest.raises(ValueError, match="scored is"):
        fit_tasks([model_of()], train, train, TRAINING, [0], [equal()], scored=["size"])
    with pytest.raises(ValueError, match="name them alike"):
        fit_tasks([model_of()], train, train, TRAINING, [0], [FixedWeights(dict.fromkeys(reversed(TASKS), 1.0))])
    with pytest.raises(ValueError, match="a column for each"):
        task_losses({"answer": torch.zeros(2, 3)}, torch.zeros(2, dtype=torch.long))


def test_a_nan_is_found():
    train = feed_of()
    train.pictures[3] = torch.nan
    with pytest.raises(NotFiniteError, match=r"seed\(s\) \[4\]"):
        fit_tasks([model_of()], train, feed_of(), TRAINING, [4], [equal()])
