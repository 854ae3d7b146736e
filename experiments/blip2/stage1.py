"""BLIP-2 stage 1: the Q-Former learns to see by contrast, matching and image-grounded generation.

    python -m launch.train --config=experiments/blip2/stage1.py --workdir=runs/blip2-stage1
    python -m launch.train --config=experiments/blip2/stage1.py:encoder=clip_l,preset=upstream --workdir=…
    launch/local.sh train --config=experiments/blip2/stage1.py:tiny --workdir=runs/tiny-stage1     # any CPU

Hardware: the authors used 16 A100 of 40 GB, less than six days for their largest model. Published with ViT-g after fine-tuning
for retrieval (`retrieval.py`): COCO 5K text recall@1 85.4, image recall@1 68.3; Flickr30k zero-shot 97.6 and 89.7.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from experiments.blip2 import published
from mmjax.types.config import parse_arg

# Pictures of the paper's 129 million, by the sets they come from.
PAPER_DATA = ("coco_caption", "visual_genome_caption", "cc3m", "cc12m", "sbu", "laion400m")
UPSTREAM_DATA = ("coco_caption", "visual_genome_caption")


def presets(encoder: str) -> dict[str, dict[str, Any]]:
    """Every difference between the paper and LAVIS."""
    return {
        "paper": {
            "steps": 250_000,
            "rows": 1680 if encoder == "eva_clip_g" else 2320,
            "data": PAPER_DATA,
            "rand_augment": 0,
            "optimizer": {"b2": 0.98, "final_learning_rate": 1e-5, "warmup_steps": 2000},
        },
        "upstream": {
            "steps": 3540,  # ten epochs of COCO's 566,747 captions; Visual Genome's are drawn beside them
            "rows": 1600,
            "data": UPSTREAM_DATA,
            "rand_augment": 2,
            "optimizer": {
                "b2": 0.999, "final_learning_rate": 1e-5, "warmup_steps": 5000, "warmup_from": 1e-6, "schedule_every": 354,
                "decay_from_start": True,
            },
        },
    }  # fmt: skip


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arguments: encoder (eva_clip_g or clip_l), preset (paper or upstream), tiny."""
    chosen = parse_arg(arg, encoder="eva_clip_g", preset="paper", tiny=False)
    preset, tiny = published.choose(presets(chosen.encoder), chosen.preset), chosen.tiny
    encoder = published.image_encoder(chosen.encoder, 224, tiny=tiny)
    connector = published.qformer(encoder, None, source="" if tiny else published.BERT, stage1=True, tiny=tiny)
    sources = {name: {"template": "caption_pair"} for name in preset["data"]}
    stage = {
        "steps": 60 if tiny else preset["steps"],
        "objective": {"name": "blip2_stage1", "label_smoothing": 0.1},
        "data": {
            "mixture": published.mixture(sources, tiny=tiny),
            "size_exponent": 1.0,
            "rows": 16 if tiny else preset["rows"],
            "length": 0,
            "queries": 1,
            "query_length": 32,
            "truncate_query": "right",
            "soft_tokens": connector["queries"],
            "image_size": encoder["image_size"],
            "flip": True,
            "crop": (0.5, 1.0),
            "rand_augment": preset["rand_augment"],
        },
        "optimizer": published.optimizer(1e-4, preset["optimizer"], tiny=tiny),
        "trainable": [*published.frozen_towers(llm=False), [".*", True]],
        "evaluate": ["retrieval"],
        **published.half_precision(llm=False, tiny=tiny),
    }
    return ConfigDict(
        {
            "name": "blip2/stage1",
            "parts": {"encoders": {"image": encoder}, "connectors": {"image": connector}},
            "tokenizers": published.tokenizers(None, reads_text=True, tiny=tiny),
            "stages": {"stage1": stage},
            "evaluations": {"retrieval": published.retrieval(tiny=tiny)},
        }
    )
