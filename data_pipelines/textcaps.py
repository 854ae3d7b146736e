"""TextCaps 0.1 (arXiv 2003.12462): captions that read what is written in TextVQA's pictures, five of each.

The release directory holds the pictures in `train_images/` and one file for each split, with a row for each caption; where
TextVQA's files of recognised words are there too, `meta["ocr_tokens"]` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines import release, textvqa


def pictures(found: release.Found, split: str, files: Sequence[Path]) -> list[release.Picture]:
    """All pictures of a split with their captions."""
    (file,) = files
    content = release.read_json(file)
    with release.reading(file):
        captions = {row["image_id"]: tuple(row["reference_strs"]) for row in content["data"]}
    recognised = textvqa.ocr_tokens(file.parent / f"TextVQA_Rosetta_OCR_v0.2_{split}.json")
    return [
        release.Picture(
            id=f"textcaps/{split}/{image}",
            source=found.source,
            file=str(found.raw / "train_images" / f"{image}.jpg"),
            captions=texts,
            meta={"image_id": image, **({"ocr_tokens": recognised[image]} if image in recognised else {})},
        )
        for image, texts in captions.items()
    ]


TEXTCAPS = release.Release(
    name="textcaps",
    about="Captions that need the text in the picture.",
    homepage="https://textvqa.org/textcaps",
    license="CC-BY-4.0",
    where="textvqa.org/textcaps/dataset",
    files={split: (f"TextCaps_0.1_{split}.json",) for split in ("train", "val")},
    items=release.each_split(pictures),
)
DATASETS = {"textcaps": TEXTCAPS.build}
