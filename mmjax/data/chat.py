"""Conversations through the chat template of a tokenizer.

The template never sees what people wrote. It renders stand-ins of private characters, and the real words and media go where
these came out. So the template's special tokens are the only real ones: whatever a person spells stays plain text, and a
template that drops or repeats a message is found out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from mmjax.data.exchanges import merged
from mmjax.data.segments import MediumSlot, Segment, Words, joined
from mmjax.types import Example, Part, Turn, UserError

PAD = "\u2003"  # white space that no template writes: where it is gone, the template trims its messages
STAND_IN = re.compile(f"({PAD}?)\ue000(\\d+)\ue001({PAD}?)")


def conversation(tokenizer: PreTrainedTokenizerFast, example: Example) -> Segment:
    """The segment of a conversation up to its last user turn, ready for the assistant to speak.

    Args:
      tokenizer: its `chat_template` renders the turns.
      example: media stand where their parts are; text parts next to each other are joined by a space.

    Raises:
      UserError: no chat template, no user turn, or a template that cannot render these turns faithfully.
    """
    spoken = [number for number, turn in enumerate(example.turns) if turn.role == "user"]
    if not spoken:
        raise UserError(f"example {example.id!r}: expected a user turn, got turns by {[turn.role for turn in example.turns]}")
    turns = example.turns[: spoken[-1] + 1]
    return Segment(tuple(joined(_contents(_render(tokenizer, turns), turns))), query=turns[-1].text)


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The special token that the chat template puts behind what the assistant says; None = it puts none, or there is none."""
    turns = (Turn("user", (Part("?"),)), Turn("assistant", (Part("."),)))
    try:
        text = _render(tokenizer, turns, ask=False)
    except UserError:  # no template, or one for single questions: its conversations end as the tokenizer says
        return None
    *_, answer = STAND_IN.finditer(text)
    behind = text[answer.end() :].lstrip()
    names = {entry.content: token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return names[max(found, key=len)] if (found := [name for name in names if behind.startswith(name)]) else None


def _render(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn], *, ask: bool = True) -> str:
    """The template's text, with stand-ins for what was said; with `ask` it is the assistant's turn to speak."""
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; name another template, for example question_answer")
    messages = [{"role": turn.role, "content": f"{PAD}\ue000{n}\ue001{PAD}"} for n, turn in enumerate(turns)]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(f"the tokenizer's chat template refuses this conversation: {error}") from None
    found = [int(match[2]) for match in STAND_IN.finditer(str(text))]
    for number, turn in enumerate(turns):
        if (count := found.count(number)) != 1:
            raise UserError(
                f"the tokenizer's chat template renders message {number} (role {turn.role}) {count} times, not once"
            )
    return str(text)


def _contents(text: str, turns: Sequence[Turn]) -> Iterator[Words | MediumSlot]:
    """The template's own text, and within it the parts of the turns."""
    start = 0
    for match in STAND_IN.finditer(text):
        yield Words(text[start : match.start()])
        parts = list(merged(turns[int(match[2])].parts))
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
