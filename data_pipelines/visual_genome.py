"""Visual Genome (arXiv 1602.07332): about fifty phrases and seventeen questions a picture; all of it is the split `train`.

The release directory holds `image_data.json`, whose addresses say in which of the folders `VG_100K/` and `VG_100K_2/` a picture
lies, and `region_descriptions.json` (`visual_genome_caption`: the phrase of each region is a caption, as BLIP and BLIP-2 took
them) or `question_answers.json` (`visual_genome_qa`). Most of its pictures are COCO's too; `meta["coco_id"]` says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines import release

ABOUT = {
    "homepage": "https://homes.cs.washington.edu/~ranjay/visualgenome",
    "license": "CC-BY-4.0",
    "where": "homes.cs.washington.edu/~ranjay/visualgenome/api.html",
}


def regions(found: release.Found, split: str, files: Sequence[Path]) -> list[release.Picture]:
    """All pictures with the phrases of their regions; those without any are left out."""
    return [
        _picture(found, split, image, captions=tuple(region["phrase"] for region in row["regions"]))
        for image, row in _joined(files)
        if row["regions"]
    ]


def questions(found: release.Found, split: str, files: Sequence[Path]) -> list[release.Picture]:
    """All pictures with their questions; those without any are left out."""
    return [
        _picture(
            found,
            split,
            image,
            asked=tuple(release.Asked(qa["question"], qa["answer"], {"question_id": qa["qa_id"]}) for qa in row["qas"]),
        )
        for image, row in _joined(files)
        if row["qas"]
    ]


def _joined(files: Sequence[Path]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """What is known of each picture, and what is said of it."""
    facts, said = map(release.read_json, files)
    with release.reading(files[0]):
        pictures = {row["image_id"]: row for row in facts}
    with release.reading(files[1]):
        return [(pictures[row["id"]], row) for row in said]


def _picture(found: release.Found, split: str, image: Mapping[str, Any], **said: Any) -> release.Picture:
    folder, name = PurePosixPath(image["url"]).parts[-2:]
    return release.Picture(
        id=f"{found.name}/{split}/{image['image_id']}",
        source=found.source,
        file=str(found.raw / folder / name),
        meta={"image_id": image["image_id"], "coco_id": image["coco_id"]},
        **said,
    )


CAPTION = release.Release(
    name="visual_genome_caption",
    about="Pictures with a phrase for each of some fifty regions.",
    files={"train": ("image_data.json", "region_descriptions.json")},
    items=release.each_split(regions),
    **ABOUT,
)
QA = release.Release(
    name="visual_genome_qa",
    about="Pictures with questions that start with what, where, when, who, why and how.",
    files={"train": ("image_data.json", "question_answers.json")},
    items=release.each_split(questions),
    **ABOUT,
)
DATASETS = {"visual_genome_caption": CAPTION.build, "visual_genome_qa": QA.build}
