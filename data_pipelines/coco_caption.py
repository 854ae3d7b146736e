"""COCO captions (arXiv 1504.00325): pictures of everyday scenes, each with five or more captions by people.

The release directory holds the pictures in `train2014/` and `val2014/`, and either `dataset_coco.json`, whose splits by
Karpathy & Fei-Fei (arXiv 1412.2306) papers report on (train, which takes in "restval", val and test), or the official
`captions_train2014.json` and `captions_val2014.json`. Where both are there, the former counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from data_pipelines import builder, release

KARPATHY = "dataset_coco.json"
OFFICIAL = {"train": "captions_train2014.json", "val": "captions_val2014.json"}
WHERE = "cocodataset.org; cs.stanford.edu/people/karpathy/deepimagesent"


def karpathy(raw: Path, file: Path, source: str) -> dict[str, list[release.Picture]]:
    """The pictures of every split of `dataset_coco.json`."""
    splits: dict[str, list[release.Picture]] = {"train": [], "val": [], "test": []}
    content = release.read_json(file)
    with release.reading(file):
        for row in content["images"]:
            split = "train" if row["split"] == "restval" else row["split"]
            captions = tuple(sentence["raw"] for sentence in row["sentences"])
            picture = raw / row["filepath"] / row["filename"]
            splits[split].append(_picture(split, row["cocoid"], picture, captions, source))
    return splits


def official(raw: Path, file: Path, split: str, source: str) -> list[release.Picture]:
    """The pictures of an official file, in its order; those without captions are left out."""
    captions, content = defaultdict(list), release.read_json(file)
    with release.reading(file):
        for row in content["annotations"]:
            captions[row["image_id"]].append(row["caption"])
        return [
            _picture(split, row["id"], raw / f"{split}2014" / row["file_name"], tuple(captions[row["id"]]), source)
            for row in content["images"]
            if row["id"] in captions
        ]


def _picture(split: str, image: int, file: Path, captions: tuple[str, ...], source: str) -> release.Picture:
    return release.Picture(f"coco_caption/{split}/{image}", source, str(file), captions, meta={"image_id": image})


class CocoCaption(builder.ExampleBuilder):
    """Pictures with all their captions, as `answers`: templates that learn a caption draw one of them."""

    VERSION = tfds.core.Version("1.0.0")
    description = "Pictures of everyday scenes with five captions each."
    homepage = "https://cocodataset.org"
    license = "annotations CC-BY-4.0; pictures: their owners' Flickr terms"
    steps = (release.describe,)

    def items(self) -> Mapping[str, Sequence[release.Picture]]:
        wanted = {KARPATHY: [KARPATHY], **{split: [name] for split, name in OFFICIAL.items()}}
        found = release.find(self.raw, "coco_caption", wanted, WHERE)
        source = f"coco_caption {self.VERSION}"
        if KARPATHY in found:
            return karpathy(self.raw, found[KARPATHY][0], source)
        return {split: official(self.raw, file, split, source) for split, (file,) in found.items()}


def build(out: Path, *, raw: Path | None = None, runner: builder.Runner, limit: int = 0) -> None:
    """Stores the data set in the empty directory `out`."""
    builder.write(CocoCaption, out, raw=raw, runner=runner, limit=limit)
