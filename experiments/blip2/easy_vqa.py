"""BLIP-2 on Easy-VQA: pictures and questions made by others (PyPI package `easy-vqa`), the second opinion to `shapes.py`.

    launch/local.sh train --config=experiments/blip2/easy_vqa.py
    launch/local.sh train --config=experiments/blip2/easy_vqa.py:llm=smollm2

The release has no captions; the builder makes them of what a picture's answers say ("a blue rectangle"), of training pictures
only. A picture has 2 to 21 questions; two pictures are packed into a row. Figures are in docs/results.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.blip2.toy import config
from mmjax.types.config import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arguments: llm (opt or smollm2), scale (of the steps of vqa)."""
    chosen = parse_arg(arg, llm="opt", scale=1.0)
    steps = {"lm": 1500, "stage1": 1000, "stage2": 200, "vqa": 1000}
    if chosen.llm == "smollm2":
        steps = {"lm": 0, "stage1": 800, "stage2": 40, "vqa": 200}
    steps["vqa"] = round(steps["vqa"] * chosen.scale)
    return config(
        "easy_vqa",
        image_size=64,
        patch_size=8,
        questions=21,
        query_length=16,
        caption_length=3,
        steps=steps,
        question_rows=8,
        images_per_row=2,
        llm=chosen.llm,
        evaluations={"test": "test"},
    )
