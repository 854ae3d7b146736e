"""A-OKVQA 1.0 (arXiv 2206.01718): questions about COCO pictures that need knowledge and reasoning.

Each question has ten people's own answers, of which the most frequent is learnt, and four choices. The release directory holds
the pictures in `train2017/` and `val2017/` and one file for each split. The answers of test are not public.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines import release
from mmjax.data.files.forms import most_frequent


def pictures(found: release.Found, split: str, files: Sequence[Path]) -> list[release.Picture]:
    """All pictures of a split with their questions; ten answers, the choices, the right one and the rationales are own."""
    rows = release.read_json(files[0])
    with release.reading(files[0]):
        asked = [(row["image_id"], _asked(row)) for row in rows]
    return [
        release.Picture(
            id=f"aokvqa/{split}/{image}",
            source=found.source,
            file=str(found.raw / f"{split}2017" / f"{image:012d}.jpg"),
            asked=group,
            meta={"image_id": image},
        )
        for image, group in release.by_picture(asked).items()
    ]


def _asked(row: dict[str, Any]) -> release.Asked:
    own = {
        "question_id": row["question_id"],
        "answers": row["direct_answers"],
        "choices": row["choices"],
        "choice": row["choices"][row["correct_choice_idx"]],
        "rationales": row["rationales"],
    }
    return release.Asked(row["question"], most_frequent(row["direct_answers"]), own)


AOKVQA = release.Release(
    name="aokvqa",
    about="Questions about COCO pictures that need knowledge and reasoning, open and with four choices.",
    homepage="https://allenai.org/project/a-okvqa",
    license="Apache-2.0; pictures: their owners' Flickr terms",
    where="github.com/allenai/aokvqa",
    files={split: (f"aokvqa_v1p0_{split}.json",) for split in ("train", "val")},
    items=release.each_split(pictures),
)
DATASETS = {"aokvqa": AOKVQA.build}
