"""One step of decoding: the language model reads with its cache, and its logits become the scores to choose by."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.decoding.options import DecodingOptions, Knobs
from mmjax.types import Batch


class Reader(NamedTuple):
    """Where the language model stands.

    Args:
      cache: what the language model remembers of all that it has read.
      positions: position of each row's next token.
      seen: tokens that prompt or answer hold; None when no option asks for them.
    """

    cache: Any
    positions: Int[Array, "b"]
    seen: Bool[Array, "b vocab"] | None

    def take(self, rows: Int[Array, "r"]) -> Reader:
        """These rows, in this order."""
        return Reader(self.cache.take(rows), self.positions[rows], None if self.seen is None else self.seen[rows])

    def exchange(self, rows: Int[Array, "r"]) -> Reader:
        """These rows, in this order, each in the place of one that stands where it does and has read the same prompt."""
        return self._replace(cache=self.cache.exchange(rows), seen=None if self.seen is None else self.seen[rows])


def prefill(module: Any, batch: Batch, options: DecodingOptions) -> tuple[Reader, Float[Array, "b vocab"]]:
    """Reads the prompts; an encoder–decoder's source once and for all.

    Args:
      module: a bound system.
      batch: prompts, one segment a row, the text padded on the left.

    Returns:
      The reader, with room for max_new_tokens, and the logits of each row's first token.
    """
    text = batch.text
    rows, length = text.tokens.shape
    embeddings, told = module.begin(batch)
    # The last token chosen is never read, so its slot is not needed.
    cache = module.llm.init_cache(rows, length + options.max_new_tokens - 1, embeddings.dtype, **told)
    hidden, cache = module.llm(embeddings, text.positions, text.segments, cache)
    logits = module.llm.logits(hidden[:, -1])
    seen = None
    if options.repetition_penalty != 1:
        is_token = text.segments > 0
        if batch.feature_index is not None and batch.source is None:
            is_token &= batch.feature_index < 0
        seen = jnp.zeros(logits.shape, bool).at[jnp.arange(rows)[:, None], text.tokens].max(is_token)
    return Reader(cache, text.positions[:, -1] + 1, seen), logits


def read(module: Any, reader: Reader, tokens: Int[Array, "b"]) -> tuple[Reader, Float[Array, "b vocab"]]:
    """Reads one chosen token a row; returns the logits of the next."""
    embeddings = module.llm.embed(tokens[:, None])
    segments = jnp.ones((tokens.shape[0], 1), jnp.int32)
    hidden, cache = module.llm(embeddings, reader.positions[:, None], segments, reader.cache)
    return reader._replace(cache=cache, positions=reader.positions + 1), module.llm.logits(hidden[:, -1])


def see(reader: Reader, tokens: Int[Array, "b"]) -> Reader:
    """Notes the tokens just chosen."""
    if reader.seen is None:
        return reader
    return reader._replace(seen=reader.seen.at[jnp.arange(tokens.shape[0]), tokens].set(True))


def process(
    scores: Float[Array, "b vocab"], reader: Reader, step: Int[Array, ""] | int, options: DecodingOptions, knobs: Knobs
) -> Float[Array, "b vocab"]:
    """The scores to choose by: no id beyond the vocabulary, repetition penalty, no early end, and when drawing temperature,
    top-k, top-p, in this order.

    Args:
      scores: logits, or log-probabilities in a beam search.
      step: tokens that the answer already has.
    """
    if options.vocabulary:
        scores = jnp.where(jnp.arange(scores.shape[-1]) < options.vocabulary, scores, -jnp.inf)
    if reader.seen is not None:
        penalty = options.repetition_penalty
        scores = jnp.where(reader.seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    if options.min_new_tokens and options.eos_token_id:
        ends = jnp.zeros(scores.shape[-1], bool).at[jnp.array(options.eos_token_id)].set(True)
        scores = jnp.where(ends & (step < options.min_new_tokens), -jnp.inf, scores)
    if not options.do_sample:
        return scores
    truncated = (knobs.top_k > 0) | (knobs.top_p < 1)
    return jax.lax.cond(truncated, truncate, lambda scores, knobs: scores, scores / knobs.temperature, knobs)


def truncate(scores: Float[Array, "b vocab"], knobs: Knobs) -> Float[Array, "b vocab"]:
    """−inf for all but the top_k likeliest, then for all but the nucleus of mass top_p (arXiv 1904.09751)."""
    ordered = -jnp.sort(-scores, axis=-1)
    ranks = jnp.arange(scores.shape[-1])
    ordered = jnp.where((ranks < knobs.top_k) | (knobs.top_k == 0), ordered, -jnp.inf)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = (before < knobs.top_p) | (knobs.top_p >= 1) | (ranks == 0)
    smallest = jnp.min(jnp.where(kept & jnp.isfinite(ordered), ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores >= smallest, scores, -jnp.inf)


def row_keys(seeds: Int[Array, "b"], step: Int[Array, ""] | int) -> Array:
    """A random key per row and step that depends on nothing else."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), step))(seeds)


def is_end(tokens: Int[Array, "..."], options: DecodingOptions) -> Bool[Array, "..."]:
    """Which tokens end an answer."""
    return jnp.isin(tokens, jnp.array(options.eos_token_id, jnp.int32))


def is_empty(batch: Batch) -> Bool[Array, "b"]:
    """Rows that hold no prompt."""
    return ~(batch.text.segments > 0).any(axis=1)
