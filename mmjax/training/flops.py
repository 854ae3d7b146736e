"""Matrix FLOPs, counted in the traced program: exact for scans and rematerialisation, where the compiler's own count is not.

A multiply-add counts as two. Dead code is removed first, as the compiler does. Elementwise work is not counted. A Pallas kernel
counts at every point of its grid, those included that it passes over when it runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params
from jax.interpreters import partial_eval

OTHER = "other"


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Matrix FLOPs of one call.

    Args:
      function: traceable by JAX, jitted or not.
      arguments: arrays or their shapes.
    """
    return count_by_scope(function, *arguments).total()


def count_by_scope(function: Callable[..., Any], *arguments: Any, scopes: Iterable[str] = ()) -> Counter[str]:
    """Matrix FLOPs of one call under each `jax.named_scope`, of both the forward and the backward pass.

    Args:
      scopes: names to tell apart; the innermost that encloses an operation gets it, OTHER what none encloses.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _count(jaxpr, frozenset(scopes), OTHER)


def _count(jaxpr: Jaxpr, scopes: frozenset[str], scope: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        # The names inside a scan or jit begin anew, so what encloses it is handed down.
        inner = next((name for name in reversed(_names(equation)) if name in scopes), scope)
        kind = equation.primitive.name
        if kind in OPERATIONS:
            total[inner] += OPERATIONS[kind](equation)
            continue
        bodies = [_count(_open(body), scopes, inner) for body in jaxprs_in_params(equation.params)]
        if not any(bodies):
            continue
        if kind == "while":
            raise ValueError("cannot count a while loop with matrix products: its number of iterations is not in the program")
        if kind == "cond":
            bodies = [max(bodies, key=Counter.total)]
        for body in bodies:
            for name, flops in body.items():
                total[name] += flops * _repeats(kind, equation.params)
    return +total


def _names(equation: Any) -> list[str]:
    return [getattr(entry, "name", "") for entry in equation.source_info.name_stack.stack]


def _open(jaxpr: Any) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _repeats(kind: str, params: dict[str, Any]) -> int:
    """How often the body of an operation runs, over all devices."""
    if kind == "scan":
        return params["length"]
    if kind == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if kind == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _dot_general(equation: Any) -> int:
    (contracting, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracting)


def _convolution(equation: Any) -> int:
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    # Kernel input channels are already per feature group.
    window = math.prod(kernel[i] for i in numbers.rhs_spec[1:])
    return 2 * math.prod(equation.outvars[0].aval.shape) * window // equation.params["batch_group_count"]


def _cudnn(products: int) -> Callable[[Any], int]:
    """cuDNN's fused attention over whole rows, of so many matrix products; query and key [b t heads head_dim]."""

    def flops(equation: Any) -> int:
        query, key = (variable.aval.shape for variable in equation.invars[:2])
        return products * 2 * math.prod(query) * key[1]

    return flops


OPERATIONS: dict[str, Callable[[Any], int]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "dot_product_attention_fwd_wrapper": _cudnn(2),
    "dot_product_attention_bwd_wrapper": _cudnn(5),  # the scores again, and four gradients
}
