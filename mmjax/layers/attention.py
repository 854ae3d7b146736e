"""Attention: the structured mask, and the one function that attends, by the implementation that a table gives.

A mask is never stored as [t, s] by the caller; it is described by segments and order, so that a kernel which knows about
segments can be chosen, and the dense form is made only where it is used.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mmjax.layers.splash import splash_attention
from mmjax.parallel.attention import attention_specs
from mmjax.parallel.rows import mesh_in_use, platform
from mmjax.types import UserError

_wanted: contextvars.ContextVar[str] = contextvars.ContextVar("attention", default="auto")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Who may see whom: equal, non-zero segments, and with `causal` only slots that are not later.

    Args:
      query_segments, key_segments: segment of each slot, 0 = padding.
      causal: whether a query sees only keys at its own slot or before.
      offset: slot of the first query among the keys (the write index of a cache).
      window: with `causal`, a query sees only the last so many slots, its own included (arXiv 2310.06825); None = all.
    """

    query_segments: Int[Array, "b t"]
    key_segments: Int[Array, "b s"]
    offset: Int[Array, ""] | int = 0
    window: Int[Array, ""] | int | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})

    def dense(self) -> Bool[Array, "b 1 t s"]:
        """The mask as booleans, True = may attend."""
        query, key = self.query_segments[:, :, None], self.key_segments[:, None, :]
        allowed = (query == key) & (query > 0)
        if self.causal:
            query_slots = self.offset + jnp.arange(query.shape[1])[:, None]
            key_slots = jnp.arange(key.shape[2])[None, :]
            allowed &= key_slots <= query_slots
            if self.window is not None:
                allowed &= key_slots > query_slots - self.window
        return allowed[:, None]


@dataclasses.dataclass(frozen=True)
class Call:
    """What `attend` is asked for; see there. A dropout of 0 has no key."""

    query: Float[Array, "b t heads head_dim"]
    key: Float[Array, "b s kv_heads head_dim"]
    value: Float[Array, "b s kv_heads head_dim"]
    mask: Mask | Bool[Array, "b 1 t s"] | None
    scale: float
    bias: Float[Array, "rows heads t s"] | None
    dropout: float
    dropout_key: Array | None

    @property
    def dense_mask(self) -> Bool[Array, "b 1 t s"] | None:
        return self.mask.dense() if isinstance(self.mask, Mask) else self.mask


def attend(
    query: Float[Array, "b t heads head_dim"],
    key: Float[Array, "b s kv_heads head_dim"],
    value: Float[Array, "b s kv_heads head_dim"],
    mask: Mask | Bool[Array, "b 1 t s"] | None = None,
    *,
    scale: float | None = None,
    bias: Float[Array, "rows heads t s"] | None = None,
    dropout: float = 0.0,
    dropout_key: Array | None = None,
) -> Float[Array, "b t heads head_dim"]:
    """Scaled dot-product attention (arXiv 1706.03762), by an entry of `IMPLEMENTATIONS`.

    Args:
      mask: a structured mask, or a dense one (True = may attend); None = everything sees everything.
      scale: of the scores; default head_dim^−½.
      bias: added to the scores, for each row of the batch or (rows = 1) the same for all.
      dropout: rate on the attention weights, applied when there is a dropout_key.

    Raises:
      UserError: the implementation that `attention_by` asks for cannot do what is needed.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    drops = dropout > 0 and dropout_key is not None
    call = Call(query, key, value, mask, scale, bias, *((dropout, dropout_key) if drops else (0.0, None)))
    return IMPLEMENTATIONS[choose(call)].run(call)


@contextlib.contextmanager
def attention_by(name: str) -> Iterator[None]:
    """Whatever attends inside does it by this entry of `IMPLEMENTATIONS`; "auto" = the first that can and pays."""
    if name not in (AUTO, *IMPLEMENTATIONS):
        raise UserError(f"attention={name!r} is no implementation; there are {', '.join((AUTO, *IMPLEMENTATIONS))}")
    token = _wanted.set(name)
    try:
        yield
    finally:
        _wanted.reset(token)


def choose(call: Call) -> str:
    """The entry of `IMPLEMENTATIONS` that a call gets.

    Raises:
      UserError: the one that is asked for does not run on this platform, or cannot do what the call needs.
    """
    wanted, where = _wanted.get(), platform()
    if wanted == AUTO:
        fit = (
            name
            for name, each in IMPLEMENTATIONS.items()
            if where in each.platforms and min(call.query.shape[1], call.key.shape[1]) >= each.pays and not each.refuses(call)
        )
        return next(fit)
    chosen = IMPLEMENTATIONS[wanted]
    places = (*chosen.platforms, *chosen.interpreted)
    problem = f"runs on {' and '.join(places)}, not on {where}" if where not in places else chosen.refuses(call)
    if problem:
        raise UserError(f"attention={wanted!r} {problem}; set --config.stages.<stage>.attention={AUTO}")
    return wanted


def attention_weights(
    query: Float[Array, "b t heads head_dim"],
    key: Float[Array, "b s kv_heads head_dim"],
    mask: Bool[Array, "b 1 t s"] | None,
    *,
    scale: float | None = None,
    bias: Float[Array, "rows heads t s"] | None = None,
) -> Float[Array, "b kv_heads groups t s"]:
    """softmax(scale · q kᵀ + bias) in float32; each of the kv_heads serves heads / kv_heads consecutive heads.

    A query that may see nothing gets uniform weights: its output is finite and nobody reads it.
    """
    rows, tokens, heads, head_dim = query.shape
    kv_heads, groups = key.shape[2], heads // key.shape[2]
    # Batch dimensions first, so that nothing as large as the scores is ever transposed.
    grouped = jnp.moveaxis(query.reshape(rows, tokens, kv_heads, groups, head_dim), 1, 3)
    grouped = grouped.reshape(rows, kv_heads, groups * tokens, head_dim)
    scores = jnp.einsum("bkgh,bksh->bkgs", grouped, jnp.swapaxes(key, 1, 2)).astype(jnp.float32)
    scores = scores.reshape(rows, kv_heads, groups, tokens, -1) * (head_dim**-0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.reshape(-1, *scores.shape[1:])
    return softmax(scores, None if mask is None else mask[:, :, None])


@jax.custom_vjp
def softmax(scores: Float[Array, "b k g t s"], mask: Bool[Array, "b 1 1 t s"] | None) -> Float[Array, "b k g t s"]:
    """Over the last axis, where the mask allows. Its result is all that the backward pass keeps of the size of the scores."""
    return jax.nn.softmax(scores if mask is None else jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)


def _softmax_forward(scores: Array, mask: Array | None) -> tuple[Array, tuple[Array, Array | None]]:
    weights = softmax(scores, mask)
    return weights, (weights, mask)


def _softmax_backward(residuals: tuple[Array, Array | None], gradient: Array) -> tuple[Array, None]:
    weights, mask = residuals
    gradient = weights * (gradient - (weights * gradient).sum(-1, keepdims=True))
    return gradient if mask is None else jnp.where(mask, gradient, 0), None


softmax.defvjp(_softmax_forward, _softmax_backward)


def drop(x: Float[Array, "..."], rate: float, key: Array | None) -> Float[Array, "..."]:
    """Dropout: zeroes a share `rate` of the values and scales the rest up; nothing without a key."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A way to attend.

    Args:
      run: does it.
      platforms: where it is compiled.
      interpreted: where it runs too, slowly, when it is asked for by name.
      refuses: why it cannot do a call, None = it can.
      pays: queries and keys from which it is worth its padding and its launch.
    """

    run: Callable[[Call], Float[Array, "b t heads head_dim"]]
    platforms: tuple[str, ...]
    interpreted: tuple[str, ...] = ()
    refuses: Callable[[Call], str | None] = lambda call: None
    pays: int = 0


def _reason(reasons: Mapping[str, bool]) -> str | None:
    return next((f"cannot take {reason}" for reason, holds in reasons.items() if holds), None)


def _splash_refuses(call: Call) -> str | None:
    mask = call.mask if isinstance(call.mask, Mask) else None
    order = mask if mask is not None and mask.causal else None
    return _reason({
        "a bias on the scores": call.bias is not None,
        "dropout": call.dropout > 0,
        "a dense mask": call.mask is not None and mask is None,
        "queries that come after a cache": order is not None and not (isinstance(order.offset, int) and order.offset == 0),
        "windows that differ from layer to layer": order is not None and not isinstance(order.window, int | None),
        # The compiler cannot split a kernel over devices by itself.
        "devices without a mesh": platform() == "tpu" and mesh_in_use() is None and jax.device_count() > 1,
    })  # fmt: skip


def _splash(call: Call) -> Array:
    if not isinstance(call.mask, Mask):
        return splash_attention(call.query, call.key, call.value, None, scale=call.scale)
    mask = call.mask
    segments, window = (mask.query_segments, mask.key_segments), mask.window if isinstance(mask.window, int) else None
    return splash_attention(
        call.query, call.key, call.value, segments, causal=mask.causal, window=window, scale=call.scale
    )  # fmt: skip


def _cudnn_refuses(call: Call) -> str | None:
    head_dim, slots = call.query.shape[-1], (_queries_of_a_device(call), call.key.shape[1])
    return _reason({
        "a bias on the scores": call.bias is not None,
        "dropout": call.dropout > 0,
        f"{call.query.dtype}, only bfloat16 and float16": call.query.dtype not in (jnp.bfloat16, jnp.float16),
        f"heads of {head_dim} features, only multiples of 8 up to 128": head_dim % 8 > 0 or head_dim > 128,
        # Its backward pass, where there is a mask; JAX asks the same of calls without one.
        "an odd number of slots on a device": any(each % 2 for each in slots),
    })  # fmt: skip


def _queries_of_a_device(call: Call) -> int:
    mesh, shape = mesh_in_use(), call.query.shape
    if mesh is None:
        return shape[1]
    return NamedSharding(mesh, attention_specs(mesh, shape, call.key.shape)[0]).shard_shape(shape)[1]


def _cudnn(call: Call) -> Array:
    """cuDNN's flash attention, which takes a dense mask; each GPU runs it on its rows, heads and queries."""

    def run(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=call.scale, implementation="cudnn")

    mesh, mask = mesh_in_use(), call.dense_mask
    if mesh is None:
        return run(call.query, call.key, call.value, mask)
    query, key = attention_specs(mesh, call.query.shape, call.key.shape)
    specs = (query, key, key, None if mask is None else PartitionSpec(query[0], None, query[1], None))
    split = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=query, check_vma=False)
    return split(call.query, call.key, call.value, mask)


def _xla(call: Call) -> Array:
    """What XLA makes of it: the explicit form is twice as fast as its fused one on CPU, and the only one with dropout."""
    if platform() != "cpu" and not call.dropout:
        bias = None if call.bias is None else call.bias.astype(call.query.dtype)
        return jax.nn.dot_product_attention(
            call.query, call.key, call.value, bias=bias, mask=call.dense_mask, scale=call.scale
        )  # fmt: skip
    weights = attention_weights(call.query, call.key, call.dense_mask, scale=call.scale, bias=call.bias)
    weights = drop(weights, call.dropout, call.dropout_key).astype(call.value.dtype)
    # The weights as they are, in no other shape: what the backward pass needs of both steps is then one array.
    output = jnp.einsum("bkgts,bksh->bkgth", weights, jnp.swapaxes(call.value, 1, 2))
    return jnp.moveaxis(output, 3, 1).reshape(call.query.shape)


# The first that can do a call does it. Below some hundred slots a device has the scores at hand, and blocks only pad.
AUTO = "auto"
IMPLEMENTATIONS: dict[str, Implementation] = {
    "splash": Implementation(_splash, ("tpu",), interpreted=("cpu",), refuses=_splash_refuses, pays=512),
    "cudnn": Implementation(_cudnn, ("gpu",), refuses=_cudnn_refuses, pays=128),
    "xla": Implementation(_xla, ("cpu", "gpu", "tpu")),
}
