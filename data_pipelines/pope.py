"""POPE (arXiv 2305.10355): is there such an object in the picture? Half of the answers are yes.

The release directory holds COCO's pictures in `val2014/` and files of one JSON object a line,
`coco_pope_{random,popular,adversarial}.json`, named for how the objects that are not there were chosen. They make one split,
`test`; the name of the file is the kind of its questions.
"""

from __future__ import annotations

from pathlib import Path

from data_pipelines import release


def pictures(found: release.Found) -> dict[str, list[release.Picture]]:
    """All pictures with the questions of every file, answered by yes or no."""
    asked = []
    for kind, (file,) in found.files.items():
        rows = release.read_rows(file)
        with release.reading(file):
            for row in rows:
                own = {"question_id": row["question_id"], "kind": kind}
                asked.append((row["image"], release.Asked(row["text"], row["label"], own)))
    test = [
        release.Picture(
            id=f"pope/test/{Path(image).stem}",
            source=found.source,
            file=str(found.raw / "val2014" / image),
            asked=group,
            meta={"image_id": image},
        )
        for image, group in release.by_picture(asked).items()
    ]
    return {"test": test}


POPE = release.Release(
    name="pope",
    about="Whether objects are in pictures: a test of hallucination.",
    homepage="https://github.com/AoiDragon/POPE",
    license="MIT; pictures: their owners' Flickr terms",
    where="github.com/AoiDragon/POPE, output/coco",
    files={kind: (f"coco_pope_{kind}.json",) for kind in ("random", "popular", "adversarial")},
    items=pictures,
)
DATASETS = {"pope": POPE.build}
