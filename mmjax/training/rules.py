"""Rules: ordered (regular expression over parameter paths, value) pairs; the first that matches a path gives its value."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.layers.parameters import ParameterSpec
from mmjax.layers.quantised import INT8, quantisable
from mmjax.training.stage import Rules, Stage
from mmjax.types import UserError

DTYPES = ("float32", "bfloat16", "float16", "int8")
# One number for a leaf, or one per layer of a stacked leaf.
Multiplier = float | np.ndarray


def match_rules(
    rules: Rules, specs: Mapping[str, ParameterSpec], default: Any = None, *, flag: str = "rules"
) -> dict[str, Any]:
    """The value of every path.

    Args:
      rules: in order; the expression must match the whole path.
      specs: by path.
      default: of a path that no rule matches: a value, or a function of the parameter's spec.
      flag: name of the rules, for messages.

    Raises:
      UserError: a rule's expression matches no path at all; the message names the nearest paths.
    """
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, path) for path in specs):
            raise UserError(f"{flag}: rule '{pattern}' matches no parameter; nearest are {', '.join(nearest(pattern, specs))}")
    fallback: Callable[[ParameterSpec], Any] = default if callable(default) else lambda spec: default
    return {
        path: next((value for pattern, value in rules if re.fullmatch(pattern, path)), None)
        if any(re.fullmatch(pattern, path) for pattern, _ in rules)
        else fallback(spec)
        for path, spec in specs.items()
    }


def nearest(pattern: str, paths: Iterable[str], n: int = 3) -> list[str]:
    """The paths most like an expression."""
    return difflib.get_close_matches(re.sub(r"[\\^$*+?()\[\]|]", "", pattern), list(paths), n=n, cutoff=0.0)


def match_multipliers(
    rules: Rules, specs: Mapping[str, ParameterSpec], default: Any = 1.0, *, flag: str = "rules"
) -> dict[str, Multiplier]:
    """As `match_rules` for numbers; a list gives one number per layer of a stacked parameter.

    Raises:
      UserError: also for a list whose length is not the number of layers, or whose parameter is not stacked.
    """
    values = match_rules(rules, specs, default, flag=flag)
    return {path: _multiplier(path, specs[path], value, flag) for path, value in values.items()}


def _multiplier(path: str, spec: ParameterSpec, value: Any, flag: str) -> Multiplier:
    if isinstance(value, int | float):
        return float(value)
    if not spec.stacked:
        raise UserError(f"{flag}: {path} is no stack of layers, so it takes one number, got {value!r}")
    if len(value) != spec.shape[0]:
        raise UserError(f"{flag}: {path} has {spec.shape[0]} layers, got {len(value)} numbers")
    return np.asarray(value, np.float32)


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What a stage's rules say of every parameter, by path.

    Args:
      trainable: whether it is trained.
      learning_rate, weight_decay: multipliers.
      dtype: as stored; int8 of a quantised matrix.
      sharding: mesh axes per dimension; only the paths that a rule matches.
    """

    trainable: dict[str, bool]
    learning_rate: dict[str, Multiplier]
    weight_decay: dict[str, Multiplier]
    dtype: dict[str, Any]
    sharding: dict[str, Any]


def resolve(stage: Stage, specs: Mapping[str, ParameterSpec]) -> Resolved:
    """Applies a stage's rules to a model's parameters.

    Weight decay without a rule is 1 for matrices and 0 for vectors and scalars, by the rank of one layer's parameter.

    Raises:
      UserError: a rule matches nothing, its value does not fit, or nothing is trainable.
    """
    flag = f"--config.stages.{stage.name}."
    trainable = match_rules(stage.trainable, specs, False, flag=flag + "trainable")
    if not any(trainable.values()):
        raise UserError(f"{flag}trainable: no parameter is trainable")
    sharding = match_rules(stage.sharding, specs, None, flag=flag + "sharding")
    dtypes = match_rules(stage.dtype, specs, "float32", flag=flag + "dtype")
    return Resolved(
        trainable={path: bool(value) for path, value in trainable.items()},
        learning_rate=match_multipliers(stage.learning_rate, specs, 1.0, flag=flag + "learning_rate"),
        weight_decay=match_multipliers(
            stage.weight_decay, specs, lambda spec: float(len(spec.unstacked_shape) >= 2), flag=flag + "weight_decay"
        ),
        dtype={path: _dtype(path, name, stage, specs[path], trainable[path]) for path, name in dtypes.items()},
        sharding={path: value for path, value in sharding.items() if value is not None},
    )


def _dtype(path: str, name: str, stage: Stage, spec: ParameterSpec, trainable: Any) -> Any:
    """The dtype that a rule's value gives a parameter.

    "int8" is for the matrices of frozen linear layers; whatever else such a rule matches (norms, biases, embeddings, the
    head, adapters) is stored in float32 where it is trained, and in the dtype of the forward pass where it is frozen.
    """
    flag = f"--config.stages.{stage.name}.dtype"
    if name not in DTYPES:
        raise UserError(f"{flag}: expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {name!r}")
    if name != "int8":
        return jnp.dtype(name)
    if not quantisable(path, spec):
        return jnp.dtype("float32" if trainable else stage.compute_dtype)
    if trainable:
        raise UserError(f"{flag}: {path} is trained, and int8 is for frozen matrices; freeze it, or put a rule for it before")
    return INT8
