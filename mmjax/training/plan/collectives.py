"""What the devices of a compiled step tell one another, read from its text.

The text is that of one device. A collective stands in it once, in whatever computation, and runs as often as the loops
around it turn; a loop's turns are the constant that its condition compares with. A gradient that is reduced and scattered at
once is an all-reduce inside a computation named all-reduce-scatter.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

DTYPE_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f8e4m3fn": 1, "f8e5m2": 1}  # others say their bits
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
CALLED_LISTS = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all)(-start)?\("
)
ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")

# Bytes that leave a device, for each byte of the whole array in a group of n (ring algorithms, as over a torus).
SENT: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """A kind of collective over some mesh axes, all of a step's together.

    Args:
      kind: of SENT.
      axes: of the mesh, over which its devices differ.
      dtype: of what is sent; the largest part's where several are sent at once.
      count: how many stand in the program.
      executions: how many run in a step.
      bytes: that leave each device in a step.
    """

    kind: str
    axes: tuple[str, ...]
    dtype: str
    count: int
    executions: int
    bytes: float


@dataclasses.dataclass(frozen=True)
class Found:
    """A collective as it stands in the text: its kind, arrays (dtype, shape), groups of devices, executions, and name."""

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    groups: np.ndarray
    executions: int
    name: str

    @property
    def dtype(self) -> str:
        return max(self.arrays, key=lambda array: _bytes(*array))[0]


def read_collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """The collectives of a step by kind, axes and dtype, those that send most first.

    Args:
      text: of the compiled program.
      mesh: size of every axis, outermost first.
    """
    total: dict[tuple[str, tuple[str, ...], str], Collective] = {}
    for found in find_collectives(text):
        axes, group = _axes(found.groups, mesh), found.groups.shape[1]
        if found.kind != "collective-permute" and group == 1:
            continue
        sent = SENT[found.kind](group) * sum(_bytes(*array) for array in found.arrays) * found.executions
        key = (found.kind, axes, found.dtype)
        before = total.get(key, Collective(*key, 0, 0, 0.0))
        total[key] = Collective(*key, before.count + 1, before.executions + found.executions, before.bytes + sent)
    return sorted(total.values(), key=lambda each: -each.bytes)


def find_collectives(text: str) -> Iterator[Found]:
    """Every collective of a program, once."""
    bodies = _computations(text)
    runs = _executions(bodies)
    seen: set[str] = set()
    for name, lines in bodies.items():
        for line in lines:
            match = COLLECTIVE.search(line)
            if match is None:
                continue
            channel = re.search(r"channel_id=(\d+)", line)
            # What runs beside other work stands in the text several times: where it starts, goes on and ends.
            if channel is not None and channel[1] in seen:
                continue
            seen.add(channel[1] if channel else line)
            kind = "reduce-scatter" if "all-reduce-scatter" in name else match[2]
            arrays = tuple((dtype, _shape(shape)) for dtype, shape in ARRAY.findall(match[1]))
            groups = _groups(line)
            arrays = _whole(kind, match[2], arrays, groups.shape[1], started=bool(match[3]))
            operation = re.search(r'op_name="([^"]*)"', line)
            yield Found(kind, arrays, groups, max(runs.get(name, 1), 1), operation[1] if operation else "")


def _whole(kind: str, written: str, arrays: tuple, group: int, *, started: bool) -> tuple:
    """The arrays of which SENT says how much is sent: of a gather its result, of a scatter its operand."""
    arrays = tuple(array for array in arrays if array[1] or not started)  # a start also gives counters
    if started and written in ("all-gather", "collective-permute"):  # (operands, results, …)
        arrays = arrays[len(arrays) // 2 :] if written == "all-gather" else arrays[: len(arrays) // 2]
    if kind == "reduce-scatter" and written == "reduce-scatter":
        arrays = tuple((dtype, (group, *shape)) for dtype, shape in arrays)
    return arrays


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation, by name; the entry's last, as it is printed."""
    bodies: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            current = bodies.setdefault(("ENTRY " if match[1] else "") + match[2], [])
        elif current is not None:
            current.append(line)
    return bodies


def _executions(bodies: Mapping[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in a step."""
    callers: dict[str, list[tuple[str, int]]] = {}
    for name, lines in bodies.items():
        for line in lines:
            called = CALLED.findall(line) + [
                each.strip(" %") for names in CALLED_LISTS.findall(line) for each in names.split(",")
            ]
            turns = _turns(bodies, line) if " while(" in line else 1
            for each in called:
                callers.setdefault(each, []).append((name, turns))
    runs = {name: 1 for name in bodies if name.startswith("ENTRY ")}

    def count(name: str) -> int:
        if name not in runs:
            runs[name] = 0  # until it is known
            runs[name] = sum(count(caller) * turns for caller, turns in callers.get(name, ()))
        return runs[name]

    for name in bodies:
        count(name)
    return runs


def _turns(bodies: Mapping[str, list[str]], line: str) -> int:
    """How often a loop turns: said in the text, or the one whole number of its condition; 1 where neither tells."""
    if known := re.search(r"known_trip_count[^\d}]*(\d+)", line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    body = "\n".join(bodies.get(condition[1], ())) if condition else ""
    numbers = set(re.findall(r"s32\[\]\S* constant\((\d+)\)", body))
    return int(numbers.pop()) if len(numbers) == 1 and "direction=LT" in body else 1


def _groups(line: str) -> np.ndarray:
    """The groups of devices [groups, size], in any of the ways in which they are written."""
    if pairs := re.search(r"source_target_pairs=\{(.*?\})\}", line):
        moved = [pair for pair in _lists(pairs[1]) if pair[0] != pair[1]]
        return np.array(moved or [[0, 0]])
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        chosen = re.findall(r"'(\w+)'", mesh[2])
        rest = [name for name in sizes if name not in chosen]
        devices = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        order = [list(sizes).index(name) for name in (*rest, *chosen)]
        return devices.transpose(order).reshape(-1, math.prod(sizes[name] for name in chosen))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        devices = np.arange(math.prod(_shape(iota[2]))).reshape(_shape(iota[2]))
        return (devices.transpose(_shape(iota[3])) if iota[3] else devices).reshape(_shape(iota[1]))
    if lists := re.search(r"replica_groups=\{(\{.*?\})\}", line):
        return np.array(_lists(lists[1]))
    return np.zeros((1, 1), int)


def _axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ; devices are numbered in the mesh's order."""
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())), -1)  # [groups, size, axes]
    differs = (places != places[:, :1]).any((0, 1))
    return tuple(name for name, each in zip(mesh, differs, strict=True) if each)


def _lists(text: str) -> list[list[int]]:
    return [[int(number) for number in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _bytes(dtype: str, shape: tuple[int, ...]) -> float:
    size = DTYPE_BYTES.get(dtype) or int(re.sub(r"\D", "", dtype)) / 8
    return float(math.prod(shape) * size)
