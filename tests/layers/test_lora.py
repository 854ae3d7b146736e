"""Adapters: nothing at first, low rank afterwards, gone when merged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.layers.linear import Linear
from mmjax.layers.lora import add_lora, lora_scales, merge_lora
from mmjax.layers.parameters import define, stack
from mmjax.types import UserError

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)), jnp.float32)


class Pair(nnx.Module):
    def __init__(self):
        self.first = Linear(6, 4)
        self.deep = stack(Linear(4, 4), 3)

    def __call__(self, x):
        x = self.first(x)
        graphdef, state = nnx.split(self.deep)
        return jax.lax.scan(lambda x, layer: (nnx.merge(graphdef, layer)(x), None), x, state)[0]


def adapted(rules, alpha=6.0):
    module = Pair()
    add_lora(module, rules, alpha)
    return define(module)


def test_first_rule_wins_and_zero_is_none():
    specs = adapted(((r"deep\.kernel", 2), (r".*", 0))).specs
    assert specs["deep.lora_a"].shape == (3, 4, 2) and specs["deep.lora_b"].shape == (3, 2, 4)
    assert specs["deep.lora_a"].stacked and not any(path.startswith("first.lora") for path in specs)


def test_a_fresh_adapter_changes_nothing_but_has_a_gradient():
    plain, with_adapters = define(Pair()), adapted(((".*", 2),))
    parameters = with_adapters.initialise(jax.random.key(0))
    np.testing.assert_array_equal(plain.bind(parameters)(X), with_adapters.bind(parameters)(X))
    gradients = jax.grad(lambda parameters: (with_adapters.bind(parameters)(X) ** 2).sum())(parameters)
    assert np.abs(gradients["deep.lora_b"]).max() > 0 and not np.abs(gradients["deep.lora_a"]).max()
    assert not np.array_equal(parameters["deep.lora_a"][0], parameters["deep.lora_a"][1])


def test_merging_keeps_the_function_and_the_dtype():
    definition = adapted(((".*", 2),))
    parameters = definition.initialise(jax.random.key(0))
    parameters = {path: value + 0.3 * path.endswith("lora_b") for path, value in parameters.items()}
    merged = merge_lora(parameters, lora_scales(definition))
    assert set(merged) == set(define(Pair()).specs)
    before, after = definition.bind(parameters)(X), define(Pair()).bind(merged)(X)
    assert np.abs(before - define(Pair()).bind(parameters)(X)).max() > 0.01
    np.testing.assert_allclose(before, after, atol=1e-5)
    half = merge_lora({path: value.astype(jnp.bfloat16) for path, value in parameters.items()}, lora_scales(definition))
    assert {str(value.dtype) for value in half.values()} == {"bfloat16"}


def test_a_rule_that_matches_no_linear_layer_is_told():
    with pytest.raises(UserError, match=r"rule 'deep\\\\.bias' matches no linear layer; kernels are deep.kernel, first.kernel"):
        adapted(((r"deep\.bias", 2),))
