"""MiniGPT-4's curated descriptions (arXiv 2304.10592): 3,439 pictures of Conceptual Captions, written by its first stage and
mended by ChatGPT and by people.

The release directory holds `filter_cap.json` and the pictures, `image/ID.jpg`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines import release
from mmjax.data.files.pictures import inside
from mmjax.types import UserError


def pictures(found: release.Found, split: str, files: Sequence[Path]) -> list[release.Picture]:
    """All pictures with their descriptions.

    Raises:
      UserError: the file is damaged, or names pictures outside of the release.
    """
    content, made = release.read_json(files[0]), []
    with release.reading(files[0]):
        for row in content["annotations"]:
            name = f"{row['image_id']}.jpg"
            if not inside(name):
                raise UserError(f"{files[0]} names a picture outside of its directory: {name!r}")
            made.append(
                release.Picture(
                    id=f"cc_sbu_align/{split}/{row['image_id']}",
                    source=found.source,
                    file=str(found.raw / "image" / name),
                    captions=(row["caption"],),
                    meta={"image_id": row["image_id"]},
                )
            )
    return made


CC_SBU_ALIGN = release.Release(
    name="cc_sbu_align",
    about="Detailed descriptions, with which MiniGPT-4 learns to talk.",
    homepage="https://github.com/Vision-CAIR/MiniGPT-4",
    license="pictures: their owners'",
    where="github.com/Vision-CAIR/MiniGPT-4 (dataset/README_2_STAGE.md)",
    files={"train": ("filter_cap.json",)},
    items=release.each_split(pictures),
)
DATASETS = {"cc_sbu_align": CC_SBU_ALIGN.build}
