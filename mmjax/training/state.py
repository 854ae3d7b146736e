"""The state of a run: everything that a step changes. Shapes first, then shardings, then arrays, born where they live."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.tree_util import DictKey
from jaxtyping import Array, Int, UInt32

from mmjax.layers.parameters import Definition, Parameters, ParameterSpec
from mmjax.layers.quantised import INT8, quantise, quantised_shape
from mmjax.parallel.axes import replicated
from mmjax.training.guard import Guard
from mmjax.training.optimizer import Optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a train step takes and gives back. Frozen parameters are no part of it.

    Args:
      step: updates tried so far, skipped ones included: the number of the next batch.
      trainable: trained parameters, by path.
      opt_state: the optimizer's.
      ema: exponential moving average of `trainable`, or {}.
      guard: statistics of good and bad steps.
      key: data of the PRNG key that every step's randomness is folded from; never changes.
    """

    # "| Any": trees of shapes and of shardings have the same form.
    step: Int[Array, ""] | Any
    trainable: dict[str, Any]
    opt_state: Any
    ema: dict[str, Any]
    guard: Guard
    key: UInt32[Array, "words"] | Any


def partition(parameters: Mapping[str, Any], trainable: Mapping[str, bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits anything keyed by path into its trainable and its frozen entries."""
    chosen = {path: value for path, value in parameters.items() if trainable[path]}
    return chosen, {path: value for path, value in parameters.items() if path not in chosen}


def init_parameters(
    definition: Definition, key: Array, dtypes: Mapping[str, Any], shardings: Mapping[str, NamedSharding]
) -> Parameters:
    """Draws a model's parameters, each on the devices that own it and in the dtype of the stage's rules."""

    def draw(key: Array) -> Parameters:
        return {path: as_stored(value, dtypes[path]) for path, value in definition.initialise(key).items()}

    wanted = abstract_parameters(definition.specs, dtypes, shardings)
    return jax.jit(draw, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, wanted))(key)


def as_stored(value: Array, dtype: Any) -> Any:
    """A floating-point value in the dtype of the rules; int8 quantises it."""
    return quantise(value) if dtype == INT8 else value.astype(dtype)


def abstract_parameters(
    specs: Mapping[str, ParameterSpec], dtypes: Mapping[str, Any], shardings: Mapping[str, NamedSharding]
) -> dict[str, Any]:
    """Shapes, dtypes and shardings of a model's parameters: no memory."""

    def abstract(path: str, shape: tuple[int, ...]) -> Any:
        if dtypes[path] == INT8:
            return quantised_shape(shape, shardings[path])
        return jax.ShapeDtypeStruct(shape, dtypes[path], sharding=shardings[path])

    return {path: abstract(path, spec.shape) for path, spec in specs.items()}


def init_state(
    trainable: Parameters, optimizer: Optimizer, shardings: Mapping[str, NamedSharding], *, key: Array, ema: bool = False
) -> State:
    """The state before the first step of a stage.

    Args:
      trainable: trained parameters; they are copied, so that a donating step cannot delete the caller's.
      optimizer: of `make_optimizer`.
      shardings: of every parameter (frozen ones may be among them).
      key: typed PRNG key.
      ema: whether to keep an average of the parameters.
    """
    arguments = (trainable, jax.random.key_data(key))
    shapes = jax.eval_shape(_build(optimizer, ema), *arguments)
    return jax.jit(_build(optimizer, ema), out_shardings=state_shardings(shapes, shardings))(*arguments)


def abstract_state(
    trainable: Mapping[str, jax.ShapeDtypeStruct],
    optimizer: Optimizer,
    shardings: Mapping[str, NamedSharding],
    *,
    ema: bool = False,
) -> State:
    """The state as shapes, dtypes and shardings: for compiling without arrays and as the target of a restore."""
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    shapes = jax.eval_shape(_build(optimizer, ema), dict(trainable), key)
    return with_shardings(shapes, state_shardings(shapes, shardings))


def state_shardings(state: Any, shardings: Mapping[str, NamedSharding]) -> Any:
    """The sharding of every leaf: what is kept per parameter lives like its parameter, all else is replicated."""
    everywhere = replicated(next(iter(shardings.values())).mesh)

    def place(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        last = keys[-1]
        return shardings.get(last.key, everywhere) if isinstance(last, DictKey) else everywhere

    return jax.tree_util.tree_map_with_path(place, state)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Abstract leaves with their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def _build(optimizer: Optimizer, ema: bool) -> Any:
    def build(trainable: Parameters, key: Array) -> State:
        # Copies: an output that is an argument, or another output, would share its buffer, and the step donates them.
        return State(
            step=jnp.zeros((), jnp.int32),
            trainable=jax.tree.map(jnp.copy, trainable),
            opt_state=optimizer.init(trainable),
            ema=jax.tree.map(lambda leaf: jnp.copy(leaf).astype(jnp.float32), trainable) if ema else {},
            guard=Guard.fresh(),
            key=jnp.copy(key),
        )

    return build
