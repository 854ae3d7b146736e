"""Prefetch: order, errors, accounting and an end without a hang."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mmjax.data.prefetch import prefetch
from mmjax.data.stream import make_stream
from mmjax.types import UserError


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_order_put_and_end():
    with prefetch(iter(range(5)), lambda batch: batch * 10, 2) as ready:
        assert list(ready) == [0, 10, 20, 30, 40]
        with pytest.raises(StopIteration):
            next(ready)
    assert threads() == 0


def test_at_most_size_batches_wait():
    made = []
    with prefetch(itertools.count(), lambda batch: made.append(batch) or batch, 3) as ready:
        time.sleep(0.4)
        assert len(made) == 4  # three wait, one is held by the thread
        assert next(ready) == 0


@pytest.mark.parametrize("where", ["stream", "put"])
def test_errors_surface_after_what_came_before(where):
    def numbers():
        yield 0
        if where == "stream":
            raise UserError("broken shard")
        yield 1

    def put(batch):
        if batch:
            raise UserError("broken shard")
        return batch

    with prefetch(numbers(), put, 4) as ready:
        assert next(ready) == 0
        for _ in range(2):
            with pytest.raises(UserError, match="broken shard"):
                next(ready)


def test_waiting_is_accounted():
    def slow():
        while True:
            time.sleep(0.05)
            yield 0

    with prefetch(slow(), lambda batch: batch, 1) as ready:
        next(ready)
        next(ready)
        assert 0.04 < ready.wait_seconds < 5


def test_close_ends_the_thread_and_the_iterator():
    ready = prefetch(itertools.count(), lambda batch: batch, 1)
    next(ready)
    ready.close()
    assert threads() == 0
    with pytest.raises(StopIteration):
        next(ready)


def test_a_forgotten_iterator_ends_its_thread():
    ready = prefetch(itertools.count(), lambda batch: batch, 1)
    next(ready)
    del ready
    assert threads() == 0


def test_position_is_of_the_batch_given_last(config, processor, world):
    stream = make_stream(config, processor, 0, open_source=world)
    with prefetch(stream, lambda batch: batch, 3) as ready:
        assert ready.position()["batch"] == 0
        time.sleep(0.2)
        next(ready)
        assert ready.position()["batch"] == 1
    stream.close()


def test_exit_without_close_does_not_hang():
    code = """
import itertools
from mmjax.data.prefetch import prefetch
ready = prefetch(itertools.count(), int, 1)
print(next(ready))
"""
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
