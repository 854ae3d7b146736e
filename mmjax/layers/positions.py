"""Rotary position embedding (arXiv 2104.09864), in the half-split layout of the Hugging Face LLaMA files."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotary_angles(
    positions: Int[Array, "b t"], head_dim: int, base: float
) -> tuple[Float[Array, "b t half"], Float[Array, "b t half"]]:
    """Cosine and sine of position · base^(−2j / head_dim), j = 0 … head_dim/2 − 1, in float32."""
    frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "b t heads head_dim"], angles: tuple[Float[Array, "b t half"], Float[Array, "b t half"]]
) -> Float[Array, "b t heads head_dim"]:
    """Turns the pairs (x_j, x_{j + head_dim/2}) by the angles of each position."""
    cosine, sine = (angle[:, :, None, :].astype(x.dtype) for angle in angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
