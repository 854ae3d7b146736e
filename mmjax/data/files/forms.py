"""The forms in which people write down what is said of pictures: rows -> an Example without its pictures.

- LLaVA's (arXiv 2304.08485): `{id, image, conversations: [{from, value}, …]}`, where `image` is a name, a list of names, or
  missing where a row is text only, and `<image>` says where each picture stands.
- `{image, caption}`, with one caption or a list of them.
- COCO's captions (arXiv 1504.00325): a row of `images` and those of `annotations` that have its id, or Karpathy's row of both.
- VQAv2's (arXiv 1612.00837): rows of `questions` about a picture, each followed by its row of `annotations`.

Each is a function of the rows that make one example; who reads them from where is not its business.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from mmjax.types import Example, Medium, Part, Turn, UserError
from mmjax.types.example import Role

IMAGE = "<image>"
ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
QUESTIONS = 8  # of an example: a picture of which more is asked makes several, so that rows of recipes hold each
FOLLOWERS = {"": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}  # "" = the beginning

Row = Mapping[str, Any]


class Unusable(Exception):
    """A row that makes no example: the kind of fault, for counting, and the end of a sentence about the row."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class RowError(UserError):
    """A row that cannot be used, told by its key. `reason` is the kind of fault, for counting."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return RowError, (self.reason, self.args[0])


class Said(NamedTuple):
    """What rows say.

    Args:
      images: the pictures, in the order of the turns' indices: names, or what a `Pictures` takes in their place.
      turns, answers, meta: of the Example.
    """

    images: tuple[Any, ...]
    turns: tuple[Turn, ...] = ()
    answers: tuple[str, ...] = ()
    meta: Row = {}


class Asked(NamedTuple):
    """A question about a picture, the answer that is learnt, and what else is its own ("answers", "kind", "question_id", …)."""

    question: str
    answer: str
    own: dict[str, Any]


def make_example(
    form: Callable[[Sequence[Row]], Said], rows: Sequence[Row], id: str, source: str, picture: Callable[[Any], Medium]
) -> Example:
    """The Example that some rows make.

    Args:
      form: of the rows.
      rows: those of one example.
      id, source: of the Example.
      picture: from an entry of `Said.images` to the picture.

    Raises:
      Unusable: the rows, or a picture.
    """
    try:
        said = form(rows)
    except KeyError as error:
        raise Unusable("another form", f"is no row of its form: the key {error} is missing") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise Unusable("another form", f"is no row of its form: {error}") from None
    return Example(id, source, tuple(map(picture, said.images)), said.turns, said.answers, meta=said.meta)


def one_row(rows: Sequence[Row]) -> Said:
    """A row in LLaVA's form, or of a picture with captions."""
    (row,) = rows
    names = _names(row)
    meta = {"image_id": names[0]} if names and isinstance(names[0], str) else {}
    if "conversations" in row:
        turns = _turns(row["conversations"])
        if (shown := sum(len(turn.media) for turn in turns)) != len(names):
            raise Unusable("placeholders differ from pictures", f"has {shown} times {IMAGE} for {len(names)} pictures")
        return Said(names, turns, meta=meta)
    captions = _captions(row)
    if not names:
        raise Unusable("no picture", "has a caption, but no picture")
    return Said(names, answers=captions, meta=meta)


def _names(row: Row) -> tuple[Any, ...]:
    """The pictures of a row."""
    image = row.get("image")
    return tuple(image) if isinstance(image, list | tuple) else (image,) if image else ()


def _captions(row: Row) -> tuple[str, ...]:
    """The captions of a row."""
    caption = row.get("caption", row.get("text"))
    if caption is None:
        raise Unusable("another form", f"has neither conversations nor a caption; its keys are {', '.join(map(str, row))}")
    captions = (caption,) if isinstance(caption, str) else tuple(caption)
    if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
        raise Unusable("empty caption", "has an empty caption")
    return tuple(text.strip() for text in captions)


def _turns(conversation: Any) -> tuple[Turn, ...]:
    """The turns of a conversation: after what a system says, questions and answers by turns.

    Raises:
      Unusable: it is anything else.
    """
    if not isinstance(conversation, list) or not all(isinstance(said, Mapping) for said in conversation):
        raise Unusable("another form", "has conversations that are no list of turns")
    turns: list[Turn] = []
    shown, last = 0, ""
    for number, said in enumerate(conversation, 1):
        role = ROLES.get(said["from"])
        if not isinstance(said["value"], str):
            raise Unusable("another form", f"has a turn by {said['from']!r} without a text")
        if role is None:
            raise Unusable("unknown role", f"has a turn by {said['from']!r}, who is none of {', '.join(ROLES)}")
        if role not in FOLLOWERS[last]:
            raise Unusable(
                "roles out of turn", f"has turn {number} of {len(conversation)} by {said['from']!r}, whose turn it is not"
            )
        if role != "user" and IMAGE in said["value"]:
            raise Unusable("placeholder out of place", f"has {IMAGE} in a turn by {said['from']!r}")
        parts = _parts(said["value"], shown)
        shown += sum(part.medium is not None for part in parts)
        turns.append(Turn(role, parts))
        last = role
    if last != "assistant":
        raise Unusable("roles out of turn", "does not end with an answer")
    return tuple(turns)


def _parts(text: str, shown: int) -> tuple[Part, ...]:
    """A turn's text with the pictures between; the white space around a placeholder goes with it."""
    if IMAGE not in text:
        return (Part(text),)
    first, *rest = (piece.strip() for piece in text.split(IMAGE))
    parts = [Part(first)] if first else []
    for number, piece in enumerate(rest, shown):
        parts += [Part(medium=number), *([Part(piece)] if piece else [])]
    return tuple(parts)


def coco_captions(rows: Sequence[Row]) -> Said:
    """A row of COCO's `images` with `annotations` about it; without the former, the picture is named by its id."""
    name = rows[0].get("file_name") or f"{picture_name(rows[0]['image_id'])}.jpg"
    captions = [caption for row in rows if "caption" in row for caption in _captions(row)]
    return Said((name,), answers=tuple(captions), meta={"image_id": rows[-1]["image_id"]})


def karpathy_captions(rows: Sequence[Row]) -> Said:
    """A row of Karpathy's `images`, which holds its captions (arXiv 1412.2306)."""
    (row,) = rows
    captions = tuple(sentence["raw"] for sentence in row["sentences"])
    name = str(PurePosixPath(row.get("filepath", "flickr30k-images")) / row["filename"])
    return Said((name,), answers=captions, meta={"image_id": row.get("cocoid", PurePosixPath(row["filename"]).stem)})


def vqa_questions(rows: Sequence[Row]) -> Said:
    """Rows of VQAv2's `questions`, each followed by its row of `annotations`; all about one picture."""
    asked = [ask(question["question"], annotation) for question, annotation in zip(rows[::2], rows[1::2], strict=True)]
    image = rows[0]["image_id"]
    turns = conversation((one.question, one.answer) for one in asked)
    meta = {"image_id": image, "questions": [one.own for one in asked]}
    return Said((f"{picture_name(image)}.jpg",), turns, meta=meta)


def ask(question: str, annotation: Row) -> Asked:
    """A question of VQAv2 or OK-VQA with its annotation."""
    answers = [person["answer"] for person in annotation["answers"]]
    own = {
        "question_id": annotation["question_id"],
        "answers": answers,
        "kind": annotation["answer_type"],
        "question_type": annotation["question_type"],
    }
    if all("raw_answer" in person for person in annotation["answers"]):  # OK-VQA, whose answers are stemmed
        own["raw_answers"] = [person["raw_answer"] for person in annotation["answers"]]
    return Asked(question, annotation.get("multiple_choice_answer") or most_frequent(answers), own)


def most_frequent(answers: Sequence[str]) -> str:
    """The answer that most people gave, the first of equals."""
    return collections.Counter(answers).most_common(1)[0][0]


def conversation(questions: Iterable[tuple[str, str]], shown: bool = True) -> tuple[Turn, ...]:
    """Questions as turns: the user asks, the assistant answers. With `shown`, medium 0 comes with the first question."""
    turns: list[Turn] = []
    for question, answer in questions:
        medium = (Part(medium=0),) if shown and not turns else ()
        turns += [Turn("user", (*medium, Part(question))), Turn("assistant", (Part(answer),))]
    return tuple(turns)


def picture_name(image_id: int | str) -> str:
    """The name of a COCO picture, whose ids are written with twelve digits; other ids are names."""
    return f"{image_id:012d}" if isinstance(image_id, int) else image_id
