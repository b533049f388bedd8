"""The checks catch what they are for: a map that does not look at the model stays, one that does changes."""

import numpy as np
import pytest
import torch
from torch import nn

from vqa_core.encoders.tokens import CachedTokens
from vqa_core.explain import randomisation
from vqa_core.explain.scores import edges
from vqa_core.fusion.transformer import EarlyConcatenation
from vqa_core.heads.classifier import LinearHead, MLPHead
from vqa_core.model import VQAModel
from vqa_core.training.feed import Feed


def model(seed):
    torch.manual_seed(seed)
    return VQAModel(CachedTokens(3), CachedTokens(4), EarlyConcatenation(3, 4, 8, depth=2, heads=2), LinearHead(8, 5))


STAGES = [
    "head",
    "fusion.norm",
    "fusion.layers.1",
    "fusion.layers.0",
    "fusion.text_embedding",
    "fusion.image_embedding",
]


def test_stages_go_from_the_head_to_the_inputs():
    assert randomisation.stages_of(model(0)) == [(s,) for s in STAGES]
    deep = VQAModel(CachedTokens(3), CachedTokens(4), nn.Linear(1, 1), MLPHead(8, 5, depth=2))
    assert randomisation.stages_of(deep) == [("head",), ("fusion.bias",), ("fusion.weight",)]


def test_the_cascade_takes_more_and_more_and_leaves_the_model_alone():
    trained, fresh = model(0), model(1)
    before = {n: p.clone() for n, p in trained.named_parameters()}
    for k, (stage, changed) in enumerate(randomisation.cascade(trained, fresh, randomisation.stages_of(trained)), 1):
        assert stage == (STAGES[k - 1],)
        for name, value in changed.named_parameters():
            source = fresh if any(name.startswith(s) for s in STAGES[:k]) else trained
            assert torch.equal(value, source.get_parameter(name))
        assert not changed.training
    assert all(torch.equal(p, fresh.get_parameter(n)) for n, p in changed.named_parameters())
    assert all(torch.equal(p, before[n]) for n, p in trained.named_parameters())


def test_a_map_that_ignores_the_model_is_caught_and_one_that_reads_it_is_not():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (30, 8, 8, 3), dtype=np.uint8)
    tokens = torch.randn(30, 6, 3)

    def edge_detector(_):
        return edges(pictures).reshape(30, 64)

    def of_weights(some):
        with torch.no_grad():
            return some.fusion.image_embedding(tokens, None).sum(-1).numpy()  # (30, 6)

    trained, fresh = model(0), model(1)
    stages = randomisation.stages_of(trained)
    planted = randomisation.cascading_agreement(edge_detector, trained, fresh, stages)
    np.testing.assert_allclose(planted, 1)
    honest = randomisation.cascading_agreement(of_weights, trained, fresh, stages).mean(axis=1)
    np.testing.assert_allclose(honest[:-1], 1)  # it reads one layer only, the last to go
    assert honest[-1] < 0.9


def test_agreement_looks_at_real_tokens_only():
    a = np.array([[0.1, 0.2, 0.7, 0, 0, 0], [0.1, 0.2, 0.3, 0.4, 0, 0], [1, 0, 0, 0, 0, 0]])
    real = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]).astype(bool)
    reverse = np.where(real, 1 - a, 0)
    np.testing.assert_allclose(randomisation.agreement(a, a, real), [1, 1, 0])  # one token: no order
    np.testing.assert_allclose(randomisation.agreement(a, reverse, real), [-1, -1, 0])
    assert (randomisation.agreement(a, reverse)[:2] > -1).all()  # padding would make them agree
    np.testing.assert_allclose(randomisation.agreement(a[:2], np.ones((2, 6)), real[:2]), 0)


def test_shuffled_labels_keep_how_often_an_answer_comes():
    feed = Feed(
        torch.randn(4, 2, 3), [0, 1, 2, 3] * 25, torch.randn(100, 2, 4), torch.ones(100, 2), list(range(5)) * 20
    )
    other = randomisation.shuffled_labels(feed, seed=1)
    assert torch.equal(other.answers.bincount(), feed.answers.bincount())
    assert 0 < (other.answers == feed.answers).float().mean() < 0.5
    assert torch.equal(other.picture_index, feed.picture_index)
    assert torch.equal(randomisation.shuffled_labels(feed, seed=1).answers, other.answers)
    assert not torch.equal(randomisation.shuffled_labels(feed, seed=2).answers, other.answers)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="fresh has other parameters"):
        next(randomisation.cascade(model(0), nn.Linear(2, 2), [("head",)]))
    with pytest.raises(ValueError, match="no parameter begins with"):
        next(randomisation.cascade(model(0), model(1), [("tail",)]))
    with pytest.raises(ValueError, match="in no stage: fusion"):
        next(randomisation.cascade(model(0), model(1), [("head",)]))
    with pytest.raises(ValueError, match=r"give \(Q, N\) three times"):
        randomisation.agreement(np.ones((2, 3)), np.ones((2, 4)))
