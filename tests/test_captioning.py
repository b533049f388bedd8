"""The captioner: causal, blind to padding, and a beam of width 1 is greedy."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from vqa_core import captioning as cap
from vqa_core.encoders.tokens import CachedTokens, Tokens

SENTENCES = ["a red circle", "there is a blue square", "two crosses", "a red cross above a blue circle"]
VOCABULARY = cap.caption_vocabulary(SENTENCES)


class Masked(CachedTokens):
    """Tokens whose first feature says whether they are real."""

    def forward(self, tokens):
        return Tokens(tokens, tokens[..., 0] > 0)


def make(encoder=None, **sizes):
    torch.manual_seed(0)
    sizes = {"dim": 16, "depth": 2, "heads": 2, "max_words": 12} | sizes
    return cap.Captioner(encoder or CachedTokens(6), len(VOCABULARY), **sizes)


def batch(n=4):
    words, mask = cap.encode_captions(SENTENCES[:n], VOCABULARY)
    return torch.randn(n, 5, 6), words, mask


def test_captions_go_to_ids_and_back():
    words, mask = cap.encode_captions(SENTENCES, VOCABULARY)
    assert words[:, 0].tolist() == [cap.START_ID] * 4
    assert mask.sum(1).tolist() == [5, 7, 4, 9]
    assert all(row[n - 1] == cap.END_ID for row, n in zip(words.tolist(), mask.sum(1).tolist()))
    assert (words[~mask] == 0).all()
    assert cap.decode_captions(words, VOCABULARY) == SENTENCES
    assert cap.decode_captions(torch.tensor([[2, 4, 0], [2, 3, 5]]), VOCABULARY) == [VOCABULARY.symbols[4], ""]


def test_no_word_sees_a_later_one():
    model, (pictures, words, _) = make().eval(), batch()
    first = model(pictures, words).logits
    for place in range(1, words.shape[1]):
        other = words.clone()
        other[:, place] = (words[:, place] + 1) % len(VOCABULARY)
        moved = (model(pictures, other).logits - first).abs().amax((0, 2))  # (T,)
        assert moved[:place].max() == 0
        assert moved[place] > 1e-4


def test_padding_of_words_and_of_image_tokens_changes_nothing():
    model = make(Masked(6)).eval()
    pictures, words, mask = batch()
    pictures[..., 0] = 1.0
    first = model(pictures, words).logits
    padded = torch.cat([pictures, torch.randn(4, 2, 6)], dim=1)
    padded[:, 5:, 0] = -1.0
    assert_close(model(padded, words).logits, first, rtol=1e-4, atol=1e-5)
    longer = torch.nn.functional.pad(words, (0, 2))
    assert_close(model(pictures, longer).logits[:, : words.shape[1]], first, rtol=1e-4, atol=1e-5)
    losses = [
        cap.caption_loss(model, pictures, w, m)
        for w, m in ((words, mask), (longer, torch.nn.functional.pad(mask, (0, 2))))
    ]
    assert_close(*losses)


def test_loss_is_the_mean_over_words_and_end():
    model, (pictures, words, mask) = make().eval(), batch(2)
    logits = model(pictures, words[:, :-1]).logits.log_softmax(-1)
    each = [-logits[i, t, words[i, t + 1]] for i in range(2) for t in range(int(mask[i].sum()) - 1)]
    assert len(each) == 4 + 6
    assert_close(cap.caption_loss(model, pictures, words, mask), torch.stack(each).mean())


def test_gradient_reaches_every_parameter_that_is_read():
    model, (pictures, words, mask) = make(max_words=8), batch()
    cap.caption_loss(model, pictures, words, mask).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


def trained(pictures, words, mask, steps=80):
    model = make(dim=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        loss = cap.caption_loss(model, pictures, words, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), loss.item()


def test_eight_captions_can_be_learned_by_heart_and_are_said():
    torch.manual_seed(1)
    sentences = [f"{s} {t}" for s in SENTENCES for t in ("above two crosses", "above a square")]
    words, mask = cap.encode_captions(sentences, VOCABULARY)
    pictures = torch.randn(8, 5, 6)
    model, loss = trained(pictures, words, mask)
    assert loss < 0.05
    known = cap.decode_captions(words, VOCABULARY)
    assert cap.decode_captions(cap.greedy(model, pictures).words, VOCABULARY) == known
    assert cap.decode_captions(cap.beam_search(model, pictures, 3).words, VOCABULARY) == known
    other = cap.decode_captions(cap.greedy(model, pictures.flip(0)).words, VOCABULARY)
    assert other == known[::-1]  # the caption follows the picture


def test_a_beam_of_one_is_greedy():
    model, pictures = make().eval(), torch.randn(6, 5, 6)
    with torch.no_grad():
        model.head.weight.mul_(20)  # far from equal probabilities
    for prompt in ([], [4, 5]):
        one, other = cap.greedy(model, pictures, 9, prompt), cap.beam_search(model, pictures, 1, 9, prompt)
        assert torch.equal(one.words, other.words)
        assert_close(one.log_probability, other.log_probability)


def test_a_wide_beam_finds_the_most_probable_sentence():
    """Against all sentences of at most two words, with a vocabulary of three."""
    torch.manual_seed(3)
    model = cap.Captioner(CachedTokens(6), 4 + 3, dim=8, depth=1, heads=2, max_words=6).eval()
    with torch.no_grad():
        model.head.weight.mul_(10)
    pictures = torch.randn(3, 5, 6)
    said = cap.beam_search(model, pictures, width=40, max_words=3)
    words = [4, 5, 6]
    every = [(*s, cap.END_ID) for n in (0, 1, 2) for s in product(words, repeat=n)] + list(product(words, repeat=3))
    for i in range(3):
        image, mask = model.look(pictures[i : i + 1])
        scores = []
        for s in every:
            logits = model.say(image, mask, torch.tensor([[cap.START_ID, *s]])).logits[0, :-1].clone()
            logits[:, cap.NEVER_SAID] = -torch.inf
            scores.append(logits.log_softmax(-1).gather(1, torch.tensor(s)[:, None]).sum().item())
        best = max(range(len(every)), key=scores.__getitem__)
        assert [w for w in said.words[i].tolist()[1:] if w] == list(every[best])
        assert float(said.log_probability[i]) == pytest.approx(scores[best], abs=1e-4)
        assert float(cap.greedy(model, pictures, 3).log_probability[i]) <= scores[best] + 1e-4


def test_captions_of_a_batch_are_those_of_its_pictures_alone():
    model, pictures = make().eval(), torch.randn(5, 5, 6)
    for search in (cap.greedy, cap.beam_search):
        together = search(model, pictures, max_words=8).words
        for i in range(5):
            alone = search(model, pictures[i : i + 1], max_words=8).words
            width = min(together.shape[1], alone.shape[1])
            assert torch.equal(together[i, :width], alone[0, :width])
            assert not together[i, width:].any()


def test_prompts_begin_and_what_is_never_said_is_never_said():
    model, pictures = make().eval(), torch.randn(20, 5, 6)
    with torch.no_grad():
        model.head.bias[cap.NEVER_SAID] = 9.0
    for said in (cap.greedy(model, pictures, 8, [5]), cap.beam_search(model, pictures, 3, 8, [5])):
        assert (said.words[:, 1] == 5).all()
        assert not ((said.words[:, 1:] == cap.UNKNOWN_ID) | (said.words[:, 1:] == cap.START_ID)).any()
        assert (said.log_probability <= 0).all()


def test_attention_is_over_the_image_tokens():
    model = make(Masked(6)).eval()
    pictures, words, _ = batch()
    pictures[..., 0] = 1.0
    pictures[:, 3:, 0] = -1.0
    weights = model(pictures, words).attention
    assert weights.shape == (4, 2, words.shape[1], 5)
    assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert not weights[..., 3:].any()
    assert model.train()(pictures, words).attention is None


def test_mistakes_are_named():
    model = make(max_words=4).eval()
    with pytest.raises(ValueError, match=r"captions of 6 words; this captioner has max_words=4"):
        model(torch.randn(1, 5, 6), torch.ones(1, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="width is 0"):
        cap.beam_search(model, torch.randn(1, 5, 6), width=0)
