"""VQAv2 (arXiv 1612.00837): questions about COCO pictures, each answered by ten people.

The release directory holds the pictures in `train2014/` and `val2014/`, and for each split the file of questions and that of
annotations. The answers of the test splits are not public: their questions are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines import release
from mmjax.data.files.forms import ask


def pictures(found: release.Found, split: str, files: Sequence[Path]) -> list[release.Picture]:
    """All pictures of a split with their questions and ten answers, also of OK-VQA, whose files have the same form.

    Args:
      found: the release.
      split: "train" or "val".
      files: the questions and their annotations.
    """
    questions, annotations = map(release.read_json, files)
    with release.reading(files[1]):
        annotated = {row["question_id"]: row for row in annotations["annotations"]}
    with release.reading(files[0]):
        rows = [(row["image_id"], row["question_id"], row["question"]) for row in questions["questions"]]
    with release.reading(files[1]):
        asked = [(image, ask(question, annotated[number])) for image, number, question in rows]
    return [
        release.Picture(
            id=f"{found.name}/{split}/{image}",
            source=found.source,
            file=str(found.raw / f"{split}2014" / f"COCO_{split}2014_{image:012d}.jpg"),
            asked=group,
            meta={"image_id": image},
        )
        for image, group in release.by_picture(asked).items()
    ]


VQAV2 = release.Release(
    name="vqav2",
    about="Questions about COCO pictures with the answers of ten people each.",
    homepage="https://visualqa.org",
    license="annotations CC-BY-4.0; pictures: their owners' Flickr terms",
    where="visualqa.org/download.html",
    files={
        split: (f"v2_OpenEnded_mscoco_{split}2014_questions.json", f"v2_mscoco_{split}2014_annotations.json")
        for split in ("train", "val")
    },
    items=release.each_split(pictures),
)
DATASETS = {"vqav2": VQAV2.build}
