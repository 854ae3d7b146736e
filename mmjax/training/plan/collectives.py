"""What the devices of a compiled step tell one another, read from its text.

The text is that of one device. A collective stands in it, in whatever computation, and runs as often as the loops around it
turn; how often that is follows from the number that a loop's counter is compared with, and from how it begins and grows, by two
where neighbours pass pieces of a weight in both directions while they multiply. A gradient that is reduced and scattered at
once is an all-reduce inside a computation named all-reduce-scatter. Between slices of TPUs the runtime does the work, and the
text has a send and a receive with the collective's name and devices, numbered 100,000 · slice + place in it, slices from one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

log = logging.getLogger(__name__)

DTYPE_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f8e4m3fn": 1, "f8e5m2": 1}  # others say their bits
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
CALLED_LISTS = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all)(-start)?\("
)
BETWEEN_SLICES = re.compile(
    r"= \((.*?), u32\[\], token\[\]\) send\(.*_xla_megascale_target=\"?(.*?)\"?,_xla_megascale_transfer_type=\"(\w+)\""
)
TRANSFERS = {
    "ALL_GATHER": "all-gather", "ALL_REDUCE": "all-reduce", "REDUCE_SCATTER": "reduce-scatter", "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}  # fmt: skip
# What runs beside other work stands in several fusions, maybe within other loops: where it starts, goes on and ends.
CONTINUED = re.compile(r'"async_collective_fusion_config":\{"flag_start":"\d')
FIRST_SLICE = 100_000
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
    """Every collective of a program, where it starts."""
    bodies = _computations(text)
    runs = _executions(bodies)
    for name, lines in bodies.items():
        for line in lines:
            match = COLLECTIVE.search(line) or BETWEEN_SLICES.search(line)
            if match is None or CONTINUED.search(line):
                continue
            arrays = tuple((dtype, _shape(shape)) for dtype, shape in ARRAY.findall(match[1]))
            if match.re is BETWEEN_SLICES:
                kind, groups = TRANSFERS[match[3]], _slices(match[2])
                arrays = _times(groups.shape[1], arrays) if kind == "all-gather" else arrays
            else:
                kind, groups = "reduce-scatter" if "all-reduce-scatter" in name else match[2], _groups(line)
                arrays = _whole(kind, match[2], arrays, groups.shape[1], started=bool(match[3]))
            operation = re.search(r'op_name="([^"]*)"', line)
            yield Found(kind, arrays, groups, max(runs[name], 1), operation[1] if operation else "")


def _whole(kind: str, written: str, arrays: tuple, group: int, *, started: bool) -> tuple:
    """The arrays of which SENT says how much is sent: of a gather its result, of a scatter its operand."""
    arrays = tuple(array for array in arrays if array[1] or not started)  # a start also gives counters
    if started and written in ("all-gather", "collective-permute"):  # (operands, results, …)
        arrays = arrays[len(arrays) // 2 :] if written == "all-gather" else arrays[: len(arrays) // 2]
    if kind == "reduce-scatter" and written == "reduce-scatter":
        arrays = _times(group, arrays)
    return arrays


def _times(group: int, arrays: tuple) -> tuple:
    """The arrays of all devices of a group together."""
    return tuple((dtype, (group, *shape)) for dtype, shape in arrays)


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
    callers: dict[str, list[tuple[str, int]]] = {}  # and how often each run of theirs runs it
    for name, lines in bodies.items():
        for line in lines:
            called = CALLED.findall(line) + [
                each.strip(" %") for names in CALLED_LISTS.findall(line) for each in names.split(",")
            ]
            turns = _turns(bodies, lines, line) if called and " while(" in line else 1
            for each in called:
                callers.setdefault(each, []).append((name, turns))

    @functools.cache
    def count(name: str) -> int:
        return 1 if name.startswith("ENTRY ") else sum(count(caller) * turns for caller, turns in callers.get(name, ()))

    return {name: count(name) for name in bodies}


def _turns(bodies: Mapping[str, list[str]], around: list[str], line: str) -> int:
    """How often a loop turns: said in the text, or counted from its counter's first value to the number of its condition.

    Args:
      around: the lines of the computation that the loop stands in.
      line: of the loop.
    """
    if known := re.search(r"known_trip_count[^\d}]*(\d+)", line):
        return int(known[1])
    parts = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", line))
    condition, body = ("\n".join(bodies.get(parts.get(each, ""), ())) for each in ("condition", "body"))
    limits = set(re.findall(r"[su]32\[\]\S* constant\((\d+)\)", condition))
    counter = re.search(r"[su]32\[\]\S* get-tuple-element\(.*?\), index=(\d+)", condition)
    if len(limits) != 1 or counter is None or "direction=LT" not in condition:
        log.warning("how often %s turns is not said: what it sends is counted once", parts.get("body"))
        return 1
    place = int(counter[1])
    outside, inside = _definitions(around), _definitions(body.splitlines())
    given = re.search(r" while\(%?([\w.\-]+)\)", line)
    start = _constant(outside, _element(outside.get(given[1], "") if given else "", place)) or 0
    root = next((text for text in inside.values() if text.lstrip().startswith("ROOT ")), "")
    step = _added(inside, _element(root, place)) or 1  # in pieces that two neighbours pass at once, loops count by two
    return max(-(-(int(limits.pop()) - start) // step), 0)


def _definitions(lines: list[str]) -> dict[str, str]:
    """The line that defines each name."""
    return {match[1]: text for text in lines if (match := re.match(r" *(?:ROOT )?%?([\w.\-]+) = ", text))}


def _element(text: str, place: int) -> str:
    """The name of what stands at a place of a tuple."""
    parts = re.search(r" tuple\((.*?)\)", text)
    names = _names(parts[1]) if parts else []
    return names[place] if place < len(names) else ""


def _names(operands: str) -> list[str]:
    return [each.split("%")[-1].strip() for each in operands.split(",")]


def _constant(defined: Mapping[str, str], name: str) -> int | None:
    """The number that a name stands for, None where it is none."""
    text = defined.get(name, "")
    if copied := re.search(r" copy\(%?([\w.\-]+)\)", text):
        return _constant(defined, copied[1])
    number = re.search(r" constant\((\d+)\)", text)
    return int(number[1]) if number else None


def _added(defined: Mapping[str, str], name: str) -> int:
    """The sum of the constants that are added, one after the other, to make what a name stands for."""
    text = defined.get(name, "")
    if copied := re.search(r" copy\(%?([\w.\-]+)\)", text):
        return _added(defined, copied[1])
    added = re.search(r" add\((.*?)\)", text)
    return sum(_constant(defined, each) or _added(defined, each) for each in _names(added[1])) if added else 0


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


def _slices(target: str) -> np.ndarray:
    """The groups of devices [groups, size] of a transfer between slices: "{1,2}x{0:3}", or lists of numbers or of pairs."""
    if "x" in target:
        numbers, places = (_numbers(part.strip("{}")) for part in target.split("x"))
        pairs = np.stack(np.meshgrid(places, np.array(numbers) - 1, indexing="ij"), -1)  # [places, slices, 2]
        place, number = pairs[..., 0], pairs[..., 1]
    else:
        number, place = np.divmod(np.array(_lists(target.replace("->", ","))) - FIRST_SLICE, FIRST_SLICE)
    return number * (place.max() + 1) + place


def _numbers(text: str) -> list[int]:
    """Those of "1,2" or "0:3", ends included."""
    first, last = text.split(":") if ":" in text else ("", "")
    return list(range(int(first), int(last) + 1)) if first else list(_shape(text))


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
