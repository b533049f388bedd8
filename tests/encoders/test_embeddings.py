"""Token, position and segment embeddings: BERT's numbers with BERT's weights, and VL-BERT's two additions."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from vqa_core.encoders.embeddings import SummedEmbeddings

BERT = BertConfig(
    vocab_size=30, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
    max_position_embeddings=16,
)  # fmt: skip


def sequence():
    words = torch.randint(0, 30, (2, 6))
    return words, torch.tensor([0, 0, 0, 1, 1, 1]).expand(2, -1)


def test_with_berts_weights_it_is_berts_input():
    theirs = BertModel(BERT).embeddings.eval()
    ours = SummedEmbeddings(30, 12, 16)
    pairs = {"token": "word_embeddings", "position": "position_embeddings", "segment": "token_type_embeddings"}
    for own, name in (pairs | {"norm": "LayerNorm"}).items():
        getattr(ours, own).load_state_dict(getattr(theirs, name).state_dict())
    words, segments = sequence()
    expected = theirs(input_ids=words, token_type_ids=segments)
    torch.testing.assert_close(ours(words, segments), expected, atol=1e-6, rtol=0)


def test_regions_share_a_position_and_so_have_no_order():
    ours, (words, segments) = SummedEmbeddings(30, 12, 16), sequence()
    words[:, 3:] = 1  # the word that stands for a region
    visual, same = torch.randn(2, 6, 12), torch.tensor([0, 1, 2, 3, 3, 3])
    order = torch.tensor([0, 1, 2, 5, 3, 4])
    torch.testing.assert_close(
        ours(words, segments, same, visual)[:, order], ours(words, segments, same, visual[:, order])
    )
    torch.testing.assert_close(ours(words, segments, same, torch.zeros(2, 6, 12)), ours(words, segments, same))
    assert not torch.allclose(ours(words, segments)[:, 4:], ours(words, segments, same)[:, 4:])


def test_each_part_counts_and_learns():
    ours, (words, segments) = SummedEmbeddings(30, 12, 16), sequence()
    before = ours(words, segments)
    assert not torch.allclose(before, ours(words, 1 - segments))
    assert not torch.allclose(before, ours((words + 1) % 30, segments))
    before.pow(3).sum().backward()
    assert all(p.grad.any() for p in ours.parameters())


def test_too_long_a_sequence_is_refused():
    with pytest.raises(ValueError, match="6 tokens; there are 4 positions"):
        SummedEmbeddings(30, 12, 4)(*sequence())
