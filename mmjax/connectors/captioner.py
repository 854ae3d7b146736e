"""The Q-Former of BLIP-2's stage 1 as a decoder: image-grounded generation (arXiv 2301.12597, section 3.1).

Decoding takes it for an encoder–decoder. Its source is a picture, as the queries have read it: under the mask of that loss they
never see the text, so that their keys and values are computed once, and the text sees them before itself in every layer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.connectors.qformer import QFormer, Superblock, run_layer
from mmjax.layers import stack
from mmjax.layers.cache import KVCache
from mmjax.layers.multi_head import advance, cache_mask, layer_caches

# Keys and values of the queries in every layer, [layers b q heads head_dim].
Seen = tuple[Array, Array]


class Captioner:
    """What decoding asks of a language model, computed by a bound Q-Former.

    Args:
      qformer: with the heads of stage 1.
    """

    def __init__(self, qformer: QFormer):
        self.qformer = qformer
        self.positions = qformer.config.max_positions

    def encode(self, features: Float[Array, "b p e"]) -> Seen:
        """Lets the queries read a picture's features."""
        qformer = self.qformer
        medium = jnp.zeros((len(features), 1), jnp.int32)
        queries, _ = qformer.embed(features[:, None], medium, None)

        def apply(block: Superblock, x: Array, _: Any) -> tuple[Array, Any]:
            kept = []
            for layer in block.layers:
                x, _, keys_values = run_layer(layer, x, x.shape[1], None, features[:, None], medium)
                kept.append(keys_values)
            return x, _stacked(kept)

        return _flat(stack.run(qformer.layers, apply, queries)[1])

    def embed(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Token embeddings, without positions."""
        return self.qformer.word_embedding(tokens)

    def __call__(
        self,
        embeddings: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        segments: Int[Array, "b t"],
        cache: KVCache | None = None,
        *,
        source: Seen | None = None,
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """Final hidden states of the text, and the cache with these tokens in it.

        Args:
          embeddings: of the text.
          positions: of each token, from 0.
          segments: 1, or 0 = padding; a token sees the queries, and the text up to itself.
          cache: of `init_cache`.
          source: of `encode`; None = it is in the cache.
        """
        rows, length, _ = embeddings.shape
        if cache is None:
            cache = self.init_cache(rows, length, embeddings.dtype, source=source)
        mask, cache = cache_mask(segments, cache)
        x = self.qformer.norm(embeddings + self.qformer.position_embedding(positions, embeddings.dtype))

        def apply(block: Superblock, x: Array, caches: Any) -> tuple[Array, Any]:
            kept = []
            for keys, values, layer in zip(*caches, block.layers, strict=True):
                x, _, keys_values = run_layer(layer, x, mask=mask, cache=(keys, values))
                kept.append(keys_values)
            return x, _stacked(kept)

        frequency = self.qformer.config.frequency
        caches = jax.tree.map(lambda leaf: leaf.reshape(-1, frequency, *leaf.shape[1:]), layer_caches(cache))
        x, layers = stack.run(self.qformer.layers, apply, x, caches)
        return x, advance(cache, _flat(layers), length)

    def logits(self, hidden: Float[Array, "*batch d"]) -> Float[Array, "*batch vocab"]:
        """Scores of the next token in float32."""
        return self.qformer.caption_logits(hidden)

    def init_cache(self, rows: int, length: int, dtype: Any = jnp.float32, *, source: Seen | None) -> KVCache:
        """A cache that holds the queries, with room for `length` tokens of text a row."""
        assert source is not None, "a caption needs a picture that the queries have read"
        config, queries = self.qformer.config, source[0].shape[2]
        empty = KVCache.empty(config.layers, rows, queries + length, config.heads, config.width // config.heads, dtype)
        begun = dataclasses.replace(empty, index=jnp.int32(0)).admit(jnp.ones((rows, queries), jnp.int32))
        return advance(begun, source, queries)


def _stacked(layers: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def _flat(superblocks: Any) -> Any:
    """[superblocks frequency …] -> [layers …]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), superblocks)
