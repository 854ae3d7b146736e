"""Splash attention: the flash-attention kernel for TPUs that comes with JAX (arXiv 2205.14135), split over the mesh.

No [t, s] array exists: scores are made block by block, the blocks that order forbids are skipped, and segments are compared
inside the others. The compiler cannot split a kernel by itself, so each device runs it on its rows, heads and queries.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from mmjax.parallel.attention import attention_specs
from mmjax.parallel.rows import layout_in_use, mesh_in_use, mesh_size, platform

LANES = 128  # a block is a multiple of the width of a TPU's vector registers
BLOCK = 1024  # queries, and keys, that the kernel works on at once: more do not fit the memory of the vector unit
WIDE = 512  # bytes of a head's features above which a block has half as many
# The kinds on which one kernel makes all gradients, where the others read queries and keys twice: it needs room.
FUSED_BACKWARD = ("TPU v6 lite", "TPU7x")
RESIDUALS = "attended"  # the name by which a remat policy keeps what the kernel's backward pass needs


def splash_attention(
    query: Float[Array, "b t heads head_dim"],
    key: Float[Array, "b s kv_heads head_dim"],
    value: Float[Array, "b s kv_heads head_dim"],
    segments: tuple[Int[Array, "b t"], Int[Array, "b s"]] | None,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float,
) -> Float[Array, "b t heads head_dim"]:
    """Attention among equal segments. Padding (0) sees padding, so that it stays finite.

    Where the program runs on a CPU the kernel is interpreted, to be compared with.

    Args:
      segments: of queries and keys; None = all are one.
      causal: whether a query sees only keys at its own slot or before.
      window: with `causal`, how many slots a query sees, its own included; None = all.
      scale: of the scores.
    """
    mesh = mesh_in_use()
    shards = mesh_size("sequence") if "text" in layout_in_use() else 1
    most = _block_limit(query.shape[-1] * query.dtype.itemsize)
    block_q, queries = _blocks(query.shape[1], most, shards)
    # In order, padded queries have padded keys beside them: a device with nothing to compute is an error of the kernel.
    block_kv, keys = _blocks(queries if causal else key.shape[1], most)
    if segments is None and (queries, keys) != (query.shape[1], key.shape[1]):
        segments = (jnp.ones(query.shape[:2], jnp.int32), jnp.ones(key.shape[:2], jnp.int32))
    padded = None if segments is None else splash.SegmentIds(_pad(segments[0], queries), _pad(segments[1], keys))
    # With an order each device has the mask of its queries; without one all have the same.
    mask, parts = (_order(queries, keys, window), shards) if causal else (masks.FullMask((queries // shards, keys)), 1)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask]),  # of all heads
        block_sizes=_block_sizes(block_q, block_kv, fused_backward=_kind(mesh) in FUSED_BACKWARD),
        head_shards=1,
        q_seq_shards=parts,
        residual_checkpoint_name=RESIDUALS,
        interpret=platform() == "cpu",
    )
    arguments = (kernel, _pad(query * scale, queries), _pad(key, keys), _pad(value, keys), padded)
    if mesh is None:
        return _run(*arguments)[:, : query.shape[1]]
    q, kv = attention_specs(mesh, (query.shape[0], queries, *query.shape[2:]), key.shape)
    tables = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, q[1] if parts > 1 else None)))
    segment_specs = None if padded is None else splash.SegmentIds(PartitionSpec(*q[:2]), PartitionSpec(*kv[:2]))
    split = jax.shard_map(_run, mesh=mesh, in_specs=(tables, q, kv, kv, segment_specs), out_specs=q, check_vma=False)
    return split(*arguments)[:, : query.shape[1]]


def _run(kernel: Any, query: Array, key: Array, value: Array, segments: Any) -> Array:
    """The kernel on every row of a device; it wants heads before slots."""
    arguments = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(jax.vmap(kernel)(*arguments, segments), 1, 2)


def _order(queries: int, keys: int, window: int | None) -> Any:
    if window is None:
        return masks.CausalMask((queries, keys))
    return masks.LocalMask((queries, keys), window_size=(window - 1, 0), offset=0)


def _block_sizes(q: int, kv: int, *, fused_backward: bool) -> splash.BlockSizes:
    forward = {"block_q": q, "block_kv": kv, "block_q_dkv": q, "block_kv_dkv": kv}
    if fused_backward:
        return splash.BlockSizes(**forward, use_fused_bwd_kernel=True)
    return splash.BlockSizes(**forward, block_q_dq=q, block_kv_dq=kv)


def _blocks(slots: int, most: int, shards: int = 1) -> tuple[int, int]:
    """The block, and the slots padded to a multiple of it on each of the shards: as many blocks as needed, alike in size."""
    here = -(-slots // shards)
    count = -(-here // most)
    block = -(-here // (count * LANES)) * LANES
    return block, count * block * shards


def _block_limit(feature_bytes: int) -> int:
    return BLOCK if feature_bytes <= WIDE else BLOCK // 2


def _kind(mesh: Mesh | None) -> str:
    return (jax.devices() if mesh is None else mesh.devices.flat)[0].device_kind


def _pad(x: Array, slots: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, slots - x.shape[1])) + ((0, 0),) * (x.ndim - 2))
