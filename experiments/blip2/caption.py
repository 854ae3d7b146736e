"""BLIP-2 fine-tuned on COCO captions: ViT and Q-Former learn after "a photo of", the language model stays frozen.

    python -m launch.train --config=experiments/blip2/caption.py --workdir=runs/blip2-caption
    launch/local.sh train --config=experiments/blip2/caption.py:tiny --workdir=runs/tiny-caption     # any CPU

It begins with `runs/blip2-stage2` (`stage2=DIR` names another), its positions resized to pictures of 364 pixels.

Hardware: 16 A100 of 40 GB. Published on COCO's Karpathy test split, BLEU-4 and CIDEr: 43.7 and 145.8 (OPT-2.7B), 43.5 and 145.2
(OPT-6.7B), 42.4 and 144.5 (Flan-T5-XL).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.blip2 import published
from mmjax.types.config import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arguments: llm, encoder, preset (paper or upstream), stage2 (a finished run), tiny."""
    chosen = parse_arg(arg, llm="opt_2_7b", encoder="eva_clip_g", preset="paper", stage2="", tiny=False)
    tiny = chosen.tiny
    source = published.earlier(chosen.stage2, "runs/blip2-stage2", tiny)
    encoder = published.image_encoder(chosen.encoder, 364, source=source, tiny=tiny)
    llm = published.language_model(chosen.llm, tiny=tiny)
    connector = published.qformer(encoder, llm, source=source, vocab=0, tiny=tiny)
    sources = {"coco_caption": {"template": "caption_photo"}}
    decay = published.LLMS[chosen.llm].layer_decay[0] if published.choose(published.LAYER_DECAY, chosen.preset) else 1.0
    stage = {
        "steps": 60 if tiny else 5 * 566_747 // 256,  # five epochs of the Karpathy split's captions
        "objective": {"name": "language_modelling"},
        "data": {
            "mixture": published.mixture(sources, tiny=tiny),
            "rows": 16 if tiny else 256,
            **published.lengths(connector["queries"] + 8, 40, splits=llm["family"] == "t5"),
            "answer_length": 32,
            "soft_tokens": connector["queries"],
            "image_size": encoder["image_size"],
            "flip": True,
            "crop": (0.5, 1.0),
        },
        "optimizer": published.optimizer(1e-5, {"b2": 0.999, "warmup_steps": 1000}, tiny=tiny),
        "learning_rate": published.layer_decay(encoder["layers"], decay),
        "trainable": [[r"llm\..*", False], [".*", True]],
        "evaluate": ["coco"],
        **published.half_precision(llm=True, encoder=False, tiny=tiny),
    }
    return ConfigDict(
        {
            "name": "blip2/caption",
            "parts": {"encoders": {"image": encoder}, "connectors": {"image": connector}, "llm": llm},
            "tokenizers": published.tokenizers(chosen.llm, reads_text=False, tiny=tiny),
            "stages": {"caption": stage},
            "evaluations": {"coco": published.captions(tiny=tiny)},
        }
    )
