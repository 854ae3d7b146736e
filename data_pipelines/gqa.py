"""GQA (arXiv 1902.09506): questions about scenes, made from scene graphs. The balanced questions, of every split with answers.

The release directory holds the pictures in `images/` and one file of questions for each split. Papers report on testdev.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from data_pipelines import builder, release

FILES = {split: (f"{split}_balanced_questions.json",) for split in ("train", "val", "testdev")}


def pictures(raw: Path, split: str, file: Path, source: str) -> list[release.Picture]:
    """All pictures of a split with their questions."""
    content = release.read_json(file)
    with release.reading(file):
        asked = [
            (row["imageId"], release.Asked(row["question"], row["answer"], {"question_id": name, **_kinds(row)}))
            for name, row in content.items()
        ]
    return [
        release.Picture(
            f"gqa/{split}/{image}", source, str(raw / "images" / f"{image}.jpg"), asked=group, meta={"image_id": image}
        )
        for image, group in release.by_picture(asked).items()
    ]


def _kinds(row: Mapping) -> dict[str, str]:
    types = row["types"]
    return {"kind": types["structural"], "structural": types["structural"], "semantic": types["semantic"]}


class Gqa(builder.ExampleBuilder):
    """Pictures with their questions; `meta["questions"]` holds the structural and the semantic type of each."""

    VERSION = tfds.core.Version("1.0.0")
    description = "Compositional questions about scenes."
    homepage = "https://cs.stanford.edu/people/dorarad/gqa"
    license = "CC-BY-4.0"
    steps = (release.describe,)

    def items(self) -> Mapping[str, Sequence[release.Picture]]:
        found = release.find(self.raw, "gqa", FILES, "cs.stanford.edu/people/dorarad/gqa")
        return {split: pictures(self.raw, split, file, f"gqa {self.VERSION}") for split, (file,) in found.items()}


def build(out: Path, *, raw: Path | None = None, runner: builder.Runner, limit: int = 0) -> None:
    """Stores the data set in the empty directory `out`."""
    builder.write(Gqa, out, raw=raw, runner=runner, limit=limit)
