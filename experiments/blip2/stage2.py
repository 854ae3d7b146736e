"""BLIP-2 stage 2: the Q-Former learns to speak to a frozen language model, by captions through its soft tokens.

    python -m launch.train --config=experiments/blip2/stage2.py --workdir=runs/blip2-stage2
    python -m launch.train --config=experiments/blip2/stage2.py:llm=flan_t5_xl --workdir=…
    launch/local.sh train --config=experiments/blip2/stage2.py:tiny --workdir=runs/tiny-stage2     # any CPU

It begins with the Q-Former of `runs/blip2-stage1` (`stage1=DIR` names another). An OPT predicts the caption and its own
beginning from the soft tokens; a Flan-T5 reads the caption's first words behind them and writes the rest.

Hardware: the authors used 16 A100 of 40 GB, less than three days for their largest model. Published zero-shot, ViT-g: VQAv2 val
53.5 (OPT-2.7B), 54.3 (OPT-6.7B), 63.1 (Flan-T5-XL), 65.2 (Flan-T5-XXL).
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from experiments.blip2 import published
from experiments.blip2.stage1 import PAPER_DATA, UPSTREAM_DATA
from mmjax.types.config import parse_arg


def presets(llm: str) -> dict[str, dict[str, Any]]:
    """Every difference between the paper and LAVIS."""
    return {
        "paper": {
            "steps": 80_000,
            "rows": published.LLMS[llm].rows[0],
            "data": PAPER_DATA,
            "optimizer": {"b2": 0.98, "final_learning_rate": 5e-5, "warmup_steps": 2000},
        },
        "upstream": {
            "steps": 5530,  # ten epochs of COCO's 566,747 captions; Visual Genome's are drawn beside them
            "rows": 1024,
            "data": UPSTREAM_DATA,
            "optimizer": {
                "b2": 0.999, "final_learning_rate": 1e-5, "warmup_steps": 2000, "warmup_from": 1e-6, "schedule_every": 553,
                "decay_from_start": True,
            },
        },
    }  # fmt: skip


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arguments: llm, encoder, preset (paper or upstream), stage1 (a finished run), tiny."""
    chosen = parse_arg(arg, llm="opt_2_7b", encoder="eva_clip_g", preset="paper", stage1="", tiny=False)
    preset, tiny = published.choose(presets(chosen.llm), chosen.preset), chosen.tiny
    source = published.earlier(chosen.stage1, "runs/blip2-stage1", tiny)
    encoder = published.image_encoder(chosen.encoder, 224, source=source, tiny=tiny)
    llm = published.language_model(chosen.llm, tiny=tiny)
    connector = published.qformer(encoder, llm, source=source, vocab=0, tiny=tiny)
    splits = llm["family"] == "t5"
    template = "caption_suffix" if splits else "caption"
    sources = {name: {"template": template} for name in preset["data"]}
    stage = {
        "steps": 60 if tiny else preset["steps"],
        "objective": {"name": "language_modelling"},
        "data": {
            "mixture": published.mixture(sources, tiny=tiny),
            "size_exponent": 1.0,
            "rows": 16 if tiny else preset["rows"],
            **published.lengths(connector["queries"], 32, splits=splits),
            "answer_length": 32,
            "soft_tokens": connector["queries"],
            "image_size": encoder["image_size"],
            "flip": True,
            "crop": (0.5, 1.0),
        },
        "optimizer": published.optimizer(1e-4, preset["optimizer"], tiny=tiny),
        "trainable": [*published.frozen_towers(llm=True), [".*", True]],
        "evaluate": ["vqa"],
        **published.half_precision(llm=True, tiny=tiny),
    }
    return ConfigDict(
        {
            "name": "blip2/stage2",
            "parts": {"encoders": {"image": encoder}, "connectors": {"image": connector}, "llm": llm},
            "tokenizers": published.tokenizers(chosen.llm, reads_text=False, tiny=tiny),
            "stages": {"stage2": stage},
            "evaluations": {"vqa": published.questions("vqav2", "blip2_t5" if splits else "blip2_opt", tiny=tiny)},
        }
    )
