"""CLIP's image side from a local folder: tiny models, saved and loaded the way large ones are."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from vqa_core.encoders.clip import CLIP_MEAN, CLIP_STD, CONVOLUTIONAL, CLIPImage, find_folder
from vqa_core.encoders.conversion import convert

VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 24,
    "patch_size": 8,
    "projection_dim": 12,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 20,
    "projection_dim": 12,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


@pytest.fixture
def clip():
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=12)).eval()


@pytest.fixture
def folder(clip, tmp_path):
    clip.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def change(folder, name):
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights[name] = weights[name] + torch.randn_like(weights[name])
    save_file(weights, file, metadata={"format": "pt"})


def test_forms_are_those_of_the_whole_clip(clip, folder):
    pictures = torch.randn(2, 3, 24, 24)
    projected, patches = CLIPImage(folder), CLIPImage(folder, "patches")
    with torch.no_grad():
        vision = clip.vision_model(pixel_values=pictures)
        vector = clip.visual_projection(vision.pooler_output)  # (2, 12)
        assert_close(projected(pictures).tokens, vector.unsqueeze(1))
        assert_close(patches(pictures).tokens, vision.last_hidden_state[:, 1:])
    assert projected(pictures).tokens.shape == (2, 1, 12)
    assert patches(pictures).tokens.shape == (2, 9, 16)
    assert patches(pictures).mask is None
    assert (projected.out_dim, patches.out_dim, patches.grid, patches.size) == (12, 16, (3, 3), 24)


@pytest.mark.parametrize("form", ["projected", "patches"])
@pytest.mark.parametrize("part", ["patch_embedding.weight", "layers.0.mlp.fc1.weight", "layers.1.mlp.fc2.weight"])
def test_the_weights_of_the_folder_are_in_use(folder, form, part):
    pictures = torch.randn(1, 3, 24, 24)
    name = next(n for n in load_file(folder / "model.safetensors") if n.startswith("vision") and n.endswith(part))
    with torch.no_grad():
        before = CLIPImage(folder, form)(pictures).tokens
        assert_close(CLIPImage(folder, form)(pictures).tokens, before)  # nothing random is left
        change(folder, name)
        assert (CLIPImage(folder, form)(pictures).tokens - before).abs().max() > 1e-3


def test_the_projection_is_used_by_one_form_and_the_text_side_by_none(folder):
    pictures = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        before = {form: CLIPImage(folder, form)(pictures).tokens for form in ("projected", "patches")}
        change(folder, "text_projection.weight")
        for form, tokens in before.items():
            assert_close(CLIPImage(folder, form)(pictures).tokens, tokens)
        change(folder, "visual_projection.weight")
        assert_close(CLIPImage(folder, "patches")(pictures).tokens, before["patches"])
        assert (CLIPImage(folder)(pictures).tokens - before["projected"]).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["projected", "patches"])
def test_gradients_reach_everything_and_batches_may_be_split(folder, form):
    encoder = CLIPImage(folder, form)
    pictures = torch.randn(3, 3, 24, 24)
    tokens = encoder(pictures).tokens
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    with torch.no_grad():
        assert_close(torch.cat([encoder(p[None]).tokens for p in pictures]), tokens.detach(), rtol=1e-4, atol=1e-5)


def test_a_folder_with_the_vision_part_alone_is_enough(folder, tmp_path):
    pictures = torch.randn(1, 3, 24, 24)
    whole = CLIPImage(folder)
    whole.model.save_pretrained(tmp_path / "vision")
    with torch.no_grad():
        assert_close(CLIPImage(tmp_path / "vision")(pictures).tokens, whole(pictures).tokens)


def test_weights_that_exist_only_as_a_pickle_are_converted_first(folder):
    file, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    pictures = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        before = CLIPImage(folder)(pictures).tokens
        torch.save(load_file(file), pickled)
        file.unlink()
        with pytest.raises(OSError, match="safetensors"):
            CLIPImage(folder)
        convert(pickled, file)
        assert_close(CLIPImage(folder)(pictures).tokens, before)


def test_the_list_of_text_weights_is_not_printed(folder, caplog, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity()
    CLIPImage(folder)
    assert "UNEXPECTED" not in caplog.text + "".join(capfd.readouterr())
    assert logging.get_verbosity() == before


def test_normalisation_is_that_of_transformers(folder):
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    assert tuple(OPENAI_CLIP_MEAN) == CLIP_MEAN == CLIPImage(folder).mean
    assert tuple(OPENAI_CLIP_STD) == CLIP_STD == CLIPImage(folder).deviation


def test_names_are_looked_up_among_what_is_there(folder, tmp_path, monkeypatch):
    """A name of the hub is the folder of its snapshot; nothing is downloaded unasked."""
    import huggingface_hub

    asked = []

    def snapshot_download(name, allow_patterns, local_files_only):
        asked.append((name, local_files_only))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_folder("flaviagiammarino/pubmed-clip-vit-base-patch32") == folder
    assert CLIPImage("somebody/clip", local_files_only=False).size == 24
    assert asked == [("flaviagiammarino/pubmed-clip-vit-base-patch32", True), ("somebody/clip", False)]


def test_mistakes_are_named(folder, tmp_path):
    for name in ("nobody/such-clip-here", "not a name !", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"is no folder, .* local_files_only=False"):
            CLIPImage(name)
    for name in (*CONVOLUTIONAL, "weights/RN50x4.pt"):
        with pytest.raises(ValueError, match="is a ResNet CLIP; transformers only has"):
            CLIPImage(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        CLIPImage(tmp_path / "empty")
    with pytest.raises(ValueError, match="allowed are 'projected' and 'patches'"):
        CLIPImage(folder, "pooled")
    with pytest.raises(ValueError, match=r"expected \(B, 3, 24, 24\)"):
        CLIPImage(folder)(torch.randn(1, 3, 32, 32))
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing \['visual_projection.weight'\]"):
        CLIPImage(folder)


def test_another_model_is_refused(tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=24, patch_size=8
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="holds a model of type 'vit', expected a CLIP"):
        CLIPImage(tmp_path / "vit")
