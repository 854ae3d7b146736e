"""Packing: which items share a row. A pure function of sizes and a seed, so that every process plans the same rows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

VERSION = 2  # of the plans: another one puts other items together
UNIT = 4096  # what a row holds of each kind of room


def plan_window(sizes: Int[np.ndarray, "items kinds"], room: tuple[int, ...], seed: int) -> tuple[list[list[int]], list[int]]:
    """Fills one row after the other with the item that leaves it the least room, until none fits any more.

    The room left is the sum of squares over its kinds, each weighed by the share of it that the items need: the norm-based
    greedy of Panigrahy and others (Heuristics for vector bin packing, 2011). So where slots are scarce, a row takes long items
    without media beside short ones with. Items are never cut: one that no empty row can hold is rejected. All arithmetic is
    in integers, the same on any machine.

    Args:
      sizes: what each item takes of every kind of room: positions, media slots and so on.
      room: what one row holds of each kind.
      seed: of the order of the rows.

    Returns:
      The rows, each the indices of its items in rising order, shuffled; and the indices of rejected items. Items that take no
      room of any kind appear in neither.
    """
    fits = (sizes <= np.asarray(room)).all(axis=1)
    chosen = np.flatnonzero(fits & sizes.any(axis=1))
    rows = [[chosen[item] for item in row] for row in _fill(sizes[chosen].astype(np.int64), np.maximum(room, 1))]
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    return [sorted(map(int, rows[row])) for row in order], np.flatnonzero(~fits).tolist()


def _fill(sizes: Int[np.ndarray, "items kinds"], room: Int[np.ndarray, "kinds"]) -> list[list[int]]:
    """The rows of items that all fit an empty one. Items of one size take turns by their index."""
    classes, members = np.unique(sizes, axis=0, return_inverse=True)
    waiting = [np.flatnonzero(members == number).tolist()[::-1] for number in range(len(classes))]
    needed = sizes.sum(axis=0) * UNIT // room
    weights = np.maximum(1000 * needed // max(needed.max(initial=0), 1), 1)
    rows = []
    while waiting:
        row: list[int] = []
        left = room.copy()
        candidates = np.arange(len(classes))
        while len(candidates := candidates[(classes[candidates] <= left).all(axis=1)]):
            after = (left - classes[candidates]) * UNIT // room
            best = candidates[np.argmin((weights * after * after).sum(axis=1))]
            row.append(waiting[best].pop())
            left = left - classes[best]
            if not waiting[best]:
                candidates = candidates[candidates != best]
        rows.append(row)
        if any(not items for items in waiting):
            kept = [number for number, items in enumerate(waiting) if items]
            classes, waiting = classes[kept], [waiting[number] for number in kept]
    return rows
