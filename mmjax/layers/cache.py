"""The cache of keys and values, and attention to it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.layers.attention import Mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens read so far. All rows write at one shared slot: shorter prompts are padded on the left.

    Args:
      keys, values: of every layer; zero where nothing is written yet. Heads come before slots, as attention multiplies them.
      segments: segment of each slot, 0 = empty or padding.
      index: the next slot to write; a plain 0 = nothing has been read.
    """

    keys: Float[Array, "layers b kv_heads s head_dim"]
    values: Float[Array, "layers b kv_heads s head_dim"]
    segments: Int[Array, "b s"]
    index: Int[Array, ""] | int

    @classmethod
    def empty(cls, layers: int, rows: int, length: int, kv_heads: int, head_dim: int, dtype: Any) -> KVCache:
        """A cache with room for `length` tokens a row."""
        shape = (layers, rows, kv_heads, length, head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((rows, length), jnp.int32), 0)

    @property
    def fresh(self) -> bool:
        """Whether it is known, while a function is traced, that nothing has been read."""
        return isinstance(self.index, int)

    def take(self, rows: Int[Array, "r"]) -> KVCache:
        """These rows, in this order."""
        return dataclasses.replace(self, keys=self.keys[:, rows], values=self.values[:, rows], segments=self.segments[rows])

    def exchange(self, rows: Int[Array, "b"]) -> KVCache:
        """These rows, in this order, each in the place of one that has read the same prompt."""
        return self.take(rows)

    def admit(self, segments: Int[Array, "b t"]) -> KVCache:
        """The cache with the segments of t new tokens written; their keys and values follow layer by layer."""
        written = jax.lax.dynamic_update_slice(self.segments, segments.astype(jnp.int32), (0, self.index))
        return dataclasses.replace(self, segments=written)


def write_slots(
    stored: Float[Array, "layers b kv_heads s head_dim"],
    new: Float[Array, "layers b t kv_heads head_dim"],
    index: Int[Array, ""] | int,
) -> Float[Array, "layers b kv_heads s head_dim"]:
    """Writes the keys or values of new tokens at slots index, index + 1, …"""
    return jax.lax.dynamic_update_slice(stored, jnp.swapaxes(new, 2, 3).astype(stored.dtype), (0, 0, 0, index, 0))


def attend_cached(
    query: Float[Array, "b t heads head_dim"],
    cached: tuple[Float[Array, "b kv_heads s head_dim"], Float[Array, "b kv_heads s head_dim"]],
    new: tuple[Float[Array, "b t kv_heads head_dim"], Float[Array, "b t kv_heads head_dim"]],
    mask: Mask,
    *,
    scale: float | None = None,
    bias: Float[Array, "rows heads t s"] | None = None,
) -> Float[Array, "b t heads head_dim"]:
    """Attention to the cache and to tokens that are not written into it yet.

    The slots of the new tokens are empty, so that the cache is only read: no layer copies it. Scores and weights are those of
    `attend` with the new keys and values in their slots.

    Args:
      cached: a layer's keys and values.
      new: of the t tokens, whose slots begin at the mask's offset.
      mask: over the slots of the cache, the new tokens' segments in it.
      scale, bias: see `attend`.
    """
    rows, tokens, heads, head_dim = query.shape
    keys, values = cached
    new_keys, new_values = (jnp.swapaxes(x, 1, 2) for x in new)
    kv_heads, groups = keys.shape[1], heads // keys.shape[1]
    # Batch dimensions first, then one matrix product for all queries of a head: no operand is transposed.
    grouped = jnp.moveaxis(query.reshape(rows, tokens, kv_heads, groups, head_dim), 1, 3)
    grouped = grouped.reshape(rows, kv_heads, groups * tokens, head_dim)
    scores = jnp.einsum("bkgh,bksh->bkgs", grouped, keys).astype(jnp.float32)
    scores_of_new = jnp.einsum("bkgh,bkth->bkgt", grouped, new_keys).astype(jnp.float32)
    scores = jax.lax.dynamic_update_slice(scores, scores_of_new, (0, 0, 0, mask.offset))
    scores = scores.reshape(rows, kv_heads, groups, tokens, -1) * (head_dim**-0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.reshape(-1, *scores.shape[1:])
    scores = jnp.where(mask.dense()[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype).reshape(rows, kv_heads, groups * tokens, -1)
    weights_of_new = jax.lax.dynamic_slice_in_dim(weights, mask.offset, tokens, axis=-1)
    output = jnp.einsum("bkgs,bksh->bkgh", weights, values) + jnp.einsum("bkgt,bkth->bkgh", weights_of_new, new_values)
    return jnp.moveaxis(output.reshape(rows, kv_heads, groups, tokens, head_dim), 3, 1).reshape(query.shape)
