"""What a stage says about its data."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One data set of a mixture.

    Args:
      path: directory of a prepared data set (`python -m launch.prepare` writes one).
      split: its split.
      weight: share in the mixture, relative to the other sources.
      template: name of the template that renders its examples (`mmjax.data.templates`).
      builder: name of the data set under `data_pipelines/`, by which `launch.train` prepares a missing `path`; "" for none.
      limit: use the first `limit` examples only; 0 = all.
    """

    path: str
    split: str = "train"
    weight: float = 1.0
    template: str = "question_answer"
    builder: str = ""
    limit: int = 0

    def __post_init__(self):
        if self.weight <= 0:
            raise ValueError(f"weight must be above 0, got {self.weight}")
        if self.limit < 0:
            raise ValueError(f"limit must be 0 (all) or more, got {self.limit}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The mixture of a stage and the static shapes of its batches.

    Args:
      mixture: the sources, by name.
      rows: rows of the global batch, b.
      length: text positions of a row, t; 0 for objectives without a text row (BLIP-2 stage 1).
      source_length: source positions of a row, s; 0 unless the language model is an encoder–decoder, which reads prompts there.
      media: media slots of a row, n; 0 for text only.
      queries: query slots of a row, m; 0 when the connector reads no text.
      query_length: positions of a query, u.
      soft_tokens: connector outputs per query (or per medium without queries), k: what one image takes in the text row.
      image_size: side of the square that images are resized to, in pixels.
      flip: mirror images left to right at random in training.
      pack: put several examples into a row (best fit); otherwise one example a row.
      window: positions of the shuffled index that are planned together when packing.
      workers: Grain worker processes; 0 reads in threads of the main process.
      prefetch: batches made ready ahead of the step.
    """

    mixture: dict[str, SourceConfig]
    rows: int
    length: int
    source_length: int = 0
    media: int = 1
    queries: int = 0
    query_length: int = 0
    soft_tokens: int = 0
    image_size: int = 224
    flip: bool = False
    pack: bool = False
    window: int = 16384
    workers: int = 0
    prefetch: int = 4

    def __post_init__(self):
        if not self.mixture:
            raise ValueError("mixture names no data set")
        for name in ("rows", "window", "prefetch", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("length", "source_length", "media", "queries", "query_length", "soft_tokens", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if bool(self.queries) != bool(self.query_length):
            raise ValueError(f"queries={self.queries} and query_length={self.query_length} must both be 0 or both be above 0")
        if self.queries and not self.media:
            raise ValueError(f"queries={self.queries} ask about media, but media=0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Directories of tokenizers in Hugging Face layout.

    Args:
      llm: the language model's.
      connector: the connector's, where it reads text (Q-Former); "" = the language model's.
    """

    llm: str
    connector: str = ""
