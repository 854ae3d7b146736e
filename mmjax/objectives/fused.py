"""Next-token prediction by tokamax's kernel for TPUs: logits are made block by block, and never written to memory.

The compiler cannot split a kernel, so each device runs it on its own positions, with the whole head. Beside the XLA path
(`mmjax.objectives.language_modelling`) there are no logits to take an argmax of, and so no token accuracy.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from mmjax.parallel.axes import partition_spec
from mmjax.parallel.rows import TEXT, Layout, mesh_in_use, mesh_size, platform, shares
from mmjax.types import UserError

FLAG = "--config.stages.<stage>.objective.cross_entropy"
LANES = 128  # the kernel reads positions and vocabulary in multiples of the width of a TPU's vector registers


def fused_next_token_loss(
    hidden: Float[Array, "b t d"],
    head: Float[Array, "d vocab"],
    targets: Int[Array, "b t"],
    weights: Float[Array, "b t"],
    *,
    chunk: int = 512,
    layout: Layout = TEXT,
) -> Float[Array, ""]:
    """Weighted sum over a batch of −log p(target). On a CPU the kernel is interpreted, to be compared with.

    Each device sorts its positions, those with a weight first, and skips the chunks in which nothing is learnt.

    Args:
      head: without the entries that only pad the vocabulary; multiplied in the dtype of the hidden states.
      weights: 0 where nothing is to be predicted.
      chunk: positions of each row that the kernel is given at once.
      layout: logical axes of b and t.

    Raises:
      UserError: tokamax is not installed, or has nothing for this platform or mesh.
    """
    mesh, where = mesh_in_use(), platform()
    if where == "gpu":
        raise UserError(f"{FLAG}=tokamax runs on tpu, not on gpu; set it to xla")
    if mesh_size("tensor") > 1:
        raise UserError(f"{FLAG}=tokamax needs the whole vocabulary on each device; set mesh.tensor to 1, or it to xla")
    _tokamax()
    groups, pieces = shares(targets.shape, layout)
    size = -(-(hidden.shape[0] // groups * -(-chunk // pieces)) // LANES) * LANES
    arguments = (hidden, head.astype(hidden.dtype), targets, weights)
    if mesh is None:
        return _device_loss(*arguments, size, where)
    rows = partition_spec(hidden.shape, (*layout, None), mesh)
    text = PartitionSpec(*rows[:2])
    split = [axis for entry in rows for axis in ((entry,) if isinstance(entry, str) else entry or ())]
    each = jax.shard_map(
        lambda *arguments: _device_loss(*arguments, size, where)[None],
        mesh=mesh, in_specs=(rows, PartitionSpec(), text, text), out_specs=PartitionSpec(tuple(split)), check_vma=False,
    )  # fmt: skip
    return each(*arguments).sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _device_loss(hidden: Array, head: Array, targets: Array, weights: Array, size: int, where: str) -> Array:
    """The sum over the positions of one device, in chunks of this size."""

    def body(total: Array, chunk: tuple[Array, ...]):
        x, labels, weight = chunk
        loss = jax.lax.cond(
            (weight > 0).any(), lambda: (_losses(x, labels, head, where) * weight).sum(), lambda: jnp.zeros((), jnp.float32)
        )
        return total + loss, None

    _, chunks = _chunks(hidden, targets, weights, size)
    return jax.lax.scan(body, jnp.zeros((), jnp.float32), chunks)[0]


def _forward(hidden: Array, head: Array, targets: Array, weights: Array, size: int, where: str):
    return _device_loss(hidden, head, targets, weights, size, where), (hidden, head, targets, weights)


def _backward(size: int, where: str, residuals: tuple[Array, ...], gradient: Array):
    hidden, head, targets, weights = residuals
    order, chunks = _chunks(hidden, targets, weights, size)

    def body(total: Array, chunk: tuple[Array, ...]):
        x, labels, weight = chunk

        def learn() -> tuple[Array, Array]:
            _, pull = jax.vjp(lambda x, head: _losses(x, labels, head, where), x, head)
            with _kernels(where):
                for_x, for_head = pull(gradient * weight)
            return total + for_head.astype(jnp.float32), for_x.astype(x.dtype)

        return jax.lax.cond((weight > 0).any(), learn, lambda: (total, jnp.zeros_like(x)))

    for_head, for_chunks = jax.lax.scan(body, jnp.zeros(head.shape, jnp.float32), chunks)
    for_hidden = for_chunks.reshape(-1, hidden.shape[-1])[jnp.argsort(order)].reshape(hidden.shape)
    return for_hidden, for_head.astype(head.dtype), None, None


_device_loss.defvjp(_forward, _backward)


def _chunks(hidden: Array, targets: Array, weights: Array, size: int) -> tuple[Array, tuple[Array, ...]]:
    """The order that puts what is learnt first, and (hidden, targets, weights) in it, as [chunks, size, …]."""
    order = jnp.argsort(weights.reshape(-1) <= 0, stable=True)

    def cut(x: Array) -> Array:
        x = x.reshape(-1, *x.shape[2:])[order]
        return jnp.pad(x, ((0, -len(x) % size), *[(0, 0)] * (x.ndim - 1))).reshape(-1, size, *x.shape[1:])

    return order, (cut(hidden), cut(targets), cut(weights))


def _losses(x: Float[Array, "n d"], labels: Int[Array, "n"], head: Float[Array, "d vocab"], where: str) -> Float[Array, "n"]:
    """−log p(label) of each position, by the kernel."""
    with _kernels(where):
        losses = _tokamax().linear_softmax_cross_entropy_loss(x, labels, head, reduction="none", implementation="mosaic_tpu")
    return losses.astype(jnp.float32)


@contextlib.contextmanager
def _kernels(where: str):
    """What is traced inside is for a TPU that need not be here; for a CPU it is interpreted, as if it were a v5e."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_tokamax().config.cross_compile(True))
        if where == "cpu":
            kind = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
            stack.enter_context(jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=kind)))
            stack.enter_context(pltpu.force_tpu_interpret_mode())
        yield


def _tokamax() -> Any:
    try:
        return importlib.import_module("tokamax")
    except ImportError as error:
        raise UserError(
            f"{FLAG}=tokamax needs tokamax ({error}): pip install 'mmjax[kernels]' with Python 3.12 or newer, or set it to xla"
        ) from None
