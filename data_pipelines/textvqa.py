"""TextVQA 0.5.1 (arXiv 1904.08920): questions about what is written in pictures, each answered by ten people.

The release directory holds the pictures in `train_images/` and one file of questions for each split; where the files of its
text recognition, `TextVQA_Rosetta_OCR_v0.2_*.json`, are there too, `meta["ocr_tokens"]` has the words they found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines import release
from mmjax.data.files.forms import most_frequent


def pictures(found: release.Found, split: str, files: Sequence[Path]) -> list[release.Picture]:
    """All pictures of a split with their questions and ten answers."""
    (file,) = files
    content = release.read_json(file)
    with release.reading(file):
        asked = [
            (
                row["image_id"],
                release.Asked(
                    row["question"],
                    most_frequent(row["answers"]),
                    {"question_id": row["question_id"], "answers": row["answers"]},
                ),
            )
            for row in content["data"]
        ]
    recognised = ocr_tokens(file.parent / f"TextVQA_Rosetta_OCR_v0.2_{split}.json")
    return [
        release.Picture(
            id=f"textvqa/{split}/{image}",
            source=found.source,
            file=str(found.raw / "train_images" / f"{image}.jpg"),
            asked=group,
            meta={"image_id": image, **({"ocr_tokens": recognised[image]} if image in recognised else {})},
        )
        for image, group in release.by_picture(asked).items()
    ]


def ocr_tokens(file: Path) -> dict[str, list[str]]:
    """What was recognised in each picture; empty without the file."""
    if not file.is_file():
        return {}
    content = release.read_json(file)
    with release.reading(file):
        return {row["image_id"]: row["ocr_tokens"] for row in content["data"]}


TEXTVQA = release.Release(
    name="textvqa",
    about="Questions about the text in pictures, with the answers of ten people each.",
    homepage="https://textvqa.org",
    license="CC-BY-4.0",
    where="textvqa.org/dataset",
    files={split: (f"TextVQA_0.5.1_{split}.json",) for split in ("train", "val")},
    items=release.each_split(pictures),
)
DATASETS = {"textvqa": TEXTVQA.build}
