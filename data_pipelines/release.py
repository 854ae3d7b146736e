"""What the readers of downloaded releases share: finding and reading their files, and pictures with what is said of them."""

from __future__ import annotations

import contextlib
import json
import mimetypes
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines import builder
from mmjax.types import Example, Medium, UserError


class Asked(NamedTuple):
    """A question about a picture, the answer that is learnt, and what else is its own ("answers", "kind", "question_id", …)."""

    question: str
    answer: str
    own: dict[str, Any]


class Picture(NamedTuple):
    """A picture of a release and what is said of it: captions, or questions in the release's order.

    Args:
      id, source: of the Example.
      file: of the picture; "" = none.
      captions: by people.
      asked: questions.
      meta: of the Example.
    """

    id: str
    source: str
    file: str
    captions: tuple[str, ...] = ()
    asked: tuple[Asked, ...] = ()
    meta: Mapping[str, Any] = {}


def describe(picture: Picture) -> Iterator[Example]:
    """The only step of these data sets: a picture with all that is said of it.

    Raises:
      UserError: the picture is not there.
    """
    own = {"questions": [asked.own for asked in picture.asked]} if picture.asked else {}
    media = (_medium(picture),) if picture.file else ()
    yield Example(
        id=picture.id,
        source=picture.source,
        media=media,
        turns=builder.conversation(((asked.question, asked.answer) for asked in picture.asked), shown=bool(media)),
        answers=picture.captions,
        meta={**picture.meta, **own},
    )


def _medium(picture: Picture) -> Medium:
    file = Path(picture.file)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"the picture of {picture.id} cannot be read: {file}: {error.strerror}; unpack the release's pictures there"
        ) from None
    return Medium("image", data, mimetypes.guess_type(file.name)[0] or "")


def by_picture(questions: Iterable[tuple[Any, Asked]]) -> dict[Any, tuple[Asked, ...]]:
    """Questions by the picture that they are about; pictures in the order of their first question."""
    groups = defaultdict(list)
    for picture, asked in questions:
        groups[picture].append(asked)
    return {picture: tuple(group) for picture, group in groups.items()}


def find(raw: Path | None, dataset: str, splits: Mapping[str, Sequence[str]], where: str) -> dict[str, list[Path]]:
    """The files of every split that a release directory holds completely.

    Args:
      raw: the directory that --raw names.
      dataset: its name, for the message.
      splits: names of the files of each split; they lie in the directory or in its folder `annotations`.
      where: they come from, for the message.

    Raises:
      UserError: no directory, or one that holds no split.
    """
    expected = " or ".join(" and ".join(names) for names in splits.values())
    if raw is None:
        raise UserError(f"{dataset} is read from a download ({where}): give --raw, a directory that holds {expected}")
    found = {split: [_file(raw, name) for name in names] for split, names in splits.items()}
    complete = {split: [file for file in files if file] for split, files in found.items() if all(files)}
    if not complete:
        raise UserError(f"--raw={raw} is no {dataset} release ({where}): expected {expected}, there or in annotations/")
    return complete


def _file(raw: Path, name: str) -> Path | None:
    return next((file for file in (raw / name, raw / "annotations" / name) if file.is_file()), None)


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns what is wrong with the content of a file of a release into one line."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{file} is no whole JSON file ({error}); download it again") from None
    except KeyError as error:
        raise UserError(f"{file} is not the file that its name says: the key {error} is missing") from None
    except (TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{file} is not the file that its name says: {error}") from None


def read_json(file: Path) -> Any:
    """The content of a JSON file."""
    with reading(file):
        return json.loads(file.read_bytes())


def most_frequent(answers: Sequence[str]) -> str:
    """The answer that most people gave, the first of equals."""
    return max(answers, key=answers.count)
