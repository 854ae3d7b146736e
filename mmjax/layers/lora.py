"""Low-rank adapters (arXiv 2106.09685) on any linear layer of any part, chosen by rules over parameter paths."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from mmjax.layers.linear import Linear
from mmjax.layers.parameters import Parameters
from mmjax.types import UserError


def add_lora(module: nnx.Module, rules: Sequence[tuple[str, int]], alpha: float) -> None:
    """Adds adapters in place, before `define`.

    Args:
      rules: (regular expression over kernel paths such as "llm.layers.attention.query.kernel", rank); first match wins,
        rank 0 = no adapter.
      alpha: adapters are scaled by alpha / rank.

    Raises:
      UserError: a rule matches no linear layer.
    """
    if not rules:
        return
    linears = {
        ".".join(map(str, (*keys, "kernel"))): layer for keys, layer in nnx.iter_graph(module) if isinstance(layer, Linear)
    }
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, path) for path in linears):
            raise UserError(f"lora: rule {pattern!r} matches no linear layer; kernels are {', '.join(sorted(linears)[:6])}, …")
    for path, layer in linears.items():
        rank = next((rank for pattern, rank in rules if re.fullmatch(pattern, path)), 0)
        if rank:
            layer.add_lora(rank, alpha / rank)


def merge_lora(parameters: Parameters, alpha: float) -> Parameters:
    """The same function without adapters: every W becomes W + (alpha / r) A B, added in float32 and cast back."""
    merged = {path: value for path, value in parameters.items() if not path.endswith((".lora_a", ".lora_b"))}
    for path, a in parameters.items():
        if path.endswith(".lora_a"):
            stem = path.removesuffix(".lora_a")
            b, kernel = parameters[f"{stem}.lora_b"], parameters[f"{stem}.kernel"]
            update = (alpha / a.shape[-1]) * (a.astype(jnp.float32) @ b.astype(jnp.float32))
            merged[f"{stem}.kernel"] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return merged
