"""Stacked and bilinear attention: equations, and what becomes of them with one image token."""

import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.fusion.bilinear import BAN
from vqa_core.fusion.stacked import SAN
from vqa_core.fusion.stacked_linear import LinearSAN


def test_san_equations():
    san = SAN(5, 4, 6, stacks=2, hidden=3)
    image, text = torch.randn(2, 7, 5), torch.randn(2, 3, 4)
    output = san(image, text)
    for b in range(2):
        v = torch.stack([torch.tanh(san.image_projection(f)) for f in image[b]])
        u = san.text_projection(text[b, -1])
        for s in range(2):
            w_i, w_q, w_p = san.w_image[s], san.w_question[s], san.w_score[s]
            scores = torch.stack([w_p.weight[0] @ torch.tanh(w_i.weight @ vi + w_q.weight @ u + w_q.bias) for vi in v])
            p = scores.exp() / scores.exp().sum()
            u = sum(pi * vi for pi, vi in zip(p, v, strict=True)) + u
            assert_close(output.attention[b, s, 0], p, rtol=1e-5, atol=1e-6)
        assert_close(output.fused[b], u, rtol=1e-5, atol=1e-6)


def test_san_question_vector():
    image, text = torch.randn(2, 9, 5), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    last, mean = SAN(5, 4, 6), SAN(5, 4, 6, question="mean")
    mean.load_state_dict(last.state_dict())
    rows = torch.stack([text[0, 1], text[1, 2]])
    assert_close(last(image, text, None, mask).fused, last(image, rows).fused)
    means = torch.stack([text[0, :2].mean(0), text[1].mean(0)])
    assert_close(mean(image, text, None, mask).fused, last(image, means).fused)


def test_san_is_a_sum_when_there_is_one_image_token():
    san = SAN(5, 4, 6, stacks=3)
    image, text = torch.randn(8, 1, 5), torch.randn(8, 3, 4)
    output = san(image, text)
    assert torch.equal(output.attention, torch.ones(8, 3, 1, 1))  # whatever is asked, whatever is shown
    assert_close(output.fused, output.text + 3 * output.image[:, 0])
    output.fused.square().sum().backward()
    dead = [n for n, p in san.named_parameters() if p.grad.abs().max() == 0]
    assert {n.split(".")[0] for n in dead} == {"w_image", "w_question", "w_score"}
    assert len(dead) == 3 * 4
    many = san(torch.randn(8, 49, 5), text).attention
    assert many.std() > 1e-4  # with a grid it is a choice


def test_linear_san_equations():
    san = LinearSAN(5, 4, 6, stacks=2)
    image, text = torch.randn(2, 7, 5), torch.randn(2, 3, 4)
    output = san(image, text)
    for b in range(2):
        u = san.text_projection(text[b, -1])
        for s in range(2):
            v = torch.stack([san.w_image[s].weight @ f for f in image[b]])
            asked = san.w_question[s](u)
            scores = torch.stack([san.w_score[s].weight[0] @ torch.tanh(vi + asked) for vi in v])
            p = scores.exp() / scores.exp().sum()
            u = sum(pi * vi for pi, vi in zip(p, v, strict=True)) + u
            assert_close(output.attention[b, s, 0], p, rtol=1e-5, atol=1e-6)
        assert_close(output.fused[b], u, rtol=1e-5, atol=1e-6)


def test_what_a_picture_adds_is_bounded_by_the_tanh_only():
    linear, bounded = LinearSAN(5, 4, 6), SAN(5, 4, 6)
    image, text = torch.randn(8, 1, 5), torch.randn(8, 3, 4)
    added = [s(1000 * image, text).fused - s.text_projection(text[:, -1]) for s in (linear, bounded)]
    assert_close(
        added[0], 1000 * (linear(image, text).fused - linear.text_projection(text[:, -1])), rtol=1e-3, atol=0.1
    )
    assert added[0].abs().max() > 100
    assert added[1].abs().max() <= 2 + 1e-5  # one for each stack: of a loud picture the signs are left


def test_ban_equations():
    ban = BAN(5, 4, 6, glimpses=2, rank=3)
    image, text = torch.randn(2, 7, 5), torch.randn(2, 3, 4)
    output = ban(image, text)
    for b in range(2):
        f = ban.text_projection(text[b])  # (3, 6)
        x, y = ban.scores.text(f), ban.scores.image(image[b])
        for g in range(2):
            scores = torch.stack([torch.stack([(ban.p[g] * xt * yi).sum() for yi in y]) for xt in x])
            weights = scores.exp() / scores.exp().sum()
            assert_close(output.attention[b, g], weights, rtol=1e-5, atol=1e-6)
            xg, yg = ban.pools[g].text(f), ban.pools[g].image(image[b])
            pooled = sum(weights[t, i] * xg[t] * yg[i] for t in range(3) for i in range(7))
            f = f + ban.joint[g](pooled)
        assert_close(output.fused[b], f.sum(0), rtol=1e-5, atol=1e-5)


def test_ban_attention_is_a_distribution_over_real_pairs():
    ban = BAN(5, 4, 6, glimpses=3)
    image_mask, text_mask = torch.rand(4, 49) > 0.3, torch.rand(4, 8) > 0.3
    attention = ban(torch.randn(4, 49, 5), torch.randn(4, 8, 4), image_mask, text_mask).attention
    assert attention.shape == (4, 3, 8, 49)
    assert_close(attention.sum((2, 3)), torch.ones(4, 3))
    real = text_mask[:, None, :, None] & image_mask[:, None, None, :]
    assert (attention.masked_select(~real) == 0).all()
    assert (attention.masked_select(real) > 0).all()


def test_ban_attends_over_words_only_when_there_is_one_image_token():
    ban = BAN(5, 4, 6, glimpses=2)
    attention = ban(torch.randn(8, 1, 5), torch.randn(8, 3, 4)).attention  # (8, 2, 3, 1)
    assert_close(attention.sum(2), torch.ones(8, 2, 1))  # a distribution over the words
    over_places = attention / attention.sum(3, keepdim=True)
    assert_close(over_places, torch.ones_like(attention))  # given the word, there is one place


def test_ban_attention_is_what_is_used():
    """Put all weight on one pair by the scores: the pooled feature is that pair's product."""
    ban = BAN(5, 4, 6, glimpses=1)
    nn.init.constant_(ban.p, 100.0)
    image, text = torch.randn(1, 49, 5), torch.randn(1, 3, 4)
    output = ban(image, text)
    attention = output.attention[0, 0]
    word, place = divmod(int(attention.argmax()), 49)
    assert attention[word, place] > 0.999
    x, y = ban.pools[0](output.text, image)
    pooled = x[0, word] * y[0, place] * attention[word, place]
    assert_close(output.fused[0], output.text[0].sum(0) + 3 * ban.joint[0](pooled), rtol=1e-3, atol=1e-3)
