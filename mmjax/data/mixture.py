"""The mixed, shuffled, endless order of examples: position -> (source, example), pure and random access."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import grain.python as grain

from mmjax.data.config import DataConfig
from mmjax.data.files.forms import RowError
from mmjax.data.segments import draw
from mmjax.types import Example, Source, UserError


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Stands for a record that cannot be read, or an example that its template cannot use; `reason`, for counting."""

    message: str
    reason: str = "unreadable record"


@dataclasses.dataclass(frozen=True)
class _Named:
    """A source whose elements carry its name, and whose damaged records do not stop a run."""

    name: str
    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[str, Example | Unreadable]:
        try:
            return self.name, self.source[index]
        except RowError as error:
            return self.name, Unreadable(str(error), error.reason)
        except UserError as error:
            return self.name, Unreadable(str(error))


def mix(sources: Mapping[str, Source], config: DataConfig, seed: int, training: bool) -> grain.MapDataset:
    """Puts the sources of a mixture into one order.

    Args:
      sources: by the names of `config.mixture`.
      config: its weights and size_exponent give the shares of the sources.
      seed: of the shuffles; every epoch of every source has another order.
      training: shuffled and endless; otherwise one source after the other, once.

    Returns:
      A data set of (name of the source, Example or Unreadable).
    """
    for name, source in sources.items():
        if not len(source):
            raise UserError(f"data.mixture.{name}: {config.mixture[name].path} holds no example")
    datasets = [grain.MapDataset.source(_Named(name, source)) for name, source in sources.items()]
    if not training:
        return grain.MapDataset.concatenate(datasets)
    endless = [
        dataset.shuffle(seed=draw(seed, "shuffle", name) % 2**32).repeat()
        for name, dataset in zip(sources, datasets, strict=True)
    ]
    if len(endless) == 1:
        return endless[0]
    shares = [config.mixture[name].weight * len(source) ** config.size_exponent for name, source in sources.items()]
    return grain.MapDataset.mix(endless, shares)
