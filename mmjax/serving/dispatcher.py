"""Decodes the rows of many requests together.

One thread owns the model. It gathers rows that wait, decodes those with like options as one batch of a bucketed shape, and
goes from batch to batch piece by piece, so that a long answer holds nobody up for longer than a piece of it.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from absl import logging

from mmjax.data.processor import PROMPT_BUCKET
from mmjax.decoding.generate import PIECE, cut, searcher_of, settled
from mmjax.decoding.inputs import bucket
from mmjax.decoding.options import DecodingOptions
from mmjax.types import Example
from mmjax.types.model import Model

LIVE = 4  # batches that take turns
SHORTEST = 16  # tokens: room for answers is 16, 32, 64, …

Finish = Literal["stop", "length", "error"]


class Busy(Exception):
    """Too many rows wait already."""


class Progress(NamedTuple):
    """Where a row stands.

    Args:
      text: of the answer so far, as far as it is certain.
      tokens, logprobs: of the answer so far.
      finish: why it ended, None = it goes on. After an "error" the text is not to be used.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish: Finish | None = None


@dataclasses.dataclass(eq=False)
class Row:
    """One answer that is wanted.

    Args:
      example: the prompt, known to be usable.
      length: its tokens.
      options: of this row alone; num_beams must be 1.
      stop: strings before which the answer ends.
      report: called by the dispatcher's thread with every new Progress.
      cancelled: set it when nobody waits any more.
      ended: kept by the dispatcher.
    """

    example: Example
    length: int
    options: DecodingOptions
    stop: tuple[str, ...]
    report: Callable[[Progress], None]
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)
    ended: bool = False

    @property
    def kind(self) -> DecodingOptions:
        """Rows of equal kinds can be decoded together."""
        room = max(SHORTEST, bucket(self.options.max_new_tokens, 1 << 30))
        return dataclasses.replace(self.options, max_new_tokens=room, seed=0)


class Dispatcher:
    """The thread and its queue.

    Args:
      model: used by this thread only.
      template: how examples become prompts, see `Processor.question`.
      batch_size: rows of a batch at most.
      window: seconds that an idle dispatcher waits for more rows once the first has come.
      capacity: rows that may wait.
    """

    def __init__(self, model: Model, template: str | None, *, batch_size: int = 16, window: float = 0.005, capacity: int = 256):
        self._batches: list[Iterator[None]] = []
        self._model, self._template, self._batch_size = model, template, batch_size
        self._window, self._capacity = window, capacity
        self._waiting: list[Row] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()

    @property
    def live(self) -> int:
        """Batches under way."""
        return len(self._batches)

    def submit(self, rows: Sequence[Row]) -> None:
        """Puts rows into the queue.

        Raises:
          Busy: there is no room for all of them, or the dispatcher has been closed.
        """
        with self._changed:
            if self._closed or len(self._waiting) + len(rows) > self._capacity:
                raise Busy(f"{len(self._waiting)} answers are waited for already; try again later")
            self._waiting += rows
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread after the piece that it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            self._batches += self._admit(idle=not self._batches, places=LIVE - len(self._batches))
            self._batches = [batch for batch in self._batches if next(batch, "over") != "over"]

    def _admit(self, *, idle: bool, places: int) -> list[Iterator[None]]:
        """New batches of what waits; an idle dispatcher sleeps until there is something."""
        if idle:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
            time.sleep(self._window)
        batches = []
        with self._changed:
            self._waiting = [row for row in self._waiting if not row.cancelled.is_set()]
            while self._waiting and len(batches) < places:
                kind = self._waiting[0].kind
                rows = [row for row in self._waiting if row.kind == kind][: self._batch_size]
                self._waiting = [row for row in self._waiting if row not in rows]
                batches.append(self._decode(rows, kind))
        return batches

    def _decode(self, rows: list[Row], kind: DecodingOptions) -> Iterator[None]:
        """Decodes a batch, giving way after every piece. Whatever goes wrong is the misfortune of these rows only."""
        try:
            yield from self._pieces(rows, kind)
        except Exception:
            logging.exception("a batch of %d rows failed", len(rows))
            for row in rows:
                if not row.ended:
                    row.report(Progress("", finish="error"))

    def _pieces(self, rows: list[Row], kind: DecodingOptions) -> Iterator[None]:
        places = bucket(len(rows), self._batch_size)
        batch = self._model.processor.prompts(
            [row.example for row in rows],
            self._template,
            rows=places,
            length=max(PROMPT_BUCKET, *(bucket(row.length, 1 << 30) for row in rows)),
        )
        seeds = np.zeros(places, np.int64)
        seeds[: len(rows)] = [row.options.seed for row in rows]
        ended = np.zeros(places, bool)
        decode = self._model.processor.llm.decode
        pieces = searcher_of(self._model).pieces(
            self._model.parameters, batch, kind, seeds=seeds, piece=PIECE, stop=lambda answers: ended
        )
        for answers in pieces:
            for place in np.flatnonzero(~ended[: len(rows)]).tolist():
                row, length = rows[place], answers.lengths[place]
                progress = _progress(
                    row, answers.tokens[place, :length].tolist(), answers.logprobs[place, :length].tolist(), decode
                )
                row.ended = ended[place] = row.cancelled.is_set() or progress.finish is not None
                row.report(progress)
            yield


def _progress(row: Row, tokens: list[int], logprobs: list[float], decode: Callable[..., str]) -> Progress:
    """What a row has of its answer after these tokens, some of which may lie beyond its end."""

    def text_of(count: int) -> str:
        return decode(tokens[:count], skip_special_tokens=True)

    count = min(len(tokens), row.options.max_new_tokens)
    text = text_of(count)
    if cut(text, row.stop) != text:
        # The answer ends with the first token that completes a stop string.
        count = next(n for n in range(1, count + 1) if cut(text_of(n), row.stop) != text_of(n))
        text, finish = cut(text, row.stop), "stop"
    elif tokens[count - 1] in row.options.eos_token_id:
        finish = "stop"
    else:
        finish = "length" if count == row.options.max_new_tokens else None
    return Progress(text.strip() if finish else settled(text, row.stop), tuple(tokens[:count]), tuple(logprobs[:count]), finish)
