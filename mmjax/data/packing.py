"""Packing: which items share a row. A pure function of sizes and a seed, so that every process plans the same rows."""

from __future__ import annotations

import bisect

import numpy as np
from jaxtyping import Int

CANDIDATES = 64  # tightest rows that are tried for room of the other kinds before a new row is opened


def plan_window(sizes: Int[np.ndarray, "items kinds"], room: tuple[int, ...], seed: int) -> tuple[list[list[int]], list[int]]:
    """Best-fit decreasing: each item, longest first, goes to the row that it fills best.

    Items are never cut: one that no empty row can hold is rejected.

    Args:
      sizes: what each item takes of every kind of room: positions first, by which rows are filled, then media and so on.
      room: what one row holds of each kind.
      seed: of the order of the rows.

    Returns:
      The rows, each the indices of its items in rising order, shuffled; and the indices of rejected items. Items that take no
      room of any kind appear in neither.
    """
    rows: list[list[int]] = []
    left: list[list[int]] = []  # room left in each row
    open_rows: list[tuple[int, int]] = []  # (positions left, row), sorted
    fits = (sizes <= np.asarray(room)).all(axis=1)
    rejected = np.flatnonzero(~fits).tolist()
    chosen = np.flatnonzero(fits & sizes.any(axis=1))
    smallest = sizes[chosen].min(axis=0).tolist() if len(chosen) else [0] * len(room)
    order = chosen[np.lexsort((chosen, -sizes[chosen, 1], -sizes[chosen, 0]))]
    for index, needs in zip(order.tolist(), sizes[order].tolist(), strict=True):
        place = bisect.bisect_left(open_rows, (needs[0], -1))
        for candidate in range(place, min(place + CANDIDATES, len(open_rows))):
            row = open_rows[candidate][1]
            if all(have >= need for have, need in zip(left[row], needs, strict=True)):
                del open_rows[candidate]
                break
        else:
            row = len(rows)
            rows.append([])
            left.append(list(room))
        rows[row].append(index)
        left[row] = [have - need for have, need in zip(left[row], needs, strict=True)]
        if all(have >= need for have, need in zip(left[row], smallest, strict=True)):
            bisect.insort(open_rows, (left[row][0], row))
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    return [sorted(rows[row]) for row in order], rejected
