"""BERT and ViT from a local folder: tiny models, saved and loaded the way large ones are."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from vqa_core.encoders.pretrained import BertText, load_model
from vqa_core.encoders.vit import ViTImage

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "the", "lung", "normal", "?", "##s"]


@pytest.fixture
def bert_folder(tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path / "bert"
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={w: i for i, w in enumerate(WORDS)}).save_pretrained(folder)
    return folder


@pytest.fixture
def vit_folder(tmp_path):
    from transformers import ViTConfig, ViTModel

    folder = tmp_path / "vit"
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=56, patch_size=8
    )
    ViTModel(config).save_pretrained(folder)
    return folder


def change_on_disk(folder, name):
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights[name] = weights[name] + torch.randn_like(weights[name])
    save_file(weights, file, metadata={"format": "pt"})


def test_bert_states_and_pooled_output_differ(bert_folder):
    states, pooled = BertText(bert_folder), BertText(bert_folder, form="pooled")
    words, mask = states.encode(["Is the lung normal?", "Lungs?"])
    assert words.tolist() == [[2, 5, 6, 7, 8, 9, 3], [2, 7, 10, 9, 3, 0, 0]]
    assert mask.tolist() == [[True] * 7, [True] * 5 + [False] * 2]
    with torch.no_grad():
        tokens, token_mask = states(words, mask)
        one, one_mask = pooled(words, mask)
    assert tokens.shape == (2, 7, 16)
    assert torch.equal(token_mask, mask)
    assert one.shape == (2, 1, 16)
    assert one_mask is None
    cls = tokens[:, 0]
    assert (one[:, 0] - cls).abs().max() > 1e-2  # the pooled output is not the state of [CLS] …
    assert_close(one[:, 0], pooled.model.pooler.dense(cls).tanh())  # … but a trained layer on it
    assert states.model.pooler is None  # no layer without a use


@pytest.mark.parametrize("form", ["states", "pooled"])
def test_bert_uses_the_weights_of_the_folder(bert_folder, form):
    encoder = BertText(bert_folder, form)
    inputs = encoder.encode(["Is the lung normal?"])
    with torch.no_grad():
        before = encoder(*inputs).tokens
        assert_close(BertText(bert_folder, form)(*inputs).tokens, before)
        change_on_disk(bert_folder, "encoder.layer.1.output.dense.weight")
        assert (BertText(bert_folder, form)(*inputs).tokens - before).abs().max() > 1e-3


def test_bert_padding_changes_nothing(bert_folder):
    encoder = BertText(bert_folder)
    words, mask = encoder.encode(["Is the lung normal?", "Lungs?"])
    alone = encoder.encode(["Lungs?"])
    with torch.no_grad():
        assert_close(encoder(words, mask).tokens[1, :5], encoder(*alone).tokens[0], rtol=1e-4, atol=1e-5)
    assert encoder.encode(["Is the lung normal?"], max_words=4)[0].tolist() == [[2, 5, 6, 3]]


def test_bert_gradient_reaches_every_parameter_that_is_read(bert_folder):
    for form in ("states", "pooled"):
        encoder = BertText(bert_folder, form)
        tokens = encoder(*encoder.encode(["Is the lung normal?"])).tokens
        (tokens * torch.randn_like(tokens)).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_vit_patches_and_class_token(vit_folder):
    patches, cls = ViTImage(vit_folder), ViTImage(vit_folder, form="class")
    pictures = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        states = patches.model(pixel_values=pictures).last_hidden_state  # (2, 50, 16)
        assert_close(patches(pictures).tokens, states[:, 1:])
        assert_close(cls(pictures).tokens, states[:, :1])
    assert patches(pictures).tokens.shape == (2, 49, 16)
    assert patches.grid == (7, 7)
    assert patches.out_dim == 16
    with pytest.raises(ValueError, match=r"expected \(B, 3, 56, 56\)"):
        patches(torch.randn(2, 3, 64, 64))


def test_vit_uses_the_weights_of_the_folder(vit_folder):
    pictures = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        before = ViTImage(vit_folder)(pictures).tokens
        change_on_disk(vit_folder, "embeddings.patch_embeddings.projection.weight")
        assert (ViTImage(vit_folder)(pictures).tokens - before).abs().max() > 1e-3


def test_incomplete_weights_are_an_error_not_random_numbers(vit_folder):
    file = vit_folder / "model.safetensors"
    weights = load_file(file)
    del weights["layernorm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fill a ViTModel: missing \['layernorm.weight'\]"):
        ViTImage(vit_folder)


def test_another_models_folder_is_an_error(bert_folder, vit_folder):
    from transformers import ViTModel

    with pytest.raises(ValueError, match="missing"):
        load_model(ViTModel, bert_folder)


def test_pickled_weights_are_not_read(vit_folder):
    file = vit_folder / "model.safetensors"
    torch.save(load_file(file), vit_folder / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(OSError, match="safetensors"):
        ViTImage(vit_folder)


def test_missing_folder_and_forms(tmp_path, bert_folder, vit_folder):
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        BertText(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="allowed are 'states' and 'pooled'"):
        BertText(bert_folder, form="mean")
    with pytest.raises(ValueError, match="allowed are 'patches' and 'class'"):
        ViTImage(vit_folder, form="pooled")
