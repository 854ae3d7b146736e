"""Image–text contrast and image–text matching over the global batch (BLIP-2, arXiv 2301.12597, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BARRED = float(jnp.finfo(jnp.float32).min)


def normalise(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """x / ‖x‖ in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def similarities(
    queries: Float[Array, "b q d"], texts: Float[Array, "b d"], temperature: Float[Array, ""]
) -> tuple[Float[Array, "b b"], Float[Array, "b b"]]:
    """max over queries of ⟨query, text⟩ / temperature, image-to-text [image, text] and text-to-image [text, image].

    The keys of each direction carry no gradient, as in the original, which gathers them over devices without one.
    """
    fixed = jax.lax.stop_gradient
    image_to_text = jnp.einsum("iqd,td->itq", queries, fixed(texts)).max(-1) / temperature
    text_to_image = jnp.einsum("td,iqd->tiq", texts, fixed(queries)).max(-1) / temperature
    return image_to_text, text_to_image


def contrastive_loss(
    similarity: Float[Array, "b b"], same: Bool[Array, "b b"], valid: Bool[Array, "b"], smoothing: float
) -> Float[Array, ""]:
    """Sum over anchors of the cross-entropy against their keys.

    Args:
      same: which pairs belong together; they share the target evenly.
      valid: rows that are anchors and keys; the others are empty.
      smoothing: mass spread evenly over all keys.
    """
    same = same & valid
    targets = same / jnp.maximum(same.sum(-1, keepdims=True), 1)
    targets = (1 - smoothing) * targets + smoothing / jnp.maximum(valid.sum(), 1)
    logs = jax.nn.log_softmax(jnp.where(valid, similarity, BARRED), axis=-1)
    return -jnp.where(valid[:, None] & valid, targets * logs, 0).sum()


def hard_negatives(key: Array, similarity: Float[Array, "b b"], barred: Bool[Array, "b b"]) -> Int[Array, "b"]:
    """Draws one negative per anchor from softmax(similarity) over the global batch, barred keys left out."""
    return jax.random.categorical(key, jnp.where(barred, BARRED, jax.lax.stop_gradient(similarity)), axis=-1)


def matching_loss(
    logits: Float[Array, "r 2"], labels: Int[Array, "r"], weights: Float[Array, "r"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Σ weight · cross-entropy of (0 = other, 1 = belongs together), and Σ weight · [right]."""
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), labels[:, None], axis=-1)[:, 0]
    return (loss * weights).sum(), ((jnp.argmax(logits, -1) == labels) * weights).sum()
