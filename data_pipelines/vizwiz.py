"""VizWiz-VQA (arXiv 1802.08218): questions that blind people asked about their own photographs, each answered by ten people.

The release directory holds `train.json` and `val.json`, there or in `Annotations/`, and the photographs in `train/` and `val/`.
A question that the photograph does not answer has "unanswerable" among its answers. The answers of test are not public.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines import release
from mmjax.data.files.forms import most_frequent


def pictures(found: release.Found, split: str, files: Sequence[Path]) -> list[release.Picture]:
    """All photographs of a split with their question: ten answers and the type of the answer (kind) are its own."""
    rows = release.read_json(files[0])
    with release.reading(files[0]):
        asked = []
        for row in rows:
            answers = [person["answer"] for person in row["answers"]]
            own = {"question_id": row["image"], "answers": answers, "kind": row["answer_type"]}
            asked.append((row["image"], release.Asked(row["question"], most_frequent(answers), own)))
    return [
        release.Picture(
            id=f"vizwiz/{split}/{Path(image).stem}",
            source=found.source,
            file=str(found.raw / split / image),
            asked=group,
            meta={"image_id": image},
        )
        for image, group in release.by_picture(asked).items()
    ]


VIZWIZ = release.Release(
    name="vizwiz",
    about="Questions of blind people about their photographs, with the answers of ten people each.",
    homepage="https://vizwiz.org/tasks-and-datasets/vqa",
    license="CC-BY-4.0",
    where="vizwiz.org/tasks-and-datasets/vqa",
    files={split: (f"{split}.json",) for split in ("train", "val")},
    items=release.each_split(pictures),
)
DATASETS = {"vizwiz": VIZWIZ.build}
