"""Ask a picture: BLIP-2 learns visual question answering on rendered shapes, on a laptop's CPU.

    launch/local.sh train                                              # the default
    launch/local.sh train --config=experiments/blip2/shapes.py:long    # twice the questions
    launch/local.sh train --config=experiments/blip2/shapes.py:stage1=false   # benchmarks/ablate_stage1.py compares
    launch/local.sh train --config=experiments/blip2/shapes.py:zero_shot    # asked after stage 2
    launch/local.sh train --config=experiments/blip2/shapes.py:llm=smollm2

Figures reached are in docs/results.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.blip2.toy import config
from mmjax.types.config import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arguments: llm (opt or smollm2), stage1 (train it or not), scale (of the steps of vqa), long,
    zero_shot (ask after stage 2)."""
    chosen = parse_arg(arg, llm="opt", stage1=True, scale=1.0, long=False, zero_shot=False)
    scale = chosen.scale * (2 if chosen.long else 1)
    steps = {"lm": 150, "stage1": 250, "stage2": 200, "vqa": 1100}
    if chosen.llm == "smollm2":  # a step through it costs a hundred times as much
        steps = {"lm": 0, "stage1": 600, "stage2": 40, "vqa": 160}
    if chosen.zero_shot:
        steps |= {"lm": 400, "stage2": 1000, "vqa": 0}
    steps["vqa"] = round(steps["vqa"] * scale)
    return config(
        "shapes",
        image_size=36,
        patch_size=12,
        questions=6,
        query_length=13,
        caption_length=30,
        steps=steps,
        stage1=chosen.stage1,
        llm=chosen.llm,
        evaluations={"test": "test", "pairs": "pairs"},
        retrieval="pairs" if chosen.stage1 else "",
    )
