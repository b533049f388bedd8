"""Six layouts, bottlenecks, Perceiver: what reads what, and what every fusion owes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from vqa_core.fusion.blocks import TransformerBlock
from vqa_core.fusion.bottleneck import BottleneckFusion, attention_pairs
from vqa_core.fusion.output import masked_mean
from vqa_core.fusion.perceiver import Perceiver, PerceiverIO
from vqa_core.fusion.transformer import LAYOUTS, ReadingBlock, TriCoAttention, stretched

B, N_IMAGE, N_TEXT, N = 3, 9, 5, 14
IMAGE, TEXT, OUT, HEADS = 10, 6, 8, 2  # all different on purpose

FUSIONS = {
    **{name: lambda c=c, **o: c(IMAGE, TEXT, OUT, heads=HEADS, **o) for name, c in LAYOUTS.items()},
    "early_summation, resample": lambda **o: LAYOUTS["early_summation"](
        IMAGE, TEXT, OUT, align="resample", heads=HEADS, **o
    ),
    "bottleneck": lambda **o: BottleneckFusion(IMAGE, TEXT, OUT, bottlenecks=3, heads=HEADS, **o),
    "bottleneck, late": lambda **o: BottleneckFusion(
        IMAGE, TEXT, OUT, bottlenecks=3, fusion_layer=1, depth=3, heads=HEADS, **o
    ),
    "perceiver": lambda **o: Perceiver(IMAGE, TEXT, OUT, latents=4, reads=2, heads=HEADS, cross_heads=HEADS, **o),
    "perceiver, shared": lambda **o: Perceiver(IMAGE, TEXT, OUT, latents=4, reads=2, heads=HEADS, shared=True, **o),
    "perceiver io": lambda **o: PerceiverIO(IMAGE, TEXT, OUT, latents=4, heads=HEADS, **o),
}
SETS = {k: v for k, v in FUSIONS.items() if k != "early_summation, resample"}


def fusions(table):
    return pytest.mark.parametrize("make", table.values(), ids=table.keys())


@pytest.fixture
def inputs():
    image, text = torch.randn(B, N_IMAGE, IMAGE), torch.randn(B, N_TEXT, TEXT)
    image_mask, text_mask = torch.ones(B, N_IMAGE, dtype=torch.bool), torch.ones(B, N_TEXT, dtype=torch.bool)
    image_mask[0, 6:] = False
    text_mask[1, 2:] = False
    return image, text, image_mask, text_mask


def count(module):
    return sum(p.numel() for p in module.parameters())


# ------------------------------------------------------------------------------------------- what every fusion owes


def test_there_are_six_layouts():
    assert list(LAYOUTS) == [
        "early_summation",
        "early_concatenation",
        "multi_to_one",
        "one_to_multi",
        "cross_attention",
        "cross_attention_to_concatenation",
    ]


@fusions(FUSIONS)
def test_the_contract(make, inputs):
    """out_dim, no weights unless asked for, weights that do not change the result, masks of ones as no masks."""
    fusion = make().eval()
    output = fusion(*inputs)
    assert output.fused.shape == (B, fusion.out_dim) == (B, OUT)
    assert output.fused.isfinite().all()
    assert output.attention is None
    assert_close(fusion(*inputs, need_weights=True).fused, output.fused, rtol=1e-4, atol=1e-5)
    ones = [torch.ones(t.shape[:2], dtype=torch.bool) for t in inputs[:2]]
    assert_close(fusion(*inputs[:2], *ones).fused, fusion(*inputs[:2]).fused, rtol=1e-5, atol=1e-6)


@fusions(FUSIONS)
def test_padding_changes_nothing(make, inputs):
    fusion = make().eval()
    image, text, image_mask, text_mask = inputs

    def pad(tokens, mask, n):
        tokens = torch.where(mask.unsqueeze(-1), tokens, 100 * torch.randn_like(tokens))
        garbage = 100 * torch.randn(B, n, tokens.shape[-1])
        return torch.cat([tokens, garbage], 1), torch.cat([mask, torch.zeros(B, n, dtype=torch.bool)], 1)

    (long_image, long_image_mask), (long_text, long_text_mask) = pad(image, image_mask, 7), pad(text, text_mask, 4)
    got = fusion(long_image, long_text, long_image_mask, long_text_mask).fused
    assert_close(got, fusion(*inputs).fused, rtol=1e-5, atol=1e-5)


@fusions(FUSIONS)
def test_both_sides_matter_in_every_row(make, inputs):
    """The guard of the test above: a fusion that ignores its inputs would pass it."""
    fusion = make().eval()
    image, text, *masks = inputs
    want = fusion(*inputs).fused
    for side in (0, 1):
        changed = [image.clone(), text.clone()]
        changed[side][:, 0] += 3
        assert (fusion(*changed, *masks).fused - want).abs().amax(1).min() > 1e-5


@fusions(SETS)
def test_without_positions_tokens_are_sets(make, inputs):
    fusion = make().eval()
    image, text, image_mask, text_mask = inputs
    i, t = torch.randperm(N_IMAGE), torch.randperm(N_TEXT)
    got = fusion(image[:, i], text[:, t], image_mask[:, i], text_mask[:, t]).fused
    assert_close(got, fusion(*inputs).fused, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n != "early_summation"])
def test_tokens_go_where_they_came_from(name, inputs):
    """Equivariance: permuted tokens come out permuted, so that each one can be read."""
    layout = FUSIONS[name]().eval()
    image, text, image_mask, text_mask = inputs
    i, t = torch.randperm(N_IMAGE), torch.randperm(N_TEXT)
    want, _ = layout.meet(layout.embed(*inputs))
    got, _ = layout.meet(layout.embed(image[:, i], text[:, t], image_mask[:, i], text_mask[:, t]))
    assert_close(got.image, want.image[:, i], rtol=1e-4, atol=1e-5)
    assert_close(got.text, want.text[:, t], rtol=1e-4, atol=1e-5)


@fusions(SETS)
def test_positions_break_the_symmetry(make, inputs):
    fusion = make(image_length=N_IMAGE, text_length=N_TEXT).eval()
    image, text, *_ = inputs
    if isinstance(fusion, LAYOUTS["early_summation"]):
        image = image * 10  # the text side is pooled: only image positions count
    assert (fusion(image.flip(1), text).fused - fusion(image, text).fused).abs().max() > 1e-5
    with pytest.raises(ValueError, match="10 image tokens, but positions for 9"):
        fusion(torch.randn(1, 10, IMAGE), text[:1])


@fusions(FUSIONS)
def test_a_batch_can_be_split(make, inputs):
    fusion = make().eval()
    parts = torch.cat([fusion(*(t[i : i + 1] for t in inputs)).fused for i in range(B)])
    assert_close(parts, fusion(*inputs).fused, rtol=1e-4, atol=1e-5)


@fusions(FUSIONS)
def test_gradient_reaches_every_parameter_and_no_padding(make, inputs):
    fusion, (image, text, image_mask, text_mask) = make(), inputs
    image.requires_grad_()
    text.requires_grad_()
    fused = fusion(*inputs).fused
    (fused * torch.randn_like(fused)).sum().backward()
    untouched = [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert untouched == []
    assert (image.grad[~image_mask] == 0).all()
    assert (text.grad[~text_mask] == 0).all()


@fusions(FUSIONS)
def test_a_row_without_real_tokens_is_finite(make, inputs):
    fusion = make()
    image, text, image_mask, text_mask = inputs
    want = fusion(*inputs).fused
    image_mask[2] = text_mask[2] = False
    got = fusion(image, text, image_mask, text_mask).fused
    assert got.isfinite().all()
    assert_close(got[:2], want[:2], rtol=1e-5, atol=1e-5)


@fusions(FUSIONS)
def test_eight_samples_are_learned_by_heart(make):
    """The answer depends on both sides: an exclusive-or of one feature of each."""
    torch.manual_seed(1)
    fusion, head = make(), nn.Linear(OUT, 2)
    image, text = torch.randn(8, 4, IMAGE), torch.randn(8, 3, TEXT)
    a, b = torch.arange(8) % 2, torch.arange(8) // 2 % 2
    image[:, 0, 0], text[:, 0, 0] = 4.0 * a - 2, 4.0 * b - 2
    optimizer = torch.optim.Adam([*fusion.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(150):
        loss = F.cross_entropy(head(fusion(image, text).fused), a ^ b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            break
    assert (head(fusion(image, text).fused).argmax(1) == a ^ b).all()


@fusions(FUSIONS)
def test_wrong_inputs_are_named(make, inputs):
    image, text, image_mask, _ = inputs
    with pytest.raises(ValueError, match=r"image_tokens has 6 features.*image_dim=10"):
        make()(text, text)
    with pytest.raises(ValueError, match=r"image_mask is torch\.float32"):
        make()(image, text, image_mask.float())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LAYOUTS["multi_to_one"](4, 4, 8, depth=1), "depth is 1; MultiToOne needs at least 2"),
        (lambda: LAYOUTS["early_concatenation"](4, 4, 8, depth=0), "depth is 0"),
        (lambda: LAYOUTS["early_summation"](4, 4, 8, align="sum"), "allowed are 'pool', 'resample'"),
        (lambda: BottleneckFusion(4, 4, 8, bottlenecks=0), "bottlenecks is 0"),
        (lambda: BottleneckFusion(4, 4, 8, depth=2, fusion_layer=2), "must lie between 0 and 1"),
        (lambda: Perceiver(4, 4, 8, latents=0), "latents is 0"),
        (lambda: Perceiver(4, 4, 8, reads=0), "reads is 0"),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------------------- what reads what


def pattern(name, depth=2):
    """Per layer, which of 3 image and 2 text tokens read which: bool (5, 5)."""
    layout = LAYOUTS[name](IMAGE, TEXT, OUT, depth=depth, heads=HEADS).eval()
    _, maps = layout.meet(layout.embed(torch.randn(1, 3, IMAGE), torch.randn(1, 2, TEXT)), need_weights=True)
    return [(m[0] > 0).all(0) for m in maps]


ALL = torch.ones(5, 5, dtype=torch.bool)
OWN = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).bool()


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("early_concatenation", [ALL, ALL]),
        ("multi_to_one", [OWN, ALL]),
        ("one_to_multi", [ALL, OWN]),
        ("cross_attention", [~OWN, ~OWN]),
        ("cross_attention_to_concatenation", [~OWN, ALL]),
    ],
)
def test_each_layout_has_its_pattern(name, want):
    got = pattern(name)
    assert len(got) == len(want)
    assert all(torch.equal(g, w) for g, w in zip(got, want))


def test_depth_is_shared_between_stages():
    assert [bool(p.all()) for p in pattern("multi_to_one", depth=5)] == [False, False, True, True, True]
    assert [bool(p.all()) for p in pattern("one_to_multi", depth=4)] == [True, True, False, False]


@fusions(FUSIONS)
def test_weights_sum_to_one_over_real_tokens(make, inputs):
    fusion = make().eval()
    _, _, image_mask, text_mask = inputs
    weights = fusion(*inputs, need_weights=True).attention
    assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    keys = [image_mask, text_mask]
    if isinstance(fusion, BottleneckFusion):
        always = torch.ones(B, fusion.bottlenecks.shape[1], dtype=torch.bool)
        keys = [image_mask, always, text_mask, always]
    elif isinstance(fusion, LAYOUTS["early_summation"]):
        keys = [image_mask]
    assert (weights.masked_select(~torch.cat(keys, 1)[:, None, None]) == 0).all()


def test_shapes_of_weights(inputs):
    shapes = {name: tuple(make()(*inputs, need_weights=True).attention.shape) for name, make in FUSIONS.items()}
    assert shapes["early_concatenation"] == shapes["cross_attention"] == (B, HEADS, N, N)
    assert shapes["early_summation"] == (B, HEADS, N_IMAGE, N_IMAGE)
    assert shapes["bottleneck"] == (B, HEADS, N + 6, N + 6)
    assert shapes["perceiver"] == (B, HEADS, 4, N)


def test_layouts_are_compositions_of_the_same_blocks(inputs):
    """multi_to_one by hand: two blocks on their own, then one on the concatenation."""
    layout = FUSIONS["multi_to_one"]().eval()
    image, text, image_mask, text_mask = layout.embed(*inputs)
    own, joint = layout.layers
    both = torch.cat([own.image(image, image_mask)[0], own.text(text, text_mask)[0]], 1)
    mask = torch.cat([image_mask, text_mask], 1)
    want = layout.norm(masked_mean(joint.block(both, mask)[0], mask))
    assert_close(layout(*inputs).fused, want, rtol=1e-5, atol=1e-6)


def test_reading_oneself_is_a_transformer_block():
    block, reading, x = TransformerBlock(8, 2), ReadingBlock(8, 2), torch.randn(2, 5, 8)
    reading.attention.load_state_dict(block.attention.state_dict())
    reading.mlp.load_state_dict(block.mlp.state_dict())
    assert_close(reading(x, x)[0], block(x)[0], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------- early summation


def test_a_stretched_row_is_interpolated_over_real_tokens():
    row = torch.tensor([[[0.0], [99.0], [10.0], [20.0]]])
    mask = torch.tensor([[True, False, True, True]])  # 0, 10, 20
    onto = torch.tensor([[True, True, False, True, True, True]])
    got = stretched(row, mask, onto)[0, :, 0]
    assert got[onto[0]].tolist() == [0, 5, 10, 15, 20]
    assert stretched(row, mask & False, onto).abs().max() == 0
    same = torch.randn(2, 4, 3)
    every = torch.ones(2, 4, dtype=torch.bool)
    assert_close(stretched(same, every, every), same)


def test_early_summation_adds_before_any_block(inputs):
    layout = FUSIONS["early_summation"]().eval()
    image, text, image_mask, text_mask = layout.embed(*inputs)
    summed = image + masked_mean(text, text_mask).unsqueeze(1)
    for layer in layout.layers:
        summed, _ = layer.block(summed, image_mask)
    assert_close(layout(*inputs).fused, layout.norm(masked_mean(summed, image_mask)), rtol=1e-5, atol=1e-6)


def test_resampling_sees_the_order_of_words(inputs):
    image, text = inputs[:2]
    for align, sees in (("pool", False), ("resample", True)):
        layout = LAYOUTS["early_summation"](IMAGE, TEXT, OUT, align=align, heads=HEADS).eval()
        change = (layout(image, text.flip(1)).fused - layout(image, text).fused).abs().max()
        assert bool(change > 1e-4) is sees


# --------------------------------------------------------------------------------------------- bottlenecks, latents


def test_what_one_modality_learns_of_the_other_passes_the_bottleneck(inputs):
    """One layer: text tokens know nothing of the picture yet. With two they do; with mute bottlenecks, never."""
    image, text, *masks = inputs

    def seen_by_text(fusion):
        out = []
        for picture in (image, image + 1):
            streams = fusion.embed(picture, text, *masks)
            bottlenecks = fusion.bottlenecks.expand(B, -1, -1)
            for layer in fusion.fusing:
                streams, bottlenecks, _ = layer(streams, bottlenecks)
            out.append(streams.text)
        return (out[0] - out[1]).abs().max()

    assert seen_by_text(BottleneckFusion(IMAGE, TEXT, OUT, depth=1, heads=HEADS)) == 0
    assert seen_by_text(BottleneckFusion(IMAGE, TEXT, OUT, depth=2, heads=HEADS)) > 1e-4


def test_bottlenecks_are_averaged(inputs):
    fusion = BottleneckFusion(IMAGE, TEXT, OUT, bottlenecks=3, depth=1, heads=HEADS)
    streams, (layer,) = fusion.embed(*inputs[:2]), fusion.fusing
    start = fusion.bottlenecks.expand(B, -1, -1)
    _, got, _ = layer(streams, start)
    from_image = layer.image(torch.cat([streams.image, start], 1))[0][:, N_IMAGE:]
    from_text = layer.text(torch.cat([streams.text, start], 1))[0][:, N_TEXT:]
    assert_close(got, (from_image + from_text) / 2)


def test_layers_before_the_fusion_are_each_modalitys_own(inputs):
    fusion = BottleneckFusion(IMAGE, TEXT, OUT, depth=3, fusion_layer=2, heads=HEADS)
    assert (len(fusion.layers), len(fusion.fusing)) == (2, 1)
    _, maps = fusion.meet(fusion.embed(*inputs[:2]), need_weights=True)
    assert all((m[..., :N_IMAGE, N_IMAGE:] == 0).all() and (m[..., N_IMAGE:, :N_IMAGE] == 0).all() for m in maps)


def test_a_perceiver_without_its_cross_attention_is_blind(inputs):
    """A published sketch has this line commented out: it runs, it trains, and its latents never see the input."""

    class Sketch(Perceiver):
        def encode(self, inputs, mask=None, need_weights=False):
            x = self.latents.expand(len(inputs), -1, -1)
            for blocks in self.thinking:
                # x, weights = self.reading[k](x, inputs, mask)
                for block in blocks:
                    x, _ = block(x)
            return x, None

    torch.manual_seed(0)
    sketch = Sketch(IMAGE, TEXT, OUT, latents=4, heads=HEADS)
    torch.manual_seed(0)
    whole = Perceiver(IMAGE, TEXT, OUT, latents=4, heads=HEADS)
    image, text = inputs[:2]
    assert torch.equal(sketch(image, text).fused, sketch(image * 3, -text).fused)
    assert (whole(image, text).fused - whole(image * 3, -text).fused).abs().max() > 1e-4
    sketch(image, text).fused.square().sum().backward()
    assert {n for n, p in sketch.named_parameters() if p.grad is None} == {
        n for n, _ in sketch.named_parameters() if n.startswith(("image_embedding", "text_embedding", "reading"))
    }


def test_shared_weights_are_one_set_used_twice(inputs):
    shared, apart = (Perceiver(IMAGE, TEXT, OUT, latents=4, reads=2, heads=HEADS, shared=s) for s in (True, False))
    block, reading = count(TransformerBlock(OUT, HEADS)), count(ReadingBlock(OUT, 1))
    assert count(apart) - count(shared) == reading + 2 * block
    once = Perceiver(IMAGE, TEXT, OUT, latents=4, reads=1, heads=HEADS)
    once.load_state_dict(shared.state_dict())
    assert (once(*inputs).fused - shared(*inputs).fused).abs().max() > 1e-4  # the second round does something


def test_output_queries_are_answered_one_by_one(inputs):
    perceiver = PerceiverIO(IMAGE, TEXT, OUT, latents=4, heads=HEADS).eval()
    streams = perceiver.embed(*inputs)
    latents, _ = perceiver.encode(*streams.joined())
    queries = torch.randn(B, 7, OUT)
    outputs = perceiver.decode(latents, queries)
    assert outputs.shape == (B, 7, OUT)
    assert_close(perceiver.decode(latents, queries[:, 2:3]), outputs[:, 2:3], rtol=1e-5, atol=1e-6)
    asked = perceiver.decode(latents, perceiver.question.expand(B, -1, -1))[:, 0]
    assert_close(perceiver(*inputs).fused, perceiver.norm(asked), rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------------------------- three modalities


def test_queries_of_two_read_the_third():
    co = TriCoAttention(8, 2).eval()
    sizes = 3, 4, 5
    tokens = tuple(torch.randn(2, n, 8) for n in sizes)
    out, maps = co(tokens, need_weights=True)
    assert [t.shape for t in out] == [t.shape for t in tokens]
    assert [tuple(m.shape) for m in maps] == [(2, 2, 9, 3), (2, 2, 8, 4), (2, 2, 7, 5)]
    by_hand = torch.stack([co.read[1](tokens[0], tokens[1])[0], co.read[2](tokens[0], tokens[2])[0]]).mean(0)
    assert_close(out[0], by_hand, rtol=1e-5, atol=1e-6)
    out[0].sum().backward()
    assert [next(b.parameters()).grad is None for b in co.read] == [True, False, False]


def test_three_modalities_ignore_padding_and_order():
    co = TriCoAttention(8, 2).eval()
    tokens = tuple(torch.randn(2, n, 8) for n in (3, 4, 5))
    masks = tuple(torch.ones(t.shape[:2], dtype=torch.bool) for t in tokens)
    masks[1][:, 2:] = False
    want, _ = co(tokens, masks)
    changed = tokens[1].masked_fill(~masks[1].unsqueeze(-1), 100.0)
    got, _ = co((tokens[0], changed, tokens[2]), masks)
    assert_close((got[0], got[2]), (want[0], want[2]))
    order = torch.randperm(5)
    permuted, _ = co((*tokens[:2], tokens[2][:, order]), masks)
    assert_close(permuted[0], want[0], rtol=1e-5, atol=1e-6)
    assert_close(permuted[2], want[2][:, order], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="three modalities"):
        co(tokens[:2])


# ---------------------------------------------------------------------------------------------- parameters and cost


def test_parameter_counts():
    d, embeddings = OUT, (IMAGE + TEXT) * OUT + 2 * OUT
    block, reading, norm = 12 * d * d + 13 * d, 12 * d * d + 15 * d, 2 * d
    want = {
        "early_summation": 2 * block,
        "early_concatenation": 2 * block,
        "multi_to_one": 3 * block,
        "one_to_multi": 3 * block,
        "cross_attention": 4 * reading,
        "cross_attention_to_concatenation": 2 * reading + block,
        "bottleneck": 4 * block + 3 * d,
        "perceiver, shared": reading + 2 * block + 4 * d,
        "perceiver io": 2 * reading + 2 * block + 4 * d + d,
    }
    assert {name: count(FUSIONS[name]()) for name in want} == {k: v + embeddings + norm for k, v in want.items()}


def flops(fusion, n_image, n_text):
    """Multiplications and additions of one forward pass."""
    image, text = torch.randn(1, n_image, IMAGE), torch.randn(1, n_text, TEXT)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fusion.eval()(image, text)
    return counter.get_total_flops()


def block_flops(queries, keys, d=OUT):
    """Projections of queries (2) and keys (2), the map (2 D per pair, twice), the feed-forward part (8 D²)."""
    return 2 * (2 * queries * d * d + 2 * keys * d * d + 2 * queries * keys * d + 8 * queries * d * d)


@pytest.mark.parametrize(("i", "t"), [(9, 5), (40, 8)])
def test_counted_operations_are_the_closed_form(i, t):
    n, n_b, latents = i + t, 3, 4
    joint, own = block_flops(n, n), block_flops(i, i) + block_flops(t, t)
    cross = block_flops(i, t) + block_flops(t, i)
    want = {
        "early_summation": 2 * block_flops(i, i),
        "early_concatenation": 2 * joint,
        "multi_to_one": own + joint,
        "one_to_multi": joint + own,
        "cross_attention": 2 * cross,
        "cross_attention_to_concatenation": cross + joint,
        "bottleneck": 2 * (block_flops(i + n_b, i + n_b) + block_flops(t + n_b, t + n_b)),
        "perceiver": 2 * (block_flops(latents, n) + 2 * block_flops(latents, latents)),
        "perceiver io": block_flops(latents, n) + 2 * block_flops(latents, latents) + block_flops(1, latents),
    }
    embedding = 2 * OUT * (i * IMAGE + t * TEXT)
    assert {name: flops(FUSIONS[name](), i, t) for name in want} == {k: v + embedding for k, v in want.items()}


def test_pairs_of_a_bottleneck_layer():
    """The quadratic part of the closed form above."""
    assert attention_pairs(9, 5, 3) == 12**2 + 8**2
    d, more = OUT, attention_pairs(40, 8, 3) - attention_pairs(9, 5, 3)
    linear = 2 * 12 * d * d * (48 - 14) + d * (34 * 0)
    got = flops(FUSIONS["bottleneck"](depth=1), 40, 8) - flops(FUSIONS["bottleneck"](depth=1), 9, 5)
    assert got == 4 * d * more + linear + 2 * d * (31 * IMAGE + 3 * TEXT)
