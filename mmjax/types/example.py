"""The Example: one record of a data set, in the one form that everything reads.

Builders emit it, `mmjax.data` renders it into prompts, `mmjax.generate` and `mmjax.score` accept it. Where a medium
stands in a conversation is a *part* of a turn, never a magic string inside the text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

MediumKind = Literal["image", "audio", "video"]
Role = Literal["system", "user", "assistant"]


@dataclasses.dataclass(frozen=True)
class Medium:
    """One picture, sound or clip.

    Args:
      kind: what it is.
      data: the encoded file as bytes (decoded within limits by `mmjax.data.media`), or decoded values: an image as
        uint8 [height, width, 3], a video as uint8 [frames, height, width, 3].
      mime: media type of encoded data, for example "image/png".
      sha256: hex digest of encoded data, "" if not known.
    """

    kind: MediumKind
    data: bytes | np.ndarray
    mime: str = ""
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
    """One piece of a turn: either a text or the index of a medium of the example."""

    text: str | None = None
    medium: int | None = None

    def __post_init__(self):
        if (self.text is None) == (self.medium is None):
            raise ValueError(
                f"a part is either a text or the index of a medium, got text={self.text!r}, medium={self.medium!r}"
            )


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one speaker says at once."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The turn's text parts, joined by a space."""
        return " ".join(part.text for part in self.parts if part.text is not None)

    @property
    def media(self) -> tuple[int, ...]:
        """The indices of the turn's media, in order."""
        return tuple(part.medium for part in self.parts if part.medium is not None)


@dataclasses.dataclass(frozen=True)
class Preference:
    """A better and a worse way to continue the example's turns."""

    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]


@dataclasses.dataclass(frozen=True)
class Example:
    """One record.

    Args:
      id: unique and stable, "<data set>/<split>/<owner's id>".
      source: data set name and revision.
      media: what the parts of the turns refer to.
      turns: the conversation, oldest first.
      answers: for question answering, all accepted answers, not normalised.
      preference: for alignment.
      meta: licence, tags, question kinds, …: anything that JSON can hold.
    """

    id: str
    source: str = ""
    media: tuple[Medium, ...] = ()
    turns: tuple[Turn, ...] = ()
    answers: tuple[str, ...] = ()
    preference: Preference | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for turn in self.turns:
            for index in turn.media:
                if not 0 <= index < len(self.media):
                    raise ValueError(
                        f"example {self.id!r}: a part refers to medium {index}, but there are {len(self.media)} media"
                    )


@runtime_checkable
class Source(Protocol):
    """A data set: anything with a length and random access to Examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def ask(text: str, *media: Medium, id: str = "prompt") -> Example:
    """An example with one user turn: the media first, then the text."""
    parts = (*(Part(medium=i) for i in range(len(media))), Part(text=text))
    return Example(id=id, media=tuple(media), turns=(Turn("user", parts),))
