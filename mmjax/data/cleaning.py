"""Text as BLIP-2 was trained on it: captions and questions in lower case, without punctuation, of at most fifty words.

Accepted answers stay as they are; metrics normalise them by their own rules.
"""

from __future__ import annotations

import dataclasses
import re

from mmjax.types import Example, Part, Source, Turn

WORDS = 50
MARKS = re.compile(r"[.!\"()*#:;~]")


def clean_caption(text: str) -> str:
    """A caption: each mark becomes a space."""
    return _cut(MARKS.sub(" ", text.lower()))


def clean_question(text: str) -> str:
    """A question: each mark goes without a trace."""
    return _cut(MARKS.sub("", text.lower()))


def _cut(text: str) -> str:
    """Single spaces, fifty words."""
    return " ".join(text.split()[:WORDS])


def clean_example(example: Example) -> Example:
    """An example with clean captions and questions.

    What users say is a question. `meta["caption"]` is a caption, and so is what is said or accepted where nobody asks.
    """
    asked = any(turn.text for turn in example.turns if turn.role == "user")
    turns = tuple(_clean_turn(turn, asked) for turn in example.turns)
    meta = {**example.meta, "caption": clean_caption(example.meta["caption"])} if "caption" in example.meta else example.meta
    answers = example.answers if asked else tuple(map(clean_caption, example.answers))
    return dataclasses.replace(example, turns=turns, answers=answers, meta=meta)


def _clean_turn(turn: Turn, asked: bool) -> Turn:
    if turn.role == "assistant" and asked:
        return turn
    clean = clean_question if turn.role == "user" else clean_caption
    return Turn(turn.role, tuple(part if part.text is None else Part(text=clean(part.text)) for part in turn.parts))


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """A source whose examples are clean."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return clean_example(self.source[index])
