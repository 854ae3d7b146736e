"""Weight tables: every transform both ways, slices only where they belong, one report of all that does not fit."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.layers.parameters import ParameterSpec
from mmjax.types import UserError
from mmjax.weights.safetensors import Tensors
from mmjax.weights.table import COPY, TRANSPOSE, Entry, leading, linear, norm, patches, prefixed, read, write

DRAW = np.random.default_rng(0)


def drawn(*shape):
    return DRAW.normal(size=shape).astype(np.float32)


def spec(*shape, axes=None):
    return ParameterSpec(shape, jnp.float32, axes or (None,) * len(shape))


def given(**values):
    return Tensors(Path("here"), values)


@pytest.mark.parametrize(
    ("transform", "theirs", "ours"),
    [
        (COPY, (3, 5), (3, 5)),
        (TRANSPOSE, (3, 5), (5, 3)),
        (leading(1), (1, 3, 5), (3, 5)),
        (leading(2), (1, 1, 5), (5,)),
        (patches(3, 2), (7, 3, 2, 2), (12, 7)),
    ],
)
def test_transforms_are_views_and_invert(transform, theirs, ours):
    value = drawn(*theirs)
    seen = transform.read(value)
    assert seen.shape == ours and np.shares_memory(seen, value)
    np.testing.assert_array_equal(transform.write(np.ascontiguousarray(seen)), value)


def test_a_stack_reads_the_layers_it_names():
    table = [Entry("odd", "block.{layer}.w", TRANSPOSE, range(1, 6, 2))]
    specs = {"odd": spec(3, 4, 2, axes=("layers", None, None))}
    values = {f"block.{i}.w": drawn(2, 4) for i in range(1, 6, 2)}
    got = read(table, given(**values), specs)["odd"]
    for i in range(3):
        np.testing.assert_array_equal(got[i], values[f"block.{2 * i + 1}.w"].T)
    back = write(table, {"odd": got}, specs)
    assert back.keys() == values.keys()
    assert all(back[key].load().tobytes() == values[key].tobytes() for key in values)


def test_a_fused_tensor_has_parts_and_zeros_where_ours_has_nothing():
    table = [
        Entry("key", "fused", TRANSPOSE, part=(1, 3)),
        Entry("query", "fused", TRANSPOSE, part=(0, 3)),
        Entry(None, "fused", part=(2, 3)),
    ]
    specs = {"query": spec(4, 2), "key": spec(4, 2)}
    fused = drawn(6, 4)
    got = read(table, given(fused=fused), specs)
    np.testing.assert_array_equal(got["query"], fused[:2].T)
    np.testing.assert_array_equal(got["key"], fused[2:4].T)
    back = write(table, got, specs)["fused"]
    assert back.shape == (6, 4)
    np.testing.assert_array_equal(back.load(), np.concatenate([fused[:4], np.zeros((2, 4), np.float32)]))


@pytest.mark.parametrize(
    ("transform", "shape", "axes"), [(COPY, (8, 3), ("vocab", None)), (TRANSPOSE, (3, 8), (None, "vocab"))]
)
def test_a_vocabulary_is_padded_with_zeros_and_cut_again(transform, shape, axes):
    table, specs = [Entry("table", "w", transform, vocab=5)], {"table": spec(*shape, axes=axes)}
    w = drawn(5, 3)
    got = read(table, given(w=w), specs)
    padded = transform.read(np.concatenate([w, np.zeros((3, 3), np.float32)]))
    np.testing.assert_array_equal(got["table"], padded)
    garbage = jnp.where(padded == 0, 9.0, padded)  # what stands in the padding never leaves
    assert write(table, {"table": garbage}, specs)["w"].load().tobytes() == w.tobytes()


def test_a_device_copies_only_its_slice(monkeypatch):
    copied = []
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda value, *where: copied.append(value.size) or put(value, *where))
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    specs = {"w": spec(2, 8, 6, axes=("layers", None, None)), "v": spec(16, 4, axes=("vocab", None))}
    values = {"l.0": drawn(6, 8), "l.1": drawn(6, 8), "v": drawn(9, 4)}
    table = [Entry("w", "l.{layer}", TRANSPOSE, range(2)), Entry("v", "v", vocab=9)]
    shardings = {"w": NamedSharding(mesh, P(None, "a", "b")), "v": NamedSharding(mesh, P("a", "b"))}
    got = read(table, given(**values), specs, None, shardings)
    assert copied == [2 * 2 * 3] * 8 + [4 * 2] * 8  # an eighth of each leaf, once per device
    for path, value in read(table, given(**values), specs).items():
        assert got[path].sharding == shardings[path]
        assert got[path].addressable_shards[0].data.size * 8 == value.size
        np.testing.assert_array_equal(got[path], value)


def test_dtype_is_kept_or_asked_for():
    table = [Entry("a", "a"), Entry("b", "b")]
    specs = {"a": spec(2), "b": spec(2)}
    values = given(a=np.ones(2, np.float16), b=np.ones(2, jnp.bfloat16))
    assert [str(value.dtype) for value in read(table, values, specs).values()] == ["float16", "bfloat16"]
    assert {str(value.dtype) for value in read(table, values, specs, jnp.float32).values()} == {"float32"}
    assert [str(value.dtype) for value in read(table, values, specs, {"a": jnp.float32}).values()] == ["float32", "bfloat16"]


def test_one_report_of_everything():
    table = [*linear("up", "layers.{layer}.fc1", layers=range(3)), *norm("norm", "final_norm"), Entry("x", "embed.weight")]
    specs = {
        "up.kernel": spec(3, 2, 4, axes=("layers", None, None)), "up.bias": spec(3, 4, axes=("layers", None)),
        "norm.scale": spec(2), "norm.bias": spec(2), "x": spec(5, 2),
    }  # fmt: skip
    values = {f"layers.{i}.fc1.weight": drawn(4, 2) for i in range(3)}
    values |= {
        "final_norms.weight": drawn(2),
        "final_norm.bias": drawn(2),
        "embed.weight": drawn(5, 3),
        "a.rotary_emb.inv_freq": drawn(2),
    }
    with pytest.raises(UserError) as error:
        read(table, given(**values), specs)
    message = str(error.value)
    assert message.startswith("the weights in here do not fit its config: 4 missing: ")
    assert "layers.*.fc1.bias [3]" in message
    assert "final_norm.weight (nearest: final_norms.weight)" in message
    assert "1 unexpected: final_norms.weight (nearest: final_norm.weight)" in message
    assert "1 of another shape: embed.weight (expected (5, 2), got (5, 3))" in message
    assert "inv_freq" not in message and "\n" not in message


def test_other_spellings_prefixes_and_duplicates():
    table = prefixed([Entry("w", ("new.w", "old.w")), Entry("w", "copy", duplicate=True)], "ours.", "theirs.")
    specs = {"ours.w": spec(2)}
    w = np.ones(2, np.float32)
    for values in ({"theirs.new.w": w}, {"theirs.old.w": w}, {"theirs.old.w": w, "theirs.copy": w}):
        parameters = read(table, given(**values), specs)
        np.testing.assert_array_equal(parameters["ours.w"], w)
        assert list(write(table, parameters, specs)) == ["theirs.new.w"]
    with pytest.raises(UserError, match="different from the tensor that it should repeat: theirs.copy"):
        read(table, given(**{"theirs.new.w": w, "theirs.copy": 2 * w}), specs)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_nan_is_told_with_the_tensor_s_name(caplog, dtype):
    table = [Entry("w", "layers.{layer}.w", TRANSPOSE, range(3)), Entry("v", "v"), Entry("n", "n")]
    table.append(Entry("s", "scales.{layer}", layers=range(2)))
    specs = {"w": spec(3, 4, 2, axes=("layers", None, None)), "v": spec(), "n": spec(2), "s": spec(2, axes=("layers",))}
    values = {f"layers.{i}.w": drawn(2, 4).astype(dtype) for i in range(3)} | {"v": np.ones((), dtype)}
    values |= {f"scales.{i}": np.full((), i + 1, dtype) for i in range(2)}
    values |= {"n": np.array([np.inf, -np.inf]).astype(dtype)}
    got = read(table, given(**values), specs)
    assert not caplog.records, "infinity is no NaN"
    assert got["v"] == 1 and got["s"].tolist() == [1, 2], "scalars are values too"
    values["layers.1.w"][1, 2] = np.nan
    values["v"] = np.full((), -np.nan, dtype)
    got = read(table, given(**values), specs)
    [record] = caplog.records
    assert record.getMessage() == "the weights in here are damaged: 2 with NaN: layers.1.w, v"
    assert np.isnan(np.asarray(got["w"], np.float32)).sum() == 1
