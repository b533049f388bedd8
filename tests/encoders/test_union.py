"""Several encoders as one: closed forms of the three ways, masks, grids, and what each encoder is shown."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.encoders.denoising import DenoisingAutoEncoder
from vqa_core.encoders.meta import MetaCNN
from vqa_core.encoders.tokens import CachedTokens, Tokens
from vqa_core.encoders.union import Union, View

WAYS = ["concat", "sum", "attention"]


class Masked(nn.Module):
    """Cached tokens with a fixed mask."""

    def __init__(self, out_dim, mask):
        super().__init__()
        self.out_dim, self.mask = out_dim, mask

    def forward(self, tokens):
        return Tokens(tokens, self.mask)


def union(how, dims=(3, 5), **options):
    return Union([CachedTokens(d) for d in dims], how, **{"dim": 8, "heads": 2, **options})


def test_concat_and_sum_in_closed_form():
    a, b = torch.randn(2, 4, 3), torch.randn(2, 4, 5)
    side_by_side = union("concat")
    assert_close(side_by_side(a, b).tokens, torch.cat([a, b], -1))
    assert side_by_side.out_dim == 8
    assert not list(side_by_side.parameters())  # nothing learned
    added = union("sum")
    assert_close(added(a, b).tokens, added.maps[0](a) + added.maps[1](b))
    assert_close(added(1000 * a, b).tokens, added(a, b).tokens, rtol=1e-2, atol=1e-2)  # a loud encoder is not louder
    assert side_by_side(a, b).mask is None


def test_attention_takes_all_tokens_and_knows_whose_they_are():
    model = union("attention")
    a, b = torch.randn(2, 4, 3), torch.randn(2, 1, 5)
    tokens = model(a, b).tokens
    assert tokens.shape == (2, 5, 8)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(model(a[:, order], b).tokens[:, :4], tokens[:, order])  # a set of tokens, without places
    twice = Union([CachedTokens(3), CachedTokens(3)], "attention", dim=8, heads=2)
    twice.maps[1].load_state_dict(twice.maps[0].state_dict())
    one, other = twice(a, a).tokens.split(4, dim=1)
    assert (one - other).abs().max() > 1e-3  # equal tokens, another encoder
    nn.init.zeros_(twice.whose)
    one, other = twice(a, a).tokens.split(4, dim=1)
    assert_close(one, other)


def test_attention_reads_the_other_encoder():
    model = union("attention")
    a, b = torch.randn(1, 4, 3), torch.randn(1, 2, 5)
    changed = model(a, b + torch.randn_like(b)).tokens
    assert (changed - model(a, b).tokens)[:, :4].abs().max() > 1e-3


def test_shares_of_attention():
    model = union("attention")
    a, b = torch.randn(3, 4, 3), torch.randn(3, 2, 5)
    shares = model.shares(a, b)
    assert shares.shape == (3, 2)
    assert_close(shares.sum(1), torch.ones(3))
    nn.init.zeros_(model.attention.in_proj_weight)
    nn.init.zeros_(model.attention.in_proj_bias)
    assert_close(model.shares(a, b), torch.tensor([[4 / 6, 2 / 6]]).expand(3, -1))  # equal scores: by number of tokens
    with pytest.raises(ValueError, match="only 'attention' has shares"):
        union("sum").shares(a, b)


@pytest.mark.parametrize("how", ["concat", "sum"])
def test_a_pooled_encoder_joins_every_cell_and_unequal_grids_are_refused(how):
    model = union(how)
    a, b = torch.randn(2, 4, 3), torch.randn(2, 1, 5)
    assert_close(model(a, b).tokens, model(a, b.expand(-1, 4, -1)).tokens)
    with pytest.raises(ValueError, match=r"give \[4, 9\] tokens, which do not lie at the same places; use how='attent"):
        model(a, torch.randn(2, 9, 5))


@pytest.mark.parametrize("how", WAYS)
def test_padding_changes_nothing(how):
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    a, b = torch.randn(2, 4, 3), torch.randn(2, 4, 5)
    model = union(how)
    model.encoders = nn.ModuleList([Masked(3, mask), Masked(5, mask)])
    tokens, found = model(a, b)
    assert torch.equal(found, torch.cat([mask, mask], 1) if how == "attention" else mask)
    noise = torch.where(mask[..., None], 0.0, 100.0)
    assert_close(model(a + noise, b + noise).tokens[found], tokens[found])
    model.encoders = nn.ModuleList([CachedTokens(3), CachedTokens(5)])
    alone = model(a[1:, :2], b[1:, :2]).tokens[0]
    assert_close(tokens[1][found[1]], alone)  # as if the padding were not there
    if how == "attention":
        shares = model.shares(a[1:, :2], b[1:, :2])
        model.encoders = nn.ModuleList([Masked(3, mask), Masked(5, mask)])
        assert_close(model.shares(a, b)[1:], shares)


def test_masks_meet():
    mask = torch.tensor([[True, False]])
    model = Union([Masked(3, mask), CachedTokens(3)], "concat")
    x = torch.randn(1, 2, 3)
    assert torch.equal(model(x).mask, mask)
    assert torch.equal(
        Union([Masked(3, mask), CachedTokens(3)], "attention", 8, 2)(x).mask[:, 2:], ~torch.zeros(1, 2).bool()
    )
    other = Union([Masked(3, mask), Masked(3, ~mask)], "sum", 8)
    assert not other(x).mask.any()
    nothing = Union([Masked(3, mask & ~mask)], "attention", 8, 2)
    with pytest.raises(ValueError, match="no real token in any encoder"):
        nothing(x)


@pytest.mark.parametrize("how", WAYS)
def test_gradients_reach_everything_and_batches_may_be_split(how):
    model = Union([nn_encoder(3), nn_encoder(4)], how, dim=8, heads=2)
    pictures = torch.randn(3, 3, 8, 8)
    tokens = model(pictures).tokens
    assert tokens.shape[-1] == model.out_dim
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert_close(torch.cat([model(p[None]).tokens for p in pictures]), tokens)
    one_for_all = model(pictures).tokens
    assert_close(model(pictures, pictures).tokens, one_for_all)
    with pytest.raises(ValueError, match="3 inputs for 2 encoders"):
        model(pictures, pictures, pictures)


def nn_encoder(out_dim):
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.out_dim, self.conv = out_dim, nn.Conv2d(3, out_dim, 4, 4)

        def forward(self, pictures):
            return Tokens(self.conv(pictures).flatten(2).transpose(1, 2))

    return Patches()


class Seen(nn.Module):
    """An encoder that passes on what it was shown."""

    out_dim = 1

    def forward(self, pictures):
        return Tokens(pictures.flatten(1).unsqueeze(-1))


def test_view_in_closed_form():
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(2, 3, 10, 10)
    assert_close(View(Seen(), 10, grey=True).prepare(red), torch.full((2, 1, 10, 10), 0.299))
    shown = View(Seen(), 5, mean=(0.5, 0.25, 0.0), deviation=(0.5, 0.25, 2.0)).prepare(red)
    assert_close(shown[0, :, 2, 3], torch.tensor([1.0, -1.0, 0.0]))
    assert shown.shape == (2, 3, 5, 5)
    for value, expected in ((-1.0, 0.0), (1.0, 1.0)):
        whole = View(Seen(), 4, grey=True)(torch.full((1, 3, 9, 9), value)).tokens
        assert_close(whole, torch.full((1, 16, 1), expected))
    with pytest.raises(ValueError, match="give 1 numbers each"):
        View(Seen(), 4, grey=True, mean=(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        View(Seen(), 4)(torch.zeros(1, 1, 4, 4))


def test_the_published_pair_from_one_picture():
    """MEVF's image side: MAML at 84 and DAE at 128 grey pixels, side by side in one token of 128 features."""
    pair = Union([View(MetaCNN(), 84, grey=True), View(DenoisingAutoEncoder(), 128, grey=True)]).eval()
    with torch.no_grad():
        assert pair(torch.rand(2, 3, 100, 100)).tokens.shape == (2, 1, 128)
    assert pair.out_dim == 128


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="allowed are 'concat', 'sum', 'attention'"):
        Union([CachedTokens(3)], "mean")
    with pytest.raises(ValueError, match="at least one encoder"):
        Union([])
