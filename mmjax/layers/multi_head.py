"""Multi-head attention with its four projections: self- or cross-, grouped or not, with or without rotary positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from mmjax.layers.attention import Mask, attend
from mmjax.layers.cache import KVCache, attend_cached, write_slots
from mmjax.layers.linear import Linear
from mmjax.layers.norms import RMSNorm
from mmjax.layers.parameters import normal
from mmjax.layers.positions import Angles, rotate
from mmjax.parallel.rows import keep_all_positions

LayerCache = tuple[Float[Array, "b kv_heads s head_dim"], Float[Array, "b kv_heads s head_dim"]]
SourceKeysValues = tuple[Float[Array, "b s kv_heads head_dim"], Float[Array, "b s kv_heads head_dim"]]
KeysValues = tuple[Float[Array, "b t kv_heads head_dim"], Float[Array, "b t kv_heads head_dim"]]  # of t new tokens


class MultiHeadAttention(nnx.Module):
    """Query, key, value and output projections around `attend`, named for the remat policies of `mmjax.layers.stack`.

    Args:
      width: of the queries and the output.
      heads, kv_heads, head_dim: kv_heads defaults to heads, head_dim to width / heads.
      kv_width: width of what is attended to, where it differs (cross-attention).
      bias: of all projections; `key_bias`, `output_bias` override it for one.
      scale: of the scores; None = head_dim^−½. Queries are drawn so that scores begin alike under any scale.
      head_norm_eps: each head's queries and keys pass an RMS norm before they are rotated (Qwen3); None = they do not.
      interleaved: which features rotary positions pair, see `rotate`.
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
        head_norm_eps: float | None = None,
        interleaved: bool = False,
    ):
        kv_heads, head_dim, kv_width = kv_heads or heads, head_dim or width // heads, kv_width or width
        # A single head of keys serves all queries: every device of a tensor group needs it whole.
        kv_axes = ("embed", "kv_heads" if kv_heads > 1 else "head_dim")
        query_init = None if scale is None else normal((width * head_dim) ** -0.5 / scale)
        self.query = Linear(width, heads * head_dim, ("embed", "heads"), bias=bias, init=query_init)
        self.key = Linear(kv_width, kv_heads * head_dim, kv_axes, bias=bias if key_bias is None else key_bias)
        self.value = Linear(kv_width, kv_heads * head_dim, kv_axes, bias=bias)
        self.output = Linear(heads * head_dim, width, ("heads", "embed"), bias=bias if output_bias is None else output_bias)
        self.query_norm = None if head_norm_eps is None else RMSNorm(head_dim, head_norm_eps)
        self.key_norm = None if head_norm_eps is None else RMSNorm(head_dim, head_norm_eps)
        self.kv_heads, self.head_dim, self.scale = kv_heads, head_dim, scale
        self.interleaved = interleaved

    def split(self, x: Float[Array, "b t projected"]) -> Float[Array, "b t heads head_dim"]:
        """Splits projected features into heads."""
        return x.reshape(*x.shape[:-1], -1, self.head_dim)

    def keys_values(self, x: Float[Array, "b s kv_width"]) -> SourceKeysValues:
        """Projects what is attended to, once for however many queries."""
        key, value = (checkpoint_name(each(x), name) for each, name in ((self.key, "key"), (self.value, "value")))
        key = self.split(key)
        return key if self.key_norm is None else self.key_norm(key), self.split(value)

    def queries(self, x: Float[Array, "b t width"]) -> Float[Array, "b t heads head_dim"]:
        """Projects the queries."""
        query = self.split(checkpoint_name(self.query(x), "query"))
        return query if self.query_norm is None else self.query_norm(query)

    def merge(self, x: Float[Array, "b t heads head_dim"]) -> Float[Array, "b t width"]:
        """Joins the heads and projects them out."""
        attended = checkpoint_name(x.reshape(*x.shape[:-2], -1), "attended")
        return checkpoint_name(self.output(attended), "output")

    def __call__(
        self,
        x: Float[Array, "b t width"],
        mask: Mask | Bool[Array, "b 1 t s"] | None = None,
        *,
        angles: Angles | None = None,
        position_bias: Float[Array, "rows heads t s"] | None = None,
        cache: LayerCache | None = None,
        dropout: float = 0.0,
        dropout_key: Array | None = None,
    ) -> tuple[Float[Array, "b t width"], KeysValues]:
        """Self-attention.

        Args:
          mask: who sees whom; with a cache its offset is the slot of the first token.
          angles: rotary cosines and sines of the positions, for queries and keys.
          position_bias: added to the scores.
          cache: keys and values of the slots so far; the new ones stand at the mask's offset.

        Returns:
          The output, and the keys and values of x. They are written into the cache by `advance`, for all layers at once: a scan
          that returned whole slots would copy all of the cache for every token.
        """
        query, (key, value) = self.queries(x), self.keys_values(x)
        if angles is not None:
            query, key = (rotate(x, angles, interleaved=self.interleaved) for x in (query, key))
        if cache is not None:
            assert isinstance(mask, Mask), "a cache needs the structured mask, whose offset is the slot to write"
            output = attend_cached(query, cache, (key, value), mask, scale=self.scale, bias=position_bias)
        else:
            how = {"dropout": dropout, "dropout_key": dropout_key}
            keys, values = keep_all_positions(key), keep_all_positions(value)
            output = attend(query, keys, values, mask, scale=self.scale, bias=position_bias, **how)
        return self.merge(output), (key, value)

    def cross(
        self, x: Float[Array, "b t width"], keys_values: SourceKeysValues, mask: Mask | Bool[Array, "b 1 t s"] | None = None
    ) -> Float[Array, "b t width"]:
        """Cross-attention to what `keys_values` has projected."""
        key, value = map(keep_all_positions, keys_values)
        return self.merge(attend(self.queries(x), key, value, mask, scale=self.scale))


def layer_caches(cache: KVCache | None) -> tuple[Array, Array] | None:
    """The part of a cache that is scanned over layers; None = there is nothing in it to attend to."""
    return None if cache is None or cache.fresh else (cache.keys, cache.values)


def cache_mask(segments: Array, cache: KVCache | None) -> tuple[Mask, KVCache | None]:
    """The causal mask of a decoder's new tokens, and the cache with their segments written."""
    if cache is None:
        return Mask(segments, segments, causal=True), None
    admitted = cache.admit(segments)
    keys, offset = (segments, 0) if cache.fresh else (admitted.segments, cache.index)
    return Mask(segments, keys, offset=offset, causal=True), admitted


def advance(cache: KVCache | None, layers: tuple[Array, Array] | None, tokens: int) -> KVCache | None:
    """The cache after `tokens` new tokens, whose keys and values every layer returned."""
    if cache is None or layers is None:
        return None
    keys, values = (write_slots(old, new, cache.index) for old, new in zip((cache.keys, cache.values), layers, strict=True))
    return KVCache(keys, values, segments=cache.segments, index=jnp.asarray(cache.index + tokens, jnp.int32))


def layer_keys(key: Array | None, layers: int) -> Array | None:
    """One dropout key per layer, or None when dropout is off."""
    return None if key is None else jax.random.split(key, layers)
