"""The guard: what a step does with a loss or gradient that is not finite, or with a spike of the gradient norm.

Inside the step a bad update is not applied, bit for bit, and counted. The host stops the run after several in a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.training.stage import GuardConfig
from mmjax.types import UserError

Tree = TypeVar("Tree")

# The running statistics weigh all good steps equally up to this many, and forget exponentially afterwards.
WINDOW = 100


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guard:
    """Statistics of the steps so far.

    Args:
      good: updates applied.
      skipped: updates not applied.
      consecutive: of these, the latest in a row.
      mean, variance: running, of the gradient norm over good steps.
    """

    # "| Any": trees of shapes and of shardings have the same form.
    good: Int[Array, ""] | Any
    skipped: Int[Array, ""] | Any
    consecutive: Int[Array, ""] | Any
    mean: Float[Array, ""] | Any
    variance: Float[Array, ""] | Any

    @classmethod
    def fresh(cls) -> Guard:
        """Before the first step. Every leaf is an array of its own, since the step's state is donated."""
        return cls(*(jnp.zeros((), jnp.int32) for _ in range(3)), *(jnp.zeros((), jnp.float32) for _ in range(2)))


def is_bad(config: GuardConfig, guard: Guard, loss: Float[Array, ""], gradient_norm: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether the update is to be skipped."""
    bad = jnp.zeros((), bool)
    if config.skip_non_finite:
        bad |= ~(jnp.isfinite(loss) & jnp.isfinite(gradient_norm))
    if config.spike_factor:
        bad |= (guard.good >= config.spike_warmup) & (gradient_norm > config.spike_factor * guard.mean)
    return bad


def advance(guard: Guard, bad: Bool[Array, ""], gradient_norm: Float[Array, ""]) -> Guard:
    """The statistics after a step."""
    good = guard.good + ~bad
    rate = 1 / jnp.clip(good, 1, WINDOW).astype(jnp.float32)
    deviation = gradient_norm - guard.mean
    learn = ~bad & jnp.isfinite(gradient_norm)
    return Guard(
        good=good,
        skipped=guard.skipped + bad,
        consecutive=jnp.where(bad, guard.consecutive + 1, 0),
        mean=jnp.where(learn, guard.mean + rate * deviation, guard.mean),
        variance=jnp.where(learn, (1 - rate) * (guard.variance + rate * deviation**2), guard.variance),
    )


def keep_if(bad: Bool[Array, ""], old: Tree, new: Tree) -> Tree:
    """`old` on a bad step, else `new`, leaf by leaf and bit for bit."""
    return jax.tree.map(lambda before, after: jnp.where(bad, before, after), old, new)


def check(config: GuardConfig, metrics: Mapping[str, Any], step: int, *, stage: str = "<stage>") -> None:
    """Stops a run that does not recover; called on the host with the metrics of a step.

    Args:
      metrics: of the train step.
      step: number of updates tried so far, this one included.

    Raises:
      UserError: the last `stop_after` steps or more were skipped.
    """
    consecutive = int(metrics["guard/consecutive"])
    if consecutive >= config.stop_after:
        raise UserError(
            f"steps {step - consecutive + 1} to {step} of stage {stage!r} gave {consecutive} bad updates in a row (loss "
            f"{float(metrics['loss']):g}, gradient norm {float(metrics['gradient_norm']):g}), which is "
            f"--config.stages.{stage}.guard.stop_after={config.stop_after} or more; nothing of them was applied. Look at the "
            f"data of these steps or lower --config.stages.{stage}.optimizer.learning_rate"
        )
