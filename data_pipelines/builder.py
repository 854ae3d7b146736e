"""The base of all data sets of Examples: a TFDS builder that writes ArrayRecord shards without TensorFlow.

A data set is a subclass that says where its items come from (`items`) and which pure functions make Examples of them
(`steps`). Its records hold the one feature `example`, the bytes of `mmjax.data.records.encode_example`.
"""

from __future__ import annotations

import abc
import contextlib
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from rich.console import Console
from rich.progress import Progress
from tensorflow_datasets.core.utils import shard_utils

from data_pipelines import local
from mmjax.data.records import FEATURE, encode_example
from mmjax.types import Example, UserError

# One random read takes time in proportion to the records of its shard: 7 µs of 1,000, 14 of 5,000, 46 of 24,000.
RECORDS_PER_SHARD = 4096
SKIPPED = "skipped.jsonl"
Runner = Callable[..., Iterator[list[Any]]]  # called as `local.run` is, with the steps, the items and `chunk`


class Skip(NamedTuple):
    """What a step gives instead of an example that cannot be used: the example's id and the reason, a sentence's end."""

    id: str
    reason: str


def encode(example: Example | Skip) -> Iterator[bytes | Skip]:
    """The last step of every data set. Some text of the world cannot be stored: halves of surrogate pairs, for example."""
    try:
        yield example if isinstance(example, Skip) else encode_example(example)
    except ValueError as error:
        yield Skip(example.id, f"cannot be stored: {error}")


class ExampleBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of Examples.

    Subclasses set `VERSION`, `steps`, and the texts of the info (`description`, `homepage`, `license`), and define `items`.
    """

    steps: Sequence[local.Step] = ()
    chunk: int = local.CHUNK
    description: str = ""
    homepage: str = ""
    license: str = ""
    raw: Path | None = None
    runner: Runner = staticmethod(local.run)
    limit: int = 0
    skips: int = 0
    skipped: list[Skip]

    @abc.abstractmethod
    def items(self) -> Mapping[str, Sequence[Any]]:
        """What the first step takes, by split; cheap and picklable (numbers, file names), for it is held in memory."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.description,
            homepage=self.homepage or None,
            license=self.license or None,
            features=tfds.features.FeaturesDict({FEATURE: tfds.features.Tensor(shape=(), dtype=np.str_)}),
            disable_shuffling=True,  # records stay in the order of the items; whoever trains shuffles
        )

    def _split_generators(self, dl_manager):
        splits = {split: items for split, items in self.items().items() if items}  # TFDS refuses a split without records
        if not splits:
            raise UserError(f"{self.name}: --raw={self.raw} holds not one example")
        return {split: self._generate_examples(split, items) for split, items in splits.items()}

    def _generate_examples(self, split: str, items: Sequence[Any]):  # type: ignore[override]  # TFDS leaves the arguments to us
        items = items[: self.limit] if self.limit else items
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"{self.name} {split}", total=len(items))
            number = 0
            for records in self.runner((*self.steps, encode), items, chunk=self.chunk):
                for record in records:
                    if isinstance(record, Skip):
                        self._skip(record)
                        continue
                    yield number, {FEATURE: record}
                    number += 1
                    if number == self.limit:
                        return
                progress.advance(task, self.chunk)
        if not number:
            raise UserError(f"{self.name}: the split {split} has {len(items)} items, and not one gives an example")

    def _skip(self, skip: Skip) -> None:
        """Counts an example that is left out.

        Raises:
          UserError: one more than `skips`.
        """
        self.skipped.append(skip)
        if len(self.skipped) > self.skips:
            raise UserError(f"{skip.id} {skip.reason} (--skips={self.skips}: so many such examples may be left out)")


class _ShardConfig(shard_utils.ShardConfig):
    """Shards by number of records; TFDS counts bytes."""

    def get_number_shards(self, total_size: int, num_examples: int, uses_precise_sharding: bool = True) -> int:
        return max(1, math.ceil(num_examples / RECORDS_PER_SHARD))


class _DownloadConfig(tfds.download.DownloadConfig):
    """How TFDS asks for the above."""

    def get_shard_config(self) -> shard_utils.ShardConfig:
        return _ShardConfig()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what TFDS prints and logs about working directories that will be gone."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def write(
    builder: type[ExampleBuilder], out: Path, *, runner: Runner, raw: Path | None = None, limit: int = 0, skips: int = 0
) -> None:
    """Builds a data set into an existing, empty directory, so that `open_source` and `tfds.builder_from_directory` read it.

    Examples that are left out stand in `skipped.jsonl` beside the shards, each with its reason.

    Args:
      builder: the data set.
      out: where `dataset_info.json`, `features.json` and the shards go.
      runner: the shell that runs the steps.
      raw: directory of the raw release, for data sets that need one.
      limit: the first `limit` items, and no more than so many examples, of each split only; 0 = all.
      skips: how many examples that cannot be used may be left out.

    Raises:
      UserError: more of them, or a split with nothing else.
    """
    tfds.disable_progress_bar()  # ours counts all items
    with tempfile.TemporaryDirectory(dir=out, prefix="tfds-") as work:
        instance = builder(data_dir=work, file_format="array_record")
        instance.raw, instance.runner, instance.limit, instance.skips = raw, runner, limit, skips
        instance.skipped = []
        with _quiet():
            instance.download_and_prepare(download_config=_DownloadConfig())
        for file in Path(instance.data_dir).iterdir():
            file.rename(out / file.name)
    if instance.skipped:
        (out / SKIPPED).write_text("".join(f"{json.dumps(skip._asdict())}\n" for skip in instance.skipped))
        logging.warning("examples left out: %d; %s says which and why", len(instance.skipped), SKIPPED)
