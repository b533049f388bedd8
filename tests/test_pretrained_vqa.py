"""ViLT and BLIP from a local folder: tiny models with a real tokeniser, saved and loaded the way large ones are."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from vqa_core import pretrained_vqa as pv

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "the", "cat", "red", "blue", "?", "a", "picture", "of"]
BOS = len(WORDS)  # [DEC], which BLIP's decoder begins with, and which its tokenizer does not know
ANSWERS = ["yes", "no", "red", "two"]


def tokenizer():
    from transformers import BertTokenizer

    return BertTokenizer(vocab={w: i for i, w in enumerate(WORDS)})


def random(model):
    """The model with larger weights: at its usual start, all answers are about equal, whatever the picture is."""
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.fixture
def vilt_folder(tmp_path):
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessor, ViltProcessor

    folder = tmp_path / "vilt"
    config = ViltConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, max_position_embeddings=12, id2label=dict(enumerate(ANSWERS)),
        label2id={a: i for i, a in enumerate(ANSWERS)},
    )  # fmt: skip
    random(ViltForQuestionAnswering(config)).save_pretrained(folder)
    ViltProcessor(ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=8), tokenizer()).save_pretrained(folder)
    return folder


def save_blip(kind, folder):
    import transformers

    text = {
        "vocab_size": BOS + 1, "hidden_size": 16, "encoder_hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32, "bos_token_id": BOS,
        "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "image_size": 32, "patch_size": 8, "initializer_range": 0.2,
    }  # fmt: skip
    config = transformers.BlipConfig(text_config=text, vision_config=vision)
    random(getattr(transformers, kind)(config)).save_pretrained(folder)
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(images, tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture
def blip_folder(tmp_path):
    return save_blip("BlipForQuestionAnswering", tmp_path / "blip")


@pytest.fixture
def caption_folder(tmp_path):
    return save_blip("BlipForConditionalGeneration", tmp_path / "caption")


def pictures(n=2, height=40, width=32):
    return list(np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8))


def change(folder, part):
    """Move every weight whose name holds ``part``."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    names = [n for n in weights if part in n]
    assert names, f"no weight of that name; there are {sorted(weights)}"
    for name in names:
        weights[name] = weights[name] + torch.randn_like(weights[name])
    save_file(weights, file, metadata={"format": "pt"})


# -------------------------------------------------------------------------------------------------------------- ViLT


def test_vilt_answers_with_the_probabilities_of_its_own_model(vilt_folder):
    from transformers import ViltForQuestionAnswering, ViltProcessor

    asked = ["is the cat red?", "is the picture of a blue cat?"]
    answerer = pv.ViltAnswerer(vilt_folder)
    logits = answerer.logits(pictures(), asked)
    inputs = ViltProcessor.from_pretrained(vilt_folder)(pictures(), asked, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = ViltForQuestionAnswering.from_pretrained(vilt_folder).eval()(**inputs).logits
    assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    for row, found in zip(logits.sigmoid(), answerer.answer(pictures(), asked, best=3)):
        assert len(found) == 3
        assert {a.text for a in found} < set(ANSWERS)
        assert [a.probability for a in found] == sorted((a.probability for a in found), reverse=True)
        assert all(a.probability == pytest.approx(float(row[ANSWERS.index(a.text)])) for a in found)
    assert len(answerer.answer(pictures(1), asked[:1], best=99)[0]) == len(ANSWERS)


def test_vilt_batches_may_be_split_and_long_questions_are_cut(vilt_folder):
    answerer = pv.ViltAnswerer(vilt_folder)
    asked = ["is the cat red?", "is the picture of a blue cat?"]
    together = answerer.logits(pictures(), asked)
    alone = torch.cat([answerer.logits([p], [q]) for p, q in zip(pictures(), asked)])
    assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert answerer.logits(pictures(1), ["the cat " * 40]).isfinite().all()  # 12 positions


@pytest.mark.parametrize("part", ["word_embeddings", "patch_embeddings.projection", "layer.1.output", "classifier.3"])
def test_vilt_uses_the_weights_of_the_folder(vilt_folder, part):
    before = pv.ViltAnswerer(vilt_folder).logits(pictures(1), ["is the cat red?"])
    assert_close(pv.ViltAnswerer(vilt_folder).logits(pictures(1), ["is the cat red?"]), before)
    change(vilt_folder, part)
    assert (pv.ViltAnswerer(vilt_folder).logits(pictures(1), ["is the cat red?"]) - before).abs().max() > 1e-3


# -------------------------------------------------------------------------------------------------------------- BLIP


def test_blip_probability_is_that_of_its_own_decoder(blip_folder):
    """Teacher forcing against the loss that transformers itself computes, and all answers of one piece against 1."""
    answerer = pv.BlipAnswerer(blip_folder)
    picture, question = pictures(1)[0], "is the cat red?"
    (found,) = answerer.log_probabilities(picture, question, ["red cat"]).tolist()
    inputs = answerer.processor(picture, question, return_tensors="pt")
    labels = torch.tensor([[BOS, WORDS.index("red"), WORDS.index("cat"), WORDS.index("[SEP]")]])
    with torch.no_grad():
        states = answerer.model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
        read = answerer.model.text_encoder(inputs["input_ids"], encoder_hidden_states=states).last_hidden_state
        logits = answerer.model.text_decoder(labels[:, :-1], encoder_hidden_states=read).logits.log_softmax(-1)
    assert found == pytest.approx(float(logits.gather(-1, labels[:, 1:, None]).sum()), abs=1e-4)


def test_blip_padding_changes_no_probability(blip_folder):
    answerer, (picture,) = pv.BlipAnswerer(blip_folder), pictures(1)
    given = ["red", "a red cat", "blue"]
    together = answerer.log_probabilities(picture, "is the cat red?", given)
    alone = torch.cat([answerer.log_probabilities(picture, "is the cat red?", [a]) for a in given])
    assert_close(together, alone, rtol=1e-4, atol=1e-4)
    ranked = answerer.rank(picture, "is the cat red?", given)
    assert [a.text for a in ranked] == [given[i] for i in together.argsort(descending=True).tolist()]
    assert ranked[0].probability == pytest.approx(float(together.max().exp()), rel=1e-4)


def test_blip_answers_by_generate(blip_folder):
    answerer, (picture,) = pv.BlipAnswerer(blip_folder), pictures(1)
    answer = answerer.answer(picture, "is the cat red?", beams=2, max_pieces=3)
    assert set(answer.text.split()) <= set(WORDS)
    assert 0 <= answer.probability <= 1
    assert answer == answerer.answer(picture, "is the cat red?", beams=2, max_pieces=3)  # nothing is drawn at random


@pytest.mark.parametrize(
    "part", ["patch_embedding.weight", "text_encoder.embeddings", "crossattention", "text_decoder"]
)
def test_blip_uses_the_weights_of_the_folder(blip_folder, part):
    def found():
        return pv.BlipAnswerer(blip_folder).log_probabilities(pictures(1)[0], "is the cat red?", ["red", "blue"])

    before = found()
    assert_close(found(), before)
    change(blip_folder, part)
    assert (found() - before).abs().max() > 1e-3


def test_blip_captions_and_their_prompt(caption_folder):
    captioner = pv.BlipCaptioner(caption_folder)
    free = captioner.caption(pictures(), beams=2, max_pieces=4)
    assert len(free) == 2
    assert free == captioner.caption(pictures(), beams=2, max_pieces=4)
    prompted = captioner.caption(pictures(), prompt="a picture of", beams=1, max_pieces=4)
    assert all(c.startswith("a picture of") for c in prompted)
    change(caption_folder, "text_decoder.cls")
    assert pv.BlipCaptioner(caption_folder).caption(pictures(), beams=2, max_pieces=4) != free


# ---------------------------------------------------------------------------------------------------------- mistakes


def test_environment_variables_name_the_folders(vilt_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("VQA_VILT", raising=False)
    assert pv.folder_of("VQA_VILT") is None
    monkeypatch.setenv("VQA_VILT", str(vilt_folder))
    assert pv.folder_of("VQA_VILT") == vilt_folder
    monkeypatch.setenv("VQA_VILT", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"VQA_VILT is .*nowhere.* with a ViltForQuestionAnswering, or unset"):
        pv.folder_of("VQA_VILT")
    with pytest.raises(ValueError, match="allowed are VQA_VILT, VQA_BLIP, VQA_BLIP_CAPTION"):
        pv.folder_of("VQA_BERT")


def test_folders_that_do_not_fill_the_model_are_refused(vilt_folder, blip_folder, caption_folder, tmp_path):
    with pytest.raises(ValueError, match="type 'blip', expected 'vilt'"):
        pv.ViltAnswerer(blip_folder)
    with pytest.raises(ValueError, match="type 'vilt', expected 'blip'"):
        pv.BlipAnswerer(vilt_folder)
    with pytest.raises(ValueError, match="does not fill a BlipForQuestionAnswering: missing"):
        pv.BlipAnswerer(caption_folder)  # a captioner has no text encoder
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        pv.BlipCaptioner(tmp_path / "nowhere")
    (vilt_folder / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer_config\.json; .* whole snapshot"):
        pv.ViltAnswerer(vilt_folder)
    weights = load_file(blip_folder / "model.safetensors")
    del weights["vision_model.post_layernorm.weight"]
    save_file(weights, blip_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing \['vision_model.post_layernorm.weight'\]"):
        pv.BlipAnswerer(blip_folder)


def test_inputs_are_checked(vilt_folder):
    answerer = pv.ViltAnswerer(vilt_folder)
    with pytest.raises(ValueError, match="2 pictures but 1 questions"):
        answerer.logits(pictures(), ["is the cat red?"])
    with pytest.raises(ValueError, match=r"picture 0 is float64 \(4, 4, 3\); give RGB"):
        answerer.logits([np.zeros((4, 4, 3))], ["?"])
    with pytest.raises(ValueError, match="no picture"):
        answerer.logits([], [])
