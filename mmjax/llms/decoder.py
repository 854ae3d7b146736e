"""What decoder-only language models share: embeddings in, hidden states out, one cache, one head."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.layers import stack
from mmjax.layers.cache import KVCache
from mmjax.layers.linear import Embedding, Linear
from mmjax.layers.multi_head import advance, cache_mask, layer_caches
from mmjax.layers.parameters import Initialiser
from mmjax.layers.parameters import stack as stacked
from mmjax.llms.head import padded_vocab, vocabulary_logits
from mmjax.parallel.rows import TEXT
from mmjax.weights.table import TRANSPOSE, Entry

EVERYTHING = 2**31 - 1  # a window that no sequence fills


class Decoder(nnx.Module):
    """Token embedding, a stack of blocks, a norm and a head. The head is applied by objectives and decoding only.

    A family gives the parts, and says in `enter` and `leave` what stands between the embeddings and the first block, and
    between the last block and the head.

    Args:
      config: sizes, with the fields `vocab`, `layers` and `tied` (whether the head is the token embedding).
      block: one layer with an attribute `attention`; block(x, mask=…, cache=…, **`enter`'s) -> (x, keys and values).
      norm: of the last block's output; None = none.
      embedding_width: of token embeddings and hidden states.
      embedding_init: of the token embedding.
      windows: how many tokens each layer sees, 0 = all; () = every layer sees all.
      positions: rows of a table of learned positions, beyond which it cannot read; 0 = there is none.
    """

    def __init__(
        self,
        config: Any,
        block: nnx.Module,
        norm: nnx.Module | None,
        *,
        embedding_width: int,
        embedding_init: Initialiser | None = None,
        windows: tuple[int, ...] = (),
        positions: int = 0,
    ):
        self.config = config
        vocab = padded_vocab(config.vocab)
        self.token_embedding = Embedding(vocab, embedding_width, init=embedding_init)
        self.layers: Any = stacked(block, config.layers)
        self.norm = norm
        self.head = None if config.tied else Linear(embedding_width, vocab, ("embed", "vocab"), bias=False)
        self.width = embedding_width
        self.windows = windows
        self.positions = positions

    def enter(self, embeddings: Float[Array, "b t d"], positions: Int[Array, "b t"]) -> tuple[Array, dict[str, Any]]:
        """What the first block reads, and what every block is told."""
        return embeddings, {}

    def leave(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """The final hidden states from the last block's output."""
        return x if self.norm is None else self.norm(x)

    def embed(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Token embeddings, without positions."""
        return self.token_embedding(tokens)

    def __call__(
        self,
        embeddings: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        segments: Int[Array, "b t"],
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """Final hidden states, and the cache with these tokens in it.

        Args:
          embeddings: of tokens and soft tokens.
          positions: within each segment, from 0; padding may have any.
          segments: 0 = padding; a token sees its segment up to itself, in the cache too.
          cache: of the tokens before; None = there are none, and none is kept.
        """
        mask, cache = cache_mask(segments, cache)
        x, told = self.enter(embeddings, positions)
        # One window for all layers is a plain number, for which attention may have a kernel.
        same = (self.windows[0] or None) if len(set(self.windows)) == 1 else None
        windows = jnp.asarray([window or EVERYTHING for window in self.windows]) if len(set(self.windows)) > 1 else None

        def apply(block: Any, x: Array, layer: Any) -> tuple[Array, Any]:
            layer_cache, window = layer
            seen = dataclasses.replace(mask, window=same if window is None else window)
            x, keys_values = block(x, mask=seen, cache=layer_cache, **told)
            return x, None if cache is None else keys_values

        x, layers = stack.run(self.layers, apply, x, (layer_caches(cache), windows), layout=TEXT)
        return self.leave(x), advance(cache, layers, embeddings.shape[1])

    def logits(self, hidden: Float[Array, "*batch d"]) -> Float[Array, "*batch vocab"]:
        """Scores of the next token in float32; entries that only pad the vocabulary are −inf."""
        return vocabulary_logits(*self.to_head(hidden), self.config.vocab)

    def to_head(self, hidden: Float[Array, "*batch d"]) -> tuple[Float[Array, "*batch d"], Float[Array, "d vocab"]]:
        """The two factors of the logits, for a vocabulary as it is padded."""
        return hidden, self.token_embedding.table[...].T if self.head is None else self.head.matrix

    def init_cache(self, rows: int, length: int, dtype: Any = jnp.float32) -> KVCache:
        """An empty cache with room for `length` tokens a row."""
        attention = self.layers.attention
        return KVCache.empty(self.config.layers, rows, length, attention.kv_heads, attention.head_dim, dtype)


def head_entry(config: Any) -> Entry:
    """The weight table's entry of `lm_head`: a file of a model with a tied head leaves it out, or repeats the embedding."""
    if config.tied:
        return Entry("token_embedding.table", "lm_head.weight", vocab=config.vocab, duplicate=True)
    return Entry("head.kernel", "lm_head.weight", TRANSPOSE, vocab=config.vocab)
