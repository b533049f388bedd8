"""Weights are read without running a pickle: what is allowed arrives whole, what is not is refused before it acts."""

import builtins
import hashlib
import json
import os
import pickle
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close

from vqa_core.__main__ import main
from vqa_core.encoders.conversion import convert, read_weights, read_words, unpickle

ARRAYS = {
    "c": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(5, dtype=">i4"),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}


class Act:
    """A pickle that calls something when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_arrive_whole_from_every_protocol(tmp_path, protocol):
    path = tmp_path / "a.weights"
    path.write_bytes(pickle.dumps(OrderedDict(ARRAYS), protocol))
    for name, value in unpickle(path).items():
        np.testing.assert_array_equal(value, ARRAYS[name], strict=True)
    for name, value in read_weights(path).items():
        np.testing.assert_array_equal(value.numpy(), ARRAYS[name])
    assert unpickle(path).keys() == ARRAYS.keys()


def test_numpy_1_pickles_are_read(tmp_path):
    path = tmp_path / "old.weights"
    new = pickle.dumps(ARRAYS["c"], 3)
    assert b"numpy._core.multiarray" in new
    path.write_bytes(new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(unpickle(path), ARRAYS["c"])


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (os.system, "touch {marker}"),
        (builtins.eval, "open('{marker}', 'w')"),
        (builtins.exec, "open('{marker}', 'w')"),
        (builtins.open, "{marker}"),
        (torch.load, "{marker}"),
        (np.load, "{marker}"),
        (np.array, "{marker}"),
    ],
)
def test_a_pickle_that_acts_is_refused_and_does_not_act(tmp_path, function, argument, protocol):
    marker, path = tmp_path / "marker", tmp_path / "evil.weights"
    act = Act(function, argument.format(marker=marker))
    path.write_bytes(pickle.dumps({"conv1": ARRAYS["c"], "x": act}, protocol))
    with pytest.raises(ValueError, match=rf"evil\.weights was not read: it asks for \S+\.{function.__name__}, which"):
        read_weights(path)
    assert not marker.exists()


def test_the_planted_pickle_does_act_when_pickle_reads_it(tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Act(os.system, f"touch '{marker}'")))
    assert marker.exists()  # else the test before would prove nothing


def test_torch_names_in_a_plain_pickle_are_refused(tmp_path):
    path = tmp_path / "rebuild.weights"
    act = Act(torch._utils._rebuild_tensor_v2, torch.UntypedStorage(4), 0, (1,), (1,), False, OrderedDict())
    path.write_bytes(pickle.dumps({"x": act}))
    with pytest.raises(ValueError, match=r"asks for torch\S*\._\w+"):
        read_weights(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_that_act_are_refused_and_do_not_act(tmp_path, zipped):
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    for act in (Act(os.system, f"touch {marker}"), Act(builtins.eval, f"open('{marker}', 'w')")):
        torch.save({"x": torch.zeros(1), "y": act}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"evil\.pth was not read: it is more than a state dict"):
            read_weights(path)
        assert not marker.exists()
    torch.save(torch.nn.Linear(1, 1), path, _use_new_zipfile_serialization=zipped)  # a whole module
    with pytest.raises(ValueError, match="more than a state dict"):
        read_weights(path)


def test_a_name_hidden_in_an_attribute_is_refused(tmp_path):
    """Protocol 4 can ask for dotted names: numpy's own attributes lead to os."""
    path = tmp_path / "dotted.weights"
    for module, name in (("numpy", "ndarray.__reduce__"), ("numpy", "os.system"), ("collections", "_sys.modules")):
        path.write_bytes(
            b"\x80\x04" + pickle.SHORT_BINUNICODE + bytes([len(module)]) + module.encode()
            + pickle.SHORT_BINUNICODE + bytes([len(name)]) + name.encode() + pickle.STACK_GLOBAL + b"."
        )  # fmt: skip
        with pytest.raises(ValueError, match="it asks for"):
            unpickle(path)


def test_a_file_cannot_change_what_later_files_get(tmp_path):
    path = tmp_path / "patch.weights"
    patch = b"\x80\x02cnumpy\nndarray\nN}X\x04\x00\x00\x00makeK\x01s\x86b."  # BUILD: ndarray.make = 1
    path.write_bytes(patch)
    with pytest.raises(ValueError, match="was not read"):
        unpickle(path)
    path.write_bytes(pickle.dumps(ARRAYS["c"]))
    np.testing.assert_array_equal(unpickle(path), ARRAYS["c"])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.array([{"a": 1}, None]), "array of type 'O8'"),
        (np.array(["text"]), "array of type 'U4'"),
        (np.zeros(2, [("a", "f4")]), "array of type 'V4'"),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, value, problem):
    path = tmp_path / "a.weights"
    path.write_bytes(pickle.dumps({"x": value}, 4))
    with pytest.raises(ValueError, match=problem):
        read_weights(path)


def test_damaged_and_other_files_are_named(tmp_path):
    path = tmp_path / "a.weights"
    whole = pickle.dumps({"x": ARRAYS["c"]}, 4)
    for damaged in (whole[:-40], b"", b"not a pickle", whole.replace(b"K\x02K\x03K\x04", b"K\x02K\x03K\x05")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.weights was not read"):
            read_weights(path)
    for value, problem in (
        ([1, 2], "holds a list, expected a dict"),
        ({}, "expected a dict of named arrays"),
        ({"x": "text"}, "'x' is a str, expected an array"),
        ({1: ARRAYS["c"]}, "the name 1 is not text"),
    ):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(ValueError, match=problem):
            read_weights(path)
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"o\.npy was not read: Object arrays"):
        read_weights(tmp_path / "o.npy")
    (tmp_path / "b.safetensors").write_bytes(b"12345678901234")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        read_weights(tmp_path / "b.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights file"):
        read_weights(tmp_path / "nothing")


@pytest.mark.parametrize("form", ["pickle", "torch", "legacy", "npy", "safetensors"])
def test_every_form_becomes_the_same_safetensors(tmp_path, form):
    source, target = tmp_path / f"in.{form}", tmp_path / "out.safetensors"
    value = torch.randn(3, 4)
    state = {"w": value, "same": value, "turned": value.T}  # shared memory, and not contiguous
    if form == "pickle":
        source.write_bytes(pickle.dumps({k: v.numpy() for k, v in state.items()}))
    elif form == "npy":
        state = {"array": value}
        with source.open("wb") as file:
            np.save(file, value.numpy())
    elif form == "safetensors":
        state = {"w": value}
        convert(source_of(tmp_path, value), source)
    else:
        torch.save(state, source, _use_new_zipfile_serialization=form == "torch")
    convert(source, target)
    assert_close(load_file(target), state)
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "format": "pt",
        "source": source.name,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def source_of(folder, value):
    torch.save({"w": value}, folder / "first.pt")
    return folder / "first.pt"


def write_words(path, words):
    path.write_bytes(pickle.dumps([{w: i for i, w in enumerate(words)}, words]))
    return path


def test_word_vectors_keep_their_words(tmp_path):
    np.save(tmp_path / "glove.npy", np.eye(3, dtype=np.float32))
    words = write_words(tmp_path / "dictionary.pkl", ["is", "the", "lunge"])
    convert(tmp_path / "glove.npy", tmp_path / "glove.safetensors", words)
    with safe_open(tmp_path / "glove.safetensors", "pt") as file:
        assert json.loads(file.metadata()["words"]) == ["is", "the", "lunge"]
    with pytest.raises(ValueError, match=r"has 2 words, .* expected one row per word"):
        convert(tmp_path / "glove.npy", tmp_path / "b.safetensors", write_words(tmp_path / "short.pkl", ["is", "the"]))
    assert not (tmp_path / "b.safetensors").exists()
    (tmp_path / "wrong.pkl").write_bytes(pickle.dumps([{"a": 1}, ["a"]]))
    with pytest.raises(ValueError, match="disagree"):
        read_words(tmp_path / "wrong.pkl")


def test_command_line(tmp_path, capsys):
    source, target = tmp_path / "a.weights", tmp_path / "a.safetensors"
    source.write_bytes(pickle.dumps({"conv1": ARRAYS["c"]}))
    assert main(["weights", "convert", str(source), str(target)]) == 0
    assert "1 tensors, 24 numbers" in capsys.readouterr().out
    assert_close(load_file(target)["conv1"], torch.from_numpy(ARRAYS["c"]))
    marker = tmp_path / "marker"
    source.write_bytes(pickle.dumps(Act(os.system, f"touch {marker}")))
    target.unlink()
    assert main(["weights", "convert", str(source), str(target)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "system, which could run any code" in error
    assert "Traceback" not in error
    assert not marker.exists()
    assert not target.exists()
    assert main(["weights", "convert", str(source), str(tmp_path / "a.bin")]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err
    assert main(["weights", "convert", str(source), str(tmp_path / "no" / "a.safetensors")]) == 2
    assert "make it first" in capsys.readouterr().err


@pytest.mark.realdata("vqa_rad")
def test_published_files(data_root, tmp_path):
    folder = data_root / "vqa_rad" / "mevf_weights"
    words = read_words(folder / "dictionary.pkl")
    assert len(words) == 1177
    shapes = {
        "pretrained_maml.weights": {"conv1": (3, 3, 1, 64), "conv4": (3, 3, 64, 64), "b4": (64,)},
        "pretrained_ae.pth": {"conv1.weight": (64, 1, 3, 3), "tran_conv2.weight": (32, 64, 3, 3)},
        "glove6b_init_300d.npy": {"array": (1177, 300)},
    }
    for name, expected in shapes.items():
        dictionary = folder / "dictionary.pkl" if name.startswith("glove") else None
        written = convert(folder / name, tmp_path / "out.safetensors", dictionary)
        read = load_file(tmp_path / "out.safetensors")
        assert_close(read, written)
        assert {k: tuple(read[k].shape) for k in expected} == expected
        assert all(v.isfinite().all() for v in read.values())
    with (folder / "pretrained_maml.weights").open("rb") as file:
        trusted = pickle.load(file)  # this very file has been looked at
    for name, value in unpickle(folder / "pretrained_maml.weights").items():
        np.testing.assert_array_equal(value, trusted[name])


def test_reading_imports_nothing_that_a_file_names(tmp_path):
    path = tmp_path / "a.weights"
    path.write_bytes(b"\x80\x02cantigravity\nfly\n.")
    with pytest.raises(ValueError, match=r"asks for antigravity\.fly"):
        unpickle(path)
    assert "antigravity" not in sys.modules
