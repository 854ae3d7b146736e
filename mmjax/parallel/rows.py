"""Keeps activations split by rows, so that FSDP gathers weights and never activations.

Left to itself the partitioner may read a weight that fsdp splits as tensor parallelism, and gather every row of the batch on
every device. One constraint on what enters each layer is enough to decide it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mmjax.parallel.axes import batch_sharding, batch_shards

Tree = TypeVar("Tree")

_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh of the rows", default=None)


@contextlib.contextmanager
def rows_on(mesh: Mesh) -> Iterator[None]:
    """What is traced inside keeps its rows on this mesh."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def mesh_in_use() -> Mesh | None:
    """The mesh that what is traced now will run on; None outside `rows_on`."""
    return _mesh.get()


def platform() -> str:
    """What the program that is traced now will run on, which need not be this machine: "cpu", "gpu" or "tpu"."""
    mesh = _mesh.get()
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def keep_rows(tree: Tree) -> Tree:
    """Pins the leading axis of every activation to (replica, fsdp); nothing outside `rows_on`.

    Args:
      tree: floating-point arrays of rank 2 or more whose rows divide over the devices are pinned, all else is left alone.
    """
    mesh = _mesh.get()
    if mesh is None or batch_shards(mesh) == 1:
        return tree

    def pin(leaf: jax.Array) -> jax.Array:
        is_activation = leaf.ndim >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)
        if not is_activation or leaf.shape[0] % batch_shards(mesh):
            return leaf
        return jax.lax.with_sharding_constraint(leaf, batch_sharding(mesh))

    return jax.tree.map(pin, tree)
