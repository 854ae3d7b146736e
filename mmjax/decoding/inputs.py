"""What users hand in: plain strings with media of many forms become Examples."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from mmjax.data.media.image import decode_image
from mmjax.types import Batch, Example, Medium, UserError, ask
from mmjax.types.example import MediumKind

T = TypeVar("T")

MediumLike = Medium | bytes | str | os.PathLike | np.ndarray | Image.Image


def as_medium(value: MediumLike, kind: MediumKind) -> Medium:
    """A medium from a path, the bytes of a file, a uint8 array, a PIL image, or a Medium.

    Raises:
      UserError: a file that cannot be read, or a value of another type.
    """
    match value:
        case Medium():
            return value
        case bytes() | np.ndarray():
            return Medium(kind, value)
        case Image.Image():
            return Medium(kind, decode_image(value))
        case str() | os.PathLike():
            try:
                return Medium(kind, Path(value).read_bytes())
            except OSError as error:
                raise UserError(f"{kind} {os.fspath(value)}: {error.strerror or error}") from None
    raise UserError(f"{kind}: expected a path, bytes, a uint8 array or a PIL image, got {type(value).__name__}")


def as_examples(
    examples: Sequence[Example | str] | Example | str,
    *,
    images: Sequence[Any] | None = None,
    audios: Sequence[Any] | None = None,
    videos: Sequence[Any] | None = None,
) -> list[Example]:
    """Examples from Examples or prompts.

    Args:
      examples: Examples, or plain prompts, or one of either.
      images, audios, videos: one list of media per prompt; they are placed before its text, in this order.

    Raises:
      UserError: as many lists as prompts were expected, media came with an Example, or it has some that it shows nowhere.
    """
    if isinstance(examples, Example | str):
        examples = [examples]
    kinds: dict[MediumKind, Any] = {"image": images, "audio": audios, "video": videos}
    for kind, lists in kinds.items():
        if lists is not None and (isinstance(lists, str | bytes) or len(lists) != len(examples)):
            raise UserError(f"{kind}s: expected one list per prompt, {len(examples)} in all, got {_count(lists)}")

    def convert(number: int, example: Example | str) -> Example:
        media = []
        for kind, lists in kinds.items():
            given = lists[number] if lists is not None else ()
            if not isinstance(given, list | tuple):
                raise UserError(
                    f"{kind}s[{number}]: expected a list of {kind}s, got {type(given).__name__}; write {kind}s=[[…], …]"
                )
            media += [as_medium(value, kind) for value in given]
        if isinstance(example, str):
            return ask(example, *media, id=f"prompt {number}")
        if media:
            raise UserError(f"example {example.id!r}: media belong into the Example; images=… goes with plain prompts")
        asks, shown = any(turn.role == "user" for turn in example.turns), {i for turn in example.turns for i in turn.media}
        if asks and (hidden := sorted(set(range(len(example.media))) - shown)):
            raise UserError(
                f"example {example.id!r}: {len(example.media)} media, of which no part of a turn shows {hidden}; write "
                "Part(medium=…) where they stand"
            )
        return example

    return [convert(number, example) for number, example in enumerate(examples)]


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one shorter."""
    if size < 1:
        raise UserError(f"batch_size must be 1 or more, got {size}")
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def check_positions(llm: Any, batch: Batch, max_new_tokens: int = 0) -> None:
    """Refuses what goes beyond the learned positions of a language model, where it would read the last of them again and again.

    Args:
      llm: a bound language model.
      batch: prompts, or whole texts.
      max_new_tokens: to be decoded behind them; the last one is never read.
    """
    length = int(np.max(batch.text.positions)) + 1
    if not llm.positions or length + max(max_new_tokens - 1, 0) <= llm.positions:
        return
    asked = f" and max_new_tokens={max_new_tokens}" if max_new_tokens else ""
    room = llm.positions - length + 1
    less = f"give max_new_tokens={room} at most" if max_new_tokens and room > 0 else "shorten the text"
    raise UserError(f"a text of {length} tokens{asked}: the language model has {llm.positions} positions; {less}")


def bucket(count: int, size: int) -> int:
    """Rows to compile for: the next power of two, `size` at most."""
    return min(size, 1 << (count - 1).bit_length())


def _count(lists: Any) -> str:
    return f"{len(lists)}" if isinstance(lists, list | tuple) else type(lists).__name__
