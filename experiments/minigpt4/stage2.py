"""MiniGPT-4, stage 2: the linear map learns from 3,439 curated descriptions, in the words of a conversation.

    python -m launch.train --config=experiments/minigpt4/stage2.py --workdir=runs/minigpt4-stage2
    python -m launch.train --config=experiments/minigpt4/stage2.py:stage1=pretrained_minigpt4_stage1.pth --workdir=…
    launch/local.sh train --config=experiments/minigpt4/stage2.py:tiny,stage1=runs/tiny-minigpt4 --workdir=runs/tiny-minigpt4-2

It begins with `runs/minigpt4-stage1` (`stage1=` names another run, or a published checkpoint). A row is "###Human: <Img>[image]
</Img> Describe this image in detail. ###Assistant: …###", one of four instructions drawn for each example (their code draws it
for a batch); of the Llama 2 variant "[INST] … [/INST] …</s>". A system's text stands before it only where people ask.

`preset=paper` has the paper's 400 steps, `preset=upstream` the 1000 of the code; pictures are cut in the first as in stage 1.

Hardware: 1 A100, seven minutes. Published, 13B: GQA 32.2, AOK-VQA 58.2; 65 of 100 tasks of an advanced kind (memes, recipes,
advertisements, poems), BLIP-2 5; 2.22 objects and relations of COCO's people told in a caption, BLIP-2 1.96. MMBench's authors
measured 42.3 on its dev split.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from experiments.blip2 import published
from experiments.minigpt4 import released, stage1
from mmjax.types.config import parse_arg

STEPS = {"paper": 400, "upstream": 1000}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arguments: llm (vicuna_13b, vicuna_7b or llama2_7b), preset (paper or upstream), stage1 (a finished run
    or a checkpoint), tiny."""
    chosen = parse_arg(arg, llm="vicuna_13b", preset="paper", stage1="", tiny=False)
    variant, tiny = released.variant(chosen.llm), chosen.tiny
    trained = published.earlier(chosen.stage1, "runs/minigpt4-stage1", tiny)
    parts = released.parts(variant, trained=trained, tiny=tiny)
    data = {
        "mixture": published.mixture({"cc_sbu_align": {"template": variant.system, "cleaning": ""}}, tiny=tiny),
        "rows": 12,
        "crop": published.choose(stage1.CROPS, chosen.preset),
    }
    schedule = {"final_learning_rate": 1e-5, "warmup_steps": 200, "warmup_from": 1e-6, "decay_from_start": True, "b2": 0.999}
    stage: dict[str, Any] = {
        "steps": 60 if tiny else published.choose(STEPS, chosen.preset),
        "optimizer": published.optimizer(3e-5, schedule, tiny=tiny),
        "evaluate": ["gqa"],
        **released.stage(data, positions=48, learnt=160, parts=parts, tiny=tiny),
    }
    return ConfigDict(
        {
            "name": "minigpt4/stage2",
            "seed": 42,
            "parts": parts,
            "tokenizers": released.tokenizers(variant, tiny=tiny),
            "stages": {"stage2": stage},
            "evaluations": {"gqa": published.questions("gqa", variant.system, tiny=tiny)},
        }
    )
