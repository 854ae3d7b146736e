"""How attention is split where the compiler cannot split it: a kernel runs on the rows, heads and queries of its device."""

from __future__ import annotations

from jax.sharding import Mesh, PartitionSpec

from mmjax.parallel.axes import partition_spec
from mmjax.parallel.rows import layout_in_use


def attention_specs(mesh: Mesh, query: tuple[int, ...], key: tuple[int, ...]) -> tuple[PartitionSpec, PartitionSpec]:
    """The split of queries, and of keys and values: rows and queries as the layout in use has them, heads over tensor.

    Every device has all keys of its rows and heads. What does not divide is whole on every device.

    Args:
      query: shape [b, t, heads, head_dim].
      key: shape [b, s, kv_heads, head_dim].
    """
    rows, slots = (*layout_in_use(), None)[:2]
    heads, kv_heads, tensor = query[2], key[2], mesh.shape["tensor"]
    grouped = kv_heads % tensor == 0  # each device has the keys of its queries
    split = heads % tensor == 0 and (grouped or kv_heads == 1)
    query_spec = partition_spec(query, (rows, slots, "heads" if split else None, None), mesh)
    return query_spec, partition_spec(key, (rows, None, "kv_heads" if split and grouped else None, None), mesh)
