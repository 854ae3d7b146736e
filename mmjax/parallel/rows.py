"""Keeps activations where they belong on the mesh, so that FSDP gathers weights and never activations.

Left to itself the partitioner may read a weight that fsdp splits as tensor parallelism, and gather every row of the batch on
every device. One constraint on what enters each layer is enough to decide it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TypeVar

import jax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Shaped

from mmjax.parallel.axes import STORAGE, layout_of, partition_spec

Tree = TypeVar("Tree")
Layout = tuple[str | None, ...]

# The logical axes of an activation's leading dimensions.
TEXT: Layout = ("batch", "text")  # rows of text: sequence parallelism splits their positions, and attention joins them
ROWS: Layout = ("rows",)  # what stands alone: a picture, a query

_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh of the rows", default=None)
_layout: contextvars.ContextVar[Layout] = contextvars.ContextVar("layout of activations", default=ROWS)


@contextlib.contextmanager
def rows_on(mesh: Mesh) -> Iterator[None]:
    """What is traced inside keeps its activations on this mesh."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


@contextlib.contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """The activations of the layers that are traced inside lie so."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def mesh_in_use() -> Mesh | None:
    """The mesh that what is traced now will run on; None outside `rows_on`."""
    return _mesh.get()


def platform() -> str:
    """What the program that is traced now will run on, which need not be this machine: "cpu", "gpu" or "tpu"."""
    mesh = _mesh.get()
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def layout_in_use() -> Layout:
    """How the activations of the layer lie that is traced now."""
    return _layout.get()


def mesh_size(axis: str) -> int:
    """Devices along an axis of the mesh in use; 1 without a mesh."""
    mesh = _mesh.get()
    return 1 if mesh is None else mesh.shape[axis]


def shares(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """Into how many pieces `keep` cuts each dimension that the layout names."""
    mesh = _mesh.get()
    if mesh is None:
        return (1,) * len(layout)
    part = NamedSharding(mesh, partition_spec(shape, layout, mesh)).shard_shape(shape)
    return tuple(whole // size for whole, size, _ in zip(shape, part, layout, strict=False))


def keep(tree: Tree, *layout: str | None) -> Tree:
    """Pins the leading dimensions of every array to the mesh axes of these logical axes, and its others whole.

    Nothing happens outside `rows_on`, nor to arrays of less than two dimensions, nor to those that no mesh axis divides.
    """
    mesh = _mesh.get()
    if mesh is None:
        return tree

    def pin(leaf: jax.Array) -> jax.Array:
        spec = partition_spec(leaf.shape, layout, mesh)
        if leaf.ndim < 2 or not any(spec):
            return leaf
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(pin, tree)


def keep_media(x: Shaped[Array, "b n ..."]) -> Shaped[Array, "b n ..."]:
    """Pins what belongs to media slots to where the media of a batch live."""
    mesh = _mesh.get()
    return x if mesh is None else keep(x, *layout_of("media", x.shape, mesh))


def keep_all_positions(x: Shaped[Array, "b s heads head_dim"]) -> Shaped[Array, "b s heads head_dim"]:
    """Keys or values as sequence parallelism needs them: queries stay with their positions, and each sees all keys of its row.

    The one gather of sequence parallelism, of what is narrowest in a layer. It comes after the projection, which every device
    does for its own positions.
    """
    if _layout.get() != TEXT or mesh_size("sequence") == 1:
        return x
    return keep(keep(x, *TEXT, "kv_heads"), "batch", None, "kv_heads")


def gather_rows(table: Shaped[Array, "rows d"]) -> Shaped[Array, "rows d"]:
    """A table for look-ups, stored in pieces of its rows: gathered as any weight, lest every device looks up all tokens."""
    mesh = _mesh.get()
    if mesh is None or all(mesh.shape[axis] == 1 for axis in STORAGE):
        return table
    return jax.lax.with_sharding_constraint(table, NamedSharding(mesh, partition_spec(table.shape, ("vocab_share",), mesh)))
