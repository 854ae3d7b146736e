"""OCR-VQA (Mishra et al., ICDAR 2019): questions about the covers of books, answered by what is written on them.

The release directory holds `dataset.json` and the covers as `images/KEY.EXTENSION`, as the owners' download script saves them.
Some addresses are dead by now: `--skips` says how many covers may be missing.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from data_pipelines import release

SPLITS = {1: "train", 2: "val", 3: "test"}


def covers(found: release.Found) -> dict[str, list[release.Picture]]:
    """The covers of every split with their questions; title, author and genre in their meta."""
    (file,) = found.files["all"]
    splits: dict[str, list[release.Picture]] = {name: [] for name in SPLITS.values()}
    content = release.read_json(file)
    with release.reading(file):
        for key, row in content.items():
            split, extension = SPLITS[row["split"]], PurePosixPath(row["imageURL"]).suffix
            pairs = zip(row["questions"], row["answers"], strict=True)
            splits[split].append(
                release.Picture(
                    id=f"ocr_vqa/{split}/{key}",
                    source=found.source,
                    file=str(found.raw / "images" / f"{key}{extension}"),
                    asked=tuple(release.Asked(question, answer, {}) for question, answer in pairs),
                    meta={"image_id": key, **{entry: row[entry] for entry in ("title", "authorName", "genre")}},
                )
            )
    return splits


OCR_VQA = release.Release(
    name="ocr_vqa",
    about="Questions about the covers of books.",
    homepage="https://ocr-vqa.github.io",
    license="Apache-2.0; covers: their owners'",
    where="ocr-vqa.github.io",
    files={"all": ("dataset.json",)},
    items=covers,
)
DATASETS = {"ocr_vqa": OCR_VQA.build}
