"""IconQA (arXiv 2110.13214): questions about diagrams. Those with choices in words, on which InstructBLIP is evaluated.

The release directory is `iconqa_data`: `problems.json`, `pid_splits.json` and the diagrams as
`iconqa/SPLIT/choose_txt/NUMBER/image.png`. The other two tasks (choices that are pictures, blanks to fill) are not read.
"""

from __future__ import annotations

from collections.abc import Mapping

from data_pipelines import release

TASK = "choose_txt"
SPLITS = ("train", "val", "test")


def problems(found: release.Found) -> dict[str, list[release.Picture]]:
    """All problems by split; the choices in their meta."""
    problems_file, splits_file = found.files["all"]
    content, numbers = release.read_json(problems_file), release.read_json(splits_file)
    with release.reading(splits_file):
        splits = {split: numbers[f"{TASK}_{split}"] for split in SPLITS}
    with release.reading(problems_file):
        return {split: [_problem(found, split, n, content[n]) for n in splits[split]] for split in SPLITS}


def _problem(found: release.Found, split: str, number: str, row: Mapping) -> release.Picture:
    return release.Picture(
        id=f"iconqa/{split}/{number}",
        source=found.source,
        file=str(found.raw / "iconqa" / split / TASK / number / "image.png"),
        asked=(release.Asked(row["question"], row["choices"][int(row["answer"])], {}),),
        meta={"question_id": number, "choices": row["choices"]},
    )


ICONQA = release.Release(
    name="iconqa",
    about="Questions about diagrams, with choices in words.",
    homepage="https://iconqa.github.io",
    license="CC-BY-NC-SA-4.0",
    where="iconqa.github.io, iconqa_data.zip",
    files={"all": ("problems.json", "pid_splits.json")},
    items=problems,
)
DATASETS = {"iconqa": ICONQA.build}
