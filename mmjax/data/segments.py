"""Segments: what a template makes of an Example, before anything has ids.

A segment is one unit of attention: its tokens see one another and nothing else of their row. Segments hold text only as
pieces, so that the tokens of a prompt are the same ones in training and in inference.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from mmjax.types import Example

Spans = tuple[tuple[int, int], ...]  # (start, end) of stretches of a text, in order


@dataclasses.dataclass(frozen=True)
class Piece:
    """Text and the loss weight of each of its tokens as a target."""

    text: str
    weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class Special:
    """A token of the tokenizer's own, and its loss weight as a target. One that the tokenizer lacks is left out."""

    name: Literal["bos", "eos"]
    weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rendered:
    """Text that a chat template or a style of conversation made, whose special tokens are real ones.

    Args:
      text: tokenised as a whole.
      quotes: what people wrote within it: plain text, whatever it spells.
      learnt: what of it has a loss weight of 1. A token across such a border is an error.
      example: id of the example, for errors.
      skip: tokens at its beginning that are left out: those before it, which decide how it is split.
    """

    text: str
    quotes: Spans
    learnt: Spans = ()
    example: str = ""
    skip: int = 0


@dataclasses.dataclass(frozen=True)
class Ids:
    """Tokens that have their ids already."""

    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class MediumSlot:
    """Where the soft tokens of a medium of the example stand."""

    medium: int


@dataclasses.dataclass(frozen=True)
class Segment:
    """One prompt, with its continuation in training.

    Args:
      parts: in reading order.
      query: what a connector that reads text is told about the segment's media; also the key of the answer prior.
      answer: index in `parts` of the piece that answers, −1 = none.
      may_be_cut: whether training cuts off its end where it is too long, since what is learnt stands all over it.
    """

    parts: tuple[Piece | Rendered | Special | Ids | MediumSlot, ...]
    query: str | None = None
    answer: int = -1
    may_be_cut: bool = False


@dataclasses.dataclass(frozen=True)
class Template:
    """How a kind of example is rendered.

    Args:
      segments: (example, seed) -> the training segments. What is drawn at random depends on the example's id and the seed.
      prompt: (example, seed) -> the segment of the last question, without its answer.
      remembers: whether a prompt holds the questions and answers before it.
      end: text that ends an answer; "" = the processor's end token.
    """

    segments: Callable[[Example, int], list[Segment]]
    prompt: Callable[[Example, int], Segment]
    remembers: bool = False
    end: str = ""

    def __call__(self, example: Example, seed: int = 0) -> list[Segment]:
        return self.segments(example, seed)


class Words(NamedTuple):
    """A stretch of a conversation's text.

    Args:
      text: as it stands.
      quoted: whether a person wrote it, or else the template.
      learnt: whether it has a loss.
    """

    text: str
    quoted: bool = False
    learnt: bool = False


SEAM = None  # between words that are tokenised apart


def joined(contents: Iterable[Any], example: str = "") -> Iterator[Rendered | MediumSlot]:
    """All words between two media, or two seams, as one text.

    Args:
      contents: Words, MediumSlots and SEAMs in reading order.
      example: id of the example, for errors.
    """
    for are_words, group in itertools.groupby(contents, key=lambda content: isinstance(content, Words)):
        stretches = [content for content in group if content is not SEAM]
        if not are_words:
            yield from stretches
        elif text := "".join(words.text for words in stretches):
            quotes, learnt = (_spans(stretches, flag) for flag in ("quoted", "learnt"))
            yield Rendered(text, quotes, learnt, example if learnt else "")


def _spans(stretches: Sequence[Words], flag: str) -> Spans:
    """Where the words stand that bear a flag; neighbours are one span."""
    spans, start = [], 0
    for marked, group in itertools.groupby(stretches, key=lambda words: getattr(words, flag)):
        end = start + sum(len(words.text) for words in group)
        spans += [(start, end)] if marked and end > start else []
        start = end
    return tuple(spans)


def draw(*key: str | int) -> int:
    """A 63-bit number that depends on the key only: the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1
