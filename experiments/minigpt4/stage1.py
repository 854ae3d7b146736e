"""MiniGPT-4, stage 1: a linear map learns to show pictures to a frozen Vicuna, by captions of the web without any prompt.

    python -m launch.train --config=experiments/minigpt4/stage1.py --workdir=runs/minigpt4-stage1
    python -m launch.train --config=experiments/minigpt4/stage1.py:llm=llama2_7b --workdir=…       # without a Q-Former
    launch/local.sh train --config=experiments/minigpt4/stage1.py:tiny --workdir=runs/tiny-minigpt4     # any CPU

A row is [BOS][image][caption "\\n"]; the loss is on the caption and its end. Captions are BLIP's, cleaned as it cleans them:
LAION's 115 million against 14 million of Conceptual Captions and SBU, of which 20,000 steps of 256 see five million.

`preset=paper` is the first release, which cuts pictures at random; `preset=upstream` is its code since November 2023, which
does not. The learning rate rises for 5000 steps and then follows a cosine counted from the first step, so that it falls from
1e-4 to 9.7e-5 where the two meet.

Hardware: 4 A100 of 80 GB, about ten hours. Published: 35 % of captions and 32 % of poems fail before stage 2, 2 % and 1 %
after it.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.blip2 import published
from experiments.minigpt4 import released
from mmjax.types.config import parse_arg

CROPS = {"paper": (0.5, 1.0), "upstream": ()}
DATA = {"laion_capfilt": 115.0, "cc_sbu_capfilt": 14.0}  # data set -> its share


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arguments: llm (vicuna_13b, vicuna_7b or llama2_7b), preset (paper or upstream), tiny."""
    chosen = parse_arg(arg, llm="vicuna_13b", preset="paper", tiny=False)
    variant, tiny = released.variant(chosen.llm), chosen.tiny
    sources = {name: {"template": "minigpt4_plain", "weight": weight} for name, weight in DATA.items()}
    parts = released.parts(variant, trained="", tiny=tiny)
    data = {
        "mixture": published.mixture(sources, tiny=tiny),
        "rows": 16 if tiny else 256,
        "crop": published.choose(CROPS, chosen.preset),
    }
    schedule = {"final_learning_rate": 8e-5, "warmup_steps": 5000, "warmup_from": 1e-6, "decay_from_start": True, "b2": 0.999}
    stage = {
        "steps": 60 if tiny else 20_000,
        "optimizer": published.optimizer(1e-4, schedule, tiny=tiny),
        **released.stage(data, positions=1, learnt=32, parts=parts, tiny=tiny),
    }
    return ConfigDict(
        {
            "name": "minigpt4/stage1",
            "seed": 42,
            "parts": parts,
            "tokenizers": released.tokenizers(variant, tiny=tiny),
            "stages": {"stage1": stage},
        }
    )
