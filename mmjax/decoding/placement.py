"""Host batches onto the devices that hold the parameters, and results back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from mmjax.parallel.axes import batch_sharding, batch_shards

T = TypeVar("T")


def place(batch: T, parameters: Mapping[str, Any]) -> T:
    """The batch, or any tree of arrays, with its rows spread over the parameters' mesh; as it is where there is none, or they
    do not divide."""
    sharding = jax.tree.leaves(parameters)[0].sharding
    if not isinstance(sharding, NamedSharding) or jax.tree.leaves(batch)[0].shape[0] % batch_shards(sharding.mesh):
        return batch
    return jax.device_put(batch, batch_sharding(sharding.mesh))


def fetch(tree: T) -> T:
    """Whole NumPy arrays on every host."""
    return jax.tree.map(_fetch, tree)


def _fetch(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return multihost_utils.process_allgather(leaf, tiled=True)
    return jax.device_get(leaf)
