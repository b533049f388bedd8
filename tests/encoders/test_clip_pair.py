"""A whole CLIP from a folder: a tiny one with a real tokeniser, saved as large ones are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from vqa_core.encoders.clip_pair import CLIPPair, find_pair
from vqa_core.evaluation import zero_shot

LETTERS = "abcdefghijklmnopqrstuvwxyz,."
MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "b i", "bi r", "bir d</w>", "p h", "ph o", "pho t", "phot o</w>"]
NAMES = ["cat", "dog", "bird"]
TEMPLATES = ["a photo of a {}.", "{}", "a small photo of the {}"]


def write_tokenizer(folder: Path) -> int:
    """``vocab.json`` and ``merges.txt`` of a byte-pair encoding as CLIP's; returns the number of pieces."""
    pieces = [*LETTERS, *(f"{c}</w>" for c in LETTERS), *("".join(m.split()) for m in MERGES)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}), encoding="utf-8")
    return len(pieces)


@pytest.fixture
def folder(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    size = write_tokenizer(tmp_path)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ends = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    config = CLIPConfig(
        vision_config=small | {"image_size": 24, "patch_size": 8},
        text_config=small | ends | {"vocab_size": size, "max_position_embeddings": 20},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}).save_pretrained(tmp_path)
    return tmp_path


def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((24, 24), (40, 30), (25, 60))]


@torch.no_grad()
def logits_of_transformers(folder, sentences):
    """``logits_per_image`` of CLIPModel, called as its documentation says."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    text = CLIPTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    image = CLIPImageProcessor.from_pretrained(folder)(images=pictures(), return_tensors="pt")
    return model(**text, **image).logits_per_image


def test_zero_shot_is_that_of_transformers(folder):
    pair, prompts = CLIPPair(folder), [f"a photo of a {n}." for n in NAMES]
    expected = logits_of_transformers(folder, prompts)
    with torch.no_grad():
        weights = zero_shot.classifier(TEMPLATES[:1], NAMES, pair.encode_text)
        images = pair.encode_image(pictures())
        assert_close(zero_shot.scores(images, weights, pair.scale()), expected, atol=1e-5, rtol=1e-5)
    assert_close(pair(pictures(), prompts), expected, atol=1e-5, rtol=1e-5)
    assert zero_shot.predict(images, weights).tolist() == expected.argmax(1).tolist()
    assert (
        expected[:, 0] - expected[:, 1]
    ).abs().min() > 1e-3  # sentences are told apart, there was something to match


def test_an_ensemble_is_made_of_the_same_embeddings(folder):
    pair = CLIPPair(folder)
    with torch.no_grad():
        found = zero_shot.classifier(TEMPLATES, NAMES, pair.encode_text)
        one = torch.stack([pair.encode_text([t.replace("{}", n) for n in NAMES]) for t in TEMPLATES])  # (3, C, D)
    assert_close(found, torch.nn.functional.normalize(one.mean(0), dim=-1))


def test_the_tokeniser_reads_its_files(folder):
    pair = CLIPPair(folder)
    ids = pair.tokenizer(["A photo of a cat"])["input_ids"][0]
    assert pair.tokenizer.convert_ids_to_tokens(ids) == [
        *("<|startoftext|>", "a</w>", "photo</w>", "o", "f</w>", "a</w>", "cat</w>", "<|endoftext|>")
    ]


def test_padding_and_the_batch_change_nothing(folder):
    pair = CLIPPair(folder)
    said = ["cat", "a small photo of the bird"]
    with torch.no_grad():
        alone = torch.cat([pair.encode_text([s]) for s in said])
        assert_close(pair.encode_text(said), alone, atol=1e-5, rtol=1e-5)
        apart = torch.cat([pair.encode_image([p]) for p in pictures()])
        assert_close(pair.encode_image(pictures()), apart, atol=1e-5, rtol=1e-5)
    assert pair.encode_text(["a " * 50]).shape == (1, 12)  # cut, not refused


@pytest.mark.parametrize("part", ["text_projection.weight", "visual_projection.weight", "logit_scale"])
def test_the_weights_of_the_folder_are_in_use(folder, part):
    before = CLIPPair(folder)(pictures(), NAMES)
    assert_close(CLIPPair(folder)(pictures(), NAMES), before)
    weights = load_file(folder / "model.safetensors")
    weights[part] = weights[part] + torch.randn_like(weights[part])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert (CLIPPair(folder)(pictures(), NAMES) - before).abs().max() > 1e-3


def test_what_is_missing_is_named(folder, tmp_path):
    for name in ("nobody/such-clip-here", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"is no folder, .* local_files_only=False"):
            CLIPPair(name)
    with pytest.raises(ValueError, match="is a ResNet CLIP"):
        CLIPPair("RN50")
    (folder / "preprocessor_config.json").rename(folder / "kept.json")
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config\.json"):
        CLIPPair(folder)
    (folder / "kept.json").rename(folder / "preprocessor_config.json")
    (folder / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.json with merges\.txt"):
        CLIPPair(folder)


def test_weights_that_do_not_fill_the_model_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing \['text_projection.weight'\]"):
        CLIPPair(folder)


def test_another_model_is_refused(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "siglip"}), encoding="utf-8")
    with pytest.raises(ValueError, match="a model of type 'siglip', expected a whole CLIP"):
        CLIPPair(folder)


def test_a_name_of_the_hub_is_its_snapshot(folder, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(name, allow_patterns, local_files_only):
        asked.append((name, "merges.txt" in allow_patterns, local_files_only))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_pair("openai/clip-vit-base-patch32") == folder
    assert asked == [("openai/clip-vit-base-patch32", True, True)]
