"""Rotary position embedding (arXiv 2104.09864), and the ways to stretch it beyond the positions of pre-training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Angles = tuple[Float[Array, "b t half"], Float[Array, "b t half"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """How the rotary frequencies of a model are stretched.

    Args:
      type: entry of SCALINGS.
      factor: how many times as many positions; of "longrope" it only sets the default of attention_factor.
      original_positions: positions of pre-training; not used by "linear".
      low_frequency_factor, high_frequency_factor: of "llama3": waves longer than original_positions / low are stretched, those
        shorter than original_positions / high are not.
      beta_fast, beta_slow: of "yarn": waves that turn more than beta_fast times over the original positions are not stretched,
        those that turn less than beta_slow times are.
      truncate: of "yarn": whether the bounds between the two are rounded outwards to whole frequencies.
      short_factors, long_factors: of "longrope": what each frequency is divided by up to original_positions, and beyond.
      attention_factor: scales cosines and sines; None = 0.1 ln(factor) + 1 for "yarn", for "longrope"
        √(1 + ln(factor) / ln(original_positions)), else 1.
    """

    type: Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
    factor: float = 1.0
    original_positions: int = 0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float | None = None

    def __post_init__(self):
        if self.type != "linear" and self.original_positions < 1:
            raise ValueError(f"type={self.type!r} needs original_positions, got {self.original_positions}")
        if self.type == "longrope" and not len(self.short_factors) == len(self.long_factors) > 0:
            raise ValueError(
                f"type='longrope' needs as many short_factors as long_factors, got {len(self.short_factors)} and "
                f"{len(self.long_factors)}"
            )


def rotary_angles(positions: Int[Array, "b t"], head_dim: int, base: float, scaling: RotaryScaling | None = None) -> Angles:
    """Cosine and sine of position · base^(−2j / head_dim), j = 0 … head_dim/2 − 1, in float32.

    Args:
      scaling: None = the frequencies as they are.
    """
    # On the host, since a TPU's power function is off by more than float32's last bits, and positions multiply the error.
    frequencies = (1 / float(base) ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    attention_factor = 1.0
    if scaling is not None:
        attention_factor = _attention_factor(scaling)
        frequencies = SCALINGS[scaling.type](frequencies, base, scaling, positions)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor


def rotate(
    x: Float[Array, "b t heads head_dim"], angles: Angles, *, interleaved: bool = False
) -> Float[Array, "b t heads head_dim"]:
    """Turns pairs of features by the angles of each position.

    Args:
      interleaved: pairs are the neighbours (x_2j, x_2j+1), as in the paper; else (x_j, x_{j + head_dim/2}), the layout of the
        Hugging Face LLaMA files.
    """
    cosine, sine = (angle[:, :, None, :].astype(x.dtype) for angle in angles)
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else jnp.split(x, 2, axis=-1)
    turned = first * cosine - second * sine, second * cosine + first * sine
    return jnp.stack(turned, axis=-1).reshape(x.shape) if interleaved else jnp.concatenate(turned, axis=-1)


Frequencies = np.ndarray | Array  # [half], or [b 1 half] where they depend on a row's length


def _linear(frequencies: np.ndarray, base: float, scaling: RotaryScaling, positions: Array) -> Frequencies:
    """Position interpolation (arXiv 2306.15595)."""
    return frequencies / scaling.factor


def _dynamic(frequencies: np.ndarray, base: float, scaling: RotaryScaling, positions: Array) -> Frequencies:
    """A base that grows with a row's length beyond the original positions ("NTK-aware" scaling; arXiv 2309.00071, section 3.3).

    A row read in pieces turns each piece by the length it has by then, as `transformers` does.
    """
    growth = scaling.factor * _lengths(positions, scaling) / scaling.original_positions - (scaling.factor - 1)
    half = len(frequencies)
    return frequencies * growth ** (-np.arange(half, dtype=np.float32) / max(half - 1, 1))


def _llama3(frequencies: np.ndarray, base: float, scaling: RotaryScaling, positions: Array) -> Frequencies:
    """LLaMA 3.1 (arXiv 2407.21783): long waves are stretched, short ones are not, and between them there is a ramp."""
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (kept * frequencies + (1 - kept) * frequencies / scaling.factor).astype(np.float32)


def _yarn(frequencies: np.ndarray, base: float, scaling: RotaryScaling, positions: Array) -> Frequencies:
    """YaRN (arXiv 2309.00071, section 3.2): as "llama3", with a ramp that is linear in the number of the frequency."""
    half = len(frequencies)

    def number(turns: float) -> float:
        """Which frequency turns so many times over the original positions."""
        return half * math.log(scaling.original_positions / (turns * 2 * math.pi)) / math.log(base)

    low, high = number(scaling.beta_fast), number(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    stretched = np.clip((np.arange(half) - low) / (high - low or 0.001), 0, 1)
    return (stretched * frequencies / scaling.factor + (1 - stretched) * frequencies).astype(np.float32)


def _longrope(frequencies: np.ndarray, base: float, scaling: RotaryScaling, positions: Array) -> Frequencies:
    """LongRoPE (arXiv 2402.13753): searched factors, one set for rows up to the original positions and one beyond."""
    is_long = _lengths(positions, scaling) > scaling.original_positions
    short, long = (np.asarray(factors, np.float32) for factors in (scaling.short_factors, scaling.long_factors))
    return jnp.where(is_long, frequencies / long, frequencies / short)


SCALINGS: dict[str, Callable[[np.ndarray, float, RotaryScaling, Array], Frequencies]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _lengths(positions: Int[Array, "b t"], scaling: RotaryScaling) -> Float[Array, "b 1 1"]:
    """How long each row is, and at least the original positions."""
    lengths = positions.max(axis=1)[:, None, None] + 1
    return jnp.maximum(lengths, scaling.original_positions).astype(jnp.float32)


def yarn_attention_factor(factor: float, strength: float = 1.0) -> float:
    """0.1 · strength · ln(factor) + 1 (arXiv 2309.00071, equation 22)."""
    return 0.1 * strength * math.log(max(factor, 1.0)) + 1


def _attention_factor(scaling: RotaryScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.type == "yarn":
        return yarn_attention_factor(scaling.factor)
    if scaling.type == "longrope":
        return math.sqrt(1 + math.log(max(scaling.factor, 1.0)) / math.log(scaling.original_positions))
    return 1.0
