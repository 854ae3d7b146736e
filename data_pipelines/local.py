"""The local shell: runs a list of pure functions over many items in worker processes, in order and within bounded memory.

The functions know nothing of this file: each takes an item and gives any number of items (none drops it), so that another
shell (a cluster's) can run the same list.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

Step = Callable[[Any], Iterable[Any]]
CHUNK = 256


def apply(steps: Sequence[Step], items: Iterable[Any]) -> list[Any]:
    """Everything that comes out of the last step when the items go through all of them, in order."""
    for step in steps:
        items = itertools.chain.from_iterable(map(step, items))
    return list(items)


def run(steps: Sequence[Step], items: Sequence[Any], processes: int | None = None, chunk: int = CHUNK) -> Iterator[list[Any]]:
    """Puts items through the steps, a chunk at a time.

    Args:
      steps: pure functions; picklable, and so is what they take and give when they run in worker processes.
      items: what the first step takes.
      processes: worker processes; None = one per CPU, but none for few items; 0 = in this process.
      chunk: items that are put through together; what comes out of some chunks is held in memory.

    Yields:
      What came out of each chunk of items, in the order of the items, whatever the number of processes.
    """
    chunks = [items[start : start + chunk] for start in range(0, len(items), chunk)]
    if processes is None:
        processes = min(os.cpu_count() or 1, len(chunks) // 8)
    if not processes:
        yield from (apply(steps, part) for part in chunks)
        return
    # Spawned, not forked: the caller may have started JAX, whose threads do not survive a fork.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        waiting = deque()
        try:
            for part in chunks:
                waiting.append(pool.submit(apply, steps, part))
                if len(waiting) > 4 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
