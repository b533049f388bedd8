"""Cross-attention v0 to v11: each is its formula, what it is for one token per side, and what padding may not do."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from vqa_core.fusion.cross_attention import VERSIONS, CrossAttention, GatedFeedForward, Read, differences

DIM, HEADS = 16, 4
N_IMAGE, N_TEXT = 5, 3
every = pytest.mark.parametrize("version", VERSIONS)
WITH_HEADS = ["v7", "v8", "v9", "v10_1", "v10_2", "v10_3", "v10_4", "v10_4_mqa", "v10_5", "v10_6", "v11"]
WITH_DROPOUT = WITH_HEADS[2:]
WITH_PARAMETERS = [v for v in VERSIONS if v not in ("v0", "v1")]
ONE_MATRIX = ["v1", "v2", "v3", "v4", "v5", "v6", "v7"]


def make(version, dim=DIM, heads=HEADS, dropout=0.1) -> CrossAttention:
    """A version in double precision and evaluation mode, every parameter (LayerNorms too) a random number."""
    torch.manual_seed(0)
    module = VERSIONS[version](dim, heads, dropout).double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0, 0.5)
    return module


def sides(batch=2, n_image=N_IMAGE, n_text=N_TEXT, seed=1):
    """Image tokens (B, Nᵢ, D) and text tokens (B, Nₜ, D)."""
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, n, DIM, generator=chance, dtype=torch.float64) for n in (n_image, n_text)]


def masks(batch=2, n_image=N_IMAGE, n_text=N_TEXT):
    """Masks (B, Nᵢ) and (B, Nₜ): every row has another number of real tokens, the first row is full."""
    left = torch.arange(batch)[:, None]
    return torch.arange(n_image) < n_image - 2 * left, torch.arange(n_text) < n_text - left


def one_token(seed=1):
    return sides(batch=4, n_image=1, n_text=1, seed=seed)


# ----------------------------------------------------------------------------------------------------- the formulas


def read(q, k, v, heads=1):
    """softmax(q kᵀ/√d) v, head by head, of single sequences (N, D) and (M, D)."""
    parts = zip(*(x.chunk(heads, -1) for x in (q, k, v)))
    return torch.cat([(q @ k.T / math.sqrt(q.shape[-1])).softmax(-1) @ v for q, k, v in parts], -1)


def one_matrix(q, k, text_values, image_values):
    a = (q @ k.T / math.sqrt(DIM)).softmax(-1)
    return a @ text_values, a.T @ image_values


def v4(m, i, t):
    i, t = m.project["image"](m.norm(i)), m.project["text"](m.norm(t))
    return one_matrix(i, t, t, i)


def v6(m, i, t):
    i, t = m.norm(i), m.norm(t)
    return one_matrix(m.query(i), m.key(t), m.value(t), m.value(i))


def v7(m, i, t):
    maps = m.query(m.norm(i)), m.key(m.norm(t)), m.value(m.norm(t))
    new_i, new_t = [], []
    for q, k, v in zip(*(x.chunk(HEADS, -1) for x in maps)):
        a = (q @ k.T / math.sqrt(DIM / HEADS)).softmax(-1)
        new_i.append(a @ v)
        new_t.append(a.T @ a @ v)
    return tuple(m.norm(m.out(torch.cat(x, -1))) for x in (new_i, new_t))


def both_ways(m, i, t):
    """The attention of v8, with W_o."""
    return tuple(m.out(read(m.query(x), m.key(y), m.value(y), HEADS)) for x, y in ((i, t), (t, i)))


def end(m, a):
    """The end of v9 and later."""
    x, f = m.feed_norm(a), m.feed_forward
    return f.down(F.gelu(f.gate(x)) * F.gelu(f.up(x))) + a


def v9(m, i, t):
    return tuple(end(m, a) for a in both_ways(m, m.norm(i), m.norm(t)))


def v10_1(m, i, t):
    sides = {"image": m.norm(i), "text": m.norm(t)}

    def of(x, y):
        q, k, v = m.query[x](sides[x]), m.key[y](sides[y]), m.value[y](sides[y])
        return end(m, m.out(read(q, k, v, HEADS)))

    return of("image", "text"), of("text", "image")


def v10_2(m, i, t):
    a_i, a_t = both_ways(m, m.norm(i), m.norm(t))
    sides = (("image", a_i, i), ("text", a_t, t))
    return tuple(end(m, a * m.gate[s](m.gate_norm(torch.cat([a, x], -1))).sigmoid()) for s, a, x in sides)


def v10_3(m, i, t):
    return tuple(end(m, a) for a in both_ways(m, m.context["image"](m.norm(i)), m.context["text"](m.norm(t))))


def v10_4(m, i, t):
    i, t = m.norm(i), m.norm(t)
    return tuple(end(m, m.out(read(m.query(x), *m.key_value(y).chunk(2, -1), HEADS))) for x, y in ((i, t), (t, i)))


def mqa(m, i, t):
    def of(x, y):
        k, v = m.key_value(y).chunk(2, -1)  # (M, d) each, the same for every head
        return end(m, m.out(torch.cat([read(q, k, v) for q in m.query(x).chunk(HEADS, -1)], -1)))

    i, t = m.norm(i), m.norm(t)
    return of(i, t), of(t, i)


def v10_5(m, i, t):
    def of(x, y):
        levels = [read(m.query(level(x)), m.key(level(y)), m.value(level(y)), HEADS) for level in m.levels]
        return end(m, m.out(sum(s * a for s, a in zip(m.level_scores.softmax(0), levels))))

    return of(i, t), of(t, i)


def v10_6(m, i, t):
    a_i, a_t = both_ways(m, m.norm(i), m.norm(t))
    cosines = F.cosine_similarity(m.contrast(a_i)[:, None], m.contrast(a_t)[None], dim=-1)  # (Nᵢ, Nₜ)
    return end(m, a_i + 0.1 * cosines.mean(1, keepdim=True)), end(m, a_t + 0.1 * cosines.T.mean(1, keepdim=True))


def v11(m, i, t):
    def of(x, y):
        levels = [m.out(read(m.query(z(x)), *m.key_value(z(y)).chunk(2, -1), HEADS)) for z in m.levels]
        return end(m, sum(s * a for s, a in zip(m.level_scores.softmax(0), levels)))

    return of(i, t), of(t, i)


def v2(m, i, t):
    i, t = m.norm(i), m.norm(t)
    return one_matrix(i, t, t, i)


FORMULAS = {
    "v0": lambda m, i, t: (read(i, t, t), read(t, i, i)),
    "v1": lambda m, i, t: one_matrix(i, t, t, i),
    "v2": v2,
    "v3": lambda m, i, t: tuple(a + x for a, x in zip(v2(m, i, t), (i, t))),
    "v4": v4,
    "v5": lambda m, i, t: tuple((a + m.norm(x)) / 2 for a, x in zip(v2(m, i, t), (i, t))),
    "v6": v6,
    "v7": v7,
    "v8": lambda m, i, t: tuple(map(m.out_norm, both_ways(m, m.norm(i), m.norm(t)))),
    "v9": v9,
    "v10_1": v10_1,
    "v10_2": v10_2,
    "v10_3": v10_3,
    "v10_4": v10_4,
    "v10_4_mqa": mqa,
    "v10_5": v10_5,
    "v10_6": v10_6,
    "v11": v11,
}


@every
@pytest.mark.parametrize("lengths", [(N_IMAGE, N_TEXT), (1, 1), (1, N_TEXT), (N_IMAGE, 1)])
def test_every_version_is_its_formula(version, lengths):
    module, (image, text) = make(version), sides(2, *lengths)
    found = module(image, text)
    for b in range(2):
        new_image, new_text = FORMULAS[version](module, image[b], text[b])
        assert_close(found.image[b], new_image)
        assert_close(found.text[b], new_text)


@every
def test_real_tokens_in_a_padded_batch_follow_the_formula_of_the_sequence_alone(version):
    module, (image, text), (image_mask, text_mask) = make(version), sides(), masks()
    found = module(image, text, image_mask, text_mask)
    for b in range(2):
        new_image, new_text = FORMULAS[version](module, image[b, image_mask[b]], text[b, text_mask[b]])
        assert_close(found.image[b, image_mask[b]], new_image)
        assert_close(found.text[b, text_mask[b]], new_text)


# ----------------------------------------------------------------------------------------------- one token per side


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_one_token_is_swapped(version):
    image, text = one_token()
    found = make(version)(image, text)
    assert torch.equal(found.image, text)
    assert torch.equal(found.text, image)


def test_one_token_is_swapped_after_its_norm():
    image, text = one_token()
    module = make("v2")
    found = module(image, text)
    assert_close(found.image, module.norm(text), rtol=0, atol=0)
    assert_close(found.text, module.norm(image), rtol=0, atol=0)


def test_residual_of_v3_mixes_each_side_with_the_other():
    image, text = one_token()
    module = make("v3")
    found = module(image, text)
    assert_close(found.image, image + module.norm(text))
    assert_close(found.text, text + module.norm(image))


@pytest.mark.parametrize("version", ["v5", "v7"])
def test_one_token_gives_cosine_one_for_any_pair(version):
    image, text = one_token()
    found = make(version)(image, text)
    cosines = F.cosine_similarity(found.image, found.text.roll(1, 0), dim=-1)
    assert (cosines < 0.999).all()  # of two pairs: not because all outputs are one vector
    assert_close(F.cosine_similarity(found.image, found.text, dim=-1), torch.ones(4, 1, dtype=torch.float64))
    assert_close(found.image, found.text)


def test_one_token_of_v7_is_as_published():
    """T' = Aᵀ V_T, which fits for one token, is what Aᵀ (A V_T) then is; the picture plays no part in either output."""
    image, text = one_token()
    module = make("v7")
    found = module(image, text)
    assert_close(found.text, module.norm(module.out(module.value(module.norm(text)))))
    assert_close(module(image.roll(1, 0), text).text, found.text, rtol=0, atol=0)


def depends(module, image, text) -> dict[tuple[str, str], bool]:
    """(output, input) → whether the output changes with that input."""
    first = module(image, text)
    second = {"image": module(image.roll(1, 0), text), "text": module(image, text.roll(1, 0))}
    return {
        (side, moved): not torch.allclose(getattr(first, side), getattr(found, side), rtol=0, atol=1e-12)
        for side in ("image", "text")
        for moved, found in second.items()
    }


DUAL_ENCODERS = ["v0", "v1", "v2", "v4", "v6", "v8", "v9", "v10_1", "v10_3", "v10_4", "v10_4_mqa", "v10_5", "v11"]
BOTH = ["v3", "v5", "v10_2", "v10_6"]


@every
def test_what_depends_on_what_for_one_token(version):
    """Most are dual encoders with the sides swapped: I' knows nothing of the picture, T' nothing of the text."""
    found = depends(make(version), *one_token())
    assert found["image", "text"]
    assert found["text", "image"] is (version != "v7")
    assert found["text", "text"] is (version in (*BOTH, "v7"))
    assert found["image", "image"] is (version in BOTH)
    assert {*DUAL_ENCODERS, *BOTH, "v7"} == set(VERSIONS)


@pytest.mark.parametrize("version", [v for v in VERSIONS if v != "v0"])
def test_with_more_tokens_both_outputs_depend_on_both_inputs(version):
    assert all(depends(make(version), *sides()).values())


def test_gate_of_v10_2_is_the_only_way_of_the_own_side_into_the_output():
    module, (image, text) = make("v10_2"), one_token()
    with torch.no_grad():
        for gate in module.gate.values():
            gate.weight.zero_()
    found = depends(module, image, text)
    assert (found["image", "image"], found["text", "text"]) == (False, False)


def test_own_side_reaches_v10_6_as_one_scalar_for_all_features():
    """The LayerNorm before the feed-forward does not see the scalar: I' is what it is in v9, plus 0.1 × cosine."""
    module, (image, text) = make("v10_6"), one_token()
    moved = module(image.roll(1, 0), text).image - module(image, text).image  # (B, 1, D)
    assert_close(moved, moved[..., :1].expand_as(moved))
    assert moved.abs().max() > 1e-3
    assert (moved.abs() < 0.2 + 1e-9).all()


@pytest.mark.parametrize("lengths", [(1, 1), (N_IMAGE, N_TEXT)])
def test_v10_6_is_v9_plus_a_tenth_of_the_mean_cosine(lengths):
    module, plain, (image, text) = make("v10_6"), make("v9"), sides(2, *lengths)
    plain.load_state_dict(module.state_dict(), strict=False)
    before, after = plain(image, text), module(image, text)
    a = [x.tokens for x in plain.attention(plain.norm(image), plain.norm(text), None, None, False)]
    c_image, c_text = (F.normalize(module.contrast(x), dim=-1) for x in a)
    assert_close(after.image, before.image + 0.1 * (c_image @ c_text.mT).mean(2, keepdim=True), atol=1e-4, rtol=0)
    assert_close(after.text, before.text + 0.1 * (c_text @ c_image.mT).mean(2, keepdim=True), atol=1e-4, rtol=0)


# ----------------------------------------------------------------------------------- one version as a case of another


def copied(version, source, **renamed):
    """A version with the weights of another module, as far as it has them."""
    module = make(version)
    module.load_state_dict({**source.state_dict(), **renamed}, strict=False)
    return module


def assert_same(first, second, image, text, image_mask=None, text_mask=None):
    for a, b in zip(first(image, text, image_mask, text_mask)[:2], second(image, text, image_mask, text_mask)[:2]):
        assert_close(a, b)


def as_identity(linear):
    with torch.no_grad():
        linear.weight.copy_(torch.eye(DIM))
        linear.bias.zero_()


def test_v6_with_identities_is_v2():
    module = make("v6")
    for linear in (module.query, module.key, module.value):
        as_identity(linear)
    assert_same(module, copied("v2", module), *sides(), *masks())


def test_v4_with_identities_is_v2():
    module = make("v4")
    for linear in module.project.values():
        as_identity(linear)
    assert_same(module, copied("v2", module), *sides(), *masks())


def keys_and_values_in_one(source):
    """Weights of ``key_value`` that do what a module's ``key`` and ``value`` do."""
    maps = source.key, source.value
    return {f"key_value.{p}": torch.cat([getattr(m, p) for m in maps]) for p in ("weight", "bias")}


@pytest.mark.parametrize(("version", "other"), [("v9", "v10_4"), ("v10_5", "v11")])
def test_keys_and_values_from_one_map_change_nothing(version, other):
    """Nor does W_o per level: a linear map of a mean is the mean of the maps. v11 is v10_5, but for dropout."""
    source = make(version)
    assert_same(copied(other, source, **keys_and_values_in_one(source)), source, *sides(), *masks())


def test_multi_query_attention_is_v10_4_whose_heads_have_equal_keys_and_values():
    source = make("v10_4_mqa")
    d, weights = DIM // HEADS, source.key_value.state_dict()
    assert source.key_value.out_features == 2 * d  # one head of keys, one of values
    every_head = {p: torch.cat([w for part in x.split(d) for w in [part] * HEADS]) for p, x in weights.items()}
    every_head = {f"key_value.{p}": x for p, x in every_head.items()}
    assert_same(copied("v10_4", source, **every_head), source, *sides(), *masks())


@pytest.mark.parametrize("version", ["v10_5", "v11"])
def test_three_equal_levels_are_v9_whatever_their_weights(version):
    """So the levels' weights sum to 1."""
    source = make("v9")
    module = copied(version, source, **keys_and_values_in_one(source))
    for linear, norm in module.levels:
        as_identity(linear)
        norm.load_state_dict(source.norm.state_dict())
    assert len(module.levels) == 3
    assert module.level_scores.softmax(0).std() > 0.01
    assert_same(module, source, *sides(), *masks())


# -------------------------------------------------------------------------------------------------- attention weights


@every
def test_weights_are_what_the_version_says(version):
    module, (image, text), (image_mask, text_mask) = make(version), sides(), masks()
    found = module(image, text, image_mask, text_mask, need_weights=True)
    heads = {"v10_5": 3 * HEADS, "v11": 3 * HEADS}.get(version, HEADS if version in WITH_HEADS else 1)
    assert found.image_weights.shape == (2, heads, N_IMAGE, N_TEXT)
    assert found.text_weights.shape == (2, heads, N_TEXT, N_IMAGE)
    to_text, to_image = found.image_weights, found.text_weights
    real_pair = (image_mask[:, :, None] & text_mask[:, None, :])[:, None]  # (B, 1, Nᵢ, Nₜ)
    real_rows = image_mask[:, None].expand(-1, heads, -1)
    assert_close(to_text.sum(-1)[real_rows], torch.ones(int(real_rows.sum()), dtype=torch.float64))
    assert not to_text.masked_fill(real_pair | ~image_mask[:, None, :, None], 0).any()
    assert not to_image.masked_fill(real_pair.mT | ~text_mask[:, None, :, None], 0).any()
    sums = to_image.sum(-1)[text_mask[:, None].expand(-1, heads, -1)]
    if version in ONE_MATRIX:  # the transpose, not normalised again
        assert_close(to_image * real_pair.mT, to_text.mT * real_pair.mT, rtol=0, atol=0)
        assert (sums - 1).abs().max() > 0.1
    else:
        assert_close(sums, torch.ones_like(sums))


@every
def test_fused_and_explicit_attention_agree(version):
    module, inputs = make(version), (*sides(), *masks())
    fused, explicit = module(*inputs), module(*inputs, need_weights=True)
    assert fused.image_weights is fused.text_weights is None
    for a, b, mask in zip(fused[:2], explicit[:2], inputs[2:]):
        assert_close(a[mask], b[mask])


# ------------------------------------------------------------------------------------------------------- invariances


@every
@pytest.mark.parametrize("need_weights", [False, True])
def test_padding_changes_nothing(version, need_weights):
    """Rubbish in the padding, and more padding, on both sides."""
    module, (image, text), (image_mask, text_mask) = make(version), sides(), masks()
    expected = module(image, text, image_mask, text_mask, need_weights)

    def spoiled(tokens, mask):
        inside = torch.where(mask[..., None], tokens, 1e3 * torch.randn_like(tokens))
        return torch.cat([inside, torch.full_like(tokens[:, :2], 1e3)], 1), F.pad(mask, (0, 2))

    (other_image, longer_image), (other_text, longer_text) = spoiled(image, image_mask), spoiled(text, text_mask)
    found = module(other_image, other_text, longer_image, longer_text, need_weights)
    assert_close(found.image[longer_image], expected.image[image_mask])
    assert_close(found.text[longer_text], expected.text[text_mask])


@every
def test_one_masked_side_is_enough(version):
    """A mask of ones is no mask, on either side."""
    module, (image, text), (image_mask, text_mask) = make(version), sides(), masks()
    ones = [torch.ones_like(m) for m in (image_mask, text_mask)]
    for given, plain in (
        ((image_mask, None), (image_mask, ones[1])),
        ((None, text_mask), (ones[0], text_mask)),
        ((None, None), ones),
    ):
        found, expected = module(image, text, *given), module(image, text, *plain)
        assert_close(found.image, expected.image)
        assert_close(found.text, expected.text)


@every
def test_order_of_tokens_moves_with_its_side_only(version):
    module, (image, text) = make(version), sides()
    before, order = module(image, text), torch.tensor([3, 0, 4, 1, 2])
    after = module(image[:, order], text)
    assert_close(after.image, before.image[:, order])
    assert_close(after.text, before.text)
    after = module(image, text.flip(1))
    assert_close(after.image, before.image)
    assert_close(after.text, before.text.flip(1))


@every
@pytest.mark.parametrize("need_weights", [False, True])
def test_all_pairs_at_once_are_the_pairs_one_by_one(version, need_weights):
    module = make(version)
    (image, _), (_, text) = sides(2), sides(4, seed=2)
    (image_mask, _), (_, text_mask) = masks(2), masks(4, n_text=6)
    text = torch.cat([text, text], 1)  # (4, 6, D)
    both = image[:, None], text[None], image_mask[:, None], text_mask[None]
    found = module(*both, need_weights=need_weights)
    assert found.image.shape[:2] == found.text.shape[:2] == (2, 4)
    for i in range(2):
        for j in range(4):
            one = module(image[i : i + 1], text[j : j + 1], image_mask[i : i + 1], text_mask[j : j + 1], need_weights)
            assert_close(found.image[i, j], one.image[0])
            assert_close(found.text[i, j], one.text[0])
            if need_weights:
                assert_close(found.image_weights[i, j], one.image_weights[0])
                assert_close(found.text_weights[i, j], one.text_weights[0])


# ---------------------------------------------------------------------------------------------------------- gradients


def relative_gradients(version, image, text) -> dict[str, float]:
    """Name → largest gradient of the parameter over the largest of all, for a random linear function of I' and T'.

    The rows of ``key_value`` are told apart: the first half makes keys.
    """
    module = make(version)
    found = module(image, text)
    chance = torch.Generator().manual_seed(3)
    sum((x * torch.randn(x.shape, generator=chance, dtype=x.dtype)).sum() for x in found[:2]).backward()
    gradients = {}
    for name, p in module.named_parameters():
        parts = {name: p.grad}
        if name.startswith("key_value"):
            half = len(p) // 2
            parts = {name.replace("key_value", "key"): p.grad[:half], name.replace("key_value", "value"): p.grad[half:]}
        gradients |= {k: 0.0 if g is None else g.abs().max().item() for k, g in parts.items()}
    largest = max(gradients.values())
    return {k: g / largest for k, g in gradients.items()}


def unreached(gradients) -> set[str]:
    return {name for name, g in gradients.items() if g < 1e-12}


@pytest.mark.parametrize("version", WITH_PARAMETERS)
def test_gradient_reaches_every_parameter_but_the_bias_of_keys(version):
    """A bias of the keys adds q · b to all scores of a query, which softmax does not see."""
    gradients = relative_gradients(version, *sides())
    assert unreached(gradients) == {n for n in gradients if n.startswith("key.") and n.endswith("bias")}


@pytest.mark.parametrize("version", WITH_PARAMETERS)
def test_for_one_token_nothing_reaches_the_queries_and_the_keys(version):
    """The softmax over one element is 1 whatever the score: the chapter's first proposition."""
    gradients = relative_gradients(version, *one_token())
    assert unreached(gradients) == {n for n in gradients if n.startswith(("query.", "key."))}
    assert bool(unreached(gradients)) is (version not in ("v2", "v3", "v4", "v5"))


# ------------------------------------------------------------------------------------------------------------ dropout


@every
def test_dropout_is_on_in_training_from_v9_on(version):
    module, inputs = make(version), sides()
    assert_close(module(*inputs), module(*inputs), rtol=0, atol=0)
    module.train()
    first, second = module(*inputs), module(*inputs)
    for a, b in zip(first[:2], second[:2]):
        assert torch.equal(a, b) is (version not in WITH_DROPOUT)
    calm = make(version, dropout=0.0)
    assert_close(calm.train()(*inputs), calm.eval()(*inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("version", WITH_DROPOUT)
def test_dropped_attention_weights_are_zero_and_the_others_larger(version):
    module, inputs = make(version, dropout=0.25), sides(64)
    whole = module(*inputs, need_weights=True)
    some = module.train()(*inputs, need_weights=True)
    for a, b in zip(whole[2:], some[2:]):
        dropped = b == 0
        assert_close(b[~dropped], a[~dropped] / 0.75)
        assert dropped.double().mean() == pytest.approx(0.25, abs=0.03)


def test_dropout_in_the_feed_forward_and_after_the_output_maps():
    module, p = make("v9", dropout=0.5).train(), 0.5
    hidden = []
    module.feed_forward.down.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    x = torch.randn(200, DIM, dtype=torch.float64)
    module.feed_forward(x)
    module.eval().feed_forward(x)
    kept = hidden[0] != 0
    assert kept.double().mean() == pytest.approx((1 - p) ** 2, abs=0.02)  # two factors, each dropped on its own
    assert_close(hidden[0][kept], hidden[1][kept] / (1 - p) ** 2)
    with torch.no_grad():
        for linear in (module.out, module.feed_forward.down):
            linear.weight.zero_()
            linear.bias.fill_(1.0)
    module.train()
    x = torch.zeros_like(x)
    for ones in (module.put_out(x), module.finish(x, x, x, "image")):
        assert_close(ones.unique(), torch.tensor([0.0, 1 / (1 - p)], dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("version", "values"), [("v10_5", 2), ("v11", 4)])
def test_v11_drops_each_level_on_its_own(version, values):
    """Of three equal levels, 0 to 3 survive in v11; in v10_5 all or none."""
    module = make(version, dropout=0.5).train()
    with torch.no_grad():
        module.out.weight.zero_()
        module.out.bias.fill_(1.0)
        module.level_scores.zero_()
    found = module.add_up([Read(torch.zeros(200, DIM, dtype=torch.float64), None)] * 3).tokens
    assert_close(found.round(decimals=9).unique(), torch.linspace(0, 2, values, dtype=torch.float64))


def test_dropout_of_training_is_the_same_with_and_without_weights():
    """What is asked for must not change what is learned: same mean and spread of the output over many draws."""
    module, (image, text) = make("v9", dropout=0.4).train(), sides(1)
    with torch.no_grad():
        module.dropout.p = module.feed_forward.dropout.p = 0.0  # attention weights only
        image, text = image.expand(4000, -1, -1), text.expand(4000, -1, -1)
        with_weights, without = (module(image, text, need_weights=w).image for w in (True, False))
    error = with_weights.std(0) / math.sqrt(4000)
    assert ((with_weights.mean(0) - without.mean(0)).abs() < 6 * error).all()
    assert_close(with_weights.std(0), without.std(0), rtol=0.15, atol=0)
    assert (without.std(0) > 0).all()


# ------------------------------------------------------------------------------------------------- sizes and mistakes


def parameters(dim: int, heads: int) -> dict[str, int]:
    """Number of parameters in closed form."""
    norm, linear = 2 * dim, dim * dim + dim
    feed_forward = 12 * dim**2 + 9 * dim  # two maps D → 4 D, one back
    v9 = norm + 4 * linear + norm + feed_forward
    v10_5 = v9 - norm + 3 * (linear + norm) + 3
    return {
        "v0": 0,
        "v1": 0,
        "v2": norm,
        "v3": norm,
        "v4": norm + 2 * linear,
        "v5": norm,
        "v6": norm + 3 * linear,
        "v7": norm + 4 * linear,
        "v8": norm + 4 * linear + norm,
        "v9": v9,
        "v10_1": v9 + 3 * linear,
        "v10_2": v9 + 2 * norm + 2 * (2 * dim**2 + dim),
        "v10_3": v9 + 4 * linear,
        "v10_4": v9,
        "v10_4_mqa": v9 - 2 * linear + 2 * linear // heads,
        "v10_5": v10_5,
        "v10_6": v9 + linear,
        "v11": v10_5,
    }


@pytest.mark.parametrize(("dim", "heads"), [(16, 4), (64, 8), (24, 1)])
def test_number_of_parameters(dim, heads):
    found = {v: sum(p.numel() for p in cls(dim, heads).parameters()) for v, cls in VERSIONS.items()}
    assert found == parameters(dim, heads)


def test_differences_add_up_and_name_real_steps():
    rows = {row["version"]: row for row in differences(DIM * 2)}
    assert list(rows) == list(VERSIONS)
    expected = parameters(DIM * 2, 8)
    for version, row in rows.items():
        cls = VERSIONS[version]
        assert (row["parameters"], row["title"]) == (expected[version], vars(cls)["title"])
        if version == "v0":
            assert (row["from"], row["steps"], row["more"]) == ("", "", 0)
            continue
        parent = VERSIONS[row["from"]]
        assert issubclass(cls, parent)
        assert row["more"] == row["parameters"] - rows[row["from"]]["parameters"]
        assert row["steps"]
        for step in row["steps"].split(", "):
            assert getattr(cls, step) is not getattr(parent, step, None)
    assert {v: row["from"] for v, row in rows.items()} == {
        **dict(zip(["v0", "v1", "v2", "v7", "v8", "v9", "v10_4_mqa"], ["", "v0", "v1", "v6", "v2", "v8", "v10_4"])),
        **dict.fromkeys(("v3", "v4", "v5", "v6"), "v2"),
        **dict.fromkeys(("v10_1", "v10_2", "v10_3", "v10_4", "v10_5", "v10_6"), "v9"),
        "v11": "v10_5",
    }


@every
def test_bad_sizes_are_refused(version):
    with pytest.raises(ValueError, match="dim=10 is not a multiple of heads=4"):
        VERSIONS[version](10, 4)
    module, (image, text) = make(version), sides()
    with pytest.raises(ValueError, match=f"image tokens have 3 features, the module has dim={DIM}"):
        module(image[..., :3], text)
    with pytest.raises(ValueError, match=f"text tokens have 3 features, the module has dim={DIM}"):
        module(image, text[..., :3])


def test_gated_feed_forward_of_a_number():
    """W₂ (GELU(W_g x) ⊙ GELU(W_u x)) with one feature and weights that are known."""
    f = GatedFeedForward(1, 0.0).double()
    with torch.no_grad():
        for linear, weight, bias in ((f.gate, 1.0, 0.0), (f.up, 0.0, 3.0), (f.down, 0.25, 1.0)):
            linear.weight.fill_(weight)
            linear.bias.fill_(bias)

    def gelu(z):
        return z * 0.5 * (1 + math.erf(z / math.sqrt(2)))

    assert f(torch.tensor([[2.0]], dtype=torch.float64)).item() == pytest.approx(gelu(2.0) * gelu(3.0) + 1)
