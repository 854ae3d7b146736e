"""How attention is split where the compiler cannot split it: a kernel runs on the rows, heads and queries of its device."""

from __future__ import annotations

from jax.sharding import Mesh, PartitionSpec

from mmjax.parallel.axes import LOGICAL_AXES, batch_shards


def attention_specs(mesh: Mesh, query: tuple[int, ...], key: tuple[int, ...]) -> tuple[PartitionSpec, PartitionSpec]:
    """The split of queries, and of keys and values: rows over (replica, fsdp), heads over tensor, queries over sequence.

    Every device has all keys of its rows and heads. What does not divide is whole on every device.

    Args:
      query: shape [b, t, heads, head_dim].
      key: shape [b, s, kv_heads, head_dim].
    """
    (b, t, heads, _), kv_heads = query, key[2]
    rows = LOGICAL_AXES["batch"] if b % batch_shards(mesh) == 0 else None
    slots = "sequence" if t % mesh.shape["sequence"] == 0 else None
    tensor = mesh.shape["tensor"]
    grouped = kv_heads % tensor == 0  # each device has the keys of its queries
    split = heads % tensor == 0 and (grouped or kv_heads == 1)
    query_spec = PartitionSpec(rows, slots, "tensor" if split else None, None)
    return query_spec, PartitionSpec(rows, None, "tensor" if split and grouped else None, None)
