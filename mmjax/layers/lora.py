"""Low-rank adapters (arXiv 2106.09685) on any linear layer of any part, chosen by rules over parameter paths."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from mmjax.layers.linear import Linear
from mmjax.layers.parameters import Definition, Parameters
from mmjax.types import UserError
from mmjax.types.config import from_config


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a rule gives to the linear layers that it matches.

    Args:
      rank: r, columns of A; 0 = no adapter.
      alpha: the adapter is scaled by alpha / r,
      rslora: or by alpha / √r (arXiv 2312.03732).
    """

    rank: int
    alpha: float
    rslora: bool = False

    def __post_init__(self):
        if self.rank < 0:
            raise ValueError(f"rank must be 0 or more, got {self.rank}")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


Rules = Sequence[tuple[str, int | Mapping[str, Any]]]


def add_lora(module: nnx.Module, rules: Rules, alpha: float = 16.0) -> None:
    """Adds adapters in place, before `define`.

    Args:
      rules: (regular expression over kernel paths such as "llm.layers.attention.query.kernel", rank or the fields of an
        `Adapter`); first match wins.
      alpha: of rules that name none.

    Raises:
      UserError: a rule matches no linear layer, or is no adapter.
    """
    if not rules:
        return
    linears = {f"{path}.kernel": layer for path, layer in _linears(module).items()}
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, path) for path in linears):
            raise UserError(f"lora: rule {pattern!r} matches no linear layer; kernels are {', '.join(sorted(linears)[:6])}, …")
    adapters = [(pattern, _adapter(pattern, value, alpha)) for pattern, value in rules]
    for path, layer in linears.items():
        adapter = next((adapter for pattern, adapter in adapters if re.fullmatch(pattern, path)), None)
        if adapter is not None and adapter.rank:
            layer.add_lora(adapter.rank, adapter.scale)


def _adapter(pattern: str, value: Any, alpha: float) -> Adapter:
    fields = dict(value) if isinstance(value, Mapping) else {"rank": value}
    return from_config(Adapter, {"alpha": alpha, **fields}, f"lora: rule {pattern!r}")


def _linears(module: nnx.Module) -> dict[str, Linear]:
    return {".".join(map(str, keys)): layer for keys, layer in nnx.iter_graph(module) if isinstance(layer, Linear)}


def is_factor(path: str) -> bool:
    """Whether a parameter is A or B of an adapter."""
    return path.endswith((".lora_a", ".lora_b"))


def lora_scales(definition: Definition) -> dict[str, float]:
    """The scale of every adapter, by the path of its linear layer."""
    layers = _linears(definition.bind(definition.abstract()))
    return {path: layer.lora_scale for path, layer in layers.items() if layer.lora_a is not None}


def merge_lora(parameters: Parameters, scales: Mapping[str, float]) -> Parameters:
    """The same function without adapters: every W becomes W + scale · A B, computed in float32 and cast once.

    Args:
      parameters: by path.
      scales: of `lora_scales`.
    """
    merged = {path: value for path, value in parameters.items() if not is_factor(path)}
    for layer, scale in scales.items():
        a, b = (parameters[f"{layer}.lora_{name}"].astype(jnp.float32) for name in "ab")
        kernel = parameters[f"{layer}.kernel"]
        # Without "highest", accelerators would round the factors to bfloat16 first.
        update = scale * jnp.matmul(a, b, precision="highest")
        merged[f"{layer}.kernel"] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return merged
