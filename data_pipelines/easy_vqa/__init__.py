"""Easy-VQA (github.com/vzhou842/easy-VQA, MIT): 5,000 pictures of 64×64 pixels with one shape each, 48,248 simple questions.

A second opinion beside `shapes`: neither its pictures nor its questions are ours. The PyPI package `easy-vqa` carries the data.
One Example holds a picture with all its questions as turns. The release has no captions; what the answers to a picture's
questions say about it makes one, such as "a blue rectangle".
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from data_pipelines import builder, tokenizer
from mmjax.data.files.forms import conversation
from mmjax.types import Example, Medium, UserError

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")

# The first pattern that matches a whole question says its kind. "absent" asks the opposite of "exists".
_KINDS = (
    ("colour", r"what color .*|what is the color .*"),
    ("shape", r"what shape .*|what is the .* shape\?"),
    ("absent", r"is no .*|.*\bnot\b.*"),
    ("exists", r"is .*|does .*"),
)


class Picture(NamedTuple):
    """A picture of the release and what is asked about it: (question, answer) pairs in the release's order."""

    split: str
    number: int
    file: str
    questions: tuple[tuple[str, str], ...]


def kind(question: str) -> str:
    """The kind of a question: "colour", "shape", "absent" or "exists".

    Raises:
      ValueError: a question of no known form.
    """
    for name, pattern in _KINDS:
        if re.fullmatch(pattern, question):
            return name
    raise ValueError(f"expected a question of a known form, got {question!r}")


def caption(questions: Sequence[tuple[str, str]]) -> str:
    """What is known from the questions and answers alone: "a blue rectangle", "a blue shape", "a rectangle" or "a shape".

    A question that asks for a colour or a shape holds what it names, and so does a yes; a no to "is no ... present?" too.
    """
    holds = {"colour": COLOURS, "shape": SHAPES, "exists": ("yes",), "absent": ("no",)}
    known = {
        word
        for question, answer in questions
        if answer in holds[kind(question)]
        for word in (answer, *re.findall(r"\w+", question))
    }
    colour = next((f"{colour} " for colour in COLOURS if colour in known), "")
    return f"a {colour}{next((shape for shape in SHAPES if shape in known), 'shape')}"


def find_release(raw: Path | None) -> Path:
    """The directory with `train/` and `test/`: `raw`, or where the package `easy-vqa` is installed."""
    if raw is None:
        package = importlib.util.find_spec("easy_vqa")
        if package is None or package.origin is None:
            raise UserError("easy_vqa comes from a package that is not installed; install it with: pip install easy-vqa")
        raw = Path(package.origin).parent / "data"
    for split in ("train", "test"):
        if not (raw / split / "questions.json").is_file():
            raise UserError(
                f"{raw / split / 'questions.json'} is not there; --raw is the folder `data` of the package easy-vqa"
            )
    return raw


def pictures(release: Path, split: str) -> list[Picture]:
    """All pictures of a split, by number."""
    asked = defaultdict(list)
    for question, answer, number in json.loads((release / split / "questions.json").read_text()):
        asked[number].append((question, answer))
    return [Picture(split, n, str(release / split / "images" / f"{n}.png"), tuple(asked[n])) for n in sorted(asked)]


def describe(picture: Picture) -> Iterator[Example]:
    """The only step: a picture with its questions and answers as turns."""
    yield Example(
        id=f"easy_vqa/{picture.split}/{picture.number}",
        source=f"easy_vqa {EasyVqa.VERSION}",
        media=(Medium("image", Path(picture.file).read_bytes(), "image/png"),),
        turns=conversation(picture.questions),
        meta={"caption": caption(picture.questions), "kinds": [kind(question) for question, _ in picture.questions]},
    )


class EasyVqa(builder.ExampleBuilder):
    """Pictures of one shape in one of eight colours, 64×64 pixels."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "The release of the package easy-vqa 1.0.", "1.1.0": "Captions from the answers."}
    description = "Pictures of one coloured shape with simple questions about its shape and colour."
    homepage = "https://github.com/vzhou842/easy-VQA"
    license = "MIT"
    steps = (describe,)

    def items(self) -> Mapping[str, Sequence[Picture]]:
        release = find_release(self.raw)
        return {split: pictures(release, split) for split in ("train", "test")}


def build(out: Path, *, raw: Path | None = None, runner: builder.Runner, limit: int = 0, skips: int = 0) -> None:
    """Stores the data set in the empty directory `out`, with a word-level tokenizer of its texts in `out/tokenizer`."""
    builder.write(EasyVqa, out, raw=raw, runner=runner, limit=limit, skips=skips)
    tokenizer.build(out)


DATASETS = {"easy_vqa": build}
