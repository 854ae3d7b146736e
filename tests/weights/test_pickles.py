"""Torch's pickles: read as torch reads them, without torch; nothing but tensors comes out."""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mmjax.types import UserError
from mmjax.weights.pickles import open_directory, read_file, write_file
from mmjax.weights.safetensors import Tensor

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def bits(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_what_is_written_is_what_torch_saves(tmp_path):
    torch.manual_seed(0)
    values = {name: (torch.randn(3, 5) * 4).to(getattr(torch, name)) for name in DTYPES}
    values |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "long": torch.arange(70000), "ä.b": torch.ones(1, 2, 3)}
    torch.save({"model": values}, tmp_path / "theirs.pth")
    arrays = read_file(tmp_path / "theirs.pth", within="model")
    tensors = {key: Tensor(array.shape, array.dtype, lambda array=array: array) for key, array in arrays.items()}
    write_file(tmp_path / "ours.pth", tensors, "model")
    again = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    assert again.keys() == values.keys()
    for key, value in values.items():
        assert again[key].dtype == value.dtype and again[key].stride() == value.stride() and torch.equal(again[key], value)
    mapped = torch.load(tmp_path / "ours.pth", weights_only=True, mmap=True)["model"]
    assert torch.equal(mapped["long"], values["long"])


def test_every_dtype_and_stride_comes_back(tmp_path):
    torch.manual_seed(0)
    values = OrderedDict((name, (torch.randn(3, 5) * 4).to(getattr(torch, name))) for name in DTYPES)
    shared = torch.randn(4, 6)
    values |= {
        "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(torch.randn(2)),
        "whole": shared, "transposed": shared.T, "part": shared[1:3, ::2], "expanded": torch.randn(3, 1).expand(3, 4),
    }  # fmt: skip
    values._metadata = {"": {"version": 1}}
    torch.save(values, tmp_path / "x.bin")
    got = read_file(tmp_path / "x.bin")
    assert got.keys() == values.keys()
    for key, value in values.items():
        assert got[key].shape == value.shape and str(got[key].dtype) == str(value.dtype).removeprefix("torch.")
        assert np.ascontiguousarray(got[key]).tobytes() == bits(value), key
        assert not value.numel() or not (got[key].flags.writeable or got[key].flags.owndata), "a view of the file"


def test_shards_follow_the_index(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": torch.zeros(3), "c": torch.zeros(1)}, tmp_path / "pytorch_model-2.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert set(open_directory(tmp_path)) == {"a", "b"}


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    torch.save({"a": torch.ones(2), "b": Malice(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin is damaged, or holds more than the tensors .*it asks for io.open"):
        open_directory(tmp_path)
    assert not (tmp_path / "ran").exists()


def rewritten(source, target, member, content):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith(member) else old.read(name))
    return target


def test_damage_is_a_user_error(tmp_path):
    whole, bad = tmp_path / "whole.bin", tmp_path / "bad.bin"
    torch.save({"a": torch.ones(2, 3)}, whole)
    data = whole.read_bytes()
    for content in (b"", b"no zip", data[: len(data) // 2], data[100:]):
        bad.write_bytes(content)
        with pytest.raises(UserError, match="bad.bin is damaged"):
            read_file(bad)
    with pytest.raises(UserError, match="reaches beyond its storage of 5"):
        read_file(rewritten(whole, bad, "data/0", b"\0" * 20))
    torch.save({"a": torch.ones(2), "epoch": 3}, bad)
    with pytest.raises(UserError, match="'epoch' is no tensor"):
        read_file(bad)
    torch.save({"a": torch.ones(2)}, bad, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="bad.bin is damaged"):
        read_file(bad)
    with pytest.raises(UserError, match="gone.bin does not exist"):
        read_file(tmp_path / "gone.bin")
