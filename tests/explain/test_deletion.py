"""Deletion and insertion on a model whose probability is known in closed form: the share of evidence that is left."""

import pytest
import torch
from torch import nn

from vqa_core.data.types import Batch
from vqa_core.encoders.tokens import CachedTokens, Tokens
from vqa_core.explain.deletion import Remover, curves, drops, faithfulness, how_many, ranks
from vqa_core.fusion.output import FusionOutput
from vqa_core.model import VQAModel

SHARES = torch.tensor([[0.5, 0.1, 0.3, 0.1, 0.0, 0.9], [0.2, 0.2, 0.2, 0.2, 0.2, 0.0]])  # the last is padding, twice
REAL = torch.tensor([[True] * 5 + [False]] * 2)


class Evidence(nn.Module):
    """Probability of answer 0 is the sum of the first feature over real tokens."""

    out_dim = 2

    def forward(self, image_tokens, text_tokens, image_mask=None, text_mask=None):
        p = image_tokens[..., 0].masked_fill(~image_mask, 0.0).sum(1).clamp(1e-6, 1 - 1e-6)  # (B,)
        return FusionOutput(torch.stack([p, 1 - p], dim=-1).log())


class Masked(CachedTokens):
    def forward(self, tokens):
        return Tokens(tokens, tokens[..., 1] > 0)


@pytest.fixture
def remover():
    pictures = torch.stack([SHARES, REAL.float()], dim=-1)  # (2, 6, 2)
    model = VQAModel(Masked(2), CachedTokens(1), Evidence(), nn.Identity())
    sample = Batch(pictures, torch.zeros(2, 1, 1), torch.ones(2, 1, dtype=torch.bool), None)
    return Remover(model, sample, torch.zeros(2, dtype=torch.long))


def test_ranks_put_padding_last_and_break_ties_at_random():
    found = ranks(SHARES, REAL)
    assert found[0, [0, 2]].tolist() == [0, 1]
    assert found[:, 5].tolist() == [5, 5]
    firsts = {int(ranks(SHARES, REAL, seed)[1].argmin()) for seed in range(40)}
    assert firsts == {0, 1, 2, 3, 4}
    assert torch.equal(ranks(SHARES, REAL, 3), ranks(SHARES, REAL, 3))


def test_the_curves_are_sums_of_what_is_left(remover):
    found = curves(remover, SHARES * REAL, steps=5)
    expected = torch.tensor([1, 0.5, 0.2, 0.1, 0.0, 0.0])
    torch.testing.assert_close(found.deletion[0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.insertion[0], 1 - expected, atol=1e-5, rtol=0)
    area = (0.5 * 1 + 0.5 + 0.2 + 0.1) / 5
    assert found.deletion_area[0].item() == pytest.approx(area, abs=1e-5)
    assert found.insertion_area[0].item() == pytest.approx(1 - area, abs=1e-5)
    # all tokens weigh the same: a straight line, whatever the order
    assert found.deletion_area[1].item() == pytest.approx(0.5, abs=1e-5)


def test_more_steps_than_tokens_change_no_area(remover):
    few, many = (curves(remover, SHARES * REAL, steps) for steps in (5, 6))
    torch.testing.assert_close(few.deletion_area, many.deletion_area, atol=1e-5, rtol=0)
    assert many.deletion.shape == (2, 7)
    best, worst = (curves(remover, m * REAL, 5) for m in (SHARES, -SHARES))
    assert best.deletion_area[0] < worst.deletion_area[0]
    assert best.insertion_area[0] > worst.insertion_area[0]


def test_drops_in_closed_form(remover):
    found = drops(remover, SHARES * REAL, share=0.2)
    torch.testing.assert_close(found.attended, torch.tensor([0.5, 0.2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.random, torch.tensor([0.2, 0.2]), atol=1e-5, rtol=0)  # the exact expectation
    torch.testing.assert_close(found.best, torch.tensor([0.5, 0.2]), atol=1e-5, rtol=0)
    assert faithfulness(found) == pytest.approx((0.35 - 0.2) / 0.35, abs=1e-4)
    blind = drops(remover, torch.tensor([[0.0, 0, 0, 0, 1, 0]]).repeat(2, 1), share=0.2)
    torch.testing.assert_close(blind.attended, torch.tensor([0.0, 0.2]), atol=1e-5, rtol=0)
    two = drops(remover, SHARES * REAL, share=0.4)  # hands of two; one token of five is left over
    torch.testing.assert_close(two.attended, torch.tensor([0.8, 0.4]), atol=1e-5, rtol=0)
    assert two.random[1].item() == pytest.approx(0.4, abs=1e-5)


def test_questions_do_not_see_one_another_and_rows_are_cut(remover, monkeypatch):
    keep = torch.rand(7, 2, 6) > 0.4
    whole = remover.probability(keep)
    monkeypatch.setattr("vqa_core.explain.deletion.ROWS", 3)
    torch.testing.assert_close(remover.probability(keep), whole)
    torch.testing.assert_close(remover.probability(keep[:1])[0], whole[0])


def test_by_default_the_models_own_answer_is_followed(remover):
    own = Remover(remover.model, Batch(remover.image.tokens, remover.text.tokens, torch.ones(2, 1).bool(), None))
    assert own.targets.tolist() == [0, 0]
    torch.testing.assert_close(own.whole, remover.whole)


def test_errors_say_what_to_do(remover):
    assert how_many(REAL, 0.2).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"share is 1\.5, it must lie between 0 and 1"):
        how_many(REAL, 1.5)
    with pytest.raises(ValueError, match=r"keep is \(2, 6\); give bool \(K, 2, 6\)"):
        remover.probability(REAL)
    with pytest.raises(ValueError, match="weights are"):
        ranks(SHARES[:, :3], REAL)
    nothing = drops(remover, SHARES * REAL)._replace(best=torch.zeros(2))
    with pytest.raises(ValueError, match="there is nothing to share"):
        faithfulness(nothing)
