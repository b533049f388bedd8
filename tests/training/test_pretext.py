"""Pretext tasks: what is covered, swapped and shuffled, and a model that does all three."""

import pytest
import torch
from torch.testing import assert_close

from vqa_core.fusion.single_stream import SingleStream
from vqa_core.training import pretext as pt

MASK, SPECIALS, VOCABULARY = 2, 3, 203


def sentences(n=2000, length=20):
    words = torch.randint(SPECIALS, VOCABULARY, (n, length))
    lengths = torch.randint(1, length + 1, (n,))
    mask = torch.arange(length) < lengths[:, None]
    return words * mask, mask


# --------------------------------------------------------------------------------------------------------- MLM


def test_fifteen_percent_are_chosen_and_never_padding():
    words, mask = sentences()
    _, targets = pt.mask_words(words, mask, MASK, VOCABULARY, SPECIALS)
    chosen = targets != pt.IGNORED
    assert not (chosen & ~mask).any()
    assert torch.equal(chosen.sum(1), (0.15 * mask.sum(1)).round().clamp(min=1).long())
    assert torch.equal(targets[chosen], words[chosen])
    twenty = mask.sum(1) == 20  # three of twenty words, each place alike
    assert_close(chosen[twenty].float().mean(0), torch.full((20,), 0.15), atol=0.14, rtol=0)


def test_of_the_chosen_80_10_10():
    words, mask = sentences(20_000)
    damaged, targets = pt.mask_words(words, mask, MASK, VOCABULARY, SPECIALS)
    chosen = targets != pt.IGNORED
    assert torch.equal(damaged[~chosen], words[~chosen])
    masked, kept = damaged[chosen] == MASK, damaged[chosen] == words[chosen]
    assert float(masked.float().mean()) == pytest.approx(0.8, abs=0.01)
    assert float(kept.float().mean()) == pytest.approx(0.1 + 0.1 / 200, abs=0.01)
    other = damaged[chosen][~masked & ~kept]
    assert len(other) / int(chosen.sum()) == pytest.approx(0.1, abs=0.01)
    assert other.min() >= SPECIALS
    assert other.max() < VOCABULARY
    assert len(other.unique()) == VOCABULARY - SPECIALS  # any word may come


def test_masking_comes_again_with_its_generator():
    words, mask = sentences(50)
    draw = lambda seed: pt.mask_words(  # noqa: E731
        words, mask, MASK, VOCABULARY, SPECIALS, generator=torch.Generator().manual_seed(seed)
    )
    assert all(torch.equal(a, b) for a, b in zip(draw(1), draw(1)))
    assert not torch.equal(draw(1)[1], draw(2)[1])
    with pytest.raises(ValueError, match="share is 0"):
        pt.mask_words(words, mask, MASK, VOCABULARY, SPECIALS, share=0)
    with pytest.raises(ValueError, match="within 203 words"):
        pt.mask_words(words, mask, 203, VOCABULARY, SPECIALS)


# --------------------------------------------------------------------------------------------------------- ITM


def test_half_of_the_pictures_get_a_sentence_that_is_false():
    true = torch.eye(600, dtype=torch.bool) | (torch.rand(600, 600) < 0.7)
    drawn, matches = pt.mismatch(true)
    assert float(matches.float().mean()) == pytest.approx(0.5, abs=0.07)
    rows = torch.arange(600)
    assert torch.equal(true[rows, drawn], matches.bool())  # no accidental positive, no accidental negative
    assert torch.equal(drawn[matches.bool()], rows[matches.bool()])


def test_false_sentences_are_drawn_uniformly():
    true = torch.eye(4, dtype=torch.bool)
    true[0, 3] = True
    count = torch.zeros(4)
    for _ in range(3000):
        count[pt.mismatch(true, share=1.0)[0][0]] += 1
    assert count[[0, 3]].tolist() == [0, 0]
    assert_close(count[1:3] / 3000, torch.tensor([0.5, 0.5]), atol=0.04, rtol=0)


def test_a_picture_of_which_everything_is_true_keeps_its_own():
    drawn, matches = pt.mismatch(torch.ones(5, 5, dtype=torch.bool), share=1.0)
    assert drawn.tolist() == list(range(5))
    assert matches.tolist() == [1] * 5
    assert pt.mismatch(torch.eye(5, dtype=torch.bool), share=0.0)[1].tolist() == [1] * 5


def test_mismatch_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="sentence 1 is said not to be true of picture 1"):
        pt.mismatch(torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match=r"give bool \(B, B\)"):
        pt.mismatch(torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="within 0 to 1"):
        pt.mismatch(torch.eye(2, dtype=torch.bool), share=2)


# -------------------------------------------------------------------------------------------------------- order


def test_real_pieces_are_shuffled_and_padding_stays():
    mask = torch.tensor([[True] * 6, [True, True, True, False, False, False], [True, False, True, False, False, True]])
    order, targets = pt.shuffle_pieces(mask)
    for row, real, goal in zip(order.tolist(), mask.tolist(), targets.tolist()):
        places = [i for i, r in enumerate(real) if r]
        assert sorted(row[i] for i in places) == places
        assert all(row[i] == i for i in range(6) if i not in places)
        assert goal == [i if r else -100 for i, r in zip(row, real)]


def test_orders_are_uniform():
    mask = torch.ones(6000, 3, dtype=torch.bool)
    order, _ = pt.shuffle_pieces(mask)
    code = order[:, 0] * 9 + order[:, 1] * 3 + order[:, 2]
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 6
    assert_close(counts / 6000, torch.full((6,), 1 / 6), atol=0.02, rtol=0)


def test_chance_is_one_over_the_number_of_places():
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    assert pt.order_chance(mask) == pytest.approx(2 / 6)  # (4 · 1/4 + 2 · 1/2) / 6
    guesses = []
    for _ in range(2000):
        _, targets = pt.shuffle_pieces(mask)
        logits = pt.only_real_places(torch.randn(2, 4, 9), mask)
        right, counted = pt.right_labels(logits, targets)
        guesses.append(right[counted].float().mean())
    assert float(torch.stack(guesses).mean()) == pytest.approx(2 / 6, abs=0.02)


def test_places_that_a_row_does_not_have_are_never_guessed():
    mask = torch.tensor([[True, True, False]])
    logits = pt.only_real_places(torch.tensor([[[0.0, 0, 9, 9]] * 3]), mask)
    assert logits.argmax(-1).max() <= 1
    assert_close(pt.label_loss(logits, torch.tensor([[0, 1, -100]])), torch.tensor(2.0).log())


# --------------------------------------------------------------------------------------------------------- model


def make(**sizes):
    torch.manual_seed(0)
    return pt.PretextModel(5, 23, **({"dim": 16, "depth": 2, "heads": 2, "max_words": 8} | sizes))


def inputs(n=4):
    image, words = torch.randn(n, 3, 5), torch.randint(3, 23, (n, 8))
    lengths = torch.tensor([8, 5, 3, 7, 6, 2, 4, 8])[:n]
    mask = torch.arange(8) < lengths[:, None]
    image_mask = torch.arange(3) < torch.tensor([3, 2, 1, 3, 2, 3, 1, 2])[:n, None]
    return image, image_mask, words * mask, mask


def test_padding_changes_no_output():
    model, (image, image_mask, words, mask) = make(max_words=10).eval(), inputs()
    wide = torch.cat([image, torch.randn(4, 2, 5)], 1), torch.nn.functional.pad(image_mask, (0, 2))
    long = torch.nn.functional.pad(words, (0, 2), value=7), torch.nn.functional.pad(mask, (0, 2))
    for task in (model.name_words, model.match, model.places):
        first, other = task(image, image_mask, words, mask), task(*wide, *long)
        if task != model.match:
            first, other = first[mask], other[:, :8][mask]
        assert_close(first, other, rtol=1e-4, atol=1e-5)


def test_places_do_not_depend_on_the_order_in_which_words_are_shown():
    model, (image, image_mask, words, mask) = make().eval(), inputs()
    order, targets = pt.shuffle_pieces(mask)
    shown = words.gather(1, order)
    expected = model.places(image, image_mask, words, mask).gather(1, order.unsqueeze(-1).expand(-1, -1, 8))
    assert_close(model.places(image, image_mask, shown, mask)[mask], expected[mask], rtol=1e-4, atol=1e-5)
    named = model.name_words(image, image_mask, words, mask).gather(1, order.unsqueeze(-1).expand(-1, -1, 23))
    assert (model.name_words(image, image_mask, shown, mask)[mask] - named[mask]).abs().max() > 1e-3  # has positions
    assert torch.equal(words.gather(1, targets.clamp(min=0))[mask], shown[mask])


def test_words_of_the_picture_reach_every_head():
    model, (image, image_mask, words, mask) = make().eval(), inputs()
    other = image.clone()
    other[:, 0] += 1.0
    for task in (model.name_words, model.match, model.places):
        moved = (task(other, image_mask, words, mask) - task(image, image_mask, words, mask)).abs()
        assert moved.flatten(1).amax(1).min() > 1e-5


def test_gradient_of_the_three_losses_reaches_every_parameter():
    model, (image, image_mask, words, mask) = make(), inputs()
    order, places = pt.shuffle_pieces(mask)
    damaged, targets = pt.mask_words(words, mask, MASK, 23, SPECIALS)
    loss = pt.label_loss(model.name_words(image, image_mask, damaged, mask), targets)
    loss = loss + pt.label_loss(model.match(image, image_mask, words, mask), torch.tensor([0, 1, 1, 0]))
    loss = loss + pt.label_loss(model.places(image, image_mask, words.gather(1, order), mask), places)
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


def test_eight_pairs_can_be_learned_by_heart():
    model, (image, image_mask, words, mask) = make(dim=32), inputs(8)
    words = (words + 3 * torch.arange(8)[:, None]) % 20 + 3
    words = words * mask
    damaged, targets = pt.mask_words(words, mask, MASK, 23, SPECIALS)
    matches = torch.arange(8) % 2
    order, places = pt.shuffle_pieces(mask)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        losses = [
            pt.label_loss(model.name_words(image, image_mask, damaged, mask), targets),
            pt.label_loss(model.match(image, image_mask, words, mask), matches),
            pt.label_loss(model.places(image, image_mask, words.gather(1, order), mask), places),
        ]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    assert losses[0] < 0.05
    assert losses[1] < 0.05
    assert losses[2] < 0.7  # a word that comes twice has two places


def test_single_stream_is_a_fusion_with_attention():
    fusion = SingleStream(5, 6, 16, depth=2, heads=2, max_words=4).eval()
    image, text, real = (
        torch.randn(2, 3, 5),
        torch.randn(2, 4, 6),
        torch.tensor([[True] * 4, [True, True, False, False]]),
    )
    out = fusion(image, text, None, real)
    assert out.fused.shape == (2, 16)
    assert (out.image.shape, out.text.shape) == ((2, 3, 16), (2, 4, 16))
    assert out.attention.shape == (2, 2, 8, 8)
    assert_close(out.attention.sum(-1), torch.ones(2, 2, 8))
    assert not out.attention[1, :, :, 6:].any()
    assert fusion.train()(image, text).attention is None
    with pytest.raises(ValueError, match=r"texts of 5 words; this fusion has max_words=4"):
        fusion(image, torch.randn(2, 5, 6))
