"""Maps: the same logits bit for bit, sums, masks, invariances on every model; closed forms; what is refused."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.data.types import Batch
from vqa_core.dual import DualEncoder
from vqa_core.encoders.cnn import GridCNN
from vqa_core.encoders.text import BagOfWords, RecurrentText
from vqa_core.encoders.tokens import CachedTokens, Frozen, Tokens
from vqa_core.encoders.vision_transformer import VisionTransformer
from vqa_core.explain import METHODS, attention, explain, explain_tokens, methods_for
from vqa_core.explain.attention import Plan, Reading, plan_of, propagate, rolled
from vqa_core.explain.maps import GENERAL
from vqa_core.explain.record import forward_pass
from vqa_core.fusion.bilinear import BAN
from vqa_core.fusion.bottleneck import BottleneckFusion
from vqa_core.fusion.efficiency import DropToken
from vqa_core.fusion.nonlocal_ import CMSA
from vqa_core.fusion.output import FusionOutput, masked_mean
from vqa_core.fusion.perceiver import Perceiver, PerceiverIO
from vqa_core.fusion.single_stream import SingleStream
from vqa_core.fusion.stacked import SAN
from vqa_core.fusion.stacked_linear import LinearSAN
from vqa_core.fusion.stages import AttendFusion, CrossAttentionReader, EarlyFusion, HybridFusion, TokenFusion
from vqa_core.fusion.transformer import LAYOUTS
from vqa_core.fusion.vector import ConcatFusion
from vqa_core.heads.classifier import MLPHead
from vqa_core.model import VQAModel

B, N_IMAGE, N_TEXT = 4, 9, 5
IMAGE, TEXT, OUT, ANSWERS = 6, 5, 8, 7


def _cmsa() -> CMSA:
    fusion = CMSA(IMAGE, TEXT, OUT)
    for block in fusion.blocks:
        nn.init.normal_(block.out.weight, std=0.3)  # it starts at 0, and a block that changes nothing explains nothing
    return fusion


TRANSFORMERS = {
    **{name: lambda kind=kind: kind(IMAGE, TEXT, OUT, heads=2) for name, kind in LAYOUTS.items()},
    "early": lambda: EarlyFusion(IMAGE, TEXT, OUT, heads=2),
    "early, mean": lambda: EarlyFusion(IMAGE, TEXT, OUT, heads=2, readout="mean"),
    "reader": lambda: CrossAttentionReader(IMAGE, TEXT, OUT, heads=2),
    "reader, mean": lambda: CrossAttentionReader(IMAGE, TEXT, OUT, heads=2, readout="mean"),
    "single stream": lambda: SingleStream(IMAGE, TEXT, OUT, heads=2),
    "bottleneck": lambda: BottleneckFusion(IMAGE, TEXT, OUT, depth=3, fusion_layer=1, heads=2),
    "perceiver": lambda: Perceiver(IMAGE, TEXT, OUT, latents=3, reads=2, heads=2),
    "perceiver io": lambda: PerceiverIO(IMAGE, TEXT, OUT, latents=3, heads=2, shared=True, reads=2),
    "hybrid": lambda: HybridFusion(IMAGE, TEXT, OUT, EarlyFusion(IMAGE, TEXT, 4, heads=2)),
    "drop token": lambda: DropToken(EarlyFusion(IMAGE, TEXT, OUT, heads=2)),
}
FUSIONS = {
    **TRANSFORMERS,
    "attend": lambda: AttendFusion(ConcatFusion(2 * IMAGE, TEXT, OUT), 2),
    "san": lambda: SAN(IMAGE, TEXT, OUT),
    "linear san": lambda: LinearSAN(IMAGE, TEXT, OUT, stacks=3),
    "ban": lambda: BAN(IMAGE, TEXT, OUT),
    "cmsa": _cmsa,
    "no attention": lambda: TokenFusion(ConcatFusion(IMAGE, TEXT, OUT)),
}


class MaskedTokens(nn.Module):
    """Cached tokens whose first feature says whether they are real."""

    def __init__(self) -> None:
        super().__init__()
        self.out_dim = IMAGE

    def forward(self, tokens):
        return Tokens(tokens, tokens[..., 0] > 0.5)


class MeanOfImage(nn.Module):
    """A fusion that never reads the question: the mean of the image tokens."""

    out_dim = IMAGE

    def forward(self, image_tokens, text_tokens, image_mask=None, text_mask=None) -> FusionOutput:
        return FusionOutput(masked_mean(image_tokens, image_mask))


def model_of(fusion: nn.Module) -> VQAModel:
    """A fusion behind cached tokens of both sides, with a mask."""
    return VQAModel(MaskedTokens(), CachedTokens(TEXT), fusion, MLPHead(fusion.out_dim, ANSWERS, 16)).eval()


def linear_model(head: torch.Tensor) -> VQAModel:
    """y = W · mean of the image tokens, W (answers, IMAGE): every map is known."""
    model = VQAModel(MaskedTokens(), CachedTokens(TEXT), MeanOfImage(), nn.Linear(IMAGE, len(head), bias=False))
    model.head.weight.data = head
    return model.eval()


def questions(seed: int = 0) -> Batch:
    """Four questions; one has two padding image tokens, another two padding words."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(B, N_IMAGE, IMAGE, generator=generator)
    image[..., 0] = 1.0
    image[0, 7:, 0] = 0.0
    mask = torch.ones(B, N_TEXT, dtype=torch.bool)
    mask[1, 3:] = False
    return Batch(image, torch.randn(B, N_TEXT, TEXT, generator=generator), mask, torch.zeros(B, dtype=torch.long))


def rows(batch: Batch, *keep: int) -> Batch:
    """Some of the questions."""
    return Batch(*(t[list(keep)] for t in batch))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def every(table=FUSIONS):
    return pytest.mark.parametrize("make", table.values(), ids=table.keys())


# ------------------------------------------------------------------------------------------------------ every model


@every()
def test_the_answer_is_the_models_own_bit_for_bit_and_the_model_is_left_alone(make):
    model, batch = model_of(make()), questions()
    with torch.no_grad():
        expected = model(*batch[:3]).logits
    assert torch.equal(model(*batch[:3]).logits.detach(), expected)
    model.train()
    model.head.eval()  # a mode that is not the same everywhere
    first = next(model.fusion.parameters()).requires_grad_(False)
    first.grad = torch.ones_like(first)
    before = [(m.training, p.requires_grad) for m in model.modules() for p in m.parameters()]
    for method in methods_for(model):
        found = explain_tokens(model, batch, method)
        assert torch.equal(found.logits, expected), method
        assert torch.equal(found.targets, expected.argmax(1))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert [(m.training, p.requires_grad) for m in model.modules() for p in m.parameters()] == before
        assert torch.equal(first.grad, torch.ones_like(first))
        assert all(p.grad is None for p in model.parameters() if p is not first)
        assert not any(t.requires_grad for t in found)


def has_words(model, batch, method) -> bool:
    """Whether a method has maps word by word for a model; if not, it says so."""
    fusion = type(attention.core(model)).__name__
    no = {"Perceiver", "PerceiverIO", "EarlySummation", "AttendFusion", "SAN", "LinearSAN", "TokenFusion"}
    if method in GENERAL or fusion in no or (fusion, method) == ("BottleneckFusion", "raw_attention"):
        with pytest.raises(ValueError, match="per_word=False"):
            explain_tokens(model, batch, method, per_word=True)
        return False
    return True


@every()
def test_maps_are_shares_of_the_real_places(make):
    model, batch = model_of(make()), questions()
    mask = batch.pictures[..., 0] > 0.5
    for method, per_word in product(methods_for(model), (False, True)):
        if per_word and not has_words(model, batch, method):
            continue
        found = explain_tokens(model, batch, method, per_word=per_word)
        assert found.maps.isfinite().all(), method
        assert found.maps.min() >= 0, method
        assert torch.equal(found.mask, mask)
        maps = found.maps if per_word else found.maps.unsqueeze(1)
        assert maps.masked_select(~mask.unsqueeze(1)).eq(0).all()
        real = batch.word_mask if per_word else torch.ones(B, 1, dtype=torch.bool)
        assert_close(maps.sum(-1), real.float())
        assert maps.amax(-1).max() > 1.2 / N_IMAGE, f"{method} says nothing"


@every()
def test_padding_changes_no_map(make):
    model, batch = model_of(make()), questions()
    far = torch.randn(B, 3, IMAGE)
    far[..., 0] = 0.0
    padded = Batch(
        torch.cat([batch.pictures, far], 1),
        torch.cat([batch.words, torch.full((B, 2, TEXT), 5.0)], 1),
        torch.cat([batch.word_mask, torch.zeros(B, 2, dtype=torch.bool)], 1),
        batch.answers,
    )
    for method in methods_for(model):
        plain, found = (explain_tokens(model, b, method) for b in (batch, padded))
        assert_close(found.maps[:, :N_IMAGE], plain.maps, atol=1e-5, rtol=1e-4)
        assert found.maps[:, N_IMAGE:].eq(0).all()


@every()
def test_a_batch_can_be_split(make):
    model, batch = model_of(make()), questions()
    for method in methods_for(model):
        whole = explain_tokens(model, batch, method).maps
        parts = [explain_tokens(model, rows(batch, *keep), method).maps for keep in ((0,), (1, 2, 3))]
        assert_close(torch.cat(parts), whole, atol=1e-4, rtol=1e-3)


def test_every_method_fits_some_model():
    found = {m for make in FUSIONS.values() for m in methods_for(model_of(make()))}
    assert found | {"clip_similarity"} == set(METHODS)
    assert methods_for(nn.Linear(2, 2)) == ()


@pytest.mark.parametrize("method", ["raw_attention", "relevance", "grad_cam", "integrated_gradients", "occlusion"])
def test_hooks_go_when_the_model_fails(method):
    class Broken(nn.Module):
        def forward(self, fused):
            raise RuntimeError("broken head")

    model = model_of(FUSIONS["early"]())
    model.head = Broken()
    model.train()
    with pytest.raises(RuntimeError, match="broken head"):
        explain_tokens(model, questions(), method)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("name", ["reader", "san", "ban", "attend", "cmsa", "no attention"])
def test_frozen_models_have_the_same_maps_wherever_they_are_called(name):
    model = model_of(FUSIONS[name]())
    for method in methods_for(model):
        expected = explain_tokens(model, questions(), method).maps
        frozen = model_of(FUSIONS[name]())
        frozen.load_state_dict(model.state_dict())
        frozen.requires_grad_(False)
        for context in (torch.inference_mode, torch.no_grad):
            with context():
                assert_close(explain_tokens(frozen, questions(), method).maps, expected)


@pytest.mark.parametrize("method", ["relevance", "grad_cam", "integrated_gradients", "occlusion"])
def test_another_answer_has_another_map(method):
    model, batch = model_of(FUSIONS["single stream"]()), questions()
    own = explain_tokens(model, batch, method)
    other = explain_tokens(model, batch, method, targets=(own.targets + 1) % ANSWERS)
    assert torch.equal(other.logits, own.logits)
    assert (other.maps - own.maps).abs().amax(1).min() > 1e-4
    assert_close(explain_tokens(model, batch, method, targets=own.targets).maps, own.maps)


# --------------------------------------------------------------------------------- attention: weights and gradients


def explicit(layout, batch):
    """Logits of a layout whose every layer forms its weights, and these, as parts of the graph."""
    model = model_of(layout)
    image = model.image_encoder(batch.pictures)
    streams, maps = layout.meet(layout.embed(*image[:1], batch.words, image.mask, batch.word_mask), need_weights=True)
    return model, model.head(layout.norm(masked_mean(*streams.joined()))), maps


def test_weights_and_gradients_of_fused_attention_are_those_of_explicit_attention():
    batch = questions()
    model, logits, maps = explicit(FUSIONS["early_concatenation"](), batch)
    seen = forward_pass(model, batch, gradients=True)
    assert_close(seen.logits, logits, atol=1e-5, rtol=1e-4)
    expected = torch.autograd.grad(logits[:, 2].sum(), maps)
    of_reads = torch.autograd.grad(seen.logits[:, 2].sum(), [call.read for call in seen.calls])
    for call, of_read, weights, gradient in zip(seen.calls, of_reads, maps, expected, strict=True):
        assert_close(call.weights, weights.detach(), atol=1e-6, rtol=1e-4)
        assert_close(call.gradient(of_read), gradient, atol=1e-6, rtol=1e-4)


def test_rollout_is_a_product_of_matrices():
    batch = questions()
    model, _, (first, second) = explicit(FUSIONS["early_concatenation"](), batch)
    eye = torch.eye(N_IMAGE + N_TEXT)
    flow = (0.5 * second.mean(1) + 0.5 * eye) @ (0.5 * first.mean(1) + 0.5 * eye)  # (B, N, N)
    words = flow[:, N_IMAGE:, :N_IMAGE].detach()
    words = words / words.sum(-1, keepdim=True) * batch.word_mask.unsqueeze(-1)
    assert_close(explain_tokens(model, batch, "rollout", per_word=True).maps, words, atol=1e-5, rtol=1e-4)
    real = torch.cat([batch.pictures[..., 0] > 0.5, batch.word_mask], 1).float()
    answer = torch.einsum("bn,bnm->bm", real, flow)[:, :N_IMAGE].detach()
    answer = answer * real[:, :N_IMAGE]
    assert_close(
        explain_tokens(model, batch, "rollout").maps, answer / answer.sum(1, keepdim=True), atol=1e-5, rtol=1e-4
    )


def test_rollout_by_hand():
    swap = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    assert_close(rolled([swap]), torch.full((1, 2, 2), 0.5))
    nothing_read = torch.tensor([[[0.5, 0.5], [0.0, 0.0]]])  # the second token reads nothing: it stays itself
    assert_close(rolled([nothing_read]), torch.tensor([[[0.75, 0.25], [0.0, 1.0]]]))
    assert_close(rolled([swap, nothing_read]), torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]))


def test_relevance_by_hand_one_stream():
    whole = slice(0, 2)
    plan = Plan(2, slice(1, 2), slice(0, 0), (slice(0, 1),), slice(0, 1), [[Reading(whole, whole)]] * 2)
    a, b = torch.tensor([[[0.0, 0.5], [0.0, 0.0]]]), torch.tensor([[[0.2, 0.1], [0.0, 0.3]]])
    expected = (torch.eye(2) + b) @ (torch.eye(2) + a)  # R ← R + Ā R, twice
    assert_close(propagate(plan, [[a], [b]]), expected)


def test_relevance_by_hand_two_streams():
    """Two tokens s that read themselves, one token q; then s reads q and q reads s at the same time."""
    s, q = slice(0, 2), slice(2, 3)
    rounds = [[Reading(s, s)], [Reading(s, q, True), Reading(q, s, True)]]
    plan = Plan(3, q, s, (s,), s, rounds)
    own = torch.tensor([[[0.0, 0.6], [0.0, 0.0]]])
    to_q, to_s = torch.tensor([[[0.5], [0.1]]]), torch.tensor([[[0.3, 0.2]]])
    r_ss = torch.tensor([[1.0, 0.6], [0.0, 1.0]])
    bar = torch.tensor([[1.0, 1.0], [0.0, 1.0]])  # the row (0, 0.6) of R − I sums to 1, plus I
    found = propagate(plan, [[own], [to_q, to_s]])[0]
    assert_close(found[s, q], bar.T @ to_q[0])  # (R̄^ss)ᵀ Ā R̄^qq with R̄^qq = 1
    assert_close(found[q, s], to_s[0] @ bar)
    assert_close(found[s, s], r_ss)  # + Ā R^qs, which was 0 before this round
    assert_close(found[q, q], torch.ones(1, 1))


def test_relevance_of_one_look_is_weight_times_gradient():
    """SAN with one stack and a linear head: ∂y/∂pᵢ = wᵀ vᵢ."""
    model, batch = model_of(SAN(IMAGE, TEXT, OUT, stacks=1)), questions()
    model.head = nn.Linear(OUT, ANSWERS)
    seen = forward_pass(model, batch)
    target = seen.logits.argmax(1)
    gradient = torch.einsum("bd,bnd->bn", model.head.weight[target], seen.fusion.image).detach()
    expected = (gradient * seen.fusion.attention[:, 0, 0]).clamp(min=0)
    assert (expected.sum(1) > 0).all()
    found = explain_tokens(model, batch, "relevance").maps
    assert_close(found, expected / expected.sum(1, keepdim=True))


def test_relevance_of_bilinear_attention():
    """BAN with one glimpse and a linear head: ∂y/∂A_ti = Σ_k (words · Jᵀ w)_k x_tk y_ik."""
    model, batch = model_of(BAN(IMAGE, TEXT, OUT, glimpses=1)), questions()
    model.head = nn.Linear(OUT, ANSWERS)
    seen = forward_pass(model, batch)
    x, y = model.fusion.pools[0](seen.fusion.text, seen.image)
    back = (
        model.head.weight[seen.logits.argmax(1)] @ model.fusion.joint[0].weight * batch.word_mask.sum(1, keepdim=True)
    )
    gradient = torch.einsum("bk,btk,bnk->btn", back, x, y).detach()
    expected = (gradient * seen.fusion.attention[:, 0]).clamp(min=0).sum(1)
    found = explain_tokens(model, batch, "relevance").maps
    assert_close(found, expected / expected.sum(1, keepdim=True), atol=1e-6, rtol=1e-4)


def test_raw_attention_where_the_right_map_is_known():
    """An answer token whose query is 1 and image tokens whose keys are known: softmax of the keys."""
    fusion = EarlyFusion(IMAGE, TEXT, OUT, depth=1, heads=1, image_length=None, text_length=None)
    with torch.no_grad():
        for p in fusion.parameters():
            p.zero_()
        attention = fusion.blocks[0].attention
        fusion.blocks[0].attention_norm.weight.fill_(1.0)
        attention.query.bias[0] = OUT**0.5  # every query is (√D, 0, …)
        attention.key.weight[0, 1] = 1.0  # a key is what the norm leaves of feature 1
        fusion.image_embedding.projection.weight[1, 1] = 1.0
    batch = questions()
    states = nn.functional.layer_norm(torch.nn.functional.pad(batch.pictures[..., 1:2], (1, OUT - 2)), (OUT,))
    mask = batch.pictures[..., 0] > 0.5
    keys = states[..., 1].masked_fill(~mask, -torch.inf)
    assert_close(explain_tokens(model_of(fusion), batch, "raw_attention").maps, keys.softmax(1), atol=1e-5, rtol=1e-4)


def test_layers_and_heads():
    batch = questions()
    model = model_of(EarlyFusion(IMAGE, TEXT, OUT, depth=3, heads=2))
    last = forward_pass(model, batch).fusion.attention[:, :, 0, 1 : 1 + N_IMAGE].detach()
    heads = [explain_tokens(model, batch, "raw_attention", head=h).maps for h in (0, 1)]
    for h in (0, 1):
        assert_close(heads[h], last[:, h] / last[:, h].sum(1, keepdim=True))
    layers = [explain_tokens(model, batch, "raw_attention", layer=k).maps for k in range(3)]
    assert_close(layers[2], explain_tokens(model, batch, "raw_attention").maps)
    assert (layers[0] - layers[2]).abs().max() > 1e-3
    by_word = explain_tokens(model, batch, "raw_attention", per_word=True)  # the last layer has only the answer's row
    assert_close(by_word.maps, explain_tokens(model, batch, "raw_attention", per_word=True, layer=-1).maps)
    with pytest.raises(ValueError, match="layer is 2; there are 2"):
        explain_tokens(model, batch, "raw_attention", per_word=True, layer=2)
    with pytest.raises(ValueError, match="head is 5; there are 2"):
        explain_tokens(model, batch, "raw_attention", head=5)
    with pytest.raises(ValueError, match="stack is -3; there are 2, so it must lie between -2 and 1"):
        explain_tokens(model_of(SAN(IMAGE, TEXT, OUT)), batch, "san", stack=-3)


@pytest.mark.parametrize("name", ["san", "ban", "attend"])
def test_maps_of_the_fusion_itself(name):
    model, batch = model_of(FUSIONS[name]()), questions()
    attention = forward_pass(model, batch).fusion.attention.detach()  # (B, H, Tq, Nᵢ)
    expected = attention.mean(1).sum(1)
    found = explain_tokens(model, batch, methods_for(model)[0])
    assert_close(found.maps, expected / expected.sum(1, keepdim=True))
    assert_close(found.scores, expected)


def test_cmsa_is_read_by_word_and_cell():
    from vqa_core.fusion.nonlocal_ import word_cell_maps

    model, batch = model_of(FUSIONS["cmsa"]()), questions()
    image = model.image_encoder(batch.pictures)
    with torch.no_grad():
        output = model.fusion(image.tokens, batch.words, image.mask, batch.word_mask, need_weights=True)
    pairs = word_cell_maps(output.attention, N_TEXT, image.mask, batch.word_mask)  # (B, G, Nₜ, Nᵢ)
    for layer in (0, 1):
        found = explain_tokens(model, batch, "cmsa", layer=layer).maps
        assert_close(found, pairs[:, layer].sum(1), atol=1e-5, rtol=1e-4)
    by_word = explain_tokens(model, batch, "cmsa", per_word=True).scores
    assert_close(by_word, pairs[:, -1], atol=1e-5, rtol=1e-4)


@every(TRANSFORMERS)
def test_a_plan_has_every_attention_and_its_sizes(make):
    model, batch = model_of(make()), questions()
    seen = forward_pass(model, batch)
    readings = [reading for readings in plan_of(model, seen).rounds for reading in readings]
    assert [c.weights.shape[-2:] for c in seen.calls] == [
        (r.queries.stop - r.queries.start, r.keys.stop - r.keys.start) for r in readings
    ]


# ------------------------------------------------------------------------------- gradients and hiding: closed forms


def linear_case():
    """A linear model, its questions, and w · xᵢ / n for every real image token i."""
    model, batch = linear_model(torch.randn(ANSWERS, IMAGE)), questions()
    mask = batch.pictures[..., 0] > 0.5
    target = model(*batch[:3]).logits.argmax(1)
    part = torch.einsum("bd,bnd->bn", model.head.weight[target], batch.pictures).detach()
    return model, batch, part.masked_fill(~mask, 0.0) / mask.sum(1, keepdim=True)


@pytest.mark.parametrize("method", ["grad_cam", "integrated_gradients", "occlusion"])
def test_of_a_linear_model_every_method_shows_the_share_of_a_token(method):
    model, batch, part = linear_case()
    options = {} if method == "grad_cam" else {"level": "tokens"}  # a hidden input would change the number of tokens
    found = explain_tokens(model, batch, method, **options)
    mask = batch.pictures[..., 0] > 0.5
    scores = found.scores.masked_fill(~mask, 0.0)
    if method == "grad_cam":  # α = w / n
        assert_close(scores, part / mask.sum(1, keepdim=True) * mask.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)
    else:
        assert_close(scores, part, atol=1e-5, rtol=1e-4)
    positive = part.clamp(min=0)
    assert_close(found.maps, positive / positive.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_grad_cam_plus_plus_closed_form():
    """With the same gradient g at every place, a = 1 / (2 + g Σ A) and α = n a ReLU(g)."""
    model, batch, _ = linear_case()
    batch = rows(batch, 1, 2)  # without padding
    x = batch.pictures
    g = model.head.weight[model(*batch[:3]).logits.argmax(1)].detach() / N_IMAGE  # (B, D)
    alpha = N_IMAGE / (2 + g * x.sum(1)) * g.clamp(min=0)
    expected = torch.einsum("bd,bnd->bn", alpha, x)
    found = explain_tokens(model, batch, "grad_cam_plus_plus")
    assert_close(found.scores, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["early", "san", "ban", "cmsa", "cross_attention"])
def test_integrated_gradients_are_complete(name):
    """Over the path with a fixed mask, scores add up to y(x) − y(baseline)."""
    model, batch = model_of(FUSIONS[name]()), questions()
    found = explain_tokens(model, batch, "integrated_gradients", level="tokens", steps=200, baseline=0.3)
    image = model.image_encoder(batch.pictures)
    nothing = model.fusion(torch.full_like(image.tokens, 0.3), batch.words, image.mask, batch.word_mask).fused
    change = (found.logits - model.head(nothing)).gather(1, found.targets[:, None]).squeeze(1).detach()
    assert_close(found.scores.masked_fill(~found.mask, 0.0).sum(1), change, atol=2e-3, rtol=1e-3)
    assert change.abs().min() > 1e-3


def test_occlusion_is_the_change_of_the_logit():
    model, batch = model_of(FUSIONS["san"]()), questions()
    found = explain_tokens(model, batch, "occlusion")  # with the baseline 0 a token becomes padding
    own = found.logits.gather(1, found.targets[:, None]).squeeze(1)
    for i in range(N_IMAGE):
        hidden = batch.pictures.clone()
        hidden[:, i] = 0.0
        other = model(hidden, *batch[1:3]).logits.gather(1, found.targets[:, None]).squeeze(1)
        assert_close(found.scores[:, i], (own - other).detach(), atol=1e-5, rtol=1e-4)
    absolute = explain_tokens(model, batch, "occlusion", absolute=True)
    assert_close(absolute.scores, found.scores.abs())


def test_no_evidence_for_the_answer_is_a_uniform_map_and_no_token_an_empty_one():
    model, batch = linear_model(torch.tensor([[-1.0] * IMAGE, [-2.0] * IMAGE])), questions()
    pictures = batch.pictures.abs()
    pictures[1] = 0.0
    found = explain_tokens(model, batch._replace(pictures=pictures), "grad_cam")
    mask = pictures[..., 0] > 0.5
    assert_close(found.maps, mask / mask.sum(1, keepdim=True).clamp(min=1))
    assert found.maps[1].eq(0).all()


# ----------------------------------------------------------------------------------------------- pictures and grids


class PatchMeans(nn.Module):
    """Image tokens that are the mean colours of 16 × 16 pixels, said to be more often than they are shown."""

    grid, out_dim = (4, 3), 3

    def forward(self, pictures):
        return Tokens(nn.functional.avg_pool2d(pictures, 16).flatten(2).transpose(1, 2))


def picture_model(encoder, fusion) -> VQAModel:
    return VQAModel(encoder, RecurrentText(20, TEXT, "gru", 4), fusion, nn.Linear(fusion.out_dim, ANSWERS)).eval()


def picture_questions(height: int = 64, width: int = 64) -> Batch:
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[1, 2:] = False
    return Batch(torch.randn(2, 3, height, width), torch.randint(1, 20, (2, 4)), mask, torch.zeros(2).long())


def test_hiding_the_only_informative_cell():
    """Black but for one cell; the mean of all cells is read: only hiding this cell changes the answer."""
    fusion = MeanOfImage()
    fusion.out_dim = 3
    model = picture_model(PatchMeans(), fusion)
    model.head.weight.data = torch.ones(ANSWERS, 3)
    batch = picture_questions(64, 48)
    pictures = torch.zeros_like(batch.pictures)
    pictures[0, :, 16:32, 32:48] = 1.0
    pictures[1, :, 48:64, 0:16] = 1.0
    expected = torch.zeros(2, 4, 3)
    expected[0, 1, 2] = expected[1, 3, 0] = 1.0
    pixels = expected.repeat_interleave(16, 1).repeat_interleave(16, 2) / 256
    for method in ("occlusion", "integrated_gradients"):
        found = explain(model, batch._replace(pictures=pictures), method)
        assert_close(found.maps, pixels)
        assert found.mask.shape == (2, 64, 48)
    for method in ("occlusion", "integrated_gradients"):
        assert_close(explain(model, batch._replace(pictures=pictures), method, level="tokens").maps, expected)
    assert_close(explain(model, batch._replace(pictures=pictures), "grad_cam").maps, expected)


@pytest.mark.parametrize("kind", ["cnn", "frozen cnn", "vit"])
def test_cells_of_cnns_and_vision_transformers(kind):
    cnn = GridCNN(IMAGE, 64, 4)
    encoder = VisionTransformer(64, 16, 2, IMAGE, 2, 8, 3) if kind == "vit" else Frozen(cnn) if kind != "cnn" else cnn
    model, batch = picture_model(encoder, SAN(IMAGE, TEXT, OUT)), picture_questions()
    with torch.no_grad():
        expected = model(*batch[:3]).logits
    grid = (4, 4) if kind == "vit" else (8, 8)
    for method in methods_for(model):
        found = explain(model, batch, method)
        size = (64, 64) if method in ("integrated_gradients", "occlusion") else grid
        assert found.maps.shape == found.mask.shape == found.scores.shape == (2, *size)
        assert_close(found.maps.flatten(1).sum(1), torch.ones(2))
        assert torch.equal(found.logits, expected)
        assert explain_tokens(model, batch, method).maps.shape == (2, grid[0] * grid[1])
    complete = explain(model, batch, "integrated_gradients", steps=100)
    nothing = model(torch.zeros_like(batch.pictures), *batch[1:3]).logits
    change = (expected - nothing).gather(1, complete.targets[:, None]).squeeze(1).detach()
    assert_close(complete.scores.sum((1, 2)), change, atol=5e-3, rtol=5e-2)


def test_grad_cam_at_a_layer_inside_the_encoder():
    model, batch = picture_model(GridCNN(IMAGE, 64, 4), SAN(IMAGE, TEXT, OUT)), picture_questions()
    tokens = explain(model, batch, "grad_cam")
    assert_close(explain(model, batch, "grad_cam", at="image_encoder").maps, tokens.maps)
    assert_close(explain(model, batch, "grad_cam", at="image_encoder.last").maps, tokens.maps)  # the same, as a grid
    early = explain(model, batch, "grad_cam", at="image_encoder.downsample.1")
    assert early.maps.shape == (2, 16, 16)
    assert torch.equal(early.logits, tokens.logits)
    with pytest.raises(ValueError, match=r"at is 'fusion'; allowed are modules of the image encoder: .*downsample"):
        explain(model, batch, "grad_cam", at="fusion")


# --------------------------------------------------------------------------------------------------- two-sided models


def test_similarity_where_the_right_map_is_known():
    """Tokens and words as they are: the token in the direction of the sentence has the cosine 1."""
    model = DualEncoder(CachedTokens(4), CachedTokens(4), 4)
    for projection in (model.image_projection, model.text_projection):
        projection.weight.data = torch.eye(4)
    pictures = torch.stack([torch.eye(4), torch.eye(4).roll(1, 0)])
    words = torch.zeros(2, 2, 4)
    words[:, 0, 2], words[:, 1, 3] = 1.0, 9.0  # the second word of the first sentence is padding
    batch = Batch(pictures, words, torch.tensor([[True, False], [True, True]]), None)
    with torch.no_grad():
        logits = model(*batch[:3])
    # without its mask CachedTokens counts the padding word: give the sentences as their means
    found = explain(model, batch, "clip_similarity", grid=(2, 2), per_word=True)
    assert torch.equal(found.logits, logits)
    assert found.maps.shape == (2, 2, 2, 2)
    assert found.maps[0, 0].flatten().tolist() == [0, 0, 1, 0]
    assert found.maps[1, 0].flatten().tolist() == [0, 0, 0, 1]
    swapped = explain(model, batch, "clip_similarity", grid=(2, 2), targets=torch.tensor([1, 0]), per_word=True)
    assert_close(swapped.maps[:, 0].flatten(1), found.maps[:, 0].flatten(1))


def test_similarity_of_a_dual_encoder():
    model = DualEncoder(GridCNN(6, 64, 4), BagOfWords(20, 5), 3)
    batch = picture_questions()
    model.eval()
    with torch.no_grad():
        expected = model(*batch[:3])
    model.train()
    found = explain(model, batch, "clip_similarity")
    assert torch.equal(found.logits, expected)
    assert found.targets.tolist() == [0, 1]
    assert found.maps.shape == (2, 8, 8)
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    with torch.no_grad():
        model.eval()
        tokens = model.image_projection(model.image_encoder(batch.pictures).tokens)
        cosines = torch.einsum("bnd,bd->bn", nn.functional.normalize(tokens, dim=-1), model.encode_text(*batch[1:3]))
    above = cosines - cosines.amin(1, keepdim=True)
    assert_close(found.maps.flatten(1), above / above.sum(1, keepdim=True), atol=1e-6, rtol=1e-4)
    alone = explain(model, rows(batch._replace(answers=torch.zeros(2)), 1), "clip_similarity")
    assert_close(alone.maps[0], found.maps[1])
    by_word = explain(model, batch, "clip_similarity", per_word=True).maps
    assert_close(by_word.flatten(2).sum(-1), batch.word_mask.float())


def test_similarity_of_a_whole_clip(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    from vqa_core.encoders.clip_pair import CLIPPair

    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[]).save_pretrained(tmp_path)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    vision, text = {"image_size": 24, "patch_size": 8}, {"vocab_size": 54, "max_position_embeddings": 20}
    config = CLIPConfig(vision_config=small | vision, text_config=small | ends | text, projection_dim=12)
    CLIPModel(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}).save_pretrained(tmp_path)
    model = CLIPPair(tmp_path)
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((24, 24), (40, 30))]
    batch = Batch(pictures, ["a cat", "a dog"], None, None)
    found = explain(model, batch, "clip_similarity")
    assert torch.equal(found.logits, model(pictures, batch.words))
    assert found.maps.shape == (2, 3, 3)
    assert_close(found.maps.sum((1, 2)), torch.ones(2))
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="2 pictures and 1 sentences; say with targets"):
        explain(model, batch._replace(words=["a cat"]), "clip_similarity")
    assert_close(
        explain(model, batch._replace(words=["a cat"]), "clip_similarity", targets=[0, 0]).maps[0], found.maps[0]
    )


# ---------------------------------------------------------------------------------------------------- what is refused


def test_methods_that_do_not_fit_are_refused_with_those_that_do():
    model, batch = model_of(SAN(IMAGE, TEXT, OUT)), questions()
    with pytest.raises(ValueError, match="'rollout'; for a VQAModel with SAN allowed are san, relevance, grad_cam"):
        explain(model, batch, "rollout")
    with pytest.raises(
        ValueError, match=r"'nonsense'.* allowed are grad_cam, grad_cam_plus_plus, integrated_gradients"
    ):
        explain(model_of(FUSIONS["no attention"]()), batch, "nonsense")
    with pytest.raises(ValueError, match="for a Linear no method fits"):
        explain(nn.Linear(2, 2), batch, "grad_cam")
    with pytest.raises(ValueError, match="allowed are clip_similarity"):
        explain(DualEncoder(CachedTokens(2), CachedTokens(2), 2), batch, "occlusion")


def test_wrong_options_are_refused():
    model, batch = model_of(SAN(IMAGE, TEXT, OUT)), questions()
    with pytest.raises(ValueError, match="9 image tokens for a grid of 2 × 4"):
        explain(model, batch, "san", grid=(2, 4))
    with pytest.raises(ValueError, match="8 image tokens are no square"):
        explain(model, batch._replace(pictures=batch.pictures[:, :8]), "san")
    with pytest.raises(ValueError, match="one image token"):
        explain(model, batch._replace(pictures=batch.pictures[:, :1]), "san")
    with pytest.raises(ValueError, match="answer id from 0 to 6 for each of the 4"):
        explain(model, batch, "san", targets=torch.tensor([0, 1, 2, 7]))
    with pytest.raises(ValueError, match="SAN has no map for each word"):
        explain(model, batch, "san", per_word=True)
    with pytest.raises(ValueError, match="level is 'pixels', allowed are 'input' and 'tokens'"):
        explain(model, batch, "occlusion", level="pixels")
    with pytest.raises(ValueError, match="stride is 9, more than the window of 8"):
        explain(model, batch, "occlusion", stride=9)
    with pytest.raises(ValueError, match="in Perceiver no word reads"):
        explain(model_of(FUSIONS["perceiver"]()), batch, "rollout", per_word=True)
    model.head.layers[-1].weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        explain(model, batch, "grad_cam")
