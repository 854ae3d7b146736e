"""Layer normalisation and its root-mean-square form, computed in float32 whatever comes in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.parameters import ones, parameter, zeros


class LayerNorm(nnx.Module):
    """(x − mean) / √(variance + eps) (· scale) (+ bias) over the last axis (arXiv 1607.06450)."""

    def __init__(self, width: int, eps: float, *, scale: bool = True, bias: bool = True):
        self.scale = parameter((width,), (None,), ones) if scale else None
        self.bias = parameter((width,), (None,), zeros) if bias else None
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        if self.scale is not None:
            y = y * self.scale[...]
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / √(mean(x²) + eps), cast back, then · scale (arXiv 1910.07467; the cast comes before the scale, as in LLaMA)."""

    def __init__(self, width: int, eps: float):
        self.scale = parameter((width,), (None,), ones)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)
