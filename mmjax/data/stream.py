"""The DataStream: an endless iterator of host batches, where batch k is a pure function of (config, seed, k)."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain.python as grain
import jax
from absl import flags

from mmjax.data import packing, records
from mmjax.data.batch import NO_PRIOR
from mmjax.data.config import DataConfig
from mmjax.data.mixture import mix
from mmjax.data.processor import Processor
from mmjax.data.render import NOTED, TOO_LONG, OnePerRow, Packed, Renderer, Report
from mmjax.data.templates import template
from mmjax.types import Batch, Source, UserError

log = logging.getLogger(__name__)

BROKEN_SHARE, TOO_LONG_SHARE, AT_LEAST = 0.001, 0.1, 10
READ_THREADS = 2
# Settings that some runs did not have yet: where they have their defaults, these runs must still find their place.
YOUNGER = (
    "source_length", "size_exponent", "prompt_length", "answer_length", "truncate_query", "crop", "rand_augment",
    "fit", "grids", "frames", "longest", "too_long",
)  # fmt: skip


class DataStream:
    """Iterates over batches and keeps count of what was left out.

    Attributes:
      fingerprint: hex digest of everything that decides which batch comes when; compare it before resuming.
      skipped: media and examples left out so far.
      reasons: their number by reason, and that of the examples that were cut. The first of each is logged.
    """

    def __init__(self, batches: Iterator, structure: Any, fingerprint: str, start: int, position: Mapping[str, int]):
        self._batches, self._structure = batches, structure
        self.fingerprint = fingerprint
        self._position = {"batch": start, **position}
        self._items = 0
        self._sums: collections.Counter[str] = collections.Counter()
        self.reasons: collections.Counter[str] = collections.Counter()
        self._messages: dict[str, str] = {}

    def __iter__(self) -> DataStream:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          StopIteration: at the end, when not training.
          UserError: too much of the data is broken, with the counts by reason.
        """
        leaves, report = next(self._batches)
        self._position = {"batch": self._position["batch"] + 1, "window": report.window, "row": report.row}
        self._items += report.items
        for reason, message in report.skipped:
            if reason not in self.reasons:
                log.warning("data: %s: %s; more of them are counted", reason, message)
                self._messages[reason] = message
            self.reasons[reason] += 1
        self._check()
        batch = jax.tree.unflatten(self._structure, leaves)
        self._sums.update({name: int(numbers.sum()) for name, numbers in batch.facts.items()})
        return batch

    @property
    def skipped(self) -> int:
        """Media and examples left out so far."""
        return sum(number for reason, number in self.reasons.items() if reason not in NOTED)

    @property
    def fill(self) -> float:
        """Share of the positions of text and source so far that hold a token; 0 without text rows."""
        return self._sums["useful"] / self._sums["positions"] if self._sums["positions"] else 0.0

    def position(self) -> dict[str, int]:
        """Where the next batch starts, as JSON: hand it to `make_stream` to go on there without planning earlier windows."""
        return dict(self._position)

    def close(self) -> None:
        """Ends worker processes and threads."""
        if close := getattr(self._batches, "close", None):
            close()

    def _check(self) -> None:
        too_long = self.reasons[TOO_LONG]
        for count, share in ((self.skipped - too_long, BROKEN_SHARE), (too_long, TOO_LONG_SHARE)):
            if count >= AT_LEAST and count > share * self._items:
                table = "; ".join(
                    f"{n} x {reason} (first: {self._messages[reason]})"
                    for reason, n in self.reasons.most_common()
                    if reason not in NOTED
                )
                raise UserError(f"{self.skipped} of {self._items} examples cannot be used, the limit is {share:.1%}: {table}")


def make_stream(
    config: DataConfig,
    processor: Processor,
    seed: int,
    *,
    start: int = 0,
    training: bool = True,
    open_source: Callable[..., Source] = records.open_source,
    position: Mapping[str, int] | None = None,
    prior: Mapping[str, int] = NO_PRIOR,
    held: tuple[int, ...] | None = None,
) -> DataStream:
    """Opens the sources of a stage and starts reading.

    Args:
      config: of the stage; its sizes replace the processor's.
      processor: tokenizers.
      seed: of order, templates and augmentation.
      start: first batch.
      training: shuffled, augmented and endless; otherwise every example once, in order, one a row.
      open_source: (path, split, limit) -> Source; a fourth argument says where a file has its images.
      position: what `DataStream.position` gave before batch `start`; spares a packed stream the planning of earlier windows.
      prior: row of the answer-prior table by prompt text (`AnswerPrior.prompts`).
      held: the rows of each batch that this process makes, of `mmjax.parallel.hosts.held_rows`; None = all. Every process
        reads the texts of all rows, whose lengths it needs to plan them, but the media of its own rows only.

    Returns:
      The stream. Batches do not depend on `config.workers`, and `start=k` gives what the stream from 0 gives after k batches.

    Raises:
      UserError: a source cannot be opened, a template is unknown, `position` belongs to another batch, or the language model
        wants a source where the config has none, or the other way round.
    """
    _check_source_length(config, processor)
    for source in config.mixture.values():
        template(source.template)
    names = ("soft_tokens", "image_size", "query_length", "truncate_query", "prompt_length", "answer_length", "frames")
    sizes = {name: getattr(config, name) for name in names}
    sizes["longest"] = (config.longest or config.length) if config.too_long == "cut" else 0
    sources = {name: open_source(*source.place) for name, source in config.mixture.items()}
    mixed = mix(sources, config, seed, training)
    renderer = Renderer(mixed, config, dataclasses.replace(processor, **sizes), seed, training, prior, held)
    position = dict(position or {})
    if position.get("batch", start) != start:
        raise UserError(f"data position of batch {position['batch']} does not belong to batch {start}")
    if config.pack and training:
        batcher = Packed(renderer, **position)
    else:
        batcher = OnePerRow(renderer)
    digest = _fingerprint(config, seed, sources, renderer.processor, from_records=open_source is records.open_source)
    structure = jax.tree.structure(renderer.empty())
    return DataStream(_read(batcher, start, config.workers), structure, digest, start, position)


def _check_source_length(config: DataConfig, processor: Processor) -> None:
    if config.length and processor.encoder_decoder and not config.source_length:
        raise UserError("data.source_length=0, but the language model is an encoder–decoder, whose encoder reads the prompts")
    if config.source_length and not processor.encoder_decoder:
        raise UserError(f"data.source_length={config.source_length}, but the language model has no encoder; set it to 0")


def _leaves(made: tuple[Batch, Report]) -> tuple[list, Report]:
    """Grain's shared memory puts stand-ins into a tree, which a typed one refuses: only a list of arrays travels."""
    return jax.tree.leaves(made[0]), made[1]


def _read(batcher: OnePerRow | Packed, start: int, workers: int) -> Iterator[tuple[list, Report]]:
    """Runs the batcher ahead, in threads or in worker processes."""
    batches = grain.MapDataset.range(start, max(start, len(batcher))).map(batcher).map(_leaves)
    if not workers:
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_THREADS)))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its flags when it starts workers
    ahead = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    return iter(ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_start_worker))


def _start_worker(index: int, count: int) -> None:
    """Makes a worker die with the process that started it, however that one ends."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _fingerprint(config: DataConfig, seed: int, sources: Mapping[str, Source], processor: Processor, from_records: bool) -> str:
    facts: dict[str, Any] = dataclasses.asdict(config)
    for name in ("workers", "prefetch"):
        del facts[name]
    for field in dataclasses.fields(config):
        if field.name in YOUNGER and facts[field.name] == field.default:
            del facts[field.name]
    for name, source in sources.items():
        entry = facts["mixture"][name]
        if not entry["cleaning"]:
            del entry["cleaning"]
        path = entry.pop("path")  # a data set may move, and so may pictures
        del entry["images"]
        entry["length"] = len(source)
        entry["content"] = records.fingerprint(path, entry["split"]) if from_records else ""
    if config.pack:
        facts["packing"] = packing.VERSION
    facts |= {"seed": seed, "vocabulary": processor.limit, "pad": processor.pad_id}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
