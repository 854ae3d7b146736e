"""Attention against its definition, masks against theirs, and a cache against the whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.layers import attention
from mmjax.layers.attention import Call, Mask, attend, attention_by, attention_weights, choose, drop
from mmjax.layers.cache import KVCache, attend_cached
from mmjax.types import UserError

DRAW = np.random.default_rng(0)


def drawn(*shape):
    return jnp.asarray(DRAW.normal(size=shape), jnp.float32)


def test_segments_never_see_each_other_and_padding_sees_nothing():
    segments = jnp.array([[1, 1, 2, 2, 2, 0]])
    allowed = Mask(segments, segments, causal=True).dense()[0, 0]
    expected = [[i >= j and a == b and a > 0 for j, b in enumerate(segments[0])] for i, a in enumerate(segments[0])]
    np.testing.assert_array_equal(allowed, np.array(expected))
    both_ways = Mask(segments, segments).dense()[0, 0]
    np.testing.assert_array_equal(both_ways, np.array(expected) | np.array(expected).T)


def test_an_offset_is_the_slot_of_the_first_query():
    whole = jnp.array([[0, 1, 1, 1, 1]])
    full, part = Mask(whole, whole, causal=True).dense(), Mask(whole[:, 3:], whole, offset=jnp.int32(3), causal=True).dense()
    np.testing.assert_array_equal(full[:, :, 3:], part)


def test_a_window_ends_before_what_lies_so_many_slots_back():
    segments = jnp.ones((1, 6), int)
    allowed = Mask(segments, segments, window=3, causal=True).dense()[0, 0]
    np.testing.assert_array_equal(allowed, [[i - 3 < j <= i for j in range(6)] for i in range(6)])
    part = Mask(segments[:, 4:], segments, offset=4, window=3, causal=True).dense()[0, 0]
    np.testing.assert_array_equal(part, allowed[4:])


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
def test_grouped_heads_are_torch_s(kv_heads):
    query, key, value = drawn(2, 5, 6, 4), drawn(2, 7, kv_heads, 4), drawn(2, 7, kv_heads, 4)
    mask = jnp.asarray(DRAW.random((2, 1, 5, 7)) < 0.7).at[..., 0].set(True)
    to_torch = lambda x: torch.tensor(np.asarray(x)).transpose(1, 2)  # noqa: E731
    expected = torch.nn.functional.scaled_dot_product_attention(
        to_torch(query), to_torch(key), to_torch(value), torch.tensor(np.asarray(mask)), enable_gqa=True
    ).transpose(1, 2)
    np.testing.assert_allclose(attend(query, key, value, mask), expected, atol=1e-5)
    fused = jax.nn.dot_product_attention(query, key, value, mask=mask)
    np.testing.assert_allclose(attend(query, key, value, mask), fused, atol=1e-5)


def test_a_query_that_sees_nothing_stays_finite_and_so_does_its_gradient():
    query, key = drawn(1, 2, 1, 4), drawn(1, 3, 1, 4)
    mask = jnp.zeros((1, 1, 2, 3), bool)
    loss = lambda query: attend(query, key, key, mask).sum()  # noqa: E731
    assert np.isfinite(loss(query)) and np.isfinite(jax.grad(loss)(query)).all()


def test_weights_sum_to_one_in_float32_whatever_comes_in():
    weights = attention_weights(drawn(1, 3, 2, 4).astype(jnp.bfloat16), drawn(1, 5, 2, 4).astype(jnp.bfloat16), None)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((200, 200))
    assert drop(x, 0.3, None) is x and drop(x, 0.0, jax.random.key(0)) is x
    dropped = drop(x, 0.3, jax.random.key(0))
    assert abs(float((dropped == 0).mean()) - 0.3) < 0.01 and abs(float(dropped.mean()) - 1) < 0.02


def test_a_cache_admits_segments_where_it_writes():
    cache = KVCache.empty(2, 3, 6, 1, 4, jnp.bfloat16)
    assert cache.keys.shape == (2, 3, 1, 6, 4) and cache.keys.dtype == jnp.bfloat16 and cache.fresh
    admitted = KVCache(cache.keys, cache.values, cache.segments, jnp.int32(2)).admit(jnp.ones((3, 2), jnp.int32))
    np.testing.assert_array_equal(admitted.segments, [[0, 0, 1, 1, 0, 0]] * 3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "tokens", "window"), [(4, 2, 1, None), (4, 1, 3, None), (2, 2, 2, 3)])
def test_attention_to_a_cache_that_lacks_the_new_tokens(heads, kv_heads, tokens, window, bias):
    """As if their keys and values stood in their slots already: `attend` over all of them."""
    rows, slots, written, width = 2, 9, 4, 8
    segments = jnp.ones((rows, slots), jnp.int32).at[1, :2].set(0).at[:, written + tokens :].set(0)
    query, keys, values = drawn(rows, tokens, heads, width), *(drawn(rows, slots, kv_heads, width) for _ in range(2))
    scores = drawn(1, heads, tokens, slots) if bias else None
    mask = Mask(jnp.ones((rows, tokens), jnp.int32), segments, offset=jnp.int32(written), window=window, causal=True)
    expected = attend(query, keys, values, mask, bias=scores)
    cached = tuple(jnp.swapaxes(x.at[:, written:].set(0), 1, 2) for x in (keys, values))
    new = tuple(x[:, written : written + tokens] for x in (keys, values))
    np.testing.assert_allclose(attend_cached(query, cached, new, mask, bias=scores), expected, atol=1e-5)


def a_call(slots=1024, head_dim=64, dtype=jnp.bfloat16, **fields):
    """A call on shapes alone; segments are there, and the order is that of a decoder."""
    array, segments = jnp.zeros((1, slots, 2, head_dim), dtype), jnp.ones((1, slots), int)
    fields = {"mask": Mask(segments, segments, causal=True), "bias": None, "dropout": 0.0, **fields}
    return Call(query=array, key=array, value=array, scale=1.0, dropout_key=None, **fields)


def behind_a_cache():
    return Mask(jnp.ones((1, 1024), int), jnp.ones((1, 1024), int), offset=jnp.int32(3), causal=True)


BIAS, DENSE = jnp.zeros((1, 2, 1024, 1024)), jnp.ones((1, 1, 1024, 1024), bool)


@pytest.mark.parametrize(
    ("platform", "fields", "expected"),
    [
        ("cpu", {}, "xla"),
        ("tpu", {}, "splash"),
        ("tpu", {"mask": None}, "splash"),
        ("tpu", {"slots": 256}, "xla"),  # less than it pays for
        ("tpu", {"bias": BIAS}, "xla"),
        ("tpu", {"dropout": 0.1}, "xla"),
        ("tpu", {"mask": DENSE}, "xla"),
        ("tpu", {"mask": behind_a_cache()}, "xla"),
        ("gpu", {}, "cudnn"),
        ("gpu", {"mask": DENSE}, "cudnn"),
        ("gpu", {"mask": None}, "cudnn"),
        ("gpu", {"mask": None, "slots": 577}, "xla"),  # its backward pass wants an even number
        ("gpu", {"slots": 577}, "xla"),
        ("gpu", {"dtype": jnp.float32}, "xla"),
        ("gpu", {"head_dim": 132}, "xla"),
        ("gpu", {"bias": BIAS}, "xla"),
    ],
)
def test_the_implementation_follows_from_platform_and_needs(platform, fields, expected, monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda: platform)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert choose(a_call(**fields)) == expected


def test_a_kernel_on_several_devices_needs_to_know_their_mesh(monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    assert jax.device_count() > 1 and choose(a_call()) == "xla"


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("splash", {"bias": BIAS}, "attention='splash' cannot take a bias on the scores; set --config.*attention=auto"),
        ("splash", {"dropout": 0.1}, "cannot take dropout"),
        ("splash", {"mask": DENSE}, "cannot take a dense mask"),
        ("cudnn", {}, "runs on gpu, not on cpu"),
    ],
)
def test_what_is_asked_for_by_name_is_done_or_refused(name, fields, message):
    with attention_by("splash"):
        assert choose(a_call(slots=16)) == "splash"  # whether it pays or not
    with attention_by(name), pytest.raises(UserError, match=message):
        choose(a_call(**fields))


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="attention='flash' is no implementation; there are auto, splash, cudnn, xla"):
        attention_by("flash").__enter__()
