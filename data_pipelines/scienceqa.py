"""ScienceQA (arXiv 2209.09513): multiple-choice questions of school science, about half of them with a picture.

The release directory holds `problems.json`, `pid_splits.json` and the pictures as `images/SPLIT/NUMBER/image.png`.
"""

from __future__ import annotations

from collections.abc import Mapping

from data_pipelines import release

SPLITS = ("train", "val", "test")


def problems(found: release.Found) -> dict[str, list[release.Picture]]:
    """All problems by split: the choices, the hint ("context") and whether there is a picture ("kind") in their meta."""
    problems_file, splits_file = found.files["all"]
    content, numbers = release.read_json(problems_file), release.read_json(splits_file)
    with release.reading(splits_file):
        splits = {split: numbers[split] for split in SPLITS}
    with release.reading(problems_file):
        return {split: [_problem(found, split, n, content[n]) for n in splits[split]] for split in SPLITS}


def _problem(found: release.Found, split: str, number: str, row: Mapping) -> release.Picture:
    meta = {
        "question_id": number,
        "kind": "image" if row["image"] else "text",
        "choices": row["choices"],
        "context": row["hint"],
        **{entry: row[entry] for entry in ("subject", "topic", "grade", "lecture", "solution")},
    }
    file = str(found.raw / "images" / split / number / row["image"]) if row["image"] else ""
    asked = (release.Asked(row["question"], row["choices"][row["answer"]], {}),)
    return release.Picture(f"scienceqa/{split}/{number}", found.source, file, asked=asked, meta=meta)


SCIENCEQA = release.Release(
    name="scienceqa",
    about="Multiple-choice questions of school science.",
    homepage="https://scienceqa.github.io",
    license="CC-BY-NC-SA-4.0",
    where="scienceqa.github.io",
    files={"all": ("problems.json", "pid_splits.json")},
    items=problems,
)
DATASETS = {"scienceqa": SCIENCEQA.build}
