"""What the readers of downloaded releases share: finding and reading their files, and pictures with what is said of them.

A reader is a table of `Release`s, mostly of one: what is known of a data set, which files it wants, and the function that makes
items of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mimetypes
import types
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from data_pipelines import builder, local
from mmjax.data.files.forms import QUESTIONS, Asked, conversation
from mmjax.types import Example, Medium, UserError


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


def describe(picture: Picture) -> Iterator[Example | builder.Skip]:
    """The only step of most of these data sets: a picture with all that is said of it; left out if it cannot be read.

    Many questions make several examples, so that the rows of recipes hold each: the ids of further ones end in "+1", "+2", ….
    """
    try:
        media = (read_medium(Path(picture.file)),) if picture.file else ()
    except OSError as error:
        yield builder.Skip(picture.id, f"has no picture: {picture.file}: {error.strerror}; unpack the release's pictures there")
        return
    for number, start in enumerate(range(0, max(len(picture.asked), 1), QUESTIONS)):
        asked = picture.asked[start : start + QUESTIONS]
        yield Example(
            id=f"{picture.id}+{number}" if number else picture.id,
            source=picture.source,
            media=media,
            turns=conversation(((one.question, one.answer) for one in asked), shown=bool(media)),
            answers=picture.captions,
            meta={**picture.meta, **({"questions": [one.own for one in asked]} if asked else {})},
        )


def read_medium(file: Path) -> Medium:
    """The picture in a file, as it is stored.

    Raises:
      OSError: it cannot be read.
    """
    return Medium("image", file.read_bytes(), mimetypes.guess_type(file.name)[0] or "")


def by_picture(questions: Iterable[tuple[Any, Asked]]) -> dict[Any, tuple[Asked, ...]]:
    """Questions by the picture that they are about; pictures in the order of their first question."""
    groups = defaultdict(list)
    for picture, asked in questions:
        groups[picture].append(asked)
    return {picture: tuple(group) for picture, group in groups.items()}


class Found(NamedTuple):
    """A release on disk.

    Args:
      name: of the data set.
      source: of its Examples.
      raw: the directory that --raw names.
      files: of every split that is there completely.
    """

    name: str
    source: str
    raw: Path
    files: dict[str, list[Path]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Release:
    """A data set that is read from what its owners publish.

    Args:
      name: its name.
      about, homepage, license: for people.
      where: the files come from, for messages.
      files: names of the files of each split, or patterns that match some; they lie in the directory or in `annotations/`.
      items: makes of them what the first step takes, by split.
      steps, chunk: as `builder.ExampleBuilder` has them.
      version: of the reader.
    """

    name: str
    about: str
    homepage: str
    license: str
    where: str
    files: Mapping[str, Sequence[str]]
    items: Callable[[Found], Mapping[str, Sequence[Any]]]
    steps: Sequence[local.Step] = (describe,)
    chunk: int = local.CHUNK
    version: str = "1.0.0"

    def find(self, raw: Path | None) -> Found:
        """The release in a directory.

        Raises:
          UserError: no directory, or one that holds no split.
        """
        expected = " or ".join(" and ".join(names) for names in self.files.values())
        if raw is None:
            raise UserError(
                f"{self.name} is read from a download ({self.where}): give launch.prepare --raw, a directory that holds "
                f"{expected}"
            )
        found = {split: [_files(raw, name) for name in names] for split, names in self.files.items()}
        complete = {split: [file for each in files for file in each] for split, files in found.items() if all(files)}
        if not complete:
            raise UserError(
                f"--raw={raw} is no {self.name} release ({self.where}): expected {expected}, there or in annotations/"
            )
        return Found(self.name, f"{self.name} {self.version}", raw, complete)

    def build(self, out: Path, *, raw: Path | None = None, **options: Any) -> None:
        """Stores the data set in the empty directory `out`; the options are those of `builder.write`."""
        fields = {
            "name": self.name,
            "VERSION": tfds.core.Version(self.version),
            "steps": self.steps,
            "chunk": self.chunk,
            "description": self.about,
            "homepage": self.homepage,
            "license": self.license,
            "items": lambda dataset: self.items(self.find(dataset.raw)),
        }
        # TFDS knows a data set as a class.
        made = types.new_class(
            self.name, (builder.ExampleBuilder,), {"skip_registration": True}, lambda body: body.update(fields)
        )
        builder.write(made, out, raw=raw, **options)


def each_split(pictures: Callable[[Found, str, list[Path]], Sequence[Any]]) -> Callable[[Found], dict[str, Sequence[Any]]]:
    """The `items` of a release whose splits are read one by one: (release, split, its files) -> items."""
    return lambda found: {split: pictures(found, split, files) for split, files in found.files.items()}


def _files(raw: Path, name: str) -> list[Path]:
    """The files of that name or pattern, in order, in the first folder that has some."""
    folders = (sorted(folder.glob(name)) for folder in (raw, raw / "annotations", raw / "Annotations"))
    return next((files for files in folders if files), [])


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


def read_rows(file: Path) -> list[Any]:
    """The rows of a JSON list, or of a file of one JSON object a line."""
    with reading(file):
        text = file.read_text(encoding="utf-8-sig")  # with or without a mark at its beginning
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]
