"""The TPU's kernel, interpreted, against the explicit form: values, gradients, masks, meshes."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers import splash
from mmjax.layers.attention import Mask, attend, attention_by
from mmjax.parallel.axes import batch_sharding
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.rows import TEXT, laid_out, rows_on
from mmjax.parallel.topology import find_devices, parse_topology, prepare

DRAW = np.random.default_rng(0)
# Two packed segments and padding behind them; a row that is whole.
PACKED = jnp.stack([jnp.repeat(jnp.arange(3), jnp.array([20, 60, 70]))[::-1], jnp.ones(150, int)])


def drawn(*shape):
    return jnp.asarray(DRAW.normal(size=shape), jnp.float32)


def mask_of(kind, segments=PACKED):
    window = 40 if kind == "window" else None
    return None if kind == "none" else Mask(segments, segments, window=window, causal=kind != "segments")


def both(arrays, mask, mesh=None, scale=None):
    """(output, gradients of queries, keys and values) of the kernel and of the explicit form; padding is not read."""
    upstream = drawn(*arrays[0].shape) * (1.0 if mask is None else (mask.query_segments > 0)[..., None, None])

    def run(name):
        def loss(*arrays):
            with rows_on(mesh) if mesh is not None else contextlib.nullcontext(), laid_out(TEXT), attention_by(name):
                output = attend(*arrays, mask, scale=scale)
            return (output * upstream).sum(), output

        (_, output), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)
        return jax.device_get((output * (upstream != 0), *gradients))

    return run("splash"), run("xla")


@pytest.mark.parametrize(
    ("kind", "heads", "kv_heads", "head_dim"),
    [("none", 4, 4, 16), ("segments", 4, 1, 16), ("causal", 4, 2, 24), ("causal", 4, 4, 16), ("window", 4, 1, 16)],
)
def test_values_and_gradients_are_those_of_the_explicit_form(kind, heads, kv_heads, head_dim):
    arrays = drawn(2, 150, heads, head_dim), drawn(2, 150, kv_heads, head_dim), drawn(2, 150, kv_heads, head_dim)
    for ours, theirs in zip(*both(arrays, mask_of(kind), scale=0.3), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_more_keys_than_queries():
    arrays = drawn(2, 40, 2, 16), drawn(2, 300, 2, 16), drawn(2, 300, 2, 16)
    for ours, theirs in zip(*both(arrays, None), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_query_whose_segment_has_no_key_is_finite_and_so_are_gradients():
    queries, keys = jnp.full((1, 8), 2), jnp.ones((1, 12), jnp.int32)
    arrays = drawn(1, 8, 2, 16), drawn(1, 12, 2, 16), drawn(1, 12, 2, 16)

    def loss(*arrays):
        with attention_by("splash"):
            return attend(*arrays, Mask(queries, keys)).sum()

    assert all(np.isfinite(each).all() for each in jax.grad(loss, (0, 1, 2))(*arrays))


@pytest.mark.parametrize(
    ("sizes", "kind", "kv_heads"),
    [
        ({"fsdp": 2, "sequence": 4}, "window", 4),
        ({"replica": 2, "tensor": 2, "sequence": 2}, "segments", 1),
        ({"tensor": 2, "sequence": 2}, "causal", 2),
        ({"tensor": 4}, "none", 4),
    ],
)
def test_rows_heads_and_queries_are_split_over_a_mesh(sizes, kind, kv_heads, monkeypatch):
    monkeypatch.setattr(splash, "BLOCK", 128)  # several blocks on each device
    count = int(np.prod(list(sizes.values())))
    mesh = make_mesh(sizes, jax.devices()[:count])
    segments = jnp.repeat(PACKED, 4, axis=1)
    arrays = drawn(2, 600, 4, 8), drawn(2, 600, kv_heads, 8), drawn(2, 600, kv_heads, 8)
    for ours, theirs in zip(*both(arrays, mask_of(kind, segments), mesh), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
    ("slots", "most", "shards", "expected"),
    [
        (2048, 1024, 1, (1024, 2048)),
        (577, 1024, 1, (640, 640)),
        (1408, 1024, 1, (768, 1536)),
        (4096, 1024, 4, (1024, 4096)),
        (100, 1024, 4, (128, 512)),
    ],
)
def test_blocks_are_alike_and_pad_little(slots, most, shards, expected):
    assert splash._blocks(slots, most, shards) == expected


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
def test_gradients_at_the_widths_of_a_7b_fit_the_vector_memory(name):
    """Three kernels, or two, whose blocks are as large as they may be: a compiler refuses them where they are too large."""
    topology = parse_topology(name)
    prepare(topology)
    mesh = make_mesh({"fsdp": 4}, find_devices(topology))
    rows = batch_sharding(mesh)
    x = jax.ShapeDtypeStruct((4, 3840, 32, 128), jnp.bfloat16, sharding=rows)
    segments = jax.ShapeDtypeStruct((4, 3840), jnp.int32, sharding=rows)

    def total(query, key, value, segments):
        with rows_on(mesh):
            output = splash.splash_attention(query, key, value, (segments, segments), causal=True, scale=1.0)
        return output.astype(jnp.float32).sum()

    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, x, x, segments).compile()
    assert compiled.memory_analysis().output_size_in_bytes >= 3 * 3840 * 32 * 128 * 2
