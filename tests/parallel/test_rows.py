"""Activations stay split by rows, and only where that is asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmjax.parallel.axes import batch_sharding
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.rows import ROWS, TEXT, keep, keep_all_positions, laid_out, rows_on


def constraints(tree):
    # A new function each time: JAX keeps the traces of functions it knows.
    return str(jax.make_jaxpr(lambda tree: keep(tree, *ROWS))(tree)).count("sharding_constraint")


def test_only_rows_that_divide_are_pinned():
    tree = {"stream": jnp.ones((16, 4)), "odd": jnp.ones((3, 4)), "vector": jnp.ones(16), "scalar": jnp.ones(())}
    assert constraints(tree) == 0
    with rows_on(make_mesh({"tensor": 8})):
        assert constraints(tree) == 0
    with rows_on(make_mesh({"fsdp": 8})):
        assert constraints(tree) == 1
    assert constraints(tree) == 0


def test_pinned_rows_lie_where_the_batch_lies():
    mesh = make_mesh({"replica": 2, "fsdp": 2, "tensor": 2})
    with rows_on(mesh):
        pinned = jax.jit(lambda x: keep(x, "batch"))(jnp.arange(32.0).reshape(8, 4))
    assert pinned.sharding.is_equivalent_to(batch_sharding(mesh), 2) and pinned[:, 0].tolist() == list(range(0, 32, 4))


def place(x, function):
    with rows_on(make_mesh({"fsdp": 2, "tensor": 2, "sequence": 2})):
        return jax.jit(function)(x).sharding.spec


def test_text_is_split_by_positions_and_what_stands_alone_by_rows():
    assert place(jnp.ones((4, 6, 8)), lambda x: keep(x, *TEXT)) == P("fsdp", "sequence")
    assert place(jnp.ones((4, 6, 8)), lambda x: keep(x, *ROWS)) == P(("fsdp", "sequence"))
    assert place(jnp.ones((6, 6, 8)), lambda x: keep(x, *ROWS)) == P("fsdp"), "as many axes as divide"


def test_keys_of_text_are_gathered_over_the_sequence_and_those_of_pictures_are_not_touched():
    keys = jnp.ones((4, 6, 2, 8))
    with laid_out(TEXT):
        assert place(keys, keep_all_positions) == P("fsdp", None, "tensor")
        assert place(jnp.ones((4, 6, 1, 8)), keep_all_positions) == P("fsdp"), "a single head cannot be split"
    with laid_out(ROWS), rows_on(make_mesh({"fsdp": 2, "tensor": 2, "sequence": 2})):
        assert "sharding_constraint" not in str(jax.make_jaxpr(lambda keys: keep_all_positions(keys))(keys))
