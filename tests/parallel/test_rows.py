"""Activations stay split by rows, and only where that is asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.parallel.axes import batch_sharding
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.rows import keep_rows, rows_on


def constraints(tree):
    # A new function each time: JAX keeps the traces of functions it knows.
    return str(jax.make_jaxpr(lambda tree: keep_rows(tree))(tree)).count("sharding_constraint")


def test_only_rows_that_divide_are_pinned():
    tree = {"stream": jnp.ones((16, 4)), "odd": jnp.ones((3, 4)), "ids": jnp.ones((16, 4), int), "scalar": jnp.ones(())}
    assert constraints(tree) == 0
    with rows_on(make_mesh({"tensor": 8})):
        assert constraints(tree) == 0
    with rows_on(make_mesh({"fsdp": 8})):
        assert constraints(tree) == 1
    assert constraints(tree) == 0


def test_pinned_rows_lie_where_the_batch_lies():
    mesh = make_mesh({"replica": 2, "fsdp": 2, "tensor": 2})
    with rows_on(mesh):
        pinned = jax.jit(keep_rows)(jnp.arange(32.0).reshape(8, 4))
    assert pinned.sharding.is_equivalent_to(batch_sharding(mesh), 2) and pinned[:, 0].tolist() == list(range(0, 32, 4))
