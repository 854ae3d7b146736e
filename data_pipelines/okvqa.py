"""OK-VQA (arXiv 1906.00067): questions about COCO pictures that need knowledge of the world.

Its files have the form of VQAv2's. Five people answered each question, and each answer stands twice; `answers` are the stemmed
ones, which the official evaluation compares with, `raw_answers` the others. Papers report on val.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from data_pipelines import builder, release, vqav2

FILES = {
    split: (f"OpenEnded_mscoco_{split}2014_questions.json", f"mscoco_{split}2014_annotations.json")
    for split in ("train", "val")
}


class Okvqa(builder.ExampleBuilder):
    """Pictures with their questions; `meta["questions"]` holds the answers of each."""

    VERSION = tfds.core.Version("1.0.0")
    description = "Questions about COCO pictures that need outside knowledge."
    homepage = "https://okvqa.allenai.org"
    license = "annotations CC-BY-4.0; pictures: their owners' Flickr terms"
    steps = (release.describe,)

    def items(self) -> Mapping[str, Sequence[release.Picture]]:
        found = release.find(self.raw, "okvqa", FILES, "okvqa.allenai.org")
        return {
            split: vqav2.pictures(self.raw, "okvqa", split, files, f"okvqa {self.VERSION}") for split, files in found.items()
        }


def build(out: Path, *, raw: Path | None = None, runner: builder.Runner, limit: int = 0) -> None:
    """Stores the data set in the empty directory `out`."""
    builder.write(Okvqa, out, raw=raw, runner=runner, limit=limit)
