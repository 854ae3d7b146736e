"""Each process makes the rows that its devices hold, and no others; together they are one global batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from mmjax.parallel.axes import batch_sharding, leaf_sharding


def held_rows(mesh: Mesh, rows: int) -> tuple[int, ...]:
    """The rows of a global batch that this process's devices hold, rising.

    Where tensor or sequence parallelism spans processes, several of them hold the same rows, and each makes them.

    Args:
      mesh: over the devices of all processes.
      rows: of the global batch; they divide over (replica, fsdp).
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return tuple(sorted({row for index in indices if index for row in range(rows)[index[0]]}))


def to_devices(mesh: Mesh, rows: int) -> Callable[[Any], Any]:
    """A function that puts a batch of host arrays, whose leading axis is `held_rows`, onto the devices as global arrays.

    Args:
      mesh, rows: see `held_rows`.
    """
    place = {row: index for index, row in enumerate(held_rows(mesh, rows))}

    def put_leaf(keys: tuple[Any, ...], leaf: Any) -> jax.Array:
        shape = (rows, *leaf.shape[1:])
        sharding = leaf_sharding(keys, shape, mesh)

        def shard(index: tuple[slice, ...]) -> Any:
            start, stop, _ = index[0].indices(rows)
            return leaf[(slice(place[start], place[stop - 1] + 1), *index[1:])]

        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_callback(shape, sharding, shard)

    return lambda batch: jax.tree_util.tree_map_with_path(put_leaf, batch)
