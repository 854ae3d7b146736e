"""Digests see every bit and every exchange, and do not depend on the mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.training.digest import digests

DTYPES = ["float32", "bfloat16", "float16", "int8", "uint8", "int32", "uint32", "bool", "float8_e4m3fn", "int4"]


def digest(array) -> str:
    return digests({"x": jnp.asarray(array)})["x"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4)])
def test_every_dtype_and_rank(dtype, shape):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, shape)).astype(dtype)
    assert len(digest(x)) == 16
    assert digest(x) == digest(jnp.array(x))
    changed = x.at[(0,) * x.ndim].set((1 - x.ravel()[0].astype(jnp.float32)).astype(dtype))
    assert digest(changed) != digest(x)


def test_every_single_bit_is_seen():
    words = np.random.default_rng(1).integers(0, 2**32, 8, dtype=np.uint32)
    clean = digest(words.view(np.float32))
    assert clean == digest(words), "the digest is of the bits, whatever their type"
    for index in range(8):
        for bit in range(32):
            flipped = words.copy()
            flipped[index] ^= np.uint32(1 << bit)
            assert digest(flipped) != clean


def test_exchanged_values_rows_and_axes_are_seen():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    changed = [x[::-1], x[:, ::-1], x[[1, 0, 2]], x.reshape(4, 3), x.ravel(), np.roll(x, 1)]
    assert len({digest(x), *map(digest, changed)}) == 1 + len(changed)


def test_signed_zero_and_nan_payload_are_bits():
    assert digest(np.float32(0.0)) != digest(np.float32(-0.0))
    assert digest(np.float32(np.nan)) == digest(np.float32(np.nan))


def test_typed_keys():
    assert digest(jax.random.key(0)) != digest(jax.random.key(1))
    assert digest(jax.random.key(3)) == digest(jax.random.key_data(jax.random.key(3)))


def test_mesh_does_not_matter():
    x = np.random.default_rng(2).normal(size=(16, 24)).astype(np.float32)
    want = digest(x)
    count = len(jax.devices())
    for rows in [n for n in range(1, count + 1) if count % n == 0]:
        mesh = Mesh(np.array(jax.devices()).reshape(rows, -1), ("a", "b"))
        for spec in (
            PartitionSpec(),
            PartitionSpec("a"),
            PartitionSpec("a", "b"),
            PartitionSpec("b", "a"),
            PartitionSpec(("a", "b")),
        ):
            sharded = jax.device_put(x, NamedSharding(mesh, spec))
            assert digest(sharded) == want
