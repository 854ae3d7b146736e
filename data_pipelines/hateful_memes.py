"""Hateful Memes (arXiv 2005.04790): is a picture with a text written on it hateful?

The release directory holds `train.jsonl`, `{dev,test}_{seen,unseen}.jsonl` and the pictures in `img/`. The text on the picture
stands as the question; the first release has test files without labels, which are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines import release

ANSWERS = ("no", "yes")  # by label


def memes(found: release.Found, split: str, files: Sequence[Path]) -> list[release.Picture]:
    """All memes of a split that are labelled, with the text that is written on them."""
    rows = release.read_rows(files[0])
    with release.reading(files[0]):
        return [
            release.Picture(
                id=f"hateful_memes/{split}/{row['id']}",
                source=found.source,
                file=str(found.raw / row["img"]),
                asked=(release.Asked(row["text"], ANSWERS[row["label"]], {}),),
                meta={"question_id": row["id"], "choices": list(ANSWERS)},
            )
            for row in rows
            if "label" in row
        ]


HATEFUL_MEMES = release.Release(
    name="hateful_memes",
    about="Memes, hateful or not. Their content offends.",
    homepage="https://ai.meta.com/tools/hatefulmemes",
    license="research only, by the Hateful Memes licence agreement",
    where="ai.meta.com/tools/hatefulmemes",
    files={split: (f"{split}.jsonl",) for split in ("train", "dev_seen", "dev_unseen", "test_seen", "test_unseen")},
    items=release.each_split(memes),
)
DATASETS = {"hateful_memes": HATEFUL_MEMES.build}
