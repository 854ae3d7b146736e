"""Templates: an Example -> the segments that a language model reads and what is learnt in them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

from mmjax.data import prompts
from mmjax.data.conversation import STYLES, conversations, plain
from mmjax.data.exchanges import caption_of, exchanges, last_exchange
from mmjax.data.segments import MediumSlot, Piece, Segment, Special, Template, draw
from mmjax.types import Example, UserError


def verbatim(example: Example) -> Segment:
    """The segment of a free prompt: all media, then the last user turn's text as it stands."""
    question, media, _ = last_exchange(example)
    return _ask(question, media, None)


def _answer(example: Example, question: str, answer: str | None) -> str:
    if answer is None:
        raise UserError(f"example {example.id!r}: {question!r} has no answer to learn; give an assistant turn or `answers`")
    return answer


@functools.lru_cache(16384)  # questions and answers repeat
def _ask(prompt: str, media: tuple[int, ...], answer: str | None) -> Segment:
    parts = (*map(MediumSlot, media), Special("bos"), Piece(prompt))
    if answer is None:
        return Segment(parts, query=prompt)
    return Segment((*parts, Piece(f" {answer}", 1.0), Special("eos", 1.0)), query=prompt, answer=len(parts))


def _questions(*formats: str) -> Template:
    """Visual question answering: every question is its own segment; loss on the answer and the end token."""

    def text(example: Example, seed: int, number: int, question: str) -> str:
        chosen = draw(example.id, seed, number) % len(formats) if len(formats) > 1 else 0
        return formats[chosen].format(question=question, ocr_tokens=", ".join(example.meta.get("ocr_tokens", ())))

    def segments(example: Example, seed: int) -> list[Segment]:
        return [
            _ask(text(example, seed, number, question), media, _answer(example, question, answer))
            for number, (question, media, answer) in enumerate(exchanges(example))
        ]

    def prompt(example: Example, seed: int) -> Segment:
        question, media, _ = last_exchange(example)
        return _ask(text(example, seed, len(list(exchanges(example))) - 1, question), media, None)

    return Template(segments, prompt)


def _dialogue() -> Template:
    """Visual dialogue as InstructBLIP was asked it (arXiv 2305.06500, appendix): what was said, then the question.

    How its authors wrote down what was said is not published: here every question and its answer stand one after the other.
    """

    def rendered(example: Example) -> Iterator[tuple[str, tuple[int, ...], str | None]]:
        said: list[str] = []
        for question, media, answer in exchanges(example):
            history = f"Dialog history: {' '.join(said)}\n " if said else ""
            yield f"{history}Question: {question} Short answer:", media, answer
            said += [question, answer or ""]

    def segments(example: Example, seed: int) -> list[Segment]:
        return [_ask(text, media, _answer(example, text, answer)) for text, media, answer in rendered(example)]

    def prompt(example: Example, seed: int) -> Segment:
        last_exchange(example)
        *_, (text, media, _) = rendered(example)
        return _ask(text, media, None)

    return Template(segments, prompt, remembers=True)


def _choices(text: Callable[[str, str, tuple[str, ...]], str], *, letters: bool) -> Template:
    """One question with `meta["choices"]`, and `meta["context"]` where there is one.

    Args:
      text: (question, context, choices) -> what is asked.
      letters: the answer is the letter of the right choice; otherwise its text.
    """

    def ask(example: Example, learn: bool) -> Segment:
        question, media, answer = last_exchange(example)
        choices = tuple(example.meta.get("choices", ()))
        prompt = text(question, example.meta.get("context", ""), choices)
        if not learn:
            return _ask(prompt, media, None)
        answer = _answer(example, question, answer)
        if answer not in choices:
            raise UserError(f"example {example.id!r}: the answer {answer!r} is none of meta['choices']: {', '.join(choices)}")
        return _ask(prompt, media, LETTERS[choices.index(answer)] if letters else answer)

    return Template(lambda example, seed: [ask(example, True)], lambda example, seed: ask(example, False))


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _lines_of_choices(question: str, context: str, choices: tuple[str, ...]) -> str:
    """LLaVA's prompt for ScienceQA (arXiv 2310.03744)."""
    context_line = (f"Context: {context}",) if context else ()
    options = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return "\n".join((*context_line, question, *options, "Answer with the option's letter from the given choices directly."))


def _row_of_choices(question: str, context: str, choices: tuple[str, ...], end: str = "Answer:") -> str:
    """InstructBLIP's prompt for ScienceQA (arXiv 2305.06500), whose choices are ranked; with "Short answer:", for IconQA."""
    options = " ".join(f"({letter.lower()}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"{f'Context: {context} ' if context else ''}Question: {question} Options: {options}. {end}"


def _every_medium(example: Example) -> tuple[MediumSlot, ...]:
    return tuple(map(MediumSlot, range(len(example.media))))


def _caption() -> Template:
    """Captioning through soft tokens. BOS is a target too, predicted by the last soft token, as BLIP-2 trains OPT."""

    def segments(example: Example, seed: int) -> list[Segment]:
        parts = (*_every_medium(example), Special("bos", 1.0), Piece(caption_of(example, seed), 1.0), Special("eos", 1.0))
        return [Segment(parts)]

    return Template(segments, lambda example, seed: Segment((*_every_medium(example), Special("bos"))))


def _caption_suffix() -> Template:
    """Captioning as BLIP-2 trains Flan-T5: the encoder reads the beginning of the caption, the decoder writes the rest.

    The caption is split between two words, at most in its middle (by its authors' word; the rule is in no released code).
    """

    def segments(example: Example, seed: int) -> list[Segment]:
        words = caption_of(example, seed).split()
        split = 1 + draw("split", example.id, seed) % max(len(words) // 2, 1) if len(words) > 1 else 0
        begun, rest = " ".join(words[:split]), " ".join(words[split:])
        read = (Piece(begun),) if begun else ()
        return [Segment((*_every_medium(example), Special("bos"), *read, Piece(f" {rest}", 1.0), Special("eos", 1.0)))]

    return Template(segments, lambda example, seed: Segment((*_every_medium(example), Special("bos"))))


def _captions(*instructions: str, queried: bool) -> Template:
    """Captioning after an instruction: loss on the caption and the end token.

    Args:
      instructions: one is drawn for each example.
      queried: whether the connector reads the instruction too (InstructBLIP).
    """

    def ask(example: Example, seed: int) -> tuple[tuple[MediumSlot | Special | Piece, ...], str | None]:
        text = instructions[draw("instruction", example.id, seed) % len(instructions)]
        return (*_every_medium(example), Special("bos"), Piece(text)), text if queried else None

    def segments(example: Example, seed: int) -> list[Segment]:
        parts, query = ask(example, seed)
        learnt = (Piece(f" {caption_of(example, seed)}", 1.0), Special("eos", 1.0))
        return [Segment((*parts, *learnt), query=query, answer=len(parts))]

    return Template(segments, lambda example, seed: Segment(*ask(example, seed)))


def _question_generation(*formats: str) -> Template:
    """Asks for the question that has a given answer (InstructBLIP's three sets of visual question generation)."""

    def segments(example: Example, seed: int) -> list[Segment]:
        made = []
        for number, (question, media, answer) in enumerate(exchanges(example)):
            chosen = formats[draw(example.id, seed, number) % len(formats)]
            made.append(_ask(chosen.format(answer=_answer(example, question, answer)), media, question))
        return made

    def prompt(example: Example, seed: int) -> Segment:
        asked = segments(example, seed)[-1]
        return dataclasses.replace(asked, parts=asked.parts[: asked.answer], answer=-1)

    return Template(segments, prompt)


def _caption_pair() -> Template:
    """BLIP-2 stage 1: the caption is what the connector reads; the language model reads nothing."""

    def pair(example: Example, seed: int) -> Segment:
        return Segment(_every_medium(example), query=caption_of(example, seed))

    return Template(lambda example, seed: [pair(example, seed)], pair)


def _document(caption_weight: float, question_weight: float) -> Template:
    """Teaches a language model the words of a corpus without images: a caption, then all questions that it answers."""

    def ask(question: str) -> Piece:
        return Piece(f" Question: {question} Answer:", question_weight)

    def segments(example: Example, seed: int) -> list[Segment]:
        caption = example.meta.get("caption", "").rstrip(". ")
        parts: list[Piece | Special | MediumSlot] = [
            Special("bos"),
            *([Piece(f"{caption}.", caption_weight)] if caption else []),
        ]
        for question, _, answer in exchanges(example):
            parts += [ask(question), Piece(f" {_answer(example, question, answer)}", 1.0), Special("eos", 1.0)]
        return [Segment(tuple(parts))]

    return Template(segments, lambda example, seed: Segment((Special("bos"), ask(last_exchange(example)[0]))))


TEMPLATES: dict[str, Template] = {
    "question_answer": _questions("Question: {question} Answer:"),
    "instruction": _questions("{question}"),
    "caption": _caption(),
    "caption_suffix": _caption_suffix(),
    "caption_photo": _captions("a photo of", queried=False),
    "caption_short": _captions("A short image description:", queried=True),
    "caption_mixed": _captions(*prompts.CAPTION, queried=True),
    "question_generation": _question_generation(*prompts.QUESTION_GENERATION),
    "caption_pair": _caption_pair(),
    "document": _document(caption_weight=0.3, question_weight=0.3),
    **{f"vqa_{number}": _questions(text) for number, text in enumerate(prompts.VQA, 1)},
    "vqa_mixed": _questions(*prompts.VQA),
    "vqa_ocr": _questions("OCR tokens: {ocr_tokens}. Question: {question} Short answer:"),
    "statement": _questions('Based on the image, is this statement true or false? "{question}" Answer:'),
    "meme": _questions('This is an image with: "{question}" written on it. Is it hateful? Answer:'),
    "dialogue": _dialogue(),
    "choices": _choices(_row_of_choices, letters=False),
    "choices_short": _choices(functools.partial(_row_of_choices, end="Short answer:"), letters=False),
    "choice_letters": _choices(_lines_of_choices, letters=True),
    "llava_plain": plain(),
    "minigpt4_plain": plain(),
    **{name: conversations(style) for name, style in STYLES.items()},
}


def template(name: str) -> Template:
    """The template of that name; UserError naming the choices for any other."""
    if name not in TEMPLATES:
        raise UserError(f"template must be one of {', '.join(TEMPLATES)} (or chat, for prompts), got {name!r}")
    return TEMPLATES[name]


def remembers(name: str | None) -> bool:
    """Whether a prompt of that template holds what was said before; None = a free prompt, which does not."""
    return name == "chat" or (name is not None and template(name).remembers)
