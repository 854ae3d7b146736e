"""BLIP-2 fine-tuned on visual question answering: ViT and Q-Former learn, the language model stays frozen.

    python -m launch.train --config=experiments/blip2/vqa.py --workdir=runs/blip2-vqa
    python -m launch.train --config=experiments/blip2/vqa.py:held_out --workdir=runs/blip2-vqa-held-out
    launch/local.sh train --config=experiments/blip2/vqa.py:tiny --workdir=runs/tiny-vqa     # any CPU

It begins with `runs/blip2-stage2` (`stage2=DIR` names another), its positions resized to pictures of 490 pixels. The Q-Former
reads the question too; its text branch comes from BERT. The code of this recipe was never released: this follows the paper's
appendix. It learns VQAv2's train and val, and Visual Genome's questions, and is evaluated on GQA's testdev, which it never saw;
with `held_out` it does not learn val and is evaluated there, though Visual Genome shares pictures with COCO's val.

Hardware: 16 A100 of 40 GB. Published on test-dev: 81.59 (OPT-2.7B), 82.19 (OPT-6.7B), 81.55 (Flan-T5-XL).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.blip2 import published
from mmjax.types.config import parse_arg

QUESTIONS = 128  # of a step
ASKED = {"train": 443_757, "val": 214_354}  # questions of VQAv2


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arguments: llm, encoder, stage2 (a finished run), held_out, tiny."""
    chosen = parse_arg(arg, llm="opt_2_7b", encoder="eva_clip_g", stage2="", held_out=False, tiny=False)
    tiny = chosen.tiny
    learnt = ("train",) if chosen.held_out else ("train", "val")
    source = published.earlier(chosen.stage2, "runs/blip2-stage2", tiny)
    encoder = published.image_encoder(chosen.encoder, 490, source=source, tiny=tiny)
    llm = published.language_model(chosen.llm, tiny=tiny)
    connector = published.qformer(encoder, llm, source=source, tiny=tiny)
    splits = llm["family"] == "t5"
    sources = {
        **{f"vqav2_{split}": {"builder": "vqav2", "split": split} for split in learnt},
        "visual_genome_qa": {},
    }
    per_row = 8  # questions that share a row with their pictures
    stage = {
        "steps": 60 if tiny else 5 * sum(ASKED[split] for split in learnt) // QUESTIONS,  # five epochs of VQAv2
        "objective": {"name": "language_modelling"},
        "data": {
            "mixture": published.mixture(sources, tiny=tiny),
            "size_exponent": 1.0,
            "rows": (32 if tiny else QUESTIONS) // per_row,
            **published.lengths(per_row * connector["queries"], per_row * 32, splits=splits),
            "media": per_row,
            "queries": per_row,
            "query_length": 32,
            "truncate_query": "left",
            "soft_tokens": connector["queries"],
            "image_size": encoder["image_size"],
            "pack": True,
        },
        "optimizer": published.optimizer(1e-5, {"b2": 0.999, "warmup_steps": 1000}, tiny=tiny),
        "learning_rate": published.layer_decay(encoder["layers"], published.LLMS[chosen.llm].layer_decay[1]),
        "trainable": [[r"llm\..*", False], [".*", True]],
        "evaluate": ["vqa"],
        **published.half_precision(llm=True, encoder=False, tiny=tiny),
    }
    return ConfigDict(
        {
            "name": "blip2/vqa",
            "parts": {"encoders": {"image": encoder}, "connectors": {"image": connector}, "llm": llm},
            "tokenizers": published.tokenizers(chosen.llm, reads_text=True, tiny=tiny),
            "stages": {"vqa": stage},
            "evaluations": {"vqa": published.questions("vqav2" if chosen.held_out else "gqa", "blip2_opt", tiny=tiny)},
        }
    )
