"""POPE (arXiv 2305.10355): is there such an object in the picture? Half of the answers are yes.

The release directory holds COCO's pictures in `val2014/` and files of one JSON object a line,
`coco_pope_{random,popular,adversarial}.json`, named for how the objects that are not there were chosen. They make one split,
`test`; the name of the file is the kind of its questions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from data_pipelines import builder, release

FILES = {kind: (f"coco_pope_{kind}.json",) for kind in ("random", "popular", "adversarial")}


def pictures(raw: Path, files: Mapping[str, Path], source: str) -> list[release.Picture]:
    """All pictures with the questions of every file, by kind."""
    asked = []
    for kind, file in files.items():
        with release.reading(file):
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                own = {"question_id": row["question_id"], "kind": kind}
                asked.append((row["image"], release.Asked(row["text"], row["label"], own)))
    return [
        release.Picture(
            f"pope/test/{Path(image).stem}", source, str(raw / "val2014" / image), asked=group, meta={"image_id": image}
        )
        for image, group in release.by_picture(asked).items()
    ]


class Pope(builder.ExampleBuilder):
    """Pictures with questions of every kind, answered by yes or no."""

    VERSION = tfds.core.Version("1.0.0")
    description = "Whether objects are in pictures: a test of hallucination."
    homepage = "https://github.com/AoiDragon/POPE"
    license = "MIT; pictures: their owners' Flickr terms"
    steps = (release.describe,)

    def items(self) -> Mapping[str, Sequence[release.Picture]]:
        found = release.find(self.raw, "pope", FILES, "github.com/AoiDragon/POPE, output/coco")
        return {"test": pictures(self.raw, {kind: file for kind, (file,) in found.items()}, f"pope {self.VERSION}")}


def build(out: Path, *, raw: Path | None = None, runner: builder.Runner, limit: int = 0) -> None:
    """Stores the data set in the empty directory `out`."""
    builder.write(Pope, out, raw=raw, runner=runner, limit=limit)
