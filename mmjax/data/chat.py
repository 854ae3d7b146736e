"""Conversations through the chat template of a tokenizer.

The template never sees what people wrote. It renders stand-ins of private characters, and the real words and media go where
these came out. So the template's special tokens are the only real ones: whatever a person spells stays plain text, and a
template that drops or repeats a message is found out.

A template takes the content of a message as a text, or as a list of typed parts, among which it writes the marker of a
picture where it wants one to stand (LLaVA's: before the words of its turn).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from mmjax.data.exchanges import merged
from mmjax.data.segments import MediumSlot, Rendered, Segment, Special, Words, joined
from mmjax.types import Example, Part, Turn, UserError

PAD = "\u2003"  # white space that no template writes: where it is gone, the template trims its messages
STAND_IN = re.compile(f"({PAD}?)\ue000(\\d+)\ue001({PAD}?)")
MARKER = "<image>"  # of a picture, unless the tokenizer names another


class Form(NamedTuple):
    """How turns are handed to a template.

    Args:
      messages: with stand-ins for what was said.
      said: for each stand-in the number of its turn, and the parts that it stands for.
      shown: the media that the template places itself, in order.
    """

    messages: list[dict[str, Any]]
    said: list[tuple[int, list[Part]]]
    shown: list[int]


def conversation(tokenizer: PreTrainedTokenizerFast, example: Example) -> Segment:
    """The segment of a conversation up to its last user turn, ready for the assistant to speak.

    Args:
      tokenizer: its `chat_template` renders the turns.
      example: media stand where their parts are, or where the template places those of a turn; text parts next to each other
        are joined by a space.

    Raises:
      UserError: no chat template, no user turn, or a template that cannot render these turns faithfully.
    """
    spoken = [number for number, turn in enumerate(example.turns) if turn.role == "user"]
    if not spoken:
        raise UserError(f"example {example.id!r}: expected a user turn, got turns by {[turn.role for turn in example.turns]}")
    turns = example.turns[: spoken[-1] + 1]
    text, form = _render(tokenizer, turns)
    parts = joined(_contents(text, form, _marker(tokenizer)))
    begin = (Special("bos"),) if _begins(tokenizer, text) else ()
    return Segment((*begin, *_behind_markers(tokenizer, parts)), query=turns[-1].text)


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The special token that the chat template puts behind what the assistant says; None = it puts none, or there is none."""
    turns = (Turn("user", (Part("?"),)), Turn("assistant", (Part("."),)))
    try:
        text, _ = _render(tokenizer, turns, ask=False)
    except UserError:  # no template, or one for single questions: its conversations end as the tokenizer says
        return None
    *_, answer = STAND_IN.finditer(text)
    behind = text[answer.end() :].lstrip()
    names = {entry.content: token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return names[max(found, key=len)] if (found := [name for name in names if behind.startswith(name)]) else None


def _marker(tokenizer: PreTrainedTokenizerFast) -> str:
    return getattr(tokenizer, "image_token", None) or MARKER


def _render(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn], *, ask: bool = True) -> tuple[str, Form]:
    """The template's text, with stand-ins for what was said; with `ask` it is the assistant's turn to speak.

    Typed parts come first where there are pictures, texts where there are none: what the template renders faithfully is taken.
    """
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; name another template, for example question_answer")
    faults = []
    for make in (_typed, _texts) if any(turn.media for turn in turns) else (_texts, _typed):
        form = make(turns)
        try:
            return _faithful(tokenizer, turns, form, ask), form
        except UserError as fault:
            faults.append(fault)
    raise faults[0]


def _texts(turns: Sequence[Turn]) -> Form:
    """Each message's content is a text."""
    messages = [{"role": turn.role, "content": _stand_in(number)} for number, turn in enumerate(turns)]
    return Form(messages, [(number, list(merged(turn.parts))) for number, turn in enumerate(turns)], [])


def _typed(turns: Sequence[Turn]) -> Form:
    """Each message's content is a list of texts and pictures."""
    form = Form([], [], [])
    for number, turn in enumerate(turns):
        contents = []
        for part in merged(turn.parts):
            if part.medium is None:
                contents.append({"type": "text", "text": _stand_in(len(form.said))})
                form.said.append((number, [part]))
            else:
                contents.append({"type": "image"})
                form.shown.append(part.medium)
        form.messages.append({"role": turn.role, "content": contents})
    return form


def _stand_in(number: int) -> str:
    return f"{PAD}\ue000{number}\ue001{PAD}"


def _faithful(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn], form: Form, ask: bool) -> str:
    """The text that the template makes of a form, if it holds all that was said and shown once."""
    try:
        text = str(tokenizer.apply_chat_template(form.messages, tokenize=False, add_generation_prompt=ask))
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(f"the tokenizer's chat template refuses this conversation: {error}") from None
    found = [int(match[2]) for match in STAND_IN.finditer(text)]
    for index, (number, _) in enumerate(form.said):
        if (count := found.count(index)) != 1:
            raise UserError(
                f"the tokenizer's chat template renders message {number} (role {turns[number].role}) {count} times, not once"
            )
    if form.shown and (count := text.count(_marker(tokenizer))) != len(form.shown):
        raise UserError(
            f"the tokenizer's chat template writes {_marker(tokenizer)} {count} times for {len(form.shown)} pictures"
        )
    return text


def _contents(text: str, form: Form, marker: str) -> Iterator[Words | MediumSlot]:
    """The template's own text, and within it what was said and shown."""
    shown, start = iter(form.shown), 0
    pattern = re.compile(f"{STAND_IN.pattern}|{re.escape(marker)}") if form.shown else STAND_IN
    for match in pattern.finditer(text):
        yield Words(text[start : match.start()])
        parts = form.said[int(match[2])][1] if match[2] else [Part(medium=next(shown))]
        for number, part in enumerate(parts):
            words = part.text
            if words is None:
                yield MediumSlot(part.medium)  # pyright: ignore[reportArgumentType]
                continue
            if number == 0 and not match[1]:
                words = words.lstrip()
            if number == len(parts) - 1 and not match[3]:
                words = words.rstrip()
            yield Words(words, quoted=True)
        start = match.end()
    yield Words(text[start:])


def _begins(tokenizer: PreTrainedTokenizerFast, text: str) -> bool:
    """Whether BOS comes before the text of a template: transformers' processors of pictures and texts add it to whatever does
    not begin with it, where the tokenizer adds it to any text."""
    bos = tokenizer.bos_token
    if bos is None or text.startswith(bos) or _marker(tokenizer) not in tokenizer.get_vocab():
        return False
    return tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]


def _behind_markers(
    tokenizer: PreTrainedTokenizerFast, parts: Iterable[Rendered | MediumSlot]
) -> Iterator[Rendered | MediumSlot]:
    """Text behind a picture, tokenised as the text behind its marker that it is for transformers."""
    marker, behind = _marker(tokenizer), False
    known = marker in tokenizer.get_vocab()
    for part in parts:
        if behind and known and isinstance(part, Rendered):
            quotes = tuple((start + len(marker), end + len(marker)) for start, end in part.quotes)
            part = dataclasses.replace(part, text=marker + part.text, quotes=quotes, skip=1)
        behind = isinstance(part, MediumSlot)
        yield part
