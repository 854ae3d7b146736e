"""AdamW (arXiv 1711.05101) with a schedule, clipping and multipliers per parameter, put together from Optax's blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from mmjax.training.rules import Multiplier
from mmjax.training.stage import OptimizerConfig


class Optimizer(NamedTuple):
    """An Optax transformation over flat dicts of parameters, and the schedule it follows.

    Args:
      init, update: as of `optax.GradientTransformation`; updates are to be added to the parameters.
      schedule: learning rate of the update number, from 0.
    """

    init: Any
    update: Any
    schedule: optax.Schedule

    def learning_rate(self, opt_state: Any) -> Array:
        """The learning rate of the next update."""
        return jnp.asarray(self.schedule(opt_state[-1].count), jnp.float32)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then cosine, linear or no decay, to end at the last of `steps` updates.

    A decay that moves every so many steps is counted from the first update, warm-up included, as LAVIS counts epochs.
    """
    peak, final, warmup = config.learning_rate, config.final_learning_rate, min(config.warmup_steps, steps)
    length = max(steps - 1 - warmup, 1)
    decay = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, length, alpha=final / peak),
        "linear": lambda: optax.linear_schedule(peak, final, length),
        "constant": lambda: optax.constant_schedule(peak),
    }[config.schedule]()
    if config.schedule_every > 1:
        decay = _in_strides(decay, config.schedule_every, warmup)
    rise = optax.linear_schedule(config.warmup_from, peak, warmup)
    return optax.join_schedules([rise, decay], [warmup]) if warmup else decay


def _in_strides(schedule: optax.Schedule, stride: int, offset: int) -> optax.Schedule:
    """A schedule that stands still for `stride` updates; it is called with the update's number minus `offset`."""
    return lambda count: schedule(jnp.maximum((count + offset) // stride * stride - offset, 0))


def make_optimizer(
    config: OptimizerConfig,
    steps: int,
    learning_rate: Mapping[str, Multiplier],
    weight_decay: Mapping[str, Multiplier],
) -> Optimizer:
    """AdamW over a flat dict of parameters.

    Args:
      config: see OptimizerConfig.
      steps: length of the schedule.
      learning_rate: multiplier of each path's whole update, decay included; a vector holds one per layer.
      weight_decay: multiplier of each path's decay.
    """
    schedule = make_schedule(config, steps)

    def decay(updates: dict[str, Array], params: dict[str, Array]) -> dict[str, Array]:
        return {
            path: update + config.weight_decay * _per_layer(weight_decay[path], update) * params[path]
            for path, update in updates.items()
        }

    def multiply(updates: dict[str, Array], params: Any) -> dict[str, Array]:
        return {path: _per_layer(learning_rate[path], update) * update for path, update in updates.items()}

    transformation = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.stateless(decay),
        optax.stateless(multiply),
        optax.scale_by_learning_rate(schedule),
    )
    return Optimizer(lambda params: transformation.init(_float32(params)), transformation.update, schedule)


def _per_layer(multiplier: Multiplier, leaf: Array) -> Any:
    """The multiplier in a shape that broadcasts over a stacked leaf."""
    return multiplier.reshape(-1, *(1,) * (leaf.ndim - 1)) if isinstance(multiplier, np.ndarray) else multiplier


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
