"""GQA (arXiv 1902.09506): questions about scenes, made from scene graphs. The balanced questions, of every split with answers.

The release directory holds the pictures in `images/` and one file of questions for each split. Papers report on testdev.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data_pipelines import release


def pictures(found: release.Found, split: str, files: list[Path]) -> list[release.Picture]:
    """All pictures of a split with their questions; the structural and the semantic type of each are its own."""
    content = release.read_json(files[0])
    with release.reading(files[0]):
        asked = [
            (row["imageId"], release.Asked(row["question"], row["answer"], {"question_id": name, **_kinds(row)}))
            for name, row in content.items()
        ]
    return [
        release.Picture(
            id=f"gqa/{split}/{image}",
            source=found.source,
            file=str(found.raw / "images" / f"{image}.jpg"),
            asked=group,
            meta={"image_id": image},
        )
        for image, group in release.by_picture(asked).items()
    ]


def _kinds(row: Mapping) -> dict[str, str]:
    types = row["types"]
    return {"kind": types["structural"], "structural": types["structural"], "semantic": types["semantic"]}


GQA = release.Release(
    name="gqa",
    about="Compositional questions about scenes.",
    homepage="https://cs.stanford.edu/people/dorarad/gqa",
    license="CC-BY-4.0",
    where="cs.stanford.edu/people/dorarad/gqa",
    files={split: (f"{split}_balanced_questions.json",) for split in ("train", "val", "testdev")},
    items=release.each_split(pictures),
)
DATASETS = {"gqa": GQA.build}
