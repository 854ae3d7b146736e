"""nocaps (arXiv 1812.08658): captions of Open Images pictures with objects that COCO's captions do not name, ten of each.

The release directory holds `nocaps_val_4500_captions.json` and the pictures that its addresses name, in `images/`. The captions
of test are not public.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from data_pipelines import release


def pictures(found: release.Found, split: str, files: Sequence[Path]) -> list[release.Picture]:
    """All pictures with their captions; `meta["domain"]` is in-domain, near-domain or out-domain."""
    captions, content = defaultdict(list), release.read_json(files[0])
    with release.reading(files[0]):
        for row in content["annotations"]:
            captions[row["image_id"]].append(row["caption"])
        return [
            release.Picture(
                id=f"nocaps/{split}/{row['id']}",
                source=found.source,
                file=str(found.raw / "images" / row["file_name"]),
                captions=tuple(captions[row["id"]]),
                meta={"image_id": row["id"], "domain": row["domain"]},
            )
            for row in content["images"]
        ]


NOCAPS = release.Release(
    name="nocaps",
    about="Captions of novel objects, ten for each picture.",
    homepage="https://nocaps.org",
    license="CC-BY-2.0",
    where="nocaps.org/download",
    files={"val": ("nocaps_val_4500_captions.json",)},
    items=release.each_split(pictures),
)
DATASETS = {"nocaps": NOCAPS.build}
