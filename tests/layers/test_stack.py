"""The layer stack: the loop it stands for, remat that changes no gradient, a program that does not grow with depth."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.layers import stack
from mmjax.layers.linear import Linear
from mmjax.layers.parameters import define
from mmjax.layers.parameters import stack as stacked
from mmjax.types import UserError

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)), jnp.float32)


class Deep(nnx.Module):
    def __init__(self, layers):
        self.layers = stacked(Linear(6, 6), layers)

    def __call__(self, x, scales=None):
        def apply(layer, x, scale):
            x = jnp.tanh(layer(x)) * (1 if scale is None else scale)
            return x, x.sum()

        return stack.run(self.layers, apply, x, scales)


def made(layers):
    definition = define(Deep(layers))
    parameters = definition.initialise(jax.random.key(0))
    return definition, {path: value + 0.5 for path, value in parameters.items()}


def test_a_stack_is_its_loop():
    definition, parameters = made(4)
    scales = jnp.arange(1.0, 5.0)
    carry, outputs = definition.bind(parameters)(X, scales)
    x, sums = X, []
    for i in range(4):
        x = jnp.tanh(x @ parameters["layers.kernel"][i] + parameters["layers.bias"][i]) * scales[i]
        sums.append(x.sum())
    np.testing.assert_allclose(carry, x, rtol=1e-5)
    np.testing.assert_allclose(outputs, jnp.stack(sums), rtol=1e-5)


def test_what_each_layer_read_is_recorded():
    definition, parameters = made(4)

    @jax.jit
    def forward(parameters):
        with stack.record() as records:
            carry, _ = definition.bind(parameters)(X)
        return carry, records

    carry, [inputs] = forward(parameters)
    np.testing.assert_array_equal(inputs[0], X)
    for i in range(4):
        after = jnp.tanh(inputs[i] @ parameters["layers.kernel"][i] + parameters["layers.bias"][i])
        np.testing.assert_allclose(after, carry if i == 3 else inputs[i + 1], rtol=1e-5)


@pytest.mark.parametrize("policy", [name for name in stack.REMAT_POLICIES if name != "none"])
def test_remat_computes_again_what_it_does_not_keep(policy):
    definition, parameters = made(3)

    def loss(parameters):
        return (definition.bind(parameters)(X)[0] ** 2).sum()

    def gradient(name):
        with stack.remat(name):
            return jax.jit(jax.grad(loss))(parameters), str(jax.make_jaxpr(jax.grad(loss))(parameters))

    (plain, _), (saved, program) = gradient("none"), gradient(policy)
    for path in plain:
        np.testing.assert_allclose(plain[path], saved[path], rtol=1e-5, atol=1e-6)
    assert program.count("tanh") == 2  # forward and again backward


def test_an_unknown_policy_is_named():
    with pytest.raises(UserError, match="remat='most' is no policy; there are none, full"), stack.remat("most"):
        pass


def size(jaxpr):
    """Equations of a program, those of inner programs included."""
    inner = [
        value for equation in jaxpr.eqns for value in jax.tree.leaves(list(equation.params.values())) if hasattr(value, "jaxpr")
    ]
    return len(jaxpr.eqns) + sum(size(value.jaxpr) for value in inner)


def test_depth_adds_neither_leaves_nor_equations():
    programs = []
    for layers in (12, 48):
        definition = define(Deep(layers))
        loss = lambda parameters, definition=definition: definition.bind(parameters)(X)[0].sum()  # noqa: E731
        programs.append((len(definition.specs), size(jax.make_jaxpr(jax.grad(loss))(definition.abstract()).jaxpr)))
    assert programs[0] == programs[1] and programs[0][1] > 10
