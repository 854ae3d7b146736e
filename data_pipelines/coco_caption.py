"""Pictures with five or more captions by people each: COCO (arXiv 1504.00325) and Flickr30k (Young et al., TACL 2014).

Papers report on the splits of Karpathy & Fei-Fei (arXiv 1412.2306): train (which takes in "restval"), val and test. COCO's
release directory holds the pictures in `train2014/` and `val2014/`, and `dataset_coco.json` for those splits or else the
official `captions_train2014.json` and `captions_val2014.json`; where both are there, the former counts. Flickr30k's holds
`dataset_flickr30k.json` and the pictures in `flickr30k-images/`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from data_pipelines import release

KARPATHY = "karpathy"


def coco(found: release.Found) -> dict[str, list[release.Picture]]:
    """COCO's pictures by split."""
    if KARPATHY in found.files:
        return karpathy(found)
    return {split: official(found, split, file) for split, (file,) in found.files.items()}


def karpathy(found: release.Found) -> dict[str, list[release.Picture]]:
    """The pictures of every split of Karpathy's file, which names their folders for COCO only."""
    (file,) = found.files[KARPATHY]
    splits: dict[str, list[release.Picture]] = {"train": [], "val": [], "test": []}
    content = release.read_json(file)
    with release.reading(file):
        for row in content["images"]:
            split = "train" if row["split"] == "restval" else row["split"]
            captions = tuple(sentence["raw"] for sentence in row["sentences"])
            picture = found.raw / row.get("filepath", "flickr30k-images") / row["filename"]
            image = row["cocoid"] if "cocoid" in row else Path(row["filename"]).stem
            splits[split].append(_picture(found, split, image, picture, captions))
    return splits


def official(found: release.Found, split: str, file: Path) -> list[release.Picture]:
    """The pictures of an official file, in its order; those without captions are left out."""
    captions, content = defaultdict(list), release.read_json(file)
    with release.reading(file):
        for row in content["annotations"]:
            captions[row["image_id"]].append(row["caption"])
        return [
            _picture(found, split, row["id"], found.raw / f"{split}2014" / row["file_name"], tuple(captions[row["id"]]))
            for row in content["images"]
            if row["id"] in captions
        ]


def _picture(found: release.Found, split: str, image: int | str, file: Path, captions: tuple[str, ...]) -> release.Picture:
    return release.Picture(f"{found.name}/{split}/{image}", found.source, str(file), captions, meta={"image_id": image})


COCO = release.Release(
    name="coco_caption",
    about="Pictures of everyday scenes with five captions each.",
    homepage="https://cocodataset.org",
    license="annotations CC-BY-4.0; pictures: their owners' Flickr terms",
    where="cocodataset.org; cs.stanford.edu/people/karpathy/deepimagesent",
    files={
        KARPATHY: ("dataset_coco.json",),
        **{split: (f"captions_{split}2014.json",) for split in ("train", "val")},
    },
    items=coco,
)
FLICKR30K = release.Release(
    name="flickr30k",
    about="Photographs of people and animals with five captions each.",
    homepage="https://shannon.cs.illinois.edu/DenotationGraph",
    license="research only; pictures: their owners' Flickr terms",
    where="shannon.cs.illinois.edu/DenotationGraph; cs.stanford.edu/people/karpathy/deepimagesent",
    files={KARPATHY: ("dataset_flickr30k.json",)},
    items=karpathy,
)
DATASETS = {"coco_caption": COCO.build, "flickr30k": FLICKR30K.build}
