"""Conversations as LLaVA and MiniGPT-4 write them: a table of styles, each a template of its own.

A whole conversation is one segment. The loss is on every answer and on what ends it. Text between two images is tokenised as
one, as the originals do, which gives a text behind an image SentencePiece's word boundary; the special tokens that a style
writes are real ones, those that people write are plain text.

The two differ in what they tokenise apart: LLaVA (github.com/haotian-liu/LLaVA) finds the answers within the whole text,
MiniGPT-4 (github.com/Vision-CAIR/MiniGPT-4) tokenises questions and answers by themselves.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterator

from mmjax.data.exchanges import caption_of, merged
from mmjax.data.segments import SEAM, MediumSlot, Segment, Special, Template, Words, draw, joined
from mmjax.types import Example, ExampleError, Part, Turn

PLACE = "{system}"


@dataclasses.dataclass(frozen=True)
class Style:
    """What a style writes around what is said.

    Args:
      opening: up to the first question's words; PLACE is where the text of a system stands.
      system: that text, where an example has none of its own.
      asked: behind a question, up to where the answer begins.
      again: between an answer and the next question's words.
      answer: before and behind an answer, learnt with it.
      image: before and behind an image.
      joint: between the images that a question begins with, and its words.
      front: whether training moves the images of a question before its words, as LLaVA does.
      apart: whether answers are tokenised by themselves, as MiniGPT-4 does.
      instructions: one is drawn for an example that asks nothing, and its caption is the answer.
    """

    opening: str
    asked: str
    again: str
    answer: tuple[str, str]
    system: str = ""
    image: tuple[str, str] = ("", "")
    joint: str = "\n"
    front: bool = True
    apart: bool = False
    instructions: tuple[str, ...] = ()


POLITE = (
    "A chat between a curious {0} and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the {0}'s questions."
)
SHORT = "Answer the question using a single word or phrase."  # with which LLaVA-1.5 asks benchmarks (arXiv 2310.03744)
V1 = Style(f"{PLACE} USER: ", " ASSISTANT:", "USER: ", (" ", "</s>"), POLITE.format("human"))
LLAMA_2 = Style(
    f"[INST] <<SYS>>\n{PLACE}\n<</SYS>>\n\n", " [/INST]", "<s>[INST] ", (" ", " </s>"),
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language.",
)  # fmt: skip
CHATML = Style(
    f"<|im_start|>system\n{PLACE}<|im_end|><|im_start|>user\n", "<|im_end|><|im_start|>assistant\n", "<|im_start|>user\n",
    ("", "<|im_end|>"), "Answer the questions.",
)  # fmt: skip
# Stage 2 learns without a system's text, and with a space before "###" that the chat has not; the chat of the first release has
# none before the answer either.
MINIGPT4 = Style(
    "###Human: ", " ###Assistant: ", "Human: ", ("", "###"),
    image=("<Img>", "</Img>"), joint=" ", front=False, apart=True,
    instructions=(
        "Describe this image in detail.",
        "Take a look at this image and describe what you notice.",
        "Please provide a detailed description of the picture.",
        "Could you describe the contents of this image for me?",
    ),
)  # fmt: skip
MINIGPT4_LLAMA_2 = dataclasses.replace(MINIGPT4, opening="[INST] ", asked=" [/INST] ", again="<s>[INST] ", answer=("", "</s>"))
SHOWN_LATER = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)

STYLES: dict[str, Style] = {
    "llava_v0": Style(f"{PLACE}###Human: ", "###Assistant:", "Human: ", (" ", "###"), POLITE.format("human")),
    "llava_v1": V1,
    "vicuna_v1": dataclasses.replace(V1, system=POLITE.format("user")),
    "vicuna_v1_short": dataclasses.replace(V1, system=POLITE.format("user"), asked=f"\n{SHORT} ASSISTANT:"),
    "llava_llama_2": LLAMA_2,
    "mistral_instruct": dataclasses.replace(LLAMA_2, opening="[INST] ", again="[INST] ", system=""),
    "chatml_direct": CHATML,
    "llava_mpt": dataclasses.replace(
        CHATML,
        system="A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.",
    ),
    "minigpt4": MINIGPT4,
    "minigpt4_chat": dataclasses.replace(MINIGPT4, opening=f"{PLACE}###Human: ", asked="###Assistant: ", system=SHOWN_LATER),
    "minigpt4_first_chat": dataclasses.replace(
        MINIGPT4, opening=f"{PLACE}###Human: ", asked="###Assistant:", system=SHOWN_LATER
    ),
    "minigpt4_llama_2": MINIGPT4_LLAMA_2,
    "minigpt4_llama_2_chat": dataclasses.replace(MINIGPT4_LLAMA_2, opening=f"{PLACE}<s>[INST] ", system=SHOWN_LATER),
}


def plain() -> Template:
    """Captions behind their images, without a prompt: LLaVA's `plain` and the first stage of MiniGPT-4.

    What a user asks is not read. A newline ends the caption.
    """

    def images(example: Example) -> tuple[MediumSlot, ...]:
        if not example.media:
            raise ExampleError(f"example {example.id!r}: a plain caption stands behind an image, and it has none")
        return tuple(map(MediumSlot, range(len(example.media))))

    def segments(example: Example, seed: int) -> list[Segment]:
        words = (Words(caption_of(example, seed), quoted=True, learnt=True), Words("\n", learnt=True))
        return [Segment((Special("bos"), *images(example), *joined(words, example.id)), may_be_cut=True)]

    return Template(segments, lambda example, seed: Segment((Special("bos"), *images(example))), end="\n")


def conversations(style: Style) -> Template:
    """The template of a style.

    A prompt is the beginning of the training segment up to the last question. Only images differ that a question does not
    begin with: a style with `front` moves them in training, and leaves them where they stand in a prompt.
    """

    def segments(example: Example, seed: int) -> list[Segment]:
        system, turns = _turns(style, example, seed, learn=True)
        if not any(turn.role == "assistant" and turn.text for turn in turns):
            raise ExampleError(f"example {example.id!r} has no answer to learn; give an assistant turn or `answers`")
        if unseen := set(range(len(example.media))) - {index for turn in turns for index in turn.media}:
            raise ExampleError(
                f"example {example.id!r} has {len(example.media)} media, but no turn shows medium {min(unseen)}: placeholders "
                "and media must agree"
            )
        return [Segment(_parts(style, example, system, turns, learn=True), may_be_cut=True)]

    def prompt(example: Example, seed: int) -> Segment:
        system, turns = _turns(style, example, seed, learn=False)
        asked = turns[:-1] if turns[-1].role == "assistant" else turns
        return Segment(_parts(style, example, system, asked, learn=False))

    return Template(segments, prompt, remembers=True, end=style.answer[1].strip(" "))


def _turns(style: Style, example: Example, seed: int, *, learn: bool) -> tuple[str | None, list[Turn]]:
    """What a system says, and the questions and answers by turns; of a caption without a question it is there to learn only.

    Raises:
      ExampleError: they are anything else.
    """
    turns = list(example.turns)
    if style.instructions and not any(turn.text for turn in turns if turn.role == "user"):
        instruction = style.instructions[draw("instruction", example.id, seed) % len(style.instructions)]
        shown = (Part(medium=index) for index in range(len(example.media)))
        turns = [Turn("user", (*shown, Part(instruction)))]
        turns += [Turn("assistant", (Part(caption_of(example, seed)),))] if learn else []
    system = turns.pop(0).text if turns and turns[0].role == "system" else None
    for number, (turn, role) in enumerate(zip(turns, itertools.cycle(("user", "assistant")), strict=False), 1):
        where = f"example {example.id!r}: turn {number}{'' if system is None else ' after the system'}"
        if turn.role != role:
            raise ExampleError(f"{where} is by {turn.role!r}, it has to be by {role!r}")
        if role == "user" and not (turn.text or turn.media):
            raise ExampleError(f"{where}, by the user, is empty")
        if role == "assistant" and turn.media:
            raise ExampleError(f"{where}, by the assistant, holds media; answers are text")
    if not turns:
        raise ExampleError(f"example {example.id!r}: expected a user turn, got turns by {[t.role for t in example.turns]}")
    if system is not None and PLACE not in style.opening:
        raise ExampleError(f"example {example.id!r} begins with a system's turn, for which this template has no place")
    if turns[-1].role == "user" and example.answers:
        turns.append(Turn("assistant", (Part(collections.Counter(example.answers).most_common(1)[0][0]),)))
    return system, turns


def _parts(style: Style, example: Example, system: str | None, turns: list[Turn], *, learn: bool) -> tuple:
    """The parts of a segment: BOS, then what is said and what stands around it."""
    return Special("bos"), *joined(_contents(style, system, turns, learn), example.id)


def _contents(style: Style, system: str | None, turns: list[Turn], learn: bool) -> Iterator[Words | MediumSlot | None]:
    learnt = functools.partial(Words, learnt=learn)
    before, _, behind = style.opening.partition(PLACE)
    yield from (Words(before), Words(style.system if system is None else system, quoted=system is not None), Words(behind))
    for number, turn in enumerate(turns):
        if turn.role == "user":
            yield from (Words(style.again),) if number else ()
            yield from _question(style, turn, front=learn and style.front)
            yield Words(style.asked)
        elif turn.text:  # an empty answer is not even ended
            seam = (SEAM,) if style.apart else ()
            yield from (*seam, learnt(style.answer[0]), learnt(turn.text, quoted=True), learnt(style.answer[1]), *seam)


def _question(style: Style, turn: Turn, *, front: bool) -> Iterator[Words | MediumSlot]:
    """A question's words and images. The joint stands behind those that it begins with, a space around the others."""
    parts = list(merged(turn.parts))
    if front and turn.media:
        text = turn.text.strip()
        parts = [*(Part(medium=index) for index in turn.media), *((Part(text),) if text else ())]
    joint = style.joint
    for part, behind in itertools.zip_longest(parts, parts[1:]):
        if part.medium is not None:
            yield from (Words(style.image[0]), MediumSlot(part.medium), Words(style.image[1]))
        else:
            yield Words(part.text, quoted=True)
            joint = " "
        spaced = (part.text or "")[-1:].isspace() or behind is None or (behind.text or "")[:1].isspace()
        yield Words("" if spaced else joint)
