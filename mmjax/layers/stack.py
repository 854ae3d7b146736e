"""The layer stack: one stacked tree of parameters under `lax.scan`, so that nothing grows with depth but the work itself."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mmjax.parallel.rows import ROWS, Layout, keep, laid_out
from mmjax.types import UserError

ATTENTION = ("query", "key", "value", "attended", "output")  # as `mmjax.layers.multi_head` names them
INPUT = "layer_input"

# What the backward pass keeps of each layer beside its input; everything else is computed again.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,  # keeps all
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(*ATTENTION),
    # What "attention" keeps, and the layer's input too, in the memory of the host.
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT, *ATTENTION],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


SHALLOW = 4  # layers

_records: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar("records of layer inputs", default=None)
_policy: contextvars.ContextVar[str] = contextvars.ContextVar("remat policy", default="none")


@contextlib.contextmanager
def remat(name: str) -> Iterator[None]:
    """Every stack traced inside rematerialises by this entry of REMAT_POLICIES."""
    if name not in REMAT_POLICIES:
        raise UserError(f"remat={name!r} is no policy; there are {', '.join(REMAT_POLICIES)}")
    token = _policy.set(name)
    try:
        yield
    finally:
        _policy.reset(token)


@contextlib.contextmanager
def record() -> Iterator[list[Any]]:
    """Every stack run inside appends what each of its layers read, stacked [layers, ...]: the intermediate depths of any
    model, for comparisons and probes, without a word in its signature."""
    records: list[Any] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


def run(
    block: nnx.Module,
    apply: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    per_layer: Any = None,
    layout: Layout = ROWS,
) -> tuple[Any, Any]:
    """Runs a stacked block over its layers.

    Args:
      block: a module whose parameters were stacked by `mmjax.layers.parameters.stack`.
      apply: (layer, carry, slice of per_layer) -> (carry, output); `layer` is the block with one layer's parameters.
      carry: what flows from layer to layer, usually the residual stream.
      per_layer: a tree with a leading layers axis (a cache, dropout keys), or None.
      layout: how the arrays of the carry lie on the mesh: TEXT or ROWS of `mmjax.parallel.rows`.

    Returns:
      The last carry and the outputs, stacked.
    """
    graphdef, state = nnx.split(block)
    records = _records.get()

    def body(carry: Any, layer_inputs: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
        layer_state, extra = layer_inputs
        entered = jax.tree.map(lambda leaf: checkpoint_name(leaf, INPUT), keep(carry, *layout))
        with laid_out(layout):
            after, output = apply(nnx.merge(graphdef, layer_state), entered, extra)
        return after, (output, None if records is None else carry)

    policy = REMAT_POLICIES[_policy.get()]
    if policy is not None:
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    layers = jax.tree.leaves(state)[0].shape[0]
    # XLA's CPU loops cost a tenth of a toy model's step, so very shallow stacks are laid out flat.
    carry, (outputs, inputs) = jax.lax.scan(body, carry, (state, per_layer), unroll=layers <= SHALLOW)
    if records is not None:
        records.append(inputs)
    return carry, outputs


def first(block: nnx.Module, layers: int) -> Any:
    """The first `layers` layers of a stacked block, as a stack of their own."""
    graphdef, state = nnx.split(block)
    return nnx.merge(graphdef, jax.tree.map(lambda parameter: parameter[:layers], state))
