"""Feed-forward blocks and the activations of the families."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.linear import Linear

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def check_activation(name: str) -> None:
    """Raises ValueError for an activation that does not exist, so that a config names it before anything is built."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} is unknown; there are {', '.join(ACTIVATIONS)}")


class MLP(nnx.Module):
    """down(activation(up(x)))."""

    def __init__(self, width: int, ffn: int, activation: str, *, bias: bool = True):
        self.up = Linear(width, ffn, ("embed", "ffn"), bias=bias)
        self.down = Linear(ffn, width, ("ffn", "embed"), bias=bias)
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) · up(x)) (arXiv 2002.05202)."""

    def __init__(self, width: int, ffn: int, activation: str, *, bias: bool = False):
        self.gate = Linear(width, ffn, ("embed", "ffn"), bias=bias)
        self.up = Linear(width, ffn, ("embed", "ffn"), bias=bias)
        self.down = Linear(ffn, width, ("ffn", "embed"), bias=bias)
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))
