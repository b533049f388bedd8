"""Text encoders trained from scratch."""

import pytest
import torch
from torch.testing import assert_close

from vqa_core.encoders.text import BagOfWords, RecurrentText, TransformerText

ENCODERS = {
    "bag of words": lambda **kw: BagOfWords(20, 8),
    "gru": lambda **kw: RecurrentText(20, 8, **kw),
    "lstm": lambda **kw: RecurrentText(20, 8, kind="lstm", embedding_dim=5, layers=2, **kw),
    "transformer": lambda **kw: TransformerText(20, 8, heads=2, **kw),
}
every = pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS.keys())


@pytest.fixture
def questions():
    words = torch.randint(2, 20, (3, 6))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 2:] = False
    return words * mask, mask


@every
def test_one_token_for_each_word(make, questions):
    encoder = make()
    tokens, mask = encoder(*questions)
    assert tokens.shape == (3, 6, encoder.out_dim) == (3, 6, 8)
    assert torch.equal(mask, questions[1])


@every
@pytest.mark.parametrize("grad", [True, False])  # PyTorch takes another path without gradients
def test_padding_changes_no_real_token(make, questions, grad):
    words, mask = questions
    encoder = make().eval()
    with torch.set_grad_enabled(grad):
        want = encoder(words, mask).tokens
        long = torch.cat([words.masked_fill(~mask, 7), torch.full((3, 4), 9)], dim=1)  # other words as padding
        got = encoder(long, torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1)).tokens
    assert got.shape == (3, 10, 8)
    assert_close(got[:, :6][mask], want[mask], rtol=1e-5, atol=1e-6)


@every
def test_a_batch_can_be_split(make, questions):
    words, mask = questions
    encoder = make().eval()
    parts = torch.cat([encoder(words[i : i + 1], mask[i : i + 1]).tokens for i in range(3)])
    assert_close(parts[mask], encoder(words, mask).tokens[mask], rtol=1e-5, atol=1e-6)


@every
def test_gradient_reaches_every_parameter(make, questions):
    encoder = make()
    tokens, mask = encoder(*questions)
    (tokens * torch.randn_like(tokens))[mask].sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert (encoder.embedding.weight.grad[0] == 0).all()  # padding learns nothing


@every
def test_only_the_bag_of_words_ignores_order(make):
    encoder = make().eval()
    words, mask = torch.tensor([[3, 4, 5], [5, 4, 3]]), torch.ones(2, 3, dtype=torch.bool)
    means = encoder(words, mask).tokens.mean(1)
    difference = (means[0] - means[1]).abs().max()
    assert difference < 1e-6 if isinstance(encoder, BagOfWords) else difference > 1e-4


def test_recurrent_states_do_not_depend_on_later_words():
    encoder, mask = RecurrentText(20, 8), torch.ones(2, 4, dtype=torch.bool)
    tokens = encoder(torch.tensor([[3, 4, 5, 6], [3, 4, 9, 9]]), mask).tokens
    assert_close(tokens[0, :2], tokens[1, :2])
    assert (tokens[0, 2] - tokens[1, 2]).abs().max() > 1e-3


@pytest.mark.parametrize("make", [ENCODERS["gru"], ENCODERS["lstm"], ENCODERS["transformer"]])
def test_dropout_is_off_in_evaluation(make, questions):
    encoder = make(dropout=0.5)
    assert not torch.equal(encoder(*questions).tokens, encoder(*questions).tokens)
    encoder.eval()
    assert torch.equal(encoder(*questions).tokens, encoder(*questions).tokens)


def test_parameter_counts():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(BagOfWords(20, 8)) == 160
    assert count(RecurrentText(20, 8, embedding_dim=5)) == 100 + 3 * 8 * (5 + 8 + 2)
    assert count(RecurrentText(20, 8, kind="lstm", embedding_dim=5)) == 100 + 4 * 8 * (5 + 8 + 2)
    assert count(TransformerText(20, 8, depth=3, heads=2, max_words=16)) == 160 + 128 + 3 * (12 * 64 + 13 * 8) + 16


@every
def test_wrong_inputs_are_named(make, questions):
    words, mask = questions
    encoder = make()
    with pytest.raises(ValueError, match=r"words is torch\.float32"):
        encoder(words.float(), mask)
    with pytest.raises(ValueError, match=r"word_mask is torch\.int64"):
        encoder(words, mask.long())
    with pytest.raises(ValueError, match=r"word_mask is torch\.bool \(3, 5\)"):
        encoder(words, mask[:, 1:])


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="allowed are 'gru' and 'lstm'"):
        RecurrentText(20, 8, kind="rnn")
    with pytest.raises(ValueError, match="not a multiple of heads"):
        TransformerText(20, 9, heads=2)
    with pytest.raises(ValueError, match="max_words=4"):
        TransformerText(20, 8, max_words=4)(torch.ones(1, 5, dtype=torch.long), torch.ones(1, 5, dtype=torch.bool))
