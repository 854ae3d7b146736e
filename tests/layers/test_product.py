"""The product with a matrix: its gradients are JAX's own, and none is computed that nobody asks for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers.product import product
from mmjax.training.flops import count


def arrays(*batch):
    numbers = np.random.default_rng(0)
    return (jnp.asarray(numbers.normal(size=shape), jnp.float32) for shape in ((*batch, 6), (6, 10), (*batch, 10)))


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (2, 3, 4)])
def test_gradients(batch):
    x, matrix, weights = arrays(*batch)
    ours = jax.value_and_grad(lambda x, matrix: (product(x, matrix) * weights).sum(), (0, 1))(x, matrix)
    plain = jax.value_and_grad(lambda x, matrix: ((x @ matrix) * weights).sum(), (0, 1))(x, matrix)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, plain)


def test_a_frozen_matrix_costs_no_gradient():
    x, matrix, _ = arrays(2, 3)
    products = {}
    for trained in (0, (0, 1)):
        gradient = jax.grad(lambda x, matrix: (product(x, matrix) ** 2).sum(), trained)
        products[trained] = count(gradient, x, matrix) / count(jnp.matmul, x, matrix)
    assert products == {0: 2, (0, 1): 3}
