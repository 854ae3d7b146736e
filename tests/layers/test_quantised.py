"""Matrices in int8: how far they are from what they were, what they multiply to, and what is never one."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from jax.sharding import PartitionSpec

from mmjax.layers.parameters import ParameterSpec
from mmjax.layers.quantised import multiply, quantisable, quantise, quantised_shape
from mmjax.parallel.axes import shardings
from mmjax.parallel.mesh import make_mesh
from mmjax.types import UserError

DRAW = np.random.default_rng(0)
MATRIX = jnp.asarray(DRAW.normal(size=(2, 24, 16)) * DRAW.uniform(0.1, 3, (2, 1, 16)), jnp.float32)
SPEC = ParameterSpec((2, 24, 16), jnp.float32, ("layers", "embed", "heads"))


def test_each_output_of_each_layer_has_a_scale_and_no_weight_is_off_by_more_than_half_of_it():
    stored = quantise(MATRIX)
    assert stored.qvalue.dtype == jnp.int8 and stored.qvalue.shape == MATRIX.shape and stored.scale.shape == (2, 1, 16)
    np.testing.assert_allclose(stored.scale, np.abs(MATRIX).max(1, keepdims=True) / 127, rtol=1e-2)
    assert (np.abs(qwix.dequantize(stored) - MATRIX) <= stored.scale / 2 + 1e-6).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_a_product_is_that_with_the_dequantised_matrix(dtype, tolerance):
    layer, x = jax.tree.map(lambda leaf: leaf[1], quantise(MATRIX)), jnp.asarray(DRAW.normal(size=(3, 5, 24)), dtype)
    product = multiply(x, layer)
    assert product.dtype == dtype
    expected = x.astype(jnp.float32) @ qwix.dequantize(layer)
    np.testing.assert_allclose(product.astype(jnp.float32), expected, rtol=tolerance, atol=tolerance)


def test_shapes_are_those_of_what_is_stored_and_scales_are_split_as_outputs_are():
    sharding = shardings({"a": SPEC}, make_mesh({"fsdp": 4, "tensor": 2}))["a"]
    shape, stored = quantised_shape(SPEC.shape, sharding), jax.eval_shape(quantise, MATRIX)
    assert jax.tree.structure(shape) == jax.tree.structure(stored)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shape)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(stored)
    ]
    assert sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert shape.qvalue.sharding == sharding and shape.scale.sharding.spec == PartitionSpec(None, None, "tensor")


@pytest.mark.parametrize(
    ("path", "axes", "expected"),
    [
        ("llm.layers.mlp.up.kernel", ("embed", "ffn"), True),
        ("llm.head.kernel", ("embed", "vocab"), False),
        ("llm.token_embedding.table", ("vocab", "embed"), False),
        ("llm.layers.mlp.up.bias", ("ffn",), False),
        ("llm.layers.mlp.up.lora_a", ("embed", None), False),
    ],
)
def test_only_matrices_of_linear_layers_that_give_no_logits(path, axes, expected):
    assert quantisable(path, ParameterSpec((8,) * len(axes), jnp.float32, axes)) == expected


def test_without_qwix_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"int8 need qwix: pip install 'mmjax\[quant\]'"):
        quantise(MATRIX)
