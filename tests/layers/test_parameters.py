"""Abstract modules, flat parameters, and draws that depend on nothing but key and path."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.layers.linear import Embedding, Linear
from mmjax.layers.norms import LayerNorm
from mmjax.layers.parameters import define, parameter, stack


class Small(nnx.Module):
    def __init__(self, extra=False):
        self.first = Linear(4, 6)
        self.items = nnx.List([LayerNorm(6, 1e-5)])
        self.deep = stack(Linear(6, 6), 3)
        self.extra = Embedding(5, 4) if extra else None

    def __call__(self, x):
        return self.items[0](self.first(x))


def test_building_makes_no_array():
    specs = define(stack(Linear(2**20, 2**20), 1000)).specs
    assert specs["kernel"].shape == (1000, 2**20, 2**20)
    assert specs["kernel"].stacked and specs["kernel"].unstacked_shape == (2**20, 2**20)


def test_paths_shapes_and_axes():
    specs = define(Small()).specs
    assert set(specs) == {
        "first.kernel", "first.bias", "items.0.scale", "items.0.bias", "deep.kernel", "deep.bias",
    }  # fmt: skip
    assert specs["deep.kernel"].axes[0] == "layers" and not specs["first.kernel"].stacked
    with pytest.raises(ValueError, match="do not name the dimensions"):
        parameter((2, 3), ("embed",))


def test_a_leaf_depends_on_key_and_path_only():
    plain, more = define(Small()), define(Small(extra=True))
    key = jax.random.key(3)
    first, second = plain.initialise(key), jax.jit(more.initialise)(key)
    for path, value in first.items():
        np.testing.assert_allclose(value, second[path], rtol=1e-6)
    assert not np.array_equal(first["deep.kernel"][0], first["deep.kernel"][1])
    other = plain.initialise(jax.random.key(4))
    assert not np.array_equal(first["first.kernel"], other["first.kernel"])
    assert {path: (value.shape, value.dtype) for path, value in first.items()} == {
        path: (value.shape, value.dtype) for path, value in plain.abstract().items()
    }


def test_binding_casts_matrices_only_and_wants_all():
    definition = define(Small())
    parameters = definition.initialise(jax.random.key(0))
    x = jnp.ones((2, 4))
    compiled = jax.jit(lambda p: definition.bind(p)(x))(parameters)
    np.testing.assert_allclose(compiled, definition.bind(parameters)(x), rtol=1e-6)
    half = definition.bind(parameters, jnp.bfloat16)
    assert half.first.kernel[...].dtype == jnp.bfloat16 and half.deep.bias[...].dtype == jnp.float32
    del parameters["first.bias"]
    with pytest.raises(ValueError, match="1 parameters are missing, the first is 'first.bias'"):
        definition.bind(parameters)
