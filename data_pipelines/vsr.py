"""Visual Spatial Reasoning (arXiv 2205.00363): is a statement about where things stand in a picture true?

The release directory is `data` of the owners' repository: `splits/zeroshot/{train,dev,test}.jsonl`, on whose test papers report
zero-shot figures, and the pictures in `images/`. The other division, `splits/random`, is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines import release

ANSWERS = ("no", "yes")  # by label


def pictures(found: release.Found, split: str, files: Sequence[Path]) -> list[release.Picture]:
    """All pictures of a split with the statements about them as questions; the relation (kind) of each is its own."""
    rows = release.read_rows(files[0])
    with release.reading(files[0]):
        asked = []
        for row in rows:
            own = {"kind": row["relation"], "choices": list(ANSWERS)}
            asked.append((row["image"], release.Asked(row["caption"], ANSWERS[row["label"]], own)))
    return [
        release.Picture(
            id=f"vsr/{split}/{Path(image).stem}",
            source=found.source,
            file=str(found.raw / "images" / image),
            asked=group,
            meta={"image_id": image},
        )
        for image, group in release.by_picture(asked).items()
    ]


VSR = release.Release(
    name="vsr",
    about="Statements about spatial relations in pictures, true or false.",
    homepage="https://github.com/cambridgeltl/visual-spatial-reasoning",
    license="CC-BY-4.0; pictures: their owners' Flickr terms",
    where="github.com/cambridgeltl/visual-spatial-reasoning, data",
    files={split: (f"splits/zeroshot/{file}.jsonl",) for split, file in (("train", "train"), ("val", "dev"), ("test", "test"))},
    items=release.each_split(pictures),
)
DATASETS = {"vsr": VSR.build}
