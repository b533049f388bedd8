"""Encoders pre-trained on phantoms: what they learn from, what is kept, and that what is loaded is what was kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vqa_core.encoders.meta import MetaCNN
from vqa_core.encoders.union import View
from vqa_core.experiments import EXPERIMENTS
from vqa_core.experiments import PROFILES as PROFILE_NAMES
from vqa_core.experiments import medical_encoders as me
from vqa_core.experiments.records import save_record
from vqa_core.experiments.runner import run_spec
from vqa_core.training.loop import Training
from vqa_core.training.meta_learning import EpisodeClassifier, Episodes

SMALL = me.Pictures(12, 24)


@pytest.fixture(autouse=True)
def _results(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setitem(EXPERIMENTS, "medical_encoders", me.__name__)


@pytest.fixture
def tiny(monkeypatch):
    """The smoke profile with even fewer pictures."""
    once = Training(epochs=1, batch_size=8, learning_rate=1e-3)
    meta = replace(me.PROFILES["smoke"].meta, episodes=1)
    config = replace(
        me.PROFILES["smoke"], classes=me.Classes(4, 4, 4), meta=meta, pictures=SMALL, dae=once, experts=once
    )
    monkeypatch.setitem(me.PROFILES, "smoke", config)


def spec_of(unit):
    return next(s for s in me.specs("smoke") if s.unit == unit and s.seed == 0)


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_specs_name_files_of_their_own(profile):
    specs = me.specs(profile)
    assert len({s.path() for s in specs}) == len(specs)
    assert {s.unit for s in specs} == set(me.TRAINED)
    order = {"cpu": False, "smoke": False, "gpu": True}[profile]  # published is second order
    assert me.PROFILES[profile].meta.inner.second_order is order
    assert {1, 5} <= set(me.PROFILES[profile].meta.after)


def test_pools_of_different_splits_share_no_picture():
    train, test = me.pool_of("meta_train", 2), me.pool_of("meta_test", 3)
    assert train.pictures.shape == (40, 1, 84, 84)
    assert np.bincount(test.classes).tolist() == [3] * 6
    assert not {p.numpy().tobytes() for p in train.pictures} & {p.numpy().tobytes() for p in test.pictures}


def test_adaptation_counts_steps_and_leaves_the_start_alone():
    """Dark against bright: a good rate solves it in a few steps, no step leaves the guess of the start."""
    torch.manual_seed(0)
    model = EpisodeClassifier(MetaCNN("pooled"), 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    y = torch.tensor([0, 0, 1, 1])
    x = (torch.rand(4, 1, 84, 84) * 0.3 + 0.7 * y.view(-1, 1, 1, 1)).clamp(0, 1)
    tasks = Episodes(*(t.unsqueeze(0) for t in (x, y, x, y)))
    correct = me.adaptation(lambda task: model, tasks, 0.1, (0, 8))
    assert correct.shape == (1, 2, 4)
    assert correct.dtype == bool
    assert correct[0, 1].all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    again = me.adaptation(lambda task: model, tasks, 0.1, (0,))
    np.testing.assert_array_equal(again[:, 0], correct[:, 0])


def test_crops_are_the_same_square_of_all_pictures():
    pictures = torch.arange(2 * 10 * 10.0).view(2, 1, 10, 10)
    np.testing.assert_array_equal(me.crop(pictures, 4, (3, 5)), pictures[:, :, 3:7, 5:9])
    drawn = me.crop(pictures, 4)
    assert drawn.shape == (2, 1, 4, 4)
    torch.testing.assert_close(drawn[1] - drawn[0], torch.full((1, 4, 4), 100.0))


def test_own_tasks_are_labelled_at_their_organ_only():
    found = me.pictures_of(SMALL, "train")
    organs = me.organ_of(found)
    for organ in me.ORGANS:
        labels = me.own_task(found, organ).reshape(len(found.plans), -1)
        np.testing.assert_array_equal((labels >= 0).any(1), organs == me.ORGANS.index(organ))
        assert labels.max() > 0
        logits = me.task_head(organ)(torch.zeros(1, 36, 64))
        assert labels.max() < logits.shape[1]
    i = int(np.flatnonzero(organs == me.ORGANS.index("abdomen"))[0])
    liver = me.own_task(found, "abdomen")[i] == 1 + me.MARKED.index("liver")
    drawn = found.drawing(me._ids(found)[i]).organ("liver")[::4, ::4]
    assert not (liver & ~drawn).any()


def test_single_level_ignores_compatibility_and_multi_does_not():
    output = type("Output", (), {})()
    output.task = torch.zeros(3, 2, requires_grad=True)
    output.compatibility = torch.zeros(3, 2, requires_grad=True)
    labels, fits = torch.tensor([1, -100, -100]), torch.tensor([1, 0, 1])
    nats = float(np.log(2))
    assert me.expert_loss(output, labels, fits, multi=False).item() == pytest.approx(nats)
    assert me.expert_loss(output, labels, fits, multi=True).item() == pytest.approx(2 * nats)
    none = torch.full((3,), -100)  # no picture of this organ in the batch: not NaN
    assert me.expert_loss(output, none, fits, multi=True).item() == pytest.approx(nats)


def test_every_encoder_is_trained_kept_and_loaded(tiny, tmp_path):
    """One run of each unit; what is loaded has the record's weights, is frozen, and gives tokens on its grid."""
    pictures, kept = torch.rand(2, 3, 84, 84) * 2 - 1, {}
    for unit in me.TRAINED:
        with pytest.raises(FileNotFoundError, match="run medical_encoders"):
            me.load_encoder("smoke", unit)
        record = run_spec(spec_of(unit), "code", tmp_path / "results")
        assert record.metrics
        encoder, (rows, columns) = me.load_encoder("smoke", unit)
        tokens = encoder(pictures).tokens
        assert tokens.shape == (2, rows * columns, encoder.out_dim)
        assert not any(p.requires_grad for p in encoder.parameters())
        assert not encoder.training
        kept[unit] = record
        arrays = dict(record.arrays)
        name = next(k for k in arrays if k.endswith(("conv.weight", "conv1.weight")))
        arrays[name] = arrays[name] + 1  # the weights of the record are the ones in use
        save_record(replace(record, arrays=arrays), tmp_path / "results")
        assert not torch.equal(me.load_encoder("smoke", unit).encoder(pictures).tokens, tokens)
    for unit in ("maml", "scratch"):
        correct = kept[unit].arrays["correct"]
        assert correct.dtype == bool
        assert correct.shape[:2] == (1, len(kept[unit].details["after"]))
    none, single, multi = (kept[f"experts_{level}"].arrays for level in me.LEVELS)
    organs, experts = ([k for k in none if k.startswith(f"model.{what}.")] for what in ("organs", "experts"))
    assert all(np.array_equal(none[k], multi[k]) and np.array_equal(none[k], single[k]) for k in organs)
    weights = [k for k in experts if k.endswith("conv.weight")]
    assert all(not np.array_equal(none[k], single[k]) for k in weights)
    assert all(not np.array_equal(single[k], multi[k]) for k in weights)


def test_a_split_without_an_organ_is_refused():
    found = me.pictures_of(me.Pictures(12, 1), "val")
    missing = next(organ for organ in me.ORGANS if organ != found.plans[0].region)
    with pytest.raises(ValueError, match=missing):
        me.own_task(found, missing)


def test_files_that_are_absent_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(tmp_path))
    for name in ("VQA_CLIP", "VQA_PUBMEDCLIP", "VQA_RESNET", "VQA_VIT"):
        monkeypatch.delenv(name, raising=False)
    assert set(me.absent()) == set(me.FILES)
    with pytest.raises(FileNotFoundError, match="resnet20"):
        me.load_encoder("smoke", "natural")
    with pytest.raises(ValueError, match="vgg"):
        me.load_encoder("smoke", "vgg")


def test_encoders_of_natural_pictures_are_read_from_where_their_variables_point(tmp_path, monkeypatch):
    from torchvision.models import resnet50
    from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    picture = {"image_size": 32, "patch_size": 8}
    for seed, name in enumerate(("clip", "pubmedclip")):
        torch.manual_seed(seed)
        CLIPVisionModel(CLIPVisionConfig(**size, **picture)).save_pretrained(tmp_path / name)
    ViTModel(ViTConfig(**size, **picture), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    with pytest.raises(FileNotFoundError, match="VQA_VIT is not set"):
        me.load_encoder("smoke", "vit")
    for name in ("clip", "pubmedclip", "vit"):
        monkeypatch.setenv(f"VQA_{name.upper()}", str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json is missing"):
        me.load_encoder("smoke", "vit")
    means = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.4, 0.2]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(means))
    resnet = resnet50(weights=None)
    torch.save(resnet.state_dict(), tmp_path / "resnet50.pth")
    with pytest.raises(FileNotFoundError, match="VQA_RESNET is"):
        me.load_encoder("smoke", "resnet50")
    monkeypatch.setenv("VQA_RESNET", str(tmp_path / "resnet50.pth"))
    assert not set(me.absent()) & {"clip", "pubmedclip", "vit", "resnet50"}

    pictures = torch.rand(2, 3, 40, 40) * 2 - 1
    tokens = {}
    for name, cells in (("clip", 16), ("pubmedclip", 16), ("vit", 16), ("resnet50", 49)):
        encoder, grid = me.load_encoder("smoke", name)
        tokens[name] = encoder(pictures).tokens
        assert tokens[name].shape[1] == cells == grid[0] * grid[1]
    assert not torch.allclose(tokens["clip"], tokens["pubmedclip"])  # each has its own folder
    assert torch.equal(me.load_encoder("smoke", "resnet50").encoder.encoder.backbone.conv1.weight, resnet.conv1.weight)
    assert me.load_encoder("smoke", "vit").encoder.deviation.flatten().tolist() == pytest.approx([0.5, 0.4, 0.2])


@pytest.mark.realdata("vqa_rad", "cifar_resnet_weights")
def test_published_weights_are_in_use(data_root, monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(data_root))
    assert not set(me.absent()) & {"maml_published", "dae_published", "natural"}
    pictures = torch.rand(2, 3, 128, 128) * 2 - 1
    for name, cells in (("maml_published", 36), ("dae_published", 1024), ("natural", 64), ("natural_random", 64)):
        encoder, grid = me.load_encoder("smoke", name)
        assert isinstance(encoder, View)
        assert encoder(pictures).tokens.shape[1] == cells == grid[0] * grid[1]
    natural, random = (me.load_encoder("smoke", n).encoder(pictures).tokens for n in ("natural", "natural_random"))
    assert not torch.allclose(natural, random)
    again = me.load_encoder("smoke", "natural_random").encoder(pictures).tokens
    torch.testing.assert_close(random, again)
