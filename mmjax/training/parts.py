"""The parts table: what each part of a system weighs and costs, known before the first step."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.tree_util import DictKey
from rich import box
from rich.console import Console
from rich.table import Table

from mmjax.layers.parameters import Definition
from mmjax.parallel.axes import replicated_leaves
from mmjax.training.flops import OTHER, count_by_scope
from mmjax.training.stage import Stage
from mmjax.training.state import State
from mmjax.training.step import Objective, make_loss
from mmjax.types.terminal import make_console

TOTAL = "total"
# Roots that hold one part per modality; any other root, such as "llm", is a part itself.
FOLDERS = ("encoders", "connectors", "output_projectors", "generators")


@dataclasses.dataclass(frozen=True)
class Part:
    """One row of the table; bytes and FLOPs are those of all devices together, replicas counted once.

    Args:
      parameters, trainable: numbers of them.
      dtypes: of the weights.
      weight_bytes: of the weights.
      optimizer_bytes: of what is kept per trained weight: the optimizer's moments and the moving average.
      forward_flops: matrix FLOPs of one step's forward pass over the global batch.
      backward_flops: of all else in the step: gradients and what is computed again.
      replicated: paths of leaves that are stored whole on every device, though they need not be.
    """

    parameters: int = 0
    trainable: int = 0
    dtypes: tuple[str, ...] = ()
    weight_bytes: int = 0
    optimizer_bytes: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    replicated: tuple[str, ...] = ()


def part_of(path: str) -> str:
    """The part that a parameter belongs to: "encoders.image.layers.mlp.up.kernel" -> "encoders.image"."""
    root, _, rest = path.partition(".")
    return f"{root}.{rest.partition('.')[0]}" if root in FOLDERS else root


def step_flops(
    definition: Definition, stage: Stage, objective: Objective, step: Any, state: State, frozen: Mapping[str, Any], batch: Any
) -> dict[str, tuple[int, int]]:
    """Matrix FLOPs of (forward, backward) per part, from `jax.named_scope`s that bear the parts' names.

    Args:
      definition, stage, objective: of the stage.
      step: of `make_train_step`.
      state, frozen, batch: arrays or their shapes.
    """
    loss = make_loss(definition, stage, objective)

    def forward(trainable: Any, frozen: Any, batch: Any) -> Any:
        return loss(trainable, frozen, batch, objective.counts(batch), jax.random.key(0))

    parts = dict.fromkeys(part_of(path) for path in definition.specs)
    once = count_by_scope(forward, state.trainable, dict(frozen), batch, scopes=parts)
    whole = count_by_scope(step, state, dict(frozen), batch, scopes=parts)
    return {part: (once[part], whole[part] - once[part]) for part in (*parts, OTHER) if whole[part]}


def parts_table(
    definition: Definition,
    state: State,
    frozen: Mapping[str, Any],
    shardings: Mapping[str, NamedSharding],
    flops: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, Part]:
    """A row per part in the model's order, then TOTAL.

    Args:
      definition: of the model.
      state, frozen: arrays or their shapes.
      shardings: of every parameter.
      flops: of `step_flops`.
    """
    flops, whole = flops or {}, set(replicated_leaves(shardings))
    kept = _bytes_by_path((state.opt_state, state.ema))
    parameters = {**state.trainable, **frozen}
    members: dict[str, list[str]] = {part_of(path): [] for path in definition.specs}
    for path in definition.specs:
        members[part_of(path)].append(path)
    if OTHER in flops:
        members[OTHER] = []
    rows = {}
    for part, paths in members.items():
        forward, backward = flops.get(part, (0, 0))
        rows[part] = Part(
            parameters=sum(_size(parameters[path]) for path in paths),
            trainable=sum(_size(parameters[path]) for path in paths if path in state.trainable),
            dtypes=_unique(_dtype(parameters[path]) for path in paths),
            weight_bytes=sum(_bytes(parameters[path]) for path in paths),
            optimizer_bytes=sum(kept.get(path, 0) for path in paths),
            forward_flops=forward,
            backward_flops=backward,
            replicated=tuple(path for path in paths if path in whole),
        )
    return {**rows, TOTAL: _total(rows.values())}


def write_parts(table: Mapping[str, Part], path: Path) -> None:
    """Writes the table as JSON: {part: {column: value}}."""
    path.write_text(json.dumps({name: dataclasses.asdict(part) for name, part in table.items()}, indent=2) + "\n")


def print_parts(table: Mapping[str, Part], console: Console | None = None) -> None:
    """Prints the table, and below it the leaves that are replicated."""
    console = console or make_console()
    columns = ("part", "parameters", "trainable", "dtype", "weights", "optimizer", "forward", "backward")
    shown = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption="forward and backward: matrix FLOP of a step")
    for column in (1, 2, 4, 5, 6, 7):
        shown.columns[column].justify = "right"
    for name, part in table.items():
        if name == TOTAL:
            shown.add_section()
        numbers = (part.weight_bytes, part.optimizer_bytes)
        flops = (part.forward_flops, part.backward_flops)
        shown.add_row(
            name, f"{part.parameters:,}", f"{part.trainable:,}", ", ".join(part.dtypes),
            *(_scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB")) for value in numbers),
            *(_scaled(value, 1000, ("", "k", "M", "G", "T", "P")) for value in flops),
        )  # fmt: skip
    console.print(shown)
    if TOTAL in table and table[TOTAL].replicated:
        console.print(f"replicated, since neither fsdp nor sequence divides a dimension: {', '.join(table[TOTAL].replicated)}")


def _total(parts: Iterable[Part]) -> Part:
    parts = list(parts)
    numbers = ("parameters", "trainable", "weight_bytes", "optimizer_bytes", "forward_flops", "backward_flops")
    return Part(
        **{name: sum(getattr(part, name) for part in parts) for name in numbers},
        dtypes=_unique(dtype for part in parts for dtype in part.dtypes),
        replicated=tuple(path for part in parts for path in part.replicated),
    )


def _bytes_by_path(tree: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(keys[-1], DictKey):
            total[keys[-1].key] = total.get(keys[-1].key, 0) + _bytes(leaf)
    return total


def _size(leaf: Any) -> int:
    return math.prod(leaf.shape)


def _bytes(leaf: Any) -> int:
    """Of a quantised matrix, with its scales."""
    return sum(_size(each) * jnp.dtype(each.dtype).itemsize for each in jax.tree.leaves(leaf))


def _dtype(leaf: Any) -> str:
    return str(jax.tree.leaves(leaf)[0].dtype)  # of a quantised matrix, before its scales


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _scaled(value: int, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while value >= base ** (power + 1) and power < len(units) - 1:
        power += 1
    return f"{value / base**power:.3g} {units[power]}".rstrip()
