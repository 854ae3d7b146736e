"""Reading and writing safetensors: lazy, checked, whole or not at all."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file as their_save_file

from mmjax.types import UserError
from mmjax.weights.safetensors import DTYPES, Tensor, open_directory, read_file, save_directory, save_file


def tensors(values):
    return {key: Tensor(value.shape, value.dtype, lambda value=value: value) for key, value in values.items()}


def drawn(count=4):
    draw = np.random.default_rng(0)
    return {f"layer.{i}.weight": draw.normal(size=(i + 1, 3)).astype(np.float32) for i in range(count)}


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back(tmp_path, name):
    values = {
        "a": np.arange(6).reshape(2, 3).astype(DTYPES[name]),
        "scalar": np.ones((), DTYPES[name]),
        "empty": np.ones((0, 4), DTYPES[name]),
    }
    got = read_file(save_file(tmp_path / "x.safetensors", tensors(values)))
    for key, value in values.items():
        assert got[key].dtype == value.dtype and got[key].shape == value.shape
        assert got[key].tobytes() == value.tobytes()


def test_their_library_reads_ours_and_we_theirs(tmp_path):
    values = drawn() | {"half": np.ones((2, 2), ml_dtypes.bfloat16)}
    ours, theirs = save_file(tmp_path / "ours.safetensors", tensors(values)), tmp_path / "theirs.safetensors"
    with safe_open(ours, "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_slice("half").get_dtype() == "BF16"
        for key in drawn():
            np.testing.assert_array_equal(file.get_tensor(key), values[key])
    their_save_file(drawn(), theirs)
    for key, value in read_file(theirs).items():
        np.testing.assert_array_equal(value, values[key])


def test_views_are_mapped_and_read_only(tmp_path):
    views = read_file(save_file(tmp_path / "x.safetensors", tensors(drawn())))
    for view in views.values():
        assert not view.flags.owndata and not view.flags.writeable
        base = view
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)


def test_shards_follow_the_index_and_nothing_else(tmp_path):
    files = save_directory(tmp_path, tensors(drawn()), shard_bytes=40)
    assert len([file for file in files if file.suffix == ".safetensors"]) > 1
    their_save_file({"stray": np.zeros(3)}, tmp_path / "consolidated.safetensors")
    got = open_directory(tmp_path)
    assert set(got) == set(drawn()) and len(got) == 4
    for key, value in drawn().items():
        np.testing.assert_array_equal(got[key], value)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in drawn().values())
    assert {tmp_path / name for name in index["weight_map"].values()} | {tmp_path / "model.safetensors.index.json"} == set(
        files
    )


def test_tensors_are_fetched_one_by_one(tmp_path):
    alive, most = set(), 0

    class Tracked(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def load(value):
        nonlocal most
        fetched = value.copy().view(Tracked)
        alive.add(id(fetched))
        most = max(most, len(alive))
        return fetched

    lazy = {key: Tensor(value.shape, value.dtype, lambda value=value: load(value)) for key, value in drawn(8).items()}
    assert most == 0
    save_directory(tmp_path, lazy)
    assert 1 <= most <= 2


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = save_file(tmp_path / "x.safetensors", tensors(drawn()))
    before = path.read_bytes()

    def fail():
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        save_file(path, tensors(drawn()) | {"z": Tensor((2,), np.dtype(np.float32), fail)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def raw(path, header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def entry(begin, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ({"a": entry(0, 4)}, b"\0" * 3, "truncated: expected 4 bytes of tensors, got 3"),
        ({"a": entry(0, 4)}, b"\0" * 5, "oversized: expected 4 bytes of tensors, got 5"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, b"\0" * 6, "the bytes of 'b' begin at 2, those before it end at 4"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, b"\0" * 12, "the bytes of 'b' begin at 8"),
        ({"a": entry(0, 4, (2,))}, b"\0" * 4, r"'a' has 4 bytes, its shape \(2,\)"),
        ({"a": entry(0, 4, (-1,))}, b"\0" * 4, "the header is damaged"),
        ({"a": entry(4, 0)}, b"", "begin at 4"),
        ({"a": entry(0, 4, dtype="Q4")}, b"\0" * 4, "the header is damaged: KeyError"),
        ({"a": {"shape": [1]}}, b"", "the header is damaged"),
        ([1, 2], b"", "the header is damaged"),
        (b"{not json", b"", "the header is damaged"),
    ],
)
def test_a_lying_header_is_refused(tmp_path, header, body, message):
    path = raw(tmp_path / "model.safetensors", header, body)
    with pytest.raises(UserError, match=message) as error:
        open_directory(tmp_path)
    assert str(path) in str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_a_user_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("garbage") / "x.safetensors"
    path.write_bytes(data)
    try:
        read_file(path)
    except UserError as error:
        assert str(path) in str(error)


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="holds neither model.safetensors nor model.safetensors.index.json"):
        open_directory(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pickled weights \(.bin\)"):
        open_directory(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for text, message in (
        ("{", "is damaged"),
        ('{"weight_map": {"a": "../../secret.safetensors"}}', "expected the name of a file beside the index"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors does not exist"),
    ):
        index.write_text(text)
        with pytest.raises(UserError, match=message):
            open_directory(tmp_path)
    their_save_file({"b": np.zeros(2)}, tmp_path / "one.safetensors")
    index.write_text('{"weight_map": {"a": "one.safetensors"}}')
    with pytest.raises(UserError, match="one.safetensors lacks 'a'"):
        open_directory(tmp_path)
    truncated = tmp_path / "model.safetensors"
    truncated.write_bytes((10**12).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="truncated or no safetensors file"):
        open_directory(tmp_path)
