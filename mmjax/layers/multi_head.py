"""Multi-head attention with its four projections: self- or cross-, grouped or not, with or without rotary positions."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.layers.attention import KVCache, Mask, attend, write_slots
from mmjax.layers.linear import Linear
from mmjax.layers.parameters import normal
from mmjax.layers.positions import rotate

LayerCache = tuple[Float[Array, "b s kv_heads head_dim"], Float[Array, "b s kv_heads head_dim"]]


class MultiHeadAttention(nnx.Module):
    """Query, key, value and output projections around `attend`.

    Args:
      width: of the queries and the output.
      heads, kv_heads, head_dim: kv_heads defaults to heads, head_dim to width / heads.
      kv_width: width of what is attended to, where it differs (cross-attention).
      bias: of all projections; `key_bias`, `output_bias` override it for one.
      scale: of the scores; None = head_dim^−½. Queries are drawn so that scores begin alike under any scale.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        kv_width: int | None = None,
        bias: bool = True,
        key_bias: bool | None = None,
        output_bias: bool | None = None,
        scale: float | None = None,
    ):
        kv_heads, head_dim, kv_width = kv_heads or heads, head_dim or width // heads, kv_width or width
        query_init = None if scale is None else normal((width * head_dim) ** -0.5 / scale)
        self.query = Linear(width, heads * head_dim, ("embed", "heads"), bias=bias, init=query_init)
        self.key = Linear(kv_width, kv_heads * head_dim, ("embed", "kv_heads"), bias=bias if key_bias is None else key_bias)
        self.value = Linear(kv_width, kv_heads * head_dim, ("embed", "kv_heads"), bias=bias)
        self.output = Linear(heads * head_dim, width, ("heads", "embed"), bias=bias if output_bias is None else output_bias)
        self.head_dim, self.scale = head_dim, scale

    def split(self, x: Float[Array, "b t projected"]) -> Float[Array, "b t heads head_dim"]:
        """Splits projected features into heads."""
        return x.reshape(*x.shape[:-1], -1, self.head_dim)

    def keys_values(self, x: Float[Array, "b s kv_width"]) -> LayerCache:
        """Projects what is attended to, once for however many queries."""
        return self.split(self.key(x)), self.split(self.value(x))

    def queries(self, x: Float[Array, "b t width"]) -> Float[Array, "b t heads head_dim"]:
        """Projects the queries."""
        return self.split(self.query(x))

    def merge(self, x: Float[Array, "b t heads head_dim"]) -> Float[Array, "b t width"]:
        """Joins the heads and projects them out."""
        return self.output(x.reshape(*x.shape[:-2], -1))

    def __call__(
        self,
        x: Float[Array, "b t width"],
        mask: Mask | Bool[Array, "b 1 t s"] | None = None,
        *,
        angles: tuple[Array, Array] | None = None,
        position_bias: Float[Array, "rows heads t s"] | None = None,
        cache: LayerCache | None = None,
        dropout: float = 0.0,
        dropout_key: Array | None = None,
    ) -> tuple[Float[Array, "b t width"], LayerCache]:
        """Self-attention.

        Args:
          mask: who sees whom; with a cache its offset is the slot of the first token.
          angles: rotary cosines and sines of the positions, for queries and keys.
          position_bias: added to the scores.
          cache: keys and values of the slots so far; the new ones are written at the mask's offset.

        Returns:
          The output, and the keys and values of all slots.
        """
        query, (key, value) = self.queries(x), self.keys_values(x)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        if cache is not None:
            assert isinstance(mask, Mask), "a cache needs the structured mask, whose offset is the slot to write"
            key, value = (write_slots(old, new, mask.offset) for old, new in zip(cache, (key, value), strict=True))
        output = attend(query, key, value, mask, scale=self.scale, bias=position_bias, dropout=dropout, dropout_key=dropout_key)
        return self.merge(output), (key, value)

    def cross(
        self, x: Float[Array, "b t width"], keys_values: LayerCache, mask: Mask | Bool[Array, "b 1 t s"] | None = None
    ) -> Float[Array, "b t width"]:
        """Cross-attention to what `keys_values` has projected."""
        return self.merge(attend(self.queries(x), *keys_values, mask, scale=self.scale))


def layer_caches(cache: KVCache | None) -> tuple[Array, Array] | None:
    """The part of a cache that is scanned over layers."""
    return None if cache is None else (cache.keys, cache.values)


def cache_mask(segments: Array, cache: KVCache | None) -> tuple[Mask, KVCache | None]:
    """The causal mask of a decoder's new tokens, and the cache with their segments written."""
    if cache is None:
        return Mask(segments, segments, causal=True), None
    cache = cache.admit(segments)
    return Mask(segments, cache.segments, offset=cache.index, causal=True), cache


def advance(cache: KVCache | None, layers: tuple[Array, Array] | None, tokens: int) -> KVCache | None:
    """The cache after `tokens` new tokens, with the keys and values that the layers returned."""
    return None if cache is None else KVCache(*layers, segments=cache.segments, index=cache.index + tokens)


def layer_keys(key: Array | None, layers: int) -> Array | None:
    """One dropout key per layer, or None when dropout is off."""
    return None if key is None else jax.random.split(key, layers)
