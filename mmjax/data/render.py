"""Positions of the mixture -> batches. Pure functions of the position: workers and restarts cannot change a batch."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import grain.python as grain
import numpy as np
from jaxtyping import Int

from mmjax.data.batch import NO_PRIOR, BatchShape, Item, assemble, capacity, item_size, kinds, slots_of
from mmjax.data.cleaning import clean_example
from mmjax.data.config import DataConfig
from mmjax.data.media.augment import Augmentation
from mmjax.data.media.image import ImageError
from mmjax.data.media.video import pictures_of, places, with_places
from mmjax.data.mixture import Unreadable
from mmjax.data.packing import plan_window
from mmjax.data.processor import Processor, TokenisedSegment
from mmjax.data.segments import draw
from mmjax.data.templates import template
from mmjax.types import Batch, Example, ExampleError, UserError
from mmjax.types.batch import AnyArray

Skip = tuple[str, str]  # reason, message

TOO_LONG = "longer than a row"
# Reasons for which an example is noted, but used: a run may have any number of them.
CUT, UNLEARNT = "cut at the longest example", "nothing left to learn after the cut"
NOTED = (CUT, UNLEARNT)
SHARES = {"fill": ("useful", "positions"), "media_fill": ("media", "slots")}


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened while a batch was made.

    Args:
      items: examples that were looked at.
      skipped: (reason, message) of each one, or each medium, that was left out or cut.
      window, row: where the next batch of a packed stream starts.
    """

    items: int
    skipped: tuple[Skip, ...]
    window: int = 0
    row: int = 0


@dataclasses.dataclass(frozen=True)
class Renderer:
    """Turns positions of the mixture into items and batches.

    Args:
      records: position -> (source name, Example or Unreadable).
      config, processor: of the stage.
      seed: of whatever is drawn, together with the position.
      training: whether images are augmented.
      prior: row of the answer-prior table by prompt text.
      held: the rows of a batch that are made here, those of this process; None = all.
    """

    records: grain.MapDataset
    config: DataConfig
    processor: Processor
    seed: int
    training: bool
    prior: Mapping[str, int] = dataclasses.field(default_factory=lambda: NO_PRIOR)
    held: tuple[int, ...] | None = None

    @functools.cached_property
    def shape(self) -> BatchShape:
        """Static sizes of every batch."""
        return BatchShape.of(self.config, self.processor)

    def __len__(self) -> int:
        return len(self.records)

    def segments(self, position: int) -> tuple[Example | Unreadable, tuple[TokenisedSegment, ...]]:
        """The example at a position and its tokenised segments, which show each frame of a video as a medium of its own."""
        name, example = self.records[position]  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
        if isinstance(example, Unreadable):
            return example, ()
        source = self.config.mixture[name]
        example = clean_example(example) if source.cleaning else example
        spread = with_places(example, self.config.frames)
        try:
            segments = template(source.template)(spread, draw(self.seed, "template", position))
            return example, tuple(self.processor.tokenise(segment, spread.media) for segment in segments)
        except ExampleError as error:
            return Unreadable(str(error), "unusable example"), ()

    def misfit(self, segments: tuple[TokenisedSegment, ...]) -> str:
        """Why no row can hold these segments; "" if one can."""
        size, room = item_size(segments, self.shape), capacity(self.shape)
        longest = max((len(segment.query) for segment in segments), default=0)
        text, positions = max((len(segment.tokens) for segment in segments), default=0), self.processor.positions
        if any(need > have for need, have in zip(size, room, strict=True)):
            return f"needs ({', '.join(kinds(self.shape))}) = {size}, a row holds {room}"
        if longest > self.config.query_length:
            return f"asks the connector a query of {longest} tokens, query_length is {self.config.query_length}"
        if 0 < self.config.longest < text:
            return f"has a text of {text} tokens, data.longest is {self.config.longest}"
        if 0 < positions < text:
            return f"has a text of {text} tokens, the language model has {positions} positions (parts.llm.max_positions)"
        return ""

    def size(self, position: int) -> tuple[int, ...]:
        """What the example at a position takes of a row; nothing when it cannot be used."""
        segments = self.segments(position)[1]
        return item_size(() if self.misfit(segments) else segments, self.shape)

    def item(self, position: int) -> tuple[Item | None, list[Skip]]:
        """The item at a position with its media decoded, or None; and what was skipped."""
        example, segments = self.segments(position)
        if isinstance(example, Unreadable):
            return None, [(example.reason, example.message)]
        if reason := self.misfit(segments):
            return None, [(TOO_LONG, f"example {example.id!r} {reason}")]
        skipped = list(_cuts(example.id, segments))
        images: dict[int, np.ndarray | None] = {}
        ids: dict[int, int] = {}
        taken = slots_of(segments) if self.shape.media else {}
        for index, frames in enumerate(places(example, self.config.frames)):
            if frames.start not in taken:
                continue
            ids |= {place: medium_id(example, index, number) for number, place in enumerate(frames)}
            try:
                images |= zip(frames, self._pictures(position, example, index, taken[frames.start]), strict=True)
            except ImageError as error:
                images |= dict.fromkeys(frames)
                skipped.append((error.reason, str(error)))
        if self.training and self.config.flip and draw(self.seed, "flip", position) % 2:
            images = {place: None if image is None else image[:, :, ::-1] for place, image in images.items()}
        return Item(example.id, segments, images, ids), skipped

    def _pictures(self, position: int, example: Example, index: int, slots: int) -> list[np.ndarray]:
        """A medium as the encoder reads it, one picture or each frame of a video, all of them changed alike.

        Args:
          slots: that the plan has for each picture.
        """
        name, medium = f"example {example.id!r}, medium {index}", example.media[index]
        if medium.kind == "video" and self.processor.tiling is not None:
            raise ImageError("wrong kind", f"{name}: a video, but data.fit='tiles' is for pictures")
        pictures = pictures_of(medium, self.config.frames, name=name)
        pixels = [self.processor.image(picture, name, self._change(position, index)) for picture in pictures]
        if any(len(tiles) != slots for tiles in pixels):
            raise ImageError("damaged", f"{name}: its header tells another size than its pixels have")
        return pixels

    def _change(self, position: int, index: int) -> Callable[[np.ndarray], np.ndarray] | None:
        """The random change of a medium; None where there is none."""
        change = Augmentation(self.config.crop, self.config.rand_augment)
        if not self.training or change == Augmentation():
            return None
        numbers = np.random.default_rng(draw(self.seed, "augment", position, index))
        return lambda image: change(image, numbers)

    def empty(self) -> Batch:
        """A batch without examples, for its structure."""
        return self.batch([])[0]

    def batch(self, rows: list[list[int]], window: int = 0, row: int = 0) -> tuple[Batch, Report]:
        """Assembles the positions of each row that is held here into a batch; media of other rows are not even read."""
        held = range(self.shape.rows) if self.held is None else self.held
        filled: list[list[Item]] = []
        skipped: list[list[Skip]] = []
        chosen = [rows[number] if number < len(rows) else [] for number in held]
        for positions in chosen:
            made = [self.item(position) for position in positions]
            filled.append([item for item, _ in made if item is not None])
            skipped.append([skip for _, skips in made for skip in skips])
        batch = assemble(filled, dataclasses.replace(self.shape, rows=len(held)), prior=self.prior)
        batch = dataclasses.replace(batch, facts=row_facts(batch, self.shape, skipped))
        return batch, Report(sum(map(len, chosen)), tuple(skip for skips in skipped for skip in skips), window, row)


def row_facts(batch: Batch, shape: BatchShape, skipped: Sequence[Sequence[Skip]]) -> dict[str, Int[np.ndarray, "b"]]:
    """What the metrics say of each row of a batch.

    Args:
      batch: without facts.
      shape: of all of it.
      skipped: of each row, what was left out or cut.

    Returns:
      Positions of text and source that hold a token ("useful") and all of them ("positions"), media slots that hold a medium
      ("media") and all of them ("slots"), each where there are any; and how many examples or media were left out ("skipped")
      and cut ("cut").
    """
    facts: dict[str, Any] = {
        "skipped": [sum(reason not in NOTED for reason, _ in skips) for skips in skipped],
        "cut": [sum(reason == CUT for reason, _ in skips) for skips in skipped],
    }
    if positions := shape.length + shape.source_length:
        texts = [text.segments > 0 for text in (batch.text, batch.source) if text is not None]
        facts |= {"useful": sum(used.sum(1) for used in texts), "positions": [positions] * len(skipped)}
    if shape.media:
        used = sum(media.mask.sum(1) for media in batch.media.values())
        facts |= {"media": used, "slots": [shape.media] * len(skipped)}
    return {name: np.asarray(numbers, np.int32) for name, numbers in facts.items()}


def totals(facts: Mapping[str, Int[AnyArray, "b"]]) -> dict[str, Any]:
    """What the metrics say of a batch.

    Args:
      facts: of its rows, as of `row_facts`.

    Returns:
      The shares of text positions ("fill") and of media slots ("media_fill") that are used, where there are any, and the
      numbers of examples that were left out ("skipped") and cut ("cut"), broken media included.
    """
    sums = {name: numbers.sum() for name, numbers in facts.items()}
    shares = {name: sums[part] / sums[whole] for name, (part, whole) in SHARES.items() if whole in sums}
    return shares | {name: sums[name] for name in ("skipped", "cut") if name in sums}


def _cuts(name: str, segments: tuple[TokenisedSegment, ...]) -> Iterator[Skip]:
    """What is to be told about segments that have lost their ends."""
    for segment in segments:
        if segment.lost:
            whole = len(segment.tokens) + segment.lost
            yield CUT, f"example {name!r} lost {segment.lost} of {whole} positions (data.longest, or else data.length)"
            if not segment.weights[1:].any():
                yield UNLEARNT, f"example {name!r} is read to its cut, and no answer stands before it"


def medium_id(example: Example, index: int, frame: int = 0) -> int:
    """A 31-bit number of a medium, or of a frame of it: the same for all examples that show it, as their `meta["image_id"]` or
    bytes tell."""
    if frame:
        return draw("frame", medium_id(example, index), frame) >> 32
    medium = example.media[index]
    if len(example.media) == 1 and "image_id" in example.meta:
        return draw("medium", example.source, example.meta["image_id"]) >> 32
    return draw("medium", medium.sha256 or f"{example.id}#{index}") >> 32


@dataclasses.dataclass(frozen=True)
class OnePerRow:
    """Batch k holds positions k * rows … k * rows + rows − 1, one a row."""

    renderer: Renderer

    def __len__(self) -> int:
        return -(-len(self.renderer) // self.renderer.shape.rows)

    def __call__(self, index: int) -> tuple[Batch, Report]:
        start = index * self.renderer.shape.rows
        stop = min(start + self.renderer.shape.rows, len(self.renderer))
        return self.renderer.batch([[position] for position in range(start, stop)])


class Packed:
    """Batch k holds the next rows of the windows' plans.

    A window's plan depends on the window only. Where batch k starts depends on how many rows the windows before it gave, so
    a restart says where it starts; without that, the earlier windows are planned again.

    Args:
      renderer: makes the batches.
      batch, window, row: batch number `batch` starts at row `row` of window `window`.
    """

    def __init__(self, renderer: Renderer, batch: int = 0, window: int = 0, row: int = 0):
        self._renderer, self._start = renderer, (batch, window, row)
        self._reset()

    def _reset(self):
        batch, window, row = self._start
        rows = self._renderer.shape.rows
        self._first = {window: batch * rows - row}  # number of the first row of each window
        self._plans: dict[int, Future] = {}
        self._lock = threading.Lock()

    def __getstate__(self):
        return self._renderer, self._start

    def __setstate__(self, state):
        self._renderer, self._start = state
        self._reset()

    def __len__(self) -> int:
        return len(self._renderer) // self._renderer.shape.rows  # endless: more than anybody reads

    def plan(self, window: int) -> tuple[list[list[int]], list[int]]:
        """Rows of positions of a window, and the positions that fit no row. The window after it is planned meanwhile."""
        with self._lock:
            for number in {window, window + 1} - self._plans.keys():
                self._plans[number] = Future()
                threading.Thread(target=self._fill, args=(self._plans[number], number), daemon=True).start()
            wanted = self._plans[window]
            self._plans = {number: plan for number, plan in self._plans.items() if number >= window - 2}
        return wanted.result()

    def _fill(self, future: Future, window: int) -> None:
        try:
            renderer = self._renderer
            positions = range(window * renderer.config.window, (window + 1) * renderer.config.window)
            sizes = np.array([renderer.size(position) for position in positions])
            rows, _ = plan_window(sizes, capacity(renderer.shape), draw(renderer.seed, "window", window))
            unused = np.flatnonzero(~sizes.any(axis=1)).tolist()
            future.set_result(([[positions[i] for i in row] for row in rows], [positions[i] for i in unused]))
        except BaseException as error:  # whoever waits for the plan gets it
            future.set_exception(error)

    def _rows(self, first: int) -> Iterator[tuple[int, int, list[int]]]:
        """(window, row in it, positions) from row number `first` on."""
        window = max(number for number, start in list(self._first.items()) if start <= first)
        while True:
            rows, unused = self.plan(window)
            if not rows:
                raise UserError(f"no example of a window fits a row: {self._renderer.item(unused[0])[1]}")
            self._first[window + 1] = self._first[window] + len(rows)
            for row in range(max(first - self._first[window], 0), len(rows)):
                # What no row takes is counted with the window's first row.
                yield window, row, rows[row] + (unused if row == 0 else [])
            window += 1

    def __call__(self, index: int) -> tuple[Batch, Report]:
        count = self._renderer.shape.rows
        rows = []
        for window, row, positions in self._rows(index * count):
            if len(rows) == count:
                return self._renderer.batch(rows, window, row)
            rows.append(positions)
        raise AssertionError("rows never end")
