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
    """Linear warm-up to the peak, then cosine, linear or no decay.

    The decay follows the warm-up and ends at the last of `steps` updates; or, with `decay_from_start`, it is a function of
    the update's number over `steps`, and the warm-up hides its beginning.
    """
    peak, final, stride = config.learning_rate, config.final_learning_rate, config.schedule_every
    warmup = min(config.warmup_steps, steps)
    length, start = (steps, 0) if config.decay_from_start else (max(steps - 1 - warmup, 1), warmup)
    decay = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, length, alpha=final / peak),
        "linear": lambda: optax.linear_schedule(peak, final, length),
        "constant": lambda: optax.constant_schedule(peak),
    }[config.schedule]()
    rise = optax.linear_schedule(config.warmup_from, peak, warmup)
    end = min(warmup, stride) if stride > 1 else warmup
    return lambda count: jnp.where(count < end, rise(count), decay(count // stride * stride - start))


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
