"""OK-VQA (arXiv 1906.00067): questions about COCO pictures that need knowledge of the world.

Its files have the form of VQAv2's. Five people answered each question, and each answer stands twice; `answers` are the stemmed
ones, which the official evaluation compares with, `raw_answers` the others. Papers report on val.
"""

from __future__ import annotations

from data_pipelines import release, vqav2

OKVQA = release.Release(
    name="okvqa",
    about="Questions about COCO pictures that need outside knowledge.",
    homepage="https://okvqa.allenai.org",
    license="annotations CC-BY-4.0; pictures: their owners' Flickr terms",
    where="okvqa.allenai.org",
    files={
        split: (f"OpenEnded_mscoco_{split}2014_questions.json", f"mscoco_{split}2014_annotations.json")
        for split in ("train", "val")
    },
    items=release.each_split(vqav2.pictures),
)
DATASETS = {"okvqa": OKVQA.build}
