"""ScienceQA (arXiv 2209.09513): multiple-choice questions of school science, about half of them with a picture.

The release directory holds `problems.json`, `pid_splits.json` and the pictures as `images/SPLIT/NUMBER/image.png`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from data_pipelines import builder, release

FILES = ("problems.json", "pid_splits.json")
SPLITS = ("train", "val", "test")


def problems(raw: Path, files: Sequence[Path], source: str) -> dict[str, list[release.Picture]]:
    """All problems by split: the choices, the hint ("context") and whether there is a picture ("kind") in their meta."""
    content, numbers = map(release.read_json, files)
    with release.reading(files[1]):
        splits = {split: numbers[split] for split in SPLITS}
    with release.reading(files[0]):
        return {split: [_problem(raw, split, n, content[n], source) for n in splits[split]] for split in SPLITS}


def _problem(raw: Path, split: str, number: str, row: Mapping, source: str) -> release.Picture:
    meta = {
        "question_id": number,
        "kind": "image" if row["image"] else "text",
        "choices": row["choices"],
        "context": row["hint"],
        **{entry: row[entry] for entry in ("subject", "topic", "grade", "lecture", "solution")},
    }
    file = str(raw / "images" / split / number / row["image"]) if row["image"] else ""
    asked = (release.Asked(row["question"], row["choices"][row["answer"]], {}),)
    return release.Picture(f"scienceqa/{split}/{number}", source, file, asked=asked, meta=meta)


class Scienceqa(builder.ExampleBuilder):
    """Problems with their choices in `meta["choices"]`; the answer is the text of the right one."""

    VERSION = tfds.core.Version("1.0.0")
    description = "Multiple-choice questions of school science."
    homepage = "https://scienceqa.github.io"
    license = "CC-BY-NC-SA-4.0"
    steps = (release.describe,)

    def items(self) -> Mapping[str, Sequence[release.Picture]]:
        found = release.find(self.raw, "scienceqa", {"all": FILES}, "scienceqa.github.io")
        return problems(self.raw, found["all"], f"scienceqa {self.VERSION}")


def build(out: Path, *, raw: Path | None = None, runner: builder.Runner, limit: int = 0) -> None:
    """Stores the data set in the empty directory `out`."""
    builder.write(Scienceqa, out, raw=raw, runner=runner, limit=limit)
