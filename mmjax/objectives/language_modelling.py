"""Next-token prediction: a cross-entropy that never holds more than a chunk of the logits, of positions that are learnt."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from mmjax.parallel.rows import TEXT, Layout, keep, shares

Logits = Callable[[Float[Array, "b c d"]], Float[Array, "b c vocab"]]


def cross_entropy(
    logits: Float[Array, "*batch vocab"], targets: Int[Array, "*batch"], smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    """−log p(target), the target mixed with the uniform distribution over the finite logits (arXiv 1512.00567)."""
    log_total = jax.nn.logsumexp(logits, axis=-1)
    # A masked sum in place of a gather: its gradient is elementwise, and it needs no logits of other devices' vocabulary.
    loss = log_total - jnp.where(_ids(logits) == targets[..., None], logits, 0).sum(-1)
    if not smoothing:
        return loss
    finite = jnp.isfinite(logits)
    mean_logit = jnp.where(finite, logits, 0).sum(-1) / finite.sum(-1)
    return (1 - smoothing) * loss + smoothing * (log_total - mean_logit)


def best(logits: Float[Array, "*batch vocab"]) -> Int[Array, "*batch"]:
    """The first index of the largest logit: `jnp.argmax` as two plain reductions, which XLA vectorises."""
    largest = logits.max(-1, keepdims=True)
    return jnp.where(logits == largest, _ids(logits), logits.shape[-1]).min(-1)


def _ids(logits: Array) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)


def next_token_loss(
    logits: Logits,
    hidden: Float[Array, "b t d"],
    targets: Int[Array, "b t"],
    weights: Float[Array, "b t"],
    *,
    chunk: int = 512,
    smoothing: float = 0.0,
    prior: tuple[Int[Array, "b t"], Float[Array, "rows vocab"]] | None = None,
    layout: Layout = TEXT,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sums over a batch of the loss and of the hits.

    Each device sorts its own positions, those with a weight first, and cuts them into chunks; what is learnt fills the first of
    these, and the others, of questions, images and padding, are skipped when the step runs. No position leaves its device. The
    backward pass computes a chunk's logits again.

    Args:
      logits: the head, applied to one chunk of hidden states.
      weights: 0 where nothing is to be predicted.
      chunk: positions whose logits exist at once, for each row.
      smoothing: label smoothing.
      prior: (row of the table at each position, table of log-priors) added to the logits before the loss: logit
        adjustment (arXiv 2007.07314). Row 0 must be zeros.
      layout: logical axes of b and t. Scores stay with their rows and positions, so that the head is gathered as any weight.

    Returns:
      Σ weight · loss and Σ weight · [argmax = target].
    """
    index = jnp.zeros_like(targets) if prior is None else prior[0]

    def loss_of(hidden: Array, targets: Array, weights: Array, index: Array) -> tuple[Array, Array]:
        scores = keep(logits(keep(hidden, *layout)), *layout, "vocab_share")
        hits = (best(scores) == targets) * weights
        if prior is not None:
            table = jnp.pad(prior[1], ((0, 0), (0, scores.shape[-1] - prior[1].shape[-1])))
            scores = scores + table[index]
        loss = jnp.where(weights > 0, cross_entropy(scores, targets, smoothing), 0)
        return (loss * weights).sum(), hits.sum()

    (rows, length), (groups, pieces) = targets.shape, shares(targets.shape, layout)
    if length <= chunk:
        return loss_of(hidden, targets, weights, index)

    size = rows // groups * -(-chunk // pieces)  # of one chunk on one device

    def on_devices(x: Array) -> Array:
        """[b t …] -> [groups, pieces, n, …]: the n positions of each device."""
        x = x.reshape(groups, rows // groups, pieces, length // pieces, *x.shape[2:])
        return x.swapaxes(1, 2).reshape(groups, pieces, -1, *x.shape[4:])

    order = jnp.argsort(on_devices(weights) <= 0, axis=2, stable=True)

    def chunks(x: Array) -> Array:
        """[b t …] -> [chunks, groups, pieces · size, …], what is learnt in the first of them."""
        x = sort(keep(on_devices(x), *layout), order)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % size), *[(0, 0)] * (x.ndim - 3)))
        x = x.reshape(groups, pieces, -1, size, *x.shape[3:])
        return jnp.moveaxis(x, 2, 0).reshape(-1, groups, pieces * size, *x.shape[4:])

    zero = jnp.zeros((), jnp.float32)

    def body(sums: tuple[Array, Array], inputs: tuple[Array, ...]):
        learnt, *chunk = inputs
        loss, hits = jax.lax.cond(learnt, jax.checkpoint(loss_of), lambda *_: (zero, zero), *chunk)
        return (sums[0] + loss, sums[1] + hits), None

    cut = tuple(map(chunks, (hidden, targets, weights, index)))
    sums, _ = jax.lax.scan(jax.checkpoint(body), (zero, zero), ((cut[2] > 0).any((1, 2)), *cut))
    return sums


@jax.custom_vjp
def sort(x: Shaped[Array, "g p n ..."], order: Int[Array, "g p n"]) -> Shaped[Array, "g p n ..."]:
    """The elements of the third axis in that order, a permutation; its gradient is a gather too, and no scatter."""
    return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 3)), axis=2)


def _sorted(x: Array, order: Array) -> tuple[Array, Array]:
    return sort(x, order), order


def _sort_back(order: Array, gradient: Array) -> tuple[Array, None]:
    return sort(gradient, jnp.argsort(order, axis=2)), None


sort.defvjp(_sorted, _sort_back)
