"""Parameters: how modules declare them and how a model becomes a pure function of a flat dictionary.

A module is built *abstract*: `parameter(...)` records shape, dtype, logical axes and initialiser, and no array exists. So
building a model of any size costs nothing. `define` reads those records into a `Definition`; `Definition.bind` puts arrays
(or tracers) in their place. Parameters live as one flat dict, `{"encoders.image.layers.mlp.up.kernel": array}`; every rule,
checkpoint and weight table speaks of its paths.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

Initialiser = Callable[[Array, tuple[int, ...], Any], Array]
Parameters = dict[str, Any]  # by path an array, or a quantised matrix (`mmjax.layers.quantised`)
Module = TypeVar("Module", bound=nnx.Module)

normal = nnx.initializers.normal
constant = nnx.initializers.constant
truncated_normal = nnx.initializers.truncated_normal
zeros = nnx.initializers.zeros_init()
ones = nnx.initializers.ones_init()
fan_in_normal = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")  # variance 1 / fan-in, at any width
fan_in_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def parameter(
    shape: tuple[int, ...], axes: tuple[str | None, ...], init: Initialiser = zeros, dtype: Any = jnp.float32
) -> nnx.Param:
    """A parameter to be.

    Args:
      shape: its shape.
      axes: a logical axis name (or None) per dimension, for the sharding table of `mmjax.parallel`.
      init: how it is drawn when no weights are loaded.
      dtype: its dtype before any dtype rule.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes {axes} do not name the dimensions of shape {shape}")
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), axes=axes, init=init)


def stack(module: Module, layers: int) -> Module:
    """The same module with a leading `layers` axis on every parameter, to be run by `mmjax.layers.stack.run`."""
    graphdef, state = nnx.split(module)
    stacked = [
        (path, _replace(variable, shape=(layers, *variable.get_value().shape), axes=("layers", *variable.axes)))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(stacked))


def _replace(variable: nnx.Param, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    return parameter(shape, axes, variable.init, variable.get_value().dtype)


@dataclasses.dataclass(frozen=True)
class ParameterSpec:
    """What is known of a parameter before it exists.

    Args:
      shape, dtype: as stored; a stacked parameter's shape begins with its number of layers.
      axes: logical axis names; axes[0] == "layers" if stacked.
      init: initialiser of one (unstacked) parameter.
    """

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...]
    init: Initialiser = zeros

    @property
    def stacked(self) -> bool:
        return self.axes[:1] == ("layers",)

    @property
    def unstacked_shape(self) -> tuple[int, ...]:
        return self.shape[1:] if self.stacked else self.shape

    def draw(self, key: Array) -> Array:
        """Draws the parameter; every layer of a stack from a key of its own."""
        if not self.stacked:
            return self.init(key, self.shape, self.dtype)
        keys = jax.random.split(key, self.shape[0])
        return jax.vmap(lambda layer_key: self.init(layer_key, self.unstacked_shape, self.dtype))(keys)


@dataclasses.dataclass(frozen=True)
class Definition:
    """A model without its arrays.

    Args:
      graphdef: structure of the NNX module.
      specs: every parameter's spec, by path, in the module's order.
    """

    graphdef: Any
    specs: dict[str, ParameterSpec]

    def bind(self, parameters: Mapping[str, Any], compute_dtype: Any = None) -> Any:
        """The module with these parameters, to be called inside a pure (jitted) function.

        Args:
          parameters: an array for each path of `specs`, or its shape where the module is only looked at.
          compute_dtype: floating-point matrices (unstacked rank ≥ 2) are cast to it; vectors keep their dtype, since the
            norms that use them compute in float32.
        """
        missing = [path for path in self.specs if path not in parameters]
        if missing:
            raise ValueError(f"{len(missing)} parameters are missing, the first is {missing[0]!r}")

        def cast(path: str) -> Any:
            value = parameters[path]
            is_matrix = len(self.specs[path].unstacked_shape) >= 2 and jnp.issubdtype(value.dtype, jnp.floating)
            return value.astype(compute_dtype) if compute_dtype is not None and is_matrix else value

        return nnx.merge(self.graphdef, nnx.from_flat_state([(_keys(path), cast(path)) for path in self.specs]))

    def initialise(self, key: Array) -> Parameters:
        """Draws every parameter. A leaf depends on (key, its path) only, so adding a part changes no other part."""
        return {path: spec.draw(jax.random.fold_in(key, _path_seed(path))) for path, spec in self.specs.items()}

    def abstract(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes by path."""
        return {path: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for path, spec in self.specs.items()}


def define(module: nnx.Module) -> Definition:
    """Reads an abstract module into a Definition."""
    graphdef, state = nnx.split(module)
    specs = {}
    for keys, variable in nnx.to_flat_state(state):
        value = variable.get_value()
        specs[".".join(map(str, keys))] = ParameterSpec(value.shape, value.dtype, variable.axes, variable.init)
    return Definition(graphdef, specs)


def _keys(path: str) -> tuple[str | int, ...]:
    return tuple(int(key) if key.isdigit() else key for key in path.split("."))


def _path_seed(path: str) -> int:
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "little") >> 1
