"""A published CLIP is judged as ours are; without one there is no unit, and it is said why."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vqa_core.evaluation.zero_shot import classifier, predict
from vqa_core.experiments import clip_pretrained as pretrained
from vqa_core.experiments.clip_material import ENSEMBLES, NAMES, SEVEN, single


@pytest.fixture
def folder(tmp_path):
    """A tiny CLIP whose tokeniser knows letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}), encoding="utf-8")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ends = {"bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1, "pad_token_id": len(pieces) - 1}
    config = CLIPConfig(
        vision_config=small | {"image_size": 16, "patch_size": 8},
        text_config=small | ends | {"vocab_size": len(pieces), "max_position_embeddings": 64},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    return tmp_path


def test_without_weights_there_is_nothing_to_run(monkeypatch, tmp_path):
    monkeypatch.delenv("VQA_CLIP", raising=False)
    assert pretrained.specs("cpu") == []
    assert "VQA_CLIP is not set" in pretrained.absent()
    monkeypatch.setenv("VQA_CLIP", str(tmp_path))
    assert "no tokeniser" in pretrained.absent()
    assert pretrained.specs("smoke") == []


def test_a_run_measures_the_model_of_the_folder(folder, monkeypatch):
    monkeypatch.setenv("VQA_CLIP", str(folder))
    assert pretrained.absent() is None
    (spec,) = pretrained.specs("smoke")
    sizes = replace(spec.data, single=8, gallery=10)
    outcome = pretrained.run(replace(spec, data=sizes))
    a, m = outcome.arrays, outcome.metrics
    pair = pretrained.CLIPPair(folder)
    pictures = single(sizes, "unseen")
    with torch.no_grad():
        weights = classifier(SEVEN, NAMES, pair.encode_text)
        expected = predict(pair.encode_image(list(pictures.pictures.numpy())), weights)
    seven = a["named_unseen"][list(ENSEMBLES).index("seven")]
    assert seven.tolist() == expected.tolist()
    assert m["zero_shot_unseen"].value == pytest.approx(np.mean(seven == pictures.label))
    assert a["hits"].shape == (2, 10)
    assert m["r1"].value == pytest.approx(a["hits"].mean(), abs=1e-6)
