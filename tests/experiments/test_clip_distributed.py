"""``train-clip``: two processes that share each batch end with the weights of one."""

import os
import socket

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from vqa_core.__main__ import main
from vqa_core.experiments import clip
from vqa_core.experiments.clip_distributed import train
from vqa_core.experiments.clip_material import gallery, told

CALL = {"profile": "smoke", "batch_size": 8, "pairs_seen": 40}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def in_process(rank, port, out):
    """What torchrun sets, and the command."""
    torch.set_num_threads(1)
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in where.items()}
    found = train(**CALL, out=out)
    assert (found is None) is (rank > 0)
    if found is not None:
        torch.save(found, out.with_suffix(".pt"))


def embedded(weights):
    """Pictures and captions of the gallery as a model with these weights sees them."""
    spec = next(s for s in clip.specs("smoke") if s.unit == "small")
    known, test = told(spec.data.pictures), gallery(spec.data.pictures, "test")
    model = clip.build(spec.model, known)
    model.load_state_dict(load_file(weights))
    found = clip.retrieve(model.eval(), known.words, test)
    return torch.cat([found.image, found.text])


def test_two_processes_train_what_one_trains(tmp_path, capsys):
    """Compared by what the models make of pictures and captions: where a gradient is zero, Adam steps by its noise."""
    alone, shared, start = (tmp_path / f"{name}.safetensors" for name in ("alone", "shared", "start"))
    words = ["--profile", "smoke", "--batch-size", "8", "--pairs-seen", "40", "--out", str(alone)]
    assert main(["train-clip", *words]) == 0
    assert "1 process(es), 5 steps of 8 pairs" in capsys.readouterr().out
    torch.multiprocessing.spawn(in_process, (free_port(), shared), 2)
    said = torch.load(shared.with_suffix(".pt"), weights_only=True)
    assert (said["processes"], said["steps"]) == (2, 5)
    assert said["loss"] == pytest.approx(train(**CALL)["loss"], abs=1e-4)
    assert_close(embedded(shared), embedded(alone), atol=1e-3, rtol=0)
    assert train(**CALL | {"pairs_seen": 8}, out=start)["steps"] == 1
    assert (embedded(start) - embedded(alone)).abs().max() > 0.02  # five steps changed them


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch, capsys):
    from contextlib import contextmanager

    from vqa_core.experiments import clip_distributed

    @contextmanager
    def three():
        yield 0, 3

    monkeypatch.setattr(clip_distributed, "process_group", three)
    assert main(["train-clip", "--profile", "smoke", "--batch-size", "8"]) == 2
    assert "3 processes can't share a batch of 8" in capsys.readouterr().err
    with pytest.raises(ValueError, match="profile is 'huge'"):
        train("huge")
