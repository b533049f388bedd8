"""MAML: its gradient against finite differences, its first-order form, batch norm under vmap, what it is good for."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from vqa_core.encoders.meta import MetaCNN
from vqa_core.encoders.tokens import Tokens
from vqa_core.training.loop import NotFiniteError
from vqa_core.training.meta_learning import (
    EpisodeClassifier,
    Episodes,
    Inner,
    adapt,
    draw_episodes,
    functional,
    meta_train,
    query_losses,
)


@pytest.fixture
def tiny():
    """A model of 17 weights in double precision, and three regression tasks."""
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    shape = {"support": (3, 5), "query": (3, 6)}
    x = {k: torch.randn(*s, 2, dtype=torch.double) for k, s in shape.items()}
    y = {k: torch.randn(*s, 1, dtype=torch.double) for k, s in shape.items()}
    return model, Episodes(x["support"], y["support"], x["query"], y["query"])


def meta_gradient(model, episodes, inner):
    body, weights = functional(model)
    value = query_losses(body, weights, episodes, inner, F.mse_loss).mean()
    return dict(zip(weights, torch.autograd.grad(value, weights.values())))


def finite_differences(model, episodes, inner, step=1e-5):
    """The gradient of the query loss by moving each weight a little both ways."""
    body, weights = functional(model)
    weights = {name: w.detach().clone() for name, w in weights.items()}
    found = {}
    for name, w in weights.items():
        flat, gradient = w.view(-1), torch.empty(w.numel(), dtype=w.dtype)
        for i in range(w.numel()):
            ends = []
            for sign in (1, -1):
                flat[i] += sign * step
                ends.append(query_losses(body, weights, episodes, inner, F.mse_loss).mean())
                flat[i] -= sign * step
            gradient[i] = (ends[0] - ends[1]) / (2 * step)
        found[name] = gradient.view_as(w)
    return found


@pytest.mark.parametrize("steps", [1, 3])
def test_second_order_gradient_equals_finite_differences(tiny, steps):
    inner = Inner(steps, rate=0.2)
    assert_close(meta_gradient(*tiny, inner), finite_differences(*tiny, inner), rtol=1e-6, atol=1e-9)


def test_first_order_gradient_is_that_at_the_adapted_weights_and_differs(tiny):
    model, episodes = tiny
    first = meta_gradient(model, episodes, Inner(3, 0.2, second_order=False))
    weights = dict(model.named_parameters())
    mean = {name: torch.zeros_like(w) for name, w in weights.items()}
    for support_x, support_y, query_x, query_y in zip(*episodes):
        adapted = copy.deepcopy(model)  # by hand: ordinary descent on the support set, then one gradient on the query
        descent = torch.optim.SGD(adapted.parameters(), lr=0.2)
        for x, y in [(support_x, support_y)] * 3:
            descent.zero_grad()
            F.mse_loss(adapted(x), y).backward()
            descent.step()
        descent.zero_grad()
        F.mse_loss(adapted(query_x), query_y).backward()
        for name, w in adapted.named_parameters():
            mean[name] += w.grad / 3
    assert_close(first, mean)
    second = meta_gradient(model, episodes, Inner(3, 0.2))
    assert max((first[name] - second[name]).abs().max() for name in first) > 1e-3


def test_adapting_by_hand_and_the_closed_form_of_a_linear_model():
    """For a line without offset, L = mean (w x − y)², the meta-gradient is known: (1 − 2 α mean x²) dL_Q/dw'."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.5)
    x, y = torch.tensor([[1.0], [2.0]], dtype=torch.double), torch.tensor([[3.0], [5.0]], dtype=torch.double)
    inner = Inner(steps=1, rate=0.1)
    body, weights = functional(model)
    adapted = adapt(body, weights, x, y, inner, F.mse_loss)["weight"].item()
    slope = 2 * np.mean([(0.5 * 1 - 3) * 1, (0.5 * 2 - 5) * 2])
    assert adapted == pytest.approx(0.5 - 0.1 * slope)
    query = torch.tensor([[[1.5]]], dtype=torch.double)
    found = meta_gradient(model, Episodes(x[None], y[None], query, 2 * query), inner)["weight"].item()
    assert found == pytest.approx((1 - 2 * 0.1 * 2.5) * 2 * (adapted - 2) * 1.5**2)


def test_adaptation_lowers_the_support_loss_step_by_step(tiny):
    model, episodes = tiny
    body, weights = functional(model)
    on_support = Episodes(*episodes[:2], *episodes[:2])
    losses = [query_losses(body, weights, on_support, Inner(n, 0.1), F.mse_loss).mean().item() for n in range(6)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        plain = torch.stack([F.mse_loss(model(x), y) for x, y in zip(*episodes[2:])])
    assert_close(query_losses(body, weights, episodes, Inner(0), F.mse_loss), plain)  # no step: the model itself


def test_tasks_do_not_see_each_other_and_chunks_change_nothing(tiny):
    model, episodes = tiny
    body, weights = functional(model)
    together = query_losses(body, weights, episodes, Inner(2), F.mse_loss)
    assert_close(query_losses(body, weights, episodes, Inner(2), F.mse_loss, chunk=1), together)
    alone = [query_losses(body, weights, Episodes(*(e[[t]] for e in episodes)), Inner(2), F.mse_loss) for t in range(3)]
    assert_close(torch.cat(alone), together)
    turned = query_losses(body, weights, Episodes(*(e.flip(1) for e in episodes)), Inner(2), F.mse_loss)
    assert_close(turned, together)  # the order of the examples is nothing


class NormedNet(nn.Module):
    """Two convolutions with batch norm, as an encoder."""

    def __init__(self):
        super().__init__()
        self.out_dim = 4
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        )

    def forward(self, pictures):
        return Tokens(self.net(pictures).flatten(2).transpose(1, 2))


def test_batch_norm_uses_each_tasks_own_statistics_and_leaves_the_models_alone():
    model = EpisodeClassifier(NormedNet(), ways=2).double()
    before = copy.deepcopy(model.state_dict())
    episodes = draw_episodes(
        torch.randn(20, 1, 9, 9, dtype=torch.double), np.arange(20) % 4, 2, 2, 2, tasks=3, rng=np.random.default_rng(0)
    )
    body, weights = functional(model)
    losses = query_losses(body, weights, episodes, Inner(2, 0.1))
    for t in range(3):  # by hand: training-mode batch norm, one task at a time
        one = copy.deepcopy(model).train()
        for _ in range(2):
            value = F.cross_entropy(one(episodes.support_x[t]), episodes.support_y[t])
            gradients = torch.autograd.grad(value, list(one.parameters()))
            with torch.no_grad():
                for w, g in zip(one.parameters(), gradients):
                    w -= 0.1 * g
        assert_close(F.cross_entropy(one(episodes.query_x[t]), episodes.query_y[t]), losses[t])
    assert_close(dict(model.state_dict()), dict(before))
    meta_train(model, lambda step: episodes, 2, Inner(1, 0.1))
    after = model.state_dict()
    assert_close(after["encoder.net.2.running_mean"], before["encoder.net.2.running_mean"])  # as the module's text says
    for name, w in model.named_parameters():
        assert (w != before[name]).any(), name


def test_running_statistics_are_what_torch_func_refuses():
    """The reason for :func:`functional`: the same computation with running statistics is an error."""
    model = EpisodeClassifier(NormedNet(), ways=2).train()
    episodes = draw_episodes(torch.randn(8, 1, 9, 9), np.arange(8) % 2, 2, 2, 2, 2, np.random.default_rng(0))
    with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
        query_losses(model, dict(model.named_parameters()), episodes, Inner(1))


def test_the_published_network_meta_trains_and_gets_its_statistics_afterwards():
    model = EpisodeClassifier(MetaCNN(), ways=2)
    pictures = torch.rand(8, 1, 84, 84)
    pictures[4:] *= torch.linspace(0, 1, 84)  # two classes: even, and dark on one side
    rng = np.random.default_rng(0)
    weights = list(model.named_parameters())
    before = {name: w.detach().clone() for name, w in weights}
    history = meta_train(model, lambda step: draw_episodes(pictures, np.arange(8) // 4, 2, 1, 1, 2, rng), 2, Inner(1))
    assert len(history) == 2
    still = [name for name, w in weights if torch.equal(w, before[name])]
    assert not still  # every parameter gets a gradient
    encoder = model.encoder
    torch.optim.swa_utils.update_bn([pictures], encoder)
    with torch.no_grad():
        features = encoder.eval().blocks(pictures)
    used = features.std((0, 2, 3)) > 1e-3  # a dead channel has no spread
    assert used.float().mean() > 0.5
    # the running variance is of n − 1, the batch's of n
    scale, shift = encoder.blocks[-1].norm.weight, encoder.blocks[-1].norm.bias
    normal = ((features - shift[:, None, None]) / scale[:, None, None]).detach()
    assert_close(normal.mean((0, 2, 3)), torch.zeros(64), atol=1e-3, rtol=0)
    assert_close(normal.std((0, 2, 3))[used], torch.ones(int(used.sum())), atol=0.05, rtol=0)


def sines(tasks, rng, shots=10):
    """Regression tasks of the paper: sine waves of other amplitude (0.1 to 5) and phase (0 to π)."""
    amplitude, phase = rng.uniform(0.1, 5, (tasks, 1, 1)), rng.uniform(0, math.pi, (tasks, 1, 1))
    x = rng.uniform(-5, 5, (tasks, 2 * shots, 1))
    x, y = (torch.from_numpy(a).float() for a in (x, amplitude * np.sin(x - phase)))
    return Episodes(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])


def test_meta_training_makes_few_steps_worth_more():
    rng = np.random.default_rng(0)
    inner = Inner(steps=1, rate=0.01)
    model = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    scratch = copy.deepcopy(model)
    history = meta_train(model, lambda step: sines(25, rng), 600, inner, 1e-2, F.mse_loss)
    assert np.mean(history[-50:]) < 0.6 * np.mean(history[:50])
    new = sines(200, rng)

    def after(model, steps):
        return query_losses(*functional(model), new, Inner(steps, 0.01), F.mse_loss).mean().item()

    assert after(model, 5) < 0.5 * after(scratch, 5)  # the same few steps, from better weights
    assert after(model, 5) < 0.5 * after(model, 0)  # and it is the adaptation that gives it, not the weights alone


def test_episodes_are_k_shot_n_way_without_overlap():
    classes = np.array(["a"] * 5 + ["b"] * 6 + ["c"] * 2 + ["d"] * 5)
    x = torch.arange(18.0)
    episodes = draw_episodes(x, classes, ways=2, shots=2, queries=3, tasks=50, rng=np.random.default_rng(0))
    assert [tuple(e.shape) for e in episodes] == [(50, 4), (50, 4), (50, 6), (50, 6)]
    seen = set()
    for support_x, support_y, query_x, query_y in zip(*episodes):
        assert not set(support_x.tolist()) & set(query_x.tolist())
        assert len(set(support_x.tolist() + query_x.tolist())) == 10
        for label in (0, 1):
            rows = torch.cat([support_x[support_y == label], query_x[query_y == label]]).long()
            names = set(classes[rows.numpy()])
            assert len(names) == 1
            seen.add((label, names.pop()))
    assert seen == {(label, name) for label in (0, 1) for name in "abd"}  # c is too small; labels carry no meaning
    with pytest.raises(ValueError, match=r"ways is 4; allowed are 2 to 3, the classes with 5 examples"):
        draw_episodes(x, classes, 4, 2, 3, 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="18 examples have 3 classes"):
        draw_episodes(x, classes[:3], 2, 2, 3, 1, np.random.default_rng(0))


def test_mistakes_are_named(tiny):
    model, episodes = tiny
    with pytest.raises(ValueError, match=r"steps is -1 and rate 0\.01"):
        Inner(-1)
    with pytest.raises(ValueError, match=r"expected \(T, S, …\) twice"):
        query_losses(*functional(model), episodes._replace(query_y=episodes.query_y[:2]), Inner(1))
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    with pytest.raises(NotFiniteError, match="step 0: the query loss is"):
        meta_train(
            model, lambda step: episodes._replace(query_y=episodes.query_y * math.nan), 1, Inner(1), loss=F.mse_loss
        )
    assert_close(dict(model.named_parameters()), before)
