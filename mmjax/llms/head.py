"""The vocabulary at the end of a language model: padded in memory so that it shards, masked so that nobody notices."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.layers.product import product

VOCAB_MULTIPLE = 128  # rows of a padded vocabulary: one lane tile of a TPU, and divisible by any usual mesh


def padded_vocab(vocab: int) -> int:
    """The vocabulary size in memory."""
    return -(-vocab // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def vocabulary_logits(
    hidden: Float[Array, "*batch d"], head: Float[Array, "d padded"], vocab: int
) -> Float[Array, "*batch padded"]:
    """hidden · head in float32, −inf for the entries beyond `vocab`."""
    logits = product(hidden, head.astype(hidden.dtype)).astype(jnp.float32)
    if logits.shape[-1] == vocab:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) < vocab, logits, -jnp.inf)
