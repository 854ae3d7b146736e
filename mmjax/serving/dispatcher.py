"""Decodes the rows of many requests together.

One thread owns the model. It gathers rows that wait, decodes those with like options as one batch of a bucketed shape, and
goes from batch to batch piece by piece, so that a long answer holds nobody up for longer than a piece of it. Prompts whose
own log-probabilities are wanted are read the same way, many at once.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from absl import logging

from mmjax.data.batch import Item, slots_of
from mmjax.data.processor import PROMPT_BUCKET
from mmjax.decoding.generate import PIECE, cut, likeliest, ranked, searcher_of, settled
from mmjax.decoding.inputs import bucket
from mmjax.decoding.options import DecodingOptions
from mmjax.decoding.scoring import token_scores
from mmjax.types import Batch
from mmjax.types.model import Model

LIVE = 4  # batches that take turns
SHORTEST, GROWTH = 16, 8  # tokens: room for answers is 16, 128, 1024, …
SLACK = 4  # a shape that is compiled already may be so many times as large as what is needed

Finish = Literal["stop", "length", "error"]


class Busy(Exception):
    """Too many rows wait already."""


class Token(NamedTuple):
    """A token, its log-probability (None = it is the first and has none), and those of the likeliest ones in its place."""

    id: int
    logprob: float | None
    likeliest: Mapping[int, float]


class Progress(NamedTuple):
    """Where a row stands.

    Args:
      text: of the answer so far, as far as it is certain.
      tokens: that this text is made of, the end token included.
      count: tokens decoded so far, those of a stop string included.
      finish: why it ended, None = it goes on. After an "error" nothing is to be used.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    count: int = 0
    finish: Finish | None = None


@dataclasses.dataclass(eq=False)
class Row:
    """One answer that is wanted.

    Args:
      item: the prompt, known to be usable.
      options: of this row alone; num_beams must be 1.
      stop: strings before which the answer ends.
      report: called by the dispatcher's thread with every new Progress.
      before: the prompt's last tokens, where the answer goes on with their text; None = it is a text of its own, without outer
        white space.
      cancelled: set it when nobody waits any more.
      ended: kept by the dispatcher.
    """

    item: Item
    options: DecodingOptions
    stop: tuple[str, ...]
    report: Callable[[Progress], None]
    before: tuple[int, ...] | None = None
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)
    ended: bool = False

    @property
    def kind(self) -> DecodingOptions:
        """Rows of equal kinds can be decoded together."""
        return dataclasses.replace(self.options, max_new_tokens=room_for(self.options.max_new_tokens), seed=0)

    @property
    def program(self) -> Hashable:
        """What is compiled for its kind."""
        return self.kind.split()[0]


@dataclasses.dataclass(eq=False)
class Reading:
    """The log-probabilities of a prompt's own tokens are wanted; other arguments as of `Row`.

    Args:
      top: how many of the likeliest tokens to tell with each.
    """

    item: Item
    top: int
    report: Callable[[Progress], None]
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)
    ended: bool = False

    @property
    def kind(self) -> int:
        """Readings of equal kinds can be done together."""
        return bucket(self.top, 1 << 30) if self.top else 0

    @property
    def program(self) -> Hashable:
        """What is compiled for its kind."""
        return self.kind


def rooms(longest: int) -> list[int]:
    """The rooms that answers of up to `longest` tokens can have."""
    sizes = [SHORTEST]
    while sizes[-1] < longest:
        sizes.append(sizes[-1] * GROWTH)
    return sizes


def room_for(tokens: int) -> int:
    """The room that an answer of so many tokens gets."""
    return rooms(tokens)[-1]


def take_shape(model: Model, program: Hashable, wanted: tuple[int, int]) -> tuple[int, int]:
    """The smallest (rows, length) that is compiled already and not much too large; else the wanted one, which will be."""
    ready = model.cache.setdefault("serving.shapes", collections.defaultdict(set))[program]
    fitting = [shape for shape in ready if all(need <= have <= SLACK * need for need, have in zip(wanted, shape, strict=True))]
    chosen = min(fitting, key=math.prod, default=wanted)
    ready.add(chosen)
    return chosen


class Dispatcher:
    """The thread and its queue.

    Args:
      model: used by this thread only.
      batch_size: rows of a batch at most.
      window: seconds that an idle dispatcher waits for more rows once the first has come.
      capacity: rows that may wait.
    """

    def __init__(self, model: Model, *, batch_size: int = 16, window: float = 0.005, capacity: int = 256):
        self._batches: list[Iterator[None]] = []
        self._model, self._batch_size = model, batch_size
        self._window, self._capacity = window, capacity
        self._waiting: list[Row | Reading] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()

    @property
    def live(self) -> int:
        """Batches under way."""
        return len(self._batches)

    def submit(self, rows: Sequence[Row | Reading]) -> None:
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

    def _decode(self, rows: list[Any], kind: DecodingOptions | int) -> Iterator[None]:
        """Decodes or reads a batch, giving way after every piece. Whatever goes wrong is the misfortune of these rows only."""
        try:
            yield from self._readings(rows, kind) if isinstance(kind, int) else self._pieces(rows, kind)
        except Exception:
            logging.exception("a batch of %d rows failed", len(rows))
            for row in rows:
                if not row.ended:
                    row.report(Progress("", finish="error"))

    def _pieces(self, rows: list[Row], kind: DecodingOptions) -> Iterator[None]:
        batch = self._batch(rows)
        places = batch.text.tokens.shape[0]
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
                ids, logprobs = answers.tokens[place, :length].tolist(), answers.logprobs[place, :length].tolist()
                progress = _progress(row, [*map(Token, ids, logprobs, likeliest(answers, place))], decode)
                row.ended = ended[place] = row.cancelled.is_set() or progress.finish is not None
                row.report(progress)
            yield

    def _readings(self, rows: list[Reading], top: int) -> Iterator[None]:
        batch = self._batch(rows)
        scores = token_scores(self._model, batch, top)
        for row, *of_row in zip(rows, batch.text.tokens, batch.text.segments, *scores, strict=False):  # fewer rows than places
            ids, segments, logprobs, top_tokens, top_logprobs = (array.tolist() for array in of_row)
            start = segments.index(1)
            first = Token(ids[start], None, {})
            others = [
                Token(ids[at + 1], logprobs[at], ranked(top_tokens[at], top_logprobs[at])) for at in range(start, len(ids) - 1)
            ]
            row.ended = True
            row.report(Progress("", (first, *others), finish="length"))
        yield

    def _batch(self, rows: Sequence[Row | Reading]) -> Batch:
        """The prompts of some rows in a shape that many batches have."""
        items = [row.item for row in rows]
        lengths = (len(segment.source) or len(segment.tokens) for item in items for segment in item.segments)
        wanted = bucket(len(rows), self._batch_size), max(PROMPT_BUCKET, *(bucket(length, 1 << 30) for length in lengths))
        pictures = max(sum(slots_of(item.segments).values()) for item in items)
        places, length = take_shape(self._model, (rows[0].program, pictures), wanted)
        return self._model.processor.prompt_batch(items, rows=places, length=length)


def _progress(row: Row, tokens: list[Token], decode: Callable[..., str]) -> Progress:
    """What a row has of its answer after these tokens, some of which may lie beyond its end."""
    before, trim = list(row.before or ()), row.before is None
    known = len(decode(before, skip_special_tokens=True))

    def text_of(count: int) -> str:
        return decode(before + [token.id for token in tokens[:count]], skip_special_tokens=True)[known:]

    def within(length: int) -> tuple[Token, ...]:
        return tuple(tokens[: next(n for n in range(count, -1, -1) if len(text_of(n)) <= length)])

    count = min(len(tokens), row.options.max_new_tokens)
    text = text_of(count)
    if (kept := cut(text, row.stop)) != text:
        # The answer ends with the first token that completes a stop string.
        count = next(n for n in range(1, count + 1) if cut(text_of(n), row.stop) != text_of(n))
        return Progress(kept.strip() if trim else kept, within(len(kept)), count, "stop")
    ended = tokens[count - 1].id in row.options.eos_token_id
    if ended or count == row.options.max_new_tokens:
        return Progress(text.strip() if trim else text, tuple(tokens[:count]), count, "stop" if ended else "length")
    sure = settled(text, row.stop, trim=trim)
    hidden = len(text) - len(text.lstrip()) if trim else 0
    return Progress(sure, within(hidden + len(sure)), count)
