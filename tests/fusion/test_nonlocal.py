"""Cross-modal self-attention: closed forms, the contract of fusions, coordinates, memory."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from vqa_core.fusion.nonlocal_ import CMSA, NonLocalBlock, spatial_map, word_cell_maps
from vqa_core.heads.classifier import MLPHead

B, N_IMAGE, N_TEXT = 3, 12, 5
IMAGE, TEXT, OUT = 10, 6, 8  # all different on purpose


def awake(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """The same module with blocks that are no longer the identity, as after some training."""
    for block in module.modules():
        if isinstance(block, NonLocalBlock):
            nn.init.normal_(block.out.weight, std=scale)
            nn.init.normal_(block.out.bias, std=scale)
    return module


FUSIONS = {
    "set": lambda: awake(CMSA(IMAGE, TEXT, OUT)),
    "grid": lambda: awake(CMSA(IMAGE, TEXT, OUT, grid=(3, 4))),
    "words as they are": lambda: awake(CMSA(IMAGE, TEXT, TEXT, grid=(3, 4), blocks=1, hidden=4)),
}
fusions = pytest.mark.parametrize("make", FUSIONS.values(), ids=FUSIONS.keys())


@pytest.fixture
def inputs():
    image, text = torch.randn(B, N_IMAGE, IMAGE), torch.randn(B, N_TEXT, TEXT)
    image_mask, text_mask = torch.ones(B, N_IMAGE, dtype=torch.bool), torch.ones(B, N_TEXT, dtype=torch.bool)
    image_mask[0, 9:] = False
    text_mask[1, 2:] = False
    return image, text, image_mask, text_mask


def test_spatial_map_closed_form():
    cells = spatial_map(2, 4)
    assert cells.shape == (8, 8)
    assert_close(cells[0], torch.tensor([-1, -1, -0.5, 0, -0.75, -0.5, 0.25, 0.5]))
    assert_close(cells[5], torch.tensor([-0.5, 0, 0, 1, -0.25, 0.5, 0.25, 0.5]))  # second row, second column
    assert_close(spatial_map(1, 1)[0], torch.tensor([-1.0, -1, 1, 1, 0, 0, 1, 1]))
    with pytest.raises(ValueError, match="the grid is 0 × 7"):
        spatial_map(0, 7)


def test_published_sizes():
    """7 × 7 × (512 + 8 + 1024) = 1544, two blocks of half of that; each has 4.77 million parameters."""
    with torch.device("meta"):
        fusion = CMSA(512, 1024, 1024, grid=(7, 7))
        assert fusion.blocks[0].theta.weight.shape == (772, 1544)
    block = 4 * 1544 * 772 + 2 * 772 + 1544  # without the published phi.bias (772) and batch norm (2 · 1544)
    assert [sum(p.numel() for p in b.parameters()) for b in fusion.blocks] == [block, block]
    assert block + 772 + 2 * 1544 == 4_774_820  # the published block
    assert sum(p.numel() for p in fusion.parameters()) == 2 * block + 1544 * 1024 + 1024


def test_block_is_the_identity_at_first():
    block, x = NonLocalBlock(6), torch.randn(2, 7, 6)
    for need_weights in (False, True):
        assert torch.equal(block(x, need_weights=need_weights)[0], x)


def test_block_closed_form():
    """Two tokens with scores 0 and log 3 read ¼ and ¾ of the values."""
    block = NonLocalBlock(2, hidden=1)
    with torch.no_grad():
        for layer, weight in ((block.theta, [[1.0, 0.0]]), (block.phi, [[0.0, 1.0]]), (block.g, [[1.0, 0.0]])):
            layer.weight.copy_(torch.tensor(weight))
            if layer.bias is not None:
                layer.bias.zero_()
        block.out.weight.copy_(torch.tensor([[10.0], [0.0]]))
    x = torch.tensor([[[1.0, 0.0], [1.0, torch.tensor(3.0).log()], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    for need_weights in (False, True):
        z, weights = block(x, mask, need_weights)
        assert_close(z[0, 0], torch.tensor([11.0, 0.0]))  # 1 + 10 (¼ · 1 + ¾ · 1): the masked 9 is not read
    assert_close(weights[0, :2], torch.tensor([[0.25, 0.75, 0.0]] * 2))


def test_at_the_start_it_is_a_sum_of_the_two_sides(inputs):
    """Σₜ (W_q q_t + W [mean v ; mean s ; q_t] + b) over real words: the form without blocks."""
    image, text, image_mask, text_mask = inputs
    fusion = CMSA(IMAGE, TEXT, OUT, grid=(3, 4))
    places = spatial_map(3, 4).expand(B, -1, -1)
    want = torch.zeros(B, OUT)
    for b in range(B):
        cells = torch.cat([image, places], -1)[b, image_mask[b]].mean(0)
        for word in text[b, text_mask[b]]:
            want[b] += fusion.text_projection(word) + fusion.cell_projection(torch.cat([cells, word]))
    assert_close(fusion(*inputs).fused, want, rtol=1e-5, atol=1e-5)
    without = CMSA(IMAGE, TEXT, OUT, grid=(3, 4), blocks=0)
    without.load_state_dict({k: v for k, v in fusion.state_dict().items() if not k.startswith("blocks")})
    assert_close(fusion(*inputs).fused, without(*inputs).fused)
    assert (awake(fusion)(*inputs).fused - want).abs().max() > 1e-2


def test_one_long_loop_over_positions_gives_the_same(inputs):
    """The whole module against a plain re-writing with explicit positions."""
    image, text, image_mask, text_mask = inputs
    fusion = awake(CMSA(IMAGE, TEXT, OUT))
    want = []
    for b in range(B):
        v, q = image[b, image_mask[b]], text[b, text_mask[b]]
        x = torch.stack([torch.cat([cell, word]) for word in q for cell in v])
        for block in fusion.blocks:
            scores = block.theta(x) @ block.phi(x).T
            x = x + block.out(scores.softmax(-1) @ block.g(x))
        means = torch.stack([x[t * len(v) : (t + 1) * len(v)].mean(0) for t in range(len(q))])
        want.append((fusion.text_projection(q) + fusion.cell_projection(means)).sum(0))
    assert_close(fusion(*inputs).fused, torch.stack(want), rtol=1e-4, atol=1e-4)


@fusions
def test_asking_for_weights_does_not_change_the_result(make, inputs):
    fusion = make()
    with_weights = fusion(*inputs, need_weights=True)
    assert_close(with_weights.fused, fusion(*inputs).fused, rtol=1e-4, atol=1e-5)
    assert fusion(*inputs).attention is None
    positions = N_TEXT * N_IMAGE
    assert with_weights.attention.shape == (B, len(fusion.blocks), positions, positions)


@fusions
def test_rows_and_maps_sum_to_one_over_real_pairs(make, inputs):
    image_mask, text_mask = inputs[2:]
    attention = make()(*inputs, need_weights=True).attention
    pairs = (text_mask.unsqueeze(2) & image_mask.unsqueeze(1)).flatten(1)
    assert_close(attention.sum(-1), torch.ones(attention.shape[:3]))
    assert (attention.masked_select(~pairs[:, None, None, :]) == 0).all()
    maps = word_cell_maps(attention, N_TEXT, image_mask, text_mask)
    assert maps.shape == (B, attention.shape[1], N_TEXT, N_IMAGE)
    assert_close(maps.sum((-2, -1)), torch.ones(maps.shape[:2]))
    assert (maps.masked_select(~pairs.unflatten(1, (N_TEXT, -1)).unsqueeze(1)) == 0).all()
    real = attention[1, 0][pairs[1]].mean(0)  # row 1 has three padding words, whose readings must not count
    assert_close(maps[1, 0].flatten(), real)


def test_maps_of_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="multiple of words=5"):
        word_cell_maps(torch.zeros(1, 1, 12, 12), 5)


@fusions
def test_fused_attention_never_makes_the_square(make, inputs):
    """Nothing as large as positions² is kept for the backward pass, unless the weights are asked for."""
    fusion, square = make(), B * (N_TEXT * N_IMAGE) ** 2

    def largest(**options):
        sizes = []
        with saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            fusion(*inputs, **options)
        return max(sizes)

    assert largest(need_weights=True) >= square
    assert largest() < square


@fusions
def test_padding_changes_nothing(make, inputs):
    fusion = make()
    image, text, image_mask, text_mask = inputs
    want = fusion(*inputs).fused
    image = torch.where(image_mask.unsqueeze(-1), image, 100 * torch.randn_like(image))
    text = torch.where(text_mask.unsqueeze(-1), text, 100 * torch.randn_like(text))
    text = torch.cat([text, 100 * torch.randn(B, 4, TEXT)], 1)
    text_mask = torch.cat([text_mask, torch.zeros(B, 4, dtype=torch.bool)], 1)
    if fusion.grid is None:
        image = torch.cat([image, 100 * torch.randn(B, 7, IMAGE)], 1)
        image_mask = torch.cat([image_mask, torch.zeros(B, 7, dtype=torch.bool)], 1)
    for need_weights in (False, True):
        assert_close(fusion(image, text, image_mask, text_mask, need_weights).fused, want, rtol=1e-5, atol=1e-5)


@fusions
def test_real_tokens_do_change_the_result(make, inputs):
    fusion = make()
    image, text, *masks = inputs
    want = fusion(*inputs).fused
    other_image, other_text = image.clone(), text.clone()
    other_image[:, 0] += 1
    other_text[:, 1] += 1
    assert (fusion(other_image, text, *masks).fused - want).abs().amax(1).min() > 1e-3
    assert (fusion(image, other_text, *masks).fused - want).abs().amax(1).min() > 1e-3


def test_cells_with_their_coordinates_are_a_set(inputs):
    """The grid is nothing but eight more features: cells may be shuffled together with them, not without."""
    image, text, image_mask, text_mask = inputs
    grid = FUSIONS["grid"]()
    as_set = CMSA(IMAGE + 8, TEXT, OUT)
    as_set.load_state_dict(grid.state_dict())  # the coordinates are no parameters
    order = torch.randperm(N_IMAGE)
    cells = torch.cat([image, spatial_map(3, 4).expand(B, -1, -1)], -1)
    want = grid(*inputs).fused
    assert_close(as_set(cells, text, image_mask, text_mask).fused, want)
    shuffled = as_set(cells[:, order], text, image_mask[:, order], text_mask).fused
    assert_close(shuffled, want, rtol=1e-4, atol=1e-5)
    assert (grid(image[:, order], text, image_mask[:, order], text_mask).fused - want).abs().max() > 1e-3


def test_words_are_a_set(inputs):
    """The fusion knows the order of words only through the text encoder's states."""
    image, text, image_mask, text_mask = inputs
    fusion, order = FUSIONS["grid"](), torch.randperm(N_TEXT)
    got = fusion(image, text[:, order], image_mask, text_mask[:, order]).fused
    assert_close(got, fusion(*inputs).fused, rtol=1e-4, atol=1e-5)


@fusions
def test_a_batch_can_be_split(make, inputs):
    fusion = make()
    parts = torch.cat([fusion(*(t[i : i + 1] for t in inputs)).fused for i in range(B)])
    assert_close(parts, fusion(*inputs).fused, rtol=1e-4, atol=1e-5)


@fusions
def test_masks_of_ones_equal_no_masks(make, inputs):
    fusion = make()
    image, text = inputs[:2]
    ones = [torch.ones(t.shape[:2], dtype=torch.bool) for t in (image, text)]
    assert_close(fusion(image, text, *ones).fused, fusion(image, text).fused, rtol=1e-5, atol=1e-5)


@fusions
def test_gradient_reaches_every_parameter(make, inputs):
    fusion = make()
    fused = fusion(*inputs).fused
    (fused * torch.randn_like(fused)).sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-4, name


def test_at_the_start_only_the_blocks_outputs_learn_and_then_all(inputs):
    fusion = CMSA(IMAGE, TEXT, OUT)
    optimiser = torch.optim.SGD(fusion.parameters(), lr=0.01)
    for step in range(2):
        optimiser.zero_grad()
        fusion(*inputs).fused.square().sum().backward()
        for name, parameter in fusion.blocks.named_parameters():
            assert (parameter.grad.abs().max() > 0) == ("out." in name or step == 1), name
        optimiser.step()


@fusions
def test_padding_gets_no_gradient(make, inputs):
    image, text, image_mask, text_mask = inputs
    image.requires_grad_()
    text.requires_grad_()
    make()(*inputs).fused.square().sum().backward()
    assert (image.grad[~image_mask] == 0).all()
    assert (text.grad[~text_mask] == 0).all()


@fusions
@pytest.mark.parametrize("need_weights", [False, True])
def test_a_row_without_real_tokens_leaves_the_others_alone(make, inputs, need_weights):
    fusion = make()
    image, text, image_mask, text_mask = inputs
    want = fusion(*inputs).fused
    image_mask, text_mask = image_mask.clone(), text_mask.clone()
    image_mask[2] = text_mask[2] = False
    got = fusion(image, text, image_mask, text_mask, need_weights).fused
    assert got.isfinite().all()
    assert_close(got[:2], want[:2], rtol=1e-4, atol=1e-5)
    got.sum().backward()
    assert all(p.grad.isfinite().all() for p in fusion.parameters())


def test_pooled_vectors_are_the_case_of_one_token():
    fusion = FUSIONS["set"]()
    x, y = torch.randn(B, IMAGE), torch.randn(B, TEXT)
    assert_close(fusion(x, y).fused, fusion(x[:, None], y[:, None]).fused)


def test_bfloat16_autocast_is_close_to_float32(inputs):
    fusion = FUSIONS["grid"]()
    with torch.autocast("cpu", torch.bfloat16):
        got = fusion(*inputs).fused
    want = fusion(*inputs).fused
    assert_close(got.float(), want, rtol=0.1, atol=0.1 * want.abs().max().item())


def test_overfits_eight_pictures_whose_answer_needs_both_sides():
    """The answer is what the cell of the asked colour has: the mean over cells, without blocks, cannot bind the two."""
    colour, answers = torch.arange(8) % 2, torch.arange(8) // 2 % 2
    pictures = torch.zeros(8, 4, 4)
    for i in range(8):
        for c in range(2):  # both colours are there; the other one has the opposite answer
            pictures[i, (i + c) % 4, c] = 1.0
            pictures[i, (i + c) % 4, 2 + (answers[i] if c == colour[i] else 1 - answers[i])] = 1.0
    words = nn.functional.one_hot(colour, 3).float().unsqueeze(1)

    def loss_after(blocks, steps=150):
        torch.manual_seed(0)
        fusion = CMSA(4, 3, 16, blocks=blocks, hidden=16)
        model = MLPHead(16, 2, hidden=16)
        optimiser = torch.optim.Adam([*fusion.parameters(), *model.parameters()], lr=0.03)
        for _ in range(steps):
            loss = nn.functional.cross_entropy(model(fusion(pictures, words).fused), answers)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return loss.item()

    assert loss_after(blocks=2) < 0.05
    assert loss_after(blocks=0) > 0.5


def test_wrong_inputs_are_named(inputs):
    fusion = FUSIONS["grid"]()
    image, text, image_mask, _ = inputs
    with pytest.raises(ValueError, match=r"11 image tokens for a grid of 3 × 4"):
        fusion(image[:, 1:], text)
    with pytest.raises(ValueError, match=r"image_tokens has 6 features.*image_dim=10"):
        fusion(text, text)
    with pytest.raises(ValueError, match=r"text_mask is torch.bool \(3, 12\)"):
        fusion(image, text, image_mask, image_mask)
    with pytest.raises(ValueError, match="blocks is -1"):
        CMSA(2, 2, 2, blocks=-1)
