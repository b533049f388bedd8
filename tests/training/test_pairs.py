"""Training on pairs: every pair is seen, steps are what the recipe says, several processes train what one does."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.dual import DualEncoder
from vqa_core.encoders.compact import CompactViT
from vqa_core.encoders.text import TransformerText
from vqa_core.training.loop import NotFiniteError
from vqa_core.training.memory import PeakKept
from vqa_core.training.pairs import LOSSES, Pairs, Recipe, draw_rows, fit_pairs


def some_pairs(n=12):
    chance = torch.Generator().manual_seed(0)
    mask = torch.arange(6) < torch.randint(1, 5, (n, 1), generator=chance)
    words = torch.randint(1, 12, (n, 6), generator=chance) * mask
    return Pairs(torch.randint(0, 256, (n, 32, 32, 3), generator=chance, dtype=torch.uint8), words, mask)


def dual(**options):
    torch.manual_seed(0)
    return DualEncoder(CompactViT(32, 8, 16, 1, 2), TransformerText(12, 8, 1, 2), 8, **options)


def test_a_batch_is_cut_to_its_longest_caption():
    pairs, rows = some_pairs(), torch.tensor([3, 0])
    pictures, words, mask = pairs.batch(rows)
    longest = int(pairs.mask[rows].sum(1).max())
    assert words.shape == mask.shape == (2, longest)
    assert_close(words, pairs.words[rows, :longest])
    assert_close(pictures[0, 2], pairs.pictures[3, :, :, 2] / 127.5 - 1)
    assert len(pairs.first(5).words) == 5
    with pytest.raises(ValueError, match="13 pairs are asked for, there are 12"):
        pairs.first(13)


def test_epochs_show_every_pair_once_and_batches_none_twice():
    rows = draw_rows(12, 4, 7, seed=1)
    assert rows.shape == (7, 4)
    assert sorted(rows[:3].flatten().tolist()) == sorted(rows[3:6].flatten().tolist()) == list(range(12))
    assert not torch.equal(rows[:3], rows[3:6])
    assert all(len(set(row.tolist())) == 4 for row in draw_rows(11, 4, 9, seed=2))
    assert torch.equal(draw_rows(12, 4, 3, 5), draw_rows(12, 4, 3, 5))
    assert not torch.equal(draw_rows(12, 4, 3, 5), draw_rows(12, 4, 3, 6))
    for wrong in (1, 13):
        with pytest.raises(ValueError, match=f"batch_size is {wrong}"):
            draw_rows(12, wrong, 3, 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_follows_its_recipe_and_the_loss_falls(loss):
    model = dual(bias=-5.0 if loss == "siglip" else None)
    recipe = Recipe(pairs_seen=600, batch_size=12, learning_rate=1e-2, loss=loss)
    history = fit_pairs(model, some_pairs(), recipe, seed=0)
    assert [point["step"] for point in history] == list(range(1, 51))
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert history[0]["temperature"] == pytest.approx(0.07)
    assert loss == "triplet" or history[-1]["temperature"] != history[0]["temperature"]
    assert not model.training


def test_equal_seeds_train_equal_models():
    recipe, trained = Recipe(48, 4, 1e-2), []
    for seed in (1, 1, 2):
        model = dual()
        fit_pairs(model, some_pairs(), recipe, seed)
        trained.append(model.image_projection.weight)
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_a_fixed_temperature_stays():
    history = fit_pairs(dual(temperature=0.5, learned=False), some_pairs(), Recipe(48, 4, 1e-2), 0)
    assert {round(point["temperature"], 6) for point in history} == {0.5}


def test_share_and_synchronise_are_called_in_each_step():
    seen = []

    def share(rows):
        seen.append(rows)
        return rows[:2]

    def synchronise(model):
        seen.append(model.image_projection.weight.grad.norm().item())
        for p in model.parameters():
            p.grad.zero_()

    model = dual()
    before = model.log_scale.detach().clone()
    fit_pairs(model, some_pairs(), Recipe(24, 8, 1e-2), 0, share=share, synchronise=synchronise)
    assert [len(x) for x in seen[::2]] == [8, 8, 8]
    assert all(norm > 0 for norm in seen[1::2])
    assert_close(model.log_scale.detach(), before)  # the gradients that came back were zero


def test_what_goes_wrong_is_named():
    with pytest.raises(ValueError, match="loss is 'softmax', allowed are clip, nt_xent, triplet, siglip"):
        fit_pairs(dual(), some_pairs(), Recipe(8, 4, 1e-2, loss="softmax"), 0)
    with pytest.raises(NotFiniteError, match="step 1: the loss is nan"):
        fit_pairs(dual(), some_pairs(), Recipe(8, 4, 1e-2), 0, loss=lambda m, i, t: (i * t).sum() * float("nan"))


# ------------------------------------------------------------------------------------------------------------- memory


def test_kept_bytes_are_those_of_the_inputs_of_a_product():
    """y = x W keeps x for the gradient of W; the weight itself does not count, nor does what is kept twice."""
    layer, x = nn.Linear(50, 3, bias=False), torch.randn(1000, 50)
    counter = PeakKept(layer)
    assert counter.of(lambda: layer(x).sum().backward()) == 1000 * 50 * 4
    assert counter.now == 0  # the graph is gone
    assert PeakKept(layer).of(lambda: (layer(x) + layer(x)).sum().backward()) == 1000 * 50 * 4


def test_the_peak_is_that_of_one_time():
    """Two graphs one after the other need as much as one."""
    layer = nn.Linear(50, 3, bias=False)

    def step():
        layer(torch.randn(1000, 50)).sum().backward()

    assert PeakKept(layer).of(lambda: [step(), step()]) == 1000 * 50 * 4
