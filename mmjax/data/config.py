"""What a stage says about its data."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One data set of a mixture.

    Args:
      path: directory of a prepared data set (`python -m launch.prepare` writes one); or a file that is read as it is, a
        `.json`, `.jsonl`, `.parquet` or `.tar` (`mmjax.data.files.source`).
      split: its split; a file is one split, but for Karpathy's.
      images: where the pictures of a file are: a folder, a `.tar` or a `.parquet`; "" = beside the file.
      weight: share in the mixture, relative to the other sources; see also `DataConfig.size_exponent`.
      template: name of the template that renders its examples (`mmjax.data.templates`).
      builder: name of the data set under `data_pipelines/`, by which `launch.train` prepares a missing `path`; "" for none.
      limit: use the first `limit` examples only; 0 = all.
      cleaning: "blip2" = captions and questions in lower case and without punctuation (`mmjax.data.cleaning`), as in its
        training; "" = as they are.
    """

    path: str
    split: str = "train"
    images: str = ""
    weight: float = 1.0
    template: str = "question_answer"
    builder: str = ""
    limit: int = 0
    cleaning: str = ""

    def __post_init__(self):
        if self.cleaning not in ("", "blip2"):
            raise ValueError(f"cleaning must be '' or 'blip2', got {self.cleaning!r}")
        if self.weight <= 0:
            raise ValueError(f"weight must be above 0, got {self.weight}")
        if self.limit < 0:
            raise ValueError(f"limit must be 0 (all) or more, got {self.limit}")

    @property
    def place(self) -> tuple[str | int, ...]:
        """The arguments of `mmjax.data.records.open_source`."""
        return self.path, self.split, self.limit, *([self.images] if self.images else [])


FITS = ("stretch", "crop", "pad", "tiles")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The mixture of a stage and the static shapes of its batches.

    Args:
      mixture: the sources, by name.
      size_exponent: shares in the mixture are weight · size ** size_exponent: 0, the weights alone; 0.5, InstructBLIP's rule;
        1, every example equally often.
      rows: rows of the global batch, b.
      length: text positions of a row, t; 0 for objectives without a text row (BLIP-2 stage 1).
      source_length: source positions of a row, s; 0 unless the language model is an encoder–decoder, which reads prompts there.
      media: media slots of a row, n; 0 for text only. A video takes as many as it has `frames`.
      frames: pictures that a video becomes, evenly spaced over it.
      queries: query slots of a row, m; 0 when the connector reads no text.
      query_length: positions of a query, u.
      soft_tokens: connector outputs per query (or per medium without queries), k: what one image takes in the text row.
      image_size: side of the square that images are resized to, in pixels.
      fit: how they become square: "stretch", whatever their shape; "crop", the shorter side is resized and the middle cut
        out; "pad", a margin is added; "tiles", they are cut into several (AnyRes), each a media slot.
      grids: (height, width) in pixels of the grids of tiles, for fit="tiles".
      prompt_length: tokens of a prompt in training, BOS included; a longer one loses its beginning. 0 = any.
      longest: positions of a conversation in training, soft tokens included; 0 = those of a row.
      too_long: what becomes of a longer one: "cut", it loses its end, from an image on where the cut would go through it;
        "refuse", it is left out. The templates of single questions are never cut: their end is what they teach.
      answer_length: tokens of what is learnt, its end included; a longer one loses its end. 0 = any.
      truncate_query: "left" or "right": the side on which a query longer than query_length is cut; "" = refuse it.
      flip: mirror images left to right at random in training.
      crop: least and greatest share of an image's area that training cuts out at random before it resizes (Inception's
        crop, aspect ratios from 3/4 to 4/3); () = the whole image.
      rand_augment: random operations on each training image, by BLIP's list (`mmjax.data.media.augment`).
      pack: put several examples into a row (`mmjax.data.packing`); otherwise one example a row.
      window: positions of the shuffled index that are planned together when packing.
      workers: Grain worker processes; 0 reads in threads of the main process.
      prefetch: batches made ready ahead of the step.
    """

    mixture: dict[str, SourceConfig]
    rows: int
    length: int
    source_length: int = 0
    media: int = 1
    frames: int = 4
    queries: int = 0
    query_length: int = 0
    soft_tokens: int = 0
    image_size: int = 224
    fit: str = "stretch"
    grids: tuple[tuple[int, int], ...] = ()
    size_exponent: float = 0.0
    prompt_length: int = 0
    answer_length: int = 0
    longest: int = 0
    too_long: str = "cut"
    truncate_query: str = ""
    flip: bool = False
    crop: tuple[float, ...] = ()
    rand_augment: int = 0
    pack: bool = False
    window: int = 16384
    workers: int = 0
    prefetch: int = 4

    def __post_init__(self):
        if not self.mixture:
            raise ValueError("mixture names no data set")
        for name in ("rows", "window", "prefetch", "image_size", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        sizes = ("length", "source_length", "media", "queries", "query_length", "soft_tokens", "workers")
        for name in (*sizes, "prompt_length", "answer_length", "longest", "rand_augment", "size_exponent"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.longest > self.length:
            raise ValueError(f"longest={self.longest} must be at most length={self.length}, a row")
        if self.too_long not in ("cut", "refuse"):
            raise ValueError(f"too_long must be 'cut' or 'refuse', got {self.too_long!r}")
        if bool(self.queries) != bool(self.query_length):
            raise ValueError(f"queries={self.queries} and query_length={self.query_length} must both be 0 or both be above 0")
        if self.truncate_query not in ("", "left", "right"):
            raise ValueError(f"truncate_query must be '', 'left' or 'right', got {self.truncate_query!r}")
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, got {self.fit!r}")
        if (self.fit == "tiles") != bool(self.grids):
            raise ValueError(f"fit={self.fit!r} and grids={self.grids}: tiles need grids, and nothing else has them")
        if self.fit == "tiles" and (self.flip or self.queries):
            raise ValueError("fit='tiles' goes neither with flip nor with a connector that reads queries")
        if self.crop and not (len(self.crop) == 2 and 0 < self.crop[0] <= self.crop[1] <= 1):
            raise ValueError(f"crop must be a least and a greatest share in (0, 1], got {self.crop}")
        if self.queries and not self.media:
            raise ValueError(f"queries={self.queries} ask about media, but media=0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Directories of tokenizers in Hugging Face layout.

    Args:
      llm: the language model's.
      connector: the connector's, where it reads text (Q-Former); "" = the language model's.
      begin, end: text of the token that begins a text, and of that which ends an answer; "" = the tokenizer's BOS and EOS.
        BLIP-2 with OPT ends with "\\n", InstructBLIP with Vicuna begins with "</s>".
    """

    llm: str
    connector: str = ""
    begin: str = ""
    end: str = ""
