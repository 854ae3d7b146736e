"""Prefetch: a thread that makes batches and moves them to the device ahead of the step."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from mmjax.types import Batch

POLL_SECONDS = 0.1


class Prefetch:
    """An iterator over batches that a background thread has made ready.

    Attributes:
      wait_seconds: time that `next` has spent waiting so far.
    """

    def __init__(self, stream: Iterator[Batch], put: Callable[[Batch], Any], size: int):
        self._queue: queue.Queue = queue.Queue(size)
        self._stop = threading.Event()
        self._position = _position(stream)
        self._ended: BaseException | None = None
        self.wait_seconds = 0.0
        thread = threading.Thread(target=_fill, args=(stream, put, self._queue, self._stop), daemon=True, name="prefetch")
        # Runs at close, when nobody holds the iterator any more, and at exit: a thread must not touch a dying runtime.
        self._finish = weakref.finalize(self, _finish, self._stop, thread)
        thread.start()

    def __iter__(self) -> Prefetch:
        return self

    def __next__(self) -> Any:
        if self._ended is not None:
            raise self._ended
        started = time.perf_counter()
        batch, position, error = self._queue.get()
        self.wait_seconds += time.perf_counter() - started
        if error is not None:
            self._ended = error
            raise error
        self._position = position
        return batch

    def position(self) -> dict[str, int] | None:
        """`DataStream.position` right after the batch that `next` gave last: what a checkpoint keeps."""
        return self._position

    def close(self) -> None:
        """Ends the thread; the stream itself stays open."""
        self._ended = self._ended or StopIteration()
        self._finish()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetch(stream: Iterator[Batch], put: Callable[[Batch], Any], size: int) -> Prefetch:
    """Starts to prepare batches ahead.

    Args:
      stream: host batches.
      put: moves one to the device, for example a partial of `jax.device_put`; runs in the background thread.
      size: how many wait ready.

    Returns:
      The iterator. An error of the stream or of `put` is raised by `next`, after the batches before it.
    """
    return Prefetch(stream, put, size)


def _position(stream: Iterator[Batch]) -> dict[str, int] | None:
    position = getattr(stream, "position", None)
    return position() if position else None


def _fill(stream: Iterator[Batch], put: Callable[[Batch], Any], ready: queue.Queue, stop: threading.Event) -> None:
    error = None
    while not stop.is_set() and error is None:
        try:
            entry = (put(next(stream)), _position(stream), None)
        except BaseException as caught:  # handed to the consumer, StopIteration too
            error = caught
            entry = (None, None, caught)
        while not stop.is_set():
            try:
                ready.put(entry, timeout=POLL_SECONDS)
                break
            except queue.Full:
                continue


def _finish(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():
        thread.join(timeout=10)
