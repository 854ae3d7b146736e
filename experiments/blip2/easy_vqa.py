"""BLIP-2 on Easy-VQA: pictures and questions made by others (PyPI package `easy-vqa`), the second opinion to `shapes.py`.

    launch/local.sh train --config=experiments/blip2/easy_vqa.py
    launch/local.sh train --config=experiments/blip2/easy_vqa.py:llm=smollm2

The pictures carry no captions, so there is nothing to align before the questions: the language model learns their words, then
all parts learn together. An image has 2 to 21 questions; two images are packed into a row. Figures are in docs/results.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.blip2.toy import config
from mmjax.types.config import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arguments: llm (opt or smollm2), scale (of the steps of vqa)."""
    chosen = parse_arg(arg, llm="opt", scale=1.0)
    return config(
        "easy_vqa",
        image_size=64,
        patch_size=8,
        questions=21,
        query_length=16,
        caption_length=0,
        steps={"lm": 100, "stage1": 0, "stage2": 0, "vqa": round((800 if chosen.llm == "opt" else 200) * chosen.scale)},
        rows=8,
        images_per_row=2,
        llm=chosen.llm,
        evaluations={"test": "test"},
    )
