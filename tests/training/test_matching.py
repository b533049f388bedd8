"""Matching: a pair's score comes from the pair, chunks and stacked seeds change nothing, the loss is what it says."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from vqa_core.fusion.cross_attention import VERSIONS
from vqa_core.training import matching
from vqa_core.training.matching import (
    Matcher,
    NotFiniteError,
    contrastive_loss,
    cosine_rate,
    fit_together,
    in_batch_cosines,
    pairwise_cosines,
    pictures_at_a_time,
    pooled,
)

DIM, IMAGE_DIM, TEXT_DIM = 8, 7, 5
every = pytest.mark.parametrize("version", VERSIONS)


def make(version, dropout=0.0):
    """A version in double precision and evaluation mode, every parameter a random number."""
    torch.manual_seed(0)
    module = VERSIONS[version](DIM, 2, dropout).double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0, 0.5)
    return module


def tokens(n, length, dim=DIM, seed=0):
    """(n, length, dim), and a mask with another number of real tokens in each row."""
    chance = torch.Generator().manual_seed(seed)
    mask = torch.arange(length) < torch.randint(1, length + 1, (n, 1), generator=chance)
    return torch.randn(n, length, dim, generator=chance, dtype=torch.float64), mask


def sides(pictures=5, captions=4, n_image=3, n_text=6):
    """Image, text, and their masks."""
    (image, image_mask), (text, text_mask) = tokens(pictures, n_image, seed=1), tokens(captions, n_text, seed=2)
    return image, text, image_mask, text_mask


# ------------------------------------------------------------------------------------------------------------ scores


def test_pooled_is_the_direction_of_the_mean_of_real_tokens():
    x = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [100.0, -7.0]]])
    mask = torch.tensor([[True, True, False]])
    assert_close(pooled(x, mask), torch.tensor([[0.6, 0.8]]))
    assert_close(pooled(x[:, :2], None), torch.tensor([[0.6, 0.8]]))
    assert_close(pooled(1e-3 * x, mask), torch.tensor([[0.6, 0.8]]))


def cosine_of(module, image, text, image_mask, text_mask) -> torch.Tensor:
    """Of one picture and one caption, their padding cut off: a number."""
    new_image, new_text = module(image[None, image_mask], text[None, text_mask])[:2]
    return F.cosine_similarity(new_image[0].mean(0), new_text[0].mean(0), dim=0)


@every
def test_pairwise_cosines_are_those_of_a_loop_over_pairs(version):
    module, (image, text, image_mask, text_mask) = make(version), sides()
    found = pairwise_cosines(module, image, text, image_mask, text_mask)
    assert found.shape == (5, 4)
    for i in range(5):
        for j in range(4):
            assert_close(found[i, j], cosine_of(module, image[i], text[j], image_mask[i], text_mask[j]))


@every
def test_chunks_change_neither_values_nor_gradients(version):
    module, (image, text, *masks) = make(version), sides()
    image.requires_grad_(), text.requires_grad_()
    wanted = [image, text, *module.parameters()]
    weight = torch.randn(5, 4, dtype=torch.float64)

    def run(chunk):
        found = pairwise_cosines(module, image, text, *masks, chunk=chunk)
        return found.detach(), torch.autograd.grad((found * weight).sum(), wanted, allow_unused=True)

    cosines, gradients = run(None)
    assert gradients[0].any()
    for chunk in (1, 3, 5, 99):
        other, others = run(chunk)
        assert_close(other, cosines)
        for a, b in zip(others, gradients):
            assert (a is None) is (b is None)
            if a is not None:
                assert_close(a, b, rtol=1e-6, atol=1e-12)
        with torch.no_grad():
            assert_close(pairwise_cosines(module, image, text, *masks, chunk=chunk), cosines)


@pytest.mark.parametrize("masked", [(False, False), (True, False), (False, True)])
def test_chunks_with_a_mask_on_one_side_or_none(masked):
    module, (image, text, *masks) = make("v9"), sides()
    masks = [mask if there else None for mask, there in zip(masks, masked)]
    assert_close(
        pairwise_cosines(module, image, text, *masks, chunk=2), pairwise_cosines(module, image, text, *masks, chunk=9)
    )


def test_a_chunk_computed_again_drops_the_same_as_the_first_time():
    module, (image, text, *masks) = make("v9", dropout=0.4).train(), sides()
    parts = [(0, 2), (2, 4), (4, 5)]

    def gradients(cosines):
        torch.manual_seed(7)
        return torch.autograd.grad(cosines().square().sum(), [*module.parameters()], allow_unused=True)

    again = gradients(lambda: pairwise_cosines(module, image, text, *masks, chunk=2))
    once = gradients(
        lambda: torch.cat([pairwise_cosines(module, image[a:b], text, masks[0][a:b], masks[1]) for a, b in parts])
    )
    for a, b in zip(again, once):
        assert_close(a, b)


def test_chunks_compute_with_the_weights_of_a_functional_call():
    """The backward pass runs when the call is over, and the module has its own weights again."""
    module, (image, text, *masks) = make("v9"), sides()
    gradients = []
    for chunk in (2, 5):
        weights = {k: (p.detach() * 2).requires_grad_() for k, p in module.named_parameters()}

        class Scorer(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.module = module

            def forward(self, chunk):
                return pairwise_cosines(self.module, image, text, *masks, chunk=chunk)

        given = {f"module.{k}": p for k, p in weights.items()}
        torch.func.functional_call(Scorer(), given, (chunk,)).square().sum().backward()
        gradients.append({k: p.grad for k, p in weights.items()})
        assert all(p.grad is None for p in module.parameters())
    for name, gradient in gradients[0].items():
        assert_close(gradient, gradients[1][name])


def test_memory_decides_how_many_pictures_at_a_time(monkeypatch):
    per_picture = 4 * matching.FLOATS_PER_FEATURE * 4 * (3 + 6) * DIM
    monkeypatch.setattr(matching, "CHUNK_BYTES", 2 * per_picture + 1)
    assert pictures_at_a_time(4, 3 + 6, DIM) == 2
    assert pictures_at_a_time(10**9, 9, DIM) == 1  # never less than a picture
    module, seen = make("v2"), []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():
        pairwise_cosines(module, *sides())
    assert seen == [2, 2, 1]


@every
def test_in_batch_and_pairwise_agree_about_true_pairs(version):
    """Only there: the diagonal is what the pair alone gives, the rest of the square is not."""
    module, inputs = make(version), sides(4, 4)
    in_batch, pairwise = in_batch_cosines(module, *inputs), pairwise_cosines(module, *inputs)
    assert_close(in_batch.diag(), pairwise.diag())
    assert not torch.allclose(in_batch, pairwise, atol=1e-3)


def changed_by_another_caption(scores, module) -> torch.Tensor:
    """Which scores (4, 4) change when caption 2 becomes another."""
    image, text, *_ = sides(4, 4)
    other = text.clone()
    other[2] = torch.randn(6, DIM, dtype=torch.float64)
    return (scores(module, image, other) - scores(module, image, text)).abs() > 1e-9


@every
def test_a_pairwise_score_knows_nothing_of_other_captions_and_an_in_batch_score_does(version):
    module = make(version)
    column = (torch.arange(4) == 2).expand(4, 4)
    assert torch.equal(changed_by_another_caption(pairwise_cosines, module), column)
    leaking = changed_by_another_caption(in_batch_cosines, module)
    pools_the_picture = version in (
        "v1",
        "v2",
        "v4",
        "v6",
    )  # the mean of T'_2 is that of the picture, whatever caption 2
    assert torch.equal(leaking, column.T if pools_the_picture else column | column.T)  # I'_2 has read caption 2


def test_a_leak_under_the_name_of_a_pairwise_score_is_found():
    """The planted defect that the test before this one is for."""

    def planted(module, image, text):
        return in_batch_cosines(module, image, text) / 2 + pairwise_cosines(module, image, text) / 2

    column = (torch.arange(4) == 2).expand(4, 4)
    assert not torch.equal(changed_by_another_caption(planted, make("v9")), column)


@every
def test_one_token_leaks_only_where_an_output_depends_on_both_sides(version):
    """Else I'_i = f(caption i) and T'_j = g(picture j): the scores in the batch are the pairwise ones, transposed."""
    image, text, *_ = sides(6, 6, 1, 1)
    module = make(version)
    in_batch, pairwise = in_batch_cosines(module, image, text), pairwise_cosines(module, image, text)
    leaks = version in ("v3", "v5", "v7", "v10_2", "v10_6")
    assert torch.allclose(in_batch, pairwise.T, rtol=0, atol=1e-9) is not leaks
    if not leaks:
        assert_close(contrastive_loss(in_batch), contrastive_loss(pairwise))


@every
def test_order_of_a_batch_moves_the_scores_along(version):
    module, (image, text, image_mask, text_mask) = make(version), sides()
    rows, columns = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([1, 3, 0, 2])
    moved = pairwise_cosines(module, image[rows], text[columns], image_mask[rows], text_mask[columns])
    assert_close(moved, pairwise_cosines(module, image, text, image_mask, text_mask)[rows][:, columns])
    image, text, image_mask, text_mask = sides(4, 4)
    moved = in_batch_cosines(module, image[columns], text[columns], image_mask[columns], text_mask[columns])
    assert_close(moved, in_batch_cosines(module, image, text, image_mask, text_mask)[columns][:, columns])


@pytest.mark.parametrize("version", ["v5", "v7"])
def test_one_token_of_v5_and_v7_is_right_in_the_batch_and_at_chance_alone(version):
    """The diagonal is 1 for any picture with any caption: nothing was learned, and nothing can be."""
    image, text, *_ = sides(6, 6, 1, 1)
    module = make(version)
    in_batch = in_batch_cosines(module, image, text)
    assert_close(in_batch.diag(), torch.ones(6, dtype=torch.float64))
    assert torch.equal(in_batch.argmax(1), torch.arange(6))
    pairwise = pairwise_cosines(module, image, text)
    assert_close(pairwise, torch.ones(6, 6, dtype=torch.float64))
    assert contrastive_loss(pairwise / 0.07).item() == pytest.approx(math.log(6))


# ----------------------------------------------------------------------------------------------------- loss and rate


@pytest.mark.parametrize("size", [1, 2, 24])
def test_loss_of_equal_logits_is_log_of_the_batch_and_of_perfect_ones_nothing(size):
    assert contrastive_loss(torch.full((size, size), 3.0)).item() == pytest.approx(math.log(size))
    assert contrastive_loss(100 * torch.eye(size)).item() == pytest.approx(0, abs=1e-6)
    assert contrastive_loss(-100 * torch.eye(size)).item() == pytest.approx(100 + math.log(size - 1) if size > 1 else 0)


def test_loss_looks_both_ways():
    """Picture 0 likes both captions, picture 1 none: rows are undecided, columns say picture 0."""
    s = 2.0
    logits = torch.tensor([[s, s], [0.0, 0.0]])
    rows, columns = math.log(2), 0.5 * (math.log(1 + math.exp(-s)) + math.log(1 + math.exp(s)))
    assert contrastive_loss(logits).item() == pytest.approx(0.5 * (rows + columns))
    assert_close(contrastive_loss(logits.T), contrastive_loss(logits))


def test_rate_falls_along_half_a_cosine():
    rates = [cosine_rate(s, 100, 0.4) for s in range(101)]
    assert rates[0] == 0.4
    assert rates[25] == pytest.approx(0.2 + 0.2 * math.sqrt(0.5))
    assert rates[50] == pytest.approx(0.2)
    assert rates[100] == pytest.approx(0)
    assert rates == sorted(rates, reverse=True)


# ------------------------------------------------------------------------------------------------------- the matcher


def matcher(version, seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return Matcher(IMAGE_DIM, TEXT_DIM, VERSIONS[version](DIM, 2, dropout)).double()


def test_logits_are_cosines_over_the_temperature_which_has_a_floor():
    model = matcher("v9").eval()
    (image, image_mask), (text, text_mask) = tokens(3, 4, IMAGE_DIM), tokens(3, 2, TEXT_DIM)
    joined = model.image_projection(image), model.text_projection(text)
    expected = {
        "pairwise": pairwise_cosines(model.module, *joined, image_mask, text_mask),
        "in_batch": in_batch_cosines(model.module, *joined, image_mask, text_mask),
    }
    assert model.used_temperature().item() == pytest.approx(0.07)
    for learned, used in ((0.07, 0.07), (0.5, 0.5), (0.001, 0.01), (-1.0, 0.01)):
        model.temperature.data.fill_(learned)
        assert model.used_temperature().item() == pytest.approx(used)
        for scoring, cosines in expected.items():
            assert_close(model(image, text, image_mask, text_mask, scoring=scoring), cosines / used)
    assert_close(model(image, text, image_mask, text_mask, chunk=2), expected["pairwise"] / used)


def test_without_a_word_scores_are_pairwise():
    """A matcher must not leak by default."""
    model = matcher("v6").eval()
    image, text = tokens(3, 4, IMAGE_DIM)[0], tokens(3, 2, TEXT_DIM)[0]
    assert torch.equal(model(image, text), model(image, text, scoring="pairwise"))
    assert not torch.allclose(model(image, text), model(image, text, scoring="in_batch"))


# ---------------------------------------------------------------------------------------------------------- training


def batches_of(seeds, size=6, n_image=3, n_text=4, masked=True):
    """A function of the step as ``fit_together`` wants it; each seed has data of its own."""

    def batch(step):
        made = [
            (*tokens(size, n_image, IMAGE_DIM, 100 * step + s), *tokens(size, n_text, TEXT_DIM, 100 * step + 50 + s))
            for s in seeds
        ]
        image, image_mask, text, text_mask = (torch.stack(x) for x in zip(*made))
        return image, text, *((image_mask, text_mask) if masked else (None, None))

    return batch


def weights_of(model):
    return {k: v.detach().clone() for k, v in model.named_parameters()}


def assert_same_weights(first, second, atol=1e-9):
    for name, value in weights_of(first).items():
        assert_close(value, second.get_parameter(name).detach(), rtol=0, atol=atol)


@pytest.mark.parametrize("version", ["v0", "v6", "v8", "v9", "v10_2", "v11"])
@pytest.mark.parametrize("scoring", ["in_batch", "pairwise"])
def test_seeds_trained_together_are_seeds_trained_alone_by_a_plain_loop(version, scoring):
    seeds, steps, rate, decay = (0, 1, 2), 4, 0.01, 0.05
    together, losses = [matcher(version, s) for s in seeds], []
    fit_together(
        together,
        batches_of(seeds),
        steps,
        scoring,
        rate,
        decay,
        after=lambda step, found: losses.append(found),
    )
    for s in seeds:
        alone = matcher(version, s)
        optimizer = torch.optim.AdamW(alone.parameters(), lr=rate, weight_decay=decay)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.5 * rate * (1 + math.cos(math.pi * step / steps))
            image, text, *masks = (x[0] for x in batches_of([s])(step))
            loss = contrastive_loss(alone(image, text, *masks, scoring=scoring))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert losses[step][s] == pytest.approx(loss.item(), rel=1e-6)
        assert_same_weights(together[s], alone, 1e-6)
        assert not torch.allclose(alone.image_projection.weight, matcher(version, s).image_projection.weight)


def test_one_seed_is_trained_as_among_five():
    among, alone = [matcher("v9", s) for s in range(5)], [matcher("v9", 3)]
    fit_together(among, batches_of(range(5)), 3, "pairwise", 0.01, 0.01)
    fit_together(alone, batches_of([3]), 3, "pairwise", 0.01, 0.01)
    assert_same_weights(among[3], alone[0])


@pytest.mark.parametrize("masked", [True, False])
def test_training_in_chunks_is_training(monkeypatch, masked):
    """``vmap`` cannot compute a chunk again: the seeds then go one by one, with the same result."""
    made = []
    for size in (matching.CHUNK_BYTES, 4 * matching.FLOATS_PER_FEATURE * 6 * 7 * DIM * 2):  # two pictures at a time
        monkeypatch.setattr(matching, "CHUNK_BYTES", size)
        models = [matcher("v9", s) for s in range(2)]
        fit_together(models, batches_of(range(2), masked=masked), 3, "pairwise", 0.01, 0.01)
        made.append(models)
    assert pictures_at_a_time(6, 7, DIM) == 2
    for whole, chunked in zip(*made):
        assert_same_weights(whole, chunked)


def test_padding_teaches_nothing():
    def spoiled(step):
        image, text, image_mask, text_mask = batches_of(range(2))(step)
        return (
            image.masked_fill(~image_mask[..., None], 1e3),
            text.masked_fill(~text_mask[..., None], -1e3),
            image_mask,
            text_mask,
        )

    clean, dirty = ([matcher("v9", s) for s in range(2)] for _ in range(2))
    fit_together(clean, batches_of(range(2)), 3, "pairwise", 0.01, 0.0)
    fit_together(dirty, spoiled, 3, "pairwise", 0.01, 0.0)
    for a, b in zip(clean, dirty):
        assert_same_weights(a, b)


def same_batch(seeds, size=6):
    image, text, *masks = batches_of([0], size)(0)
    return lambda step: tuple(x.expand(seeds, *x.shape[1:]) for x in (image, text, *masks))


@pytest.mark.parametrize(("dropout", "equal"), [(0.0, True), (0.5, False)])
def test_each_seed_drops_its_own_and_the_seed_of_the_call_decides_what(dropout, equal):
    def run(seed):
        models = [matcher("v9", 0, dropout).eval() for _ in range(2)]  # training switches dropout on
        fit_together(models, same_batch(2), 2, "pairwise", 0.01, 0.0, seed=seed)
        return [m.image_projection.weight.detach() for m in models]

    (first, second), (again, _), (other, _) = run(0), run(0), run(1)
    assert torch.equal(first, again)
    assert torch.allclose(first, second, rtol=0, atol=1e-12) is equal
    assert torch.allclose(first, other, rtol=0, atol=1e-12) is equal


def test_overfits_eight_pairs():
    models, losses = [matcher("v9", s) for s in range(2)], []
    batch = same_batch(2, size=8)
    fit_together(models, batch, 150, "pairwise", 0.02, 0.0, after=lambda step, found: losses.append(found))
    assert losses[0][0] > 1
    assert max(losses[-1]) < 0.02
    image, text, image_mask, text_mask = (x[0] for x in batch(0))
    for model in models:
        logits = model.eval()(image, text, image_mask, text_mask)
        assert torch.equal(logits.argmax(0), torch.arange(8))
        assert torch.equal(logits.argmax(1), torch.arange(8))


def test_in_batch_scores_are_learned_by_a_module_that_cannot_match():
    """v7 with one token per side: the loss in the batch falls to nothing, pairs alone stay at chance."""
    model = matcher("v7")
    image, text, *_ = batches_of([0], 8, 1, 1, masked=False)(0)
    losses = []
    fit_together(
        [model], lambda step: (image, text, None, None), 60, "in_batch", 0.01, 0.0, after=lambda s, f: losses.append(f)
    )
    assert losses[-1][0] < 0.01
    assert contrastive_loss(model(image[0], text[0])).item() == pytest.approx(math.log(8))


def test_after_each_step_the_matchers_hold_the_weights_of_that_step():
    models, seen = [matcher("v6", s) for s in range(2)], []
    start = [weights_of(m) for m in models]

    def after(step, losses):
        seen.append((step, len(losses), [weights_of(m) for m in models]))

    fit_together(models, batches_of(range(2)), 3, "pairwise", 0.01, 0.0, after=after)
    assert [(step, n) for step, n, _ in seen] == [(0, 2), (1, 2), (2, 2)]
    for before, now in zip([start, *(w for *_, w in seen)], [w for *_, w in seen]):
        for a, b in zip(before, now):
            assert not torch.equal(a["image_projection.weight"], b["image_projection.weight"])
    for kept, model in zip(seen[-1][2], models):
        assert all(torch.equal(kept[k], v) for k, v in weights_of(model).items())
    one_step = [matcher("v6", s) for s in range(2)]

    def stop(step, losses):
        raise StopIteration

    with pytest.raises(StopIteration):
        fit_together(one_step, batches_of(range(2)), 3, "pairwise", 0.01, 0.0, after=stop)
    assert all(torch.equal(seen[0][2][0][k], v) for k, v in weights_of(one_step[0]).items())


def test_a_loss_that_is_not_finite_names_step_and_seed():
    def batch(step):
        image, *rest = batches_of(range(3))(step)
        if step == 2:
            image[1] = float("nan")
        return image, *rest

    models = [matcher("v2", s) for s in range(3)]
    with pytest.raises(NotFiniteError, match=r"step 2: the loss of seed\(s\) \[1\] is not finite"):
        fit_together(models, batch, 5, "pairwise", 0.01, 0.0)
