"""Relative positions: buckets are those of the reference, and a bias is added to every head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from mmjax.layers.attention import Mask, attend
from mmjax.layers.relative_positions import RelativePositionBias, distance_buckets


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 128), (8, 11), (7, 40), (64, 600), (4, 3)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_buckets_are_those_of_transformers(buckets, distance, bidirectional):
    bias = RelativePositionBias(1, 1, buckets, distance, bidirectional=bidirectional)
    bias.values = lambda index: index[..., None].astype(jnp.float32)  # shows the bucket itself
    ours = bias(3, 700, offset=350)[0, 0]
    distances = torch.arange(700)[None] - torch.arange(350, 353)[:, None]
    theirs = T5Attention._relative_position_bucket(distances, bidirectional, buckets, distance)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_a_bucket_begins_where_its_logarithm_is_whole():
    assert [int(np.argmax(distance_buckets(16, 128) == bucket)) for bucket in (7, 8, 10, 12, 14)] == [7, 8, 16, 32, 64]


def test_a_bias_is_added_to_every_head_of_its_own():
    """Attention with a bias is attention whose probabilities are multiplied by its exponential, with and without groups."""
    draw = np.random.default_rng(0)
    query, key, value = (jnp.asarray(draw.normal(size=(2, 5, heads, 3)), jnp.float32) for heads in (4, 2, 2))
    bias = jnp.asarray(draw.normal(size=(1, 4, 5, 5)), jnp.float32)
    mask = Mask(jnp.ones((2, 5), int), jnp.ones((2, 5), int), causal=True)
    scores = jnp.einsum("bthd,bshd->bhts", query, jnp.repeat(key, 2, 2)) * 0.5 + bias
    weights = jax.nn.softmax(jnp.where(mask.dense(), scores, -jnp.inf), -1)
    expected = jnp.einsum("bhts,bshd->bthd", weights, jnp.repeat(value, 2, 2))
    np.testing.assert_allclose(attend(query, key, value, mask, scale=0.5, bias=bias), expected, atol=1e-5)
    fused = jax.nn.dot_product_attention(query, key, value, bias=bias, mask=mask.dense(), scale=0.5)
    np.testing.assert_allclose(fused, expected, atol=1e-5)
