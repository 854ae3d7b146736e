"""What an Example says: its questions with their answers, and its captions."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from mmjax.data.segments import draw
from mmjax.types import Example, ExampleError, Part, Turn, UserError


def exchanges(example: Example) -> Iterator[tuple[str, tuple[int, ...], str | None]]:
    """The questions of an example: (question, the media shown so far, answer or None).

    A last question without an assistant turn is answered by the most frequent of `example.answers`, the first of equals.
    """
    media: tuple[int, ...] = ()
    question = None
    for turn in example.turns:
        if turn.role == "user":
            media, question = media + turn.media, turn.text
        elif turn.role == "assistant" and question is not None:
            yield question, media, turn.text
            question = None
    if question is not None:
        yield question, media, collections.Counter(example.answers).most_common(1)[0][0] if example.answers else None


def last_exchange(example: Example) -> tuple[str, tuple[int, ...], str | None]:
    """The last question of an example, as of `exchanges`; UserError where nobody asks."""
    asked = list(exchanges(example))
    if not asked:
        raise UserError(f"example {example.id!r}: expected a user turn, got turns by {[turn.role for turn in example.turns]}")
    return asked[-1]


def single_questions(example: Example) -> list[Example]:
    """Splits an example into one per question, each with the media shown until then and its answers, for evaluation.

    Args:
      example: `meta["questions"]`, where there, holds for each question a mapping of what is its own: "answers" (all that are
        accepted), "kind", "choices", …; `meta["kinds"]` holds kinds alone.

    Returns:
      Examples with one user turn. Ids get the question's number: "shapes/test/7#2"; `meta` gets what is the question's own.
    """
    meta = dict(example.meta)
    own, kinds = meta.pop("questions", ()), meta.pop("kinds", ())
    asked = list(exchanges(example))
    singles = []
    for number, (question, media, answer) in enumerate(asked):
        facts = {**({"kind": kinds[number]} if number < len(kinds) else {}), **(own[number] if number < len(own) else {})}
        last = number == len(asked) - 1
        answers = facts.pop("answers", None) or (example.answers if last else ()) or (() if answer is None else (answer,))
        shown = sorted(set(media))
        turn = Turn("user", (*(Part(medium=shown.index(index)) for index in media), Part(text=question)))
        singles.append(
            dataclasses.replace(
                example,
                id=f"{example.id}#{number}",
                media=tuple(example.media[index] for index in shown),
                turns=(turn,),
                answers=tuple(answers),
                meta={**meta, **facts},
            )
        )
    return singles


def captions_of(example: Example) -> tuple[str, ...]:
    """All captions of an example: its `answers`, where nothing is asked, else `meta["caption"]` or what the assistant says.

    Raises:
      ExampleError: it has none.
    """
    if example.answers and not any(turn.role == "user" for turn in example.turns):
        return example.answers
    caption = example.meta.get("caption") or next((turn.text for turn in example.turns if turn.role == "assistant"), None)
    if not caption:
        raise ExampleError(
            f"example {example.id!r}: expected meta['caption'], an assistant turn or answers, got none; choose another template"
        )
    return (caption,)


def caption_of(example: Example, seed: int) -> str:
    """One of `captions_of`, drawn at random."""
    captions = captions_of(example)
    return captions[draw(example.id, seed, "caption") % len(captions)]


def merged(parts: Iterable[Part]) -> Iterable[Part]:
    """The parts with neighbouring texts joined by a space."""
    for is_text, group in itertools.groupby(parts, key=lambda part: part.text is not None):
        if is_text:
            yield Part(" ".join(str(part.text) for part in group))
        else:
            yield from group
