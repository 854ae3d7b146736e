"""BLIP-2 fine-tuned on image–text retrieval: all three losses of stage 1 on COCO, whose pictures have five captions each.

    python -m launch.train --config=experiments/blip2/retrieval.py --workdir=runs/blip2-retrieval
    python -m launch.evaluate --config=experiments/blip2/retrieval.py:flickr30k --workdir=runs/blip2-retrieval
    launch/local.sh train --config=experiments/blip2/retrieval.py:tiny --workdir=runs/tiny-retrieval     # any CPU

It begins with `runs/blip2-stage1` (`stage1=DIR` names another), its positions resized to pictures of 364 pixels. Rows that show
the same picture share their contrastive target and are never each other's negatives. With `flickr30k` the finished run is
evaluated on Flickr30k too, of which it learns nothing; its pictures are given on request only.

Hardware: 16 A100 of 40 GB. Published on COCO's 5,000 test pictures: text recall@1 83.5 (ViT-L) and 85.4 (ViT-g), image recall@1
66.3 and 68.3; on Flickr30k's 1,000, zero-shot, 96.9 and 97.6, 88.6 and 89.7.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.blip2 import published
from mmjax.types.config import parse_arg

BY_ENCODER = {
    "eva_clip_g": {"rate": 1e-5, "b2": 0.999, "layer_decay": 0.95},
    "clip_l": {"rate": 5e-6, "b2": 0.98, "layer_decay": 1.0},
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arguments: encoder (eva_clip_g or clip_l), preset (paper or upstream), stage1 (a finished run),
    flickr30k, tiny."""
    chosen = parse_arg(arg, encoder="eva_clip_g", preset="paper", stage1="", flickr30k=False, tiny=False)
    tiny, settings = chosen.tiny, BY_ENCODER[chosen.encoder]
    source = published.earlier(chosen.stage1, "runs/blip2-stage1", tiny)
    encoder = published.image_encoder(chosen.encoder, 364, source=source, tiny=tiny)
    connector = published.qformer(encoder, None, source=source, stage1=True, tiny=tiny)
    sources = {"coco_caption": {"template": "caption_pair"}}
    benchmarks = {"retrieval": "coco_caption", **({"flickr30k": "flickr30k"} if chosen.flickr30k else {})}
    decay = settings["layer_decay"] if published.choose(published.LAYER_DECAY, chosen.preset) else 1.0
    stage = {
        "steps": 60 if tiny else 5 * 566_747 // 224,  # five epochs of the Karpathy split's captions
        "objective": {"name": "blip2_stage1", "label_smoothing": 0.1, "positives": "images"},
        "data": {
            "mixture": published.mixture(sources, tiny=tiny),
            "rows": 16 if tiny else 224,
            "length": 0,
            "queries": 1,
            "query_length": 35,
            "truncate_query": "right",
            "soft_tokens": connector["queries"],
            "image_size": encoder["image_size"],
            "flip": True,
            "crop": (0.5, 1.0),
        },
        "optimizer": published.optimizer(settings["rate"], {"b2": settings["b2"], "warmup_steps": 1000}, tiny=tiny),
        "learning_rate": published.layer_decay(encoder["layers"], decay),
        "evaluate": ["retrieval"],
        **published.half_precision(llm=False, encoder=False, tiny=tiny),
    }
    return ConfigDict(
        {
            "name": "blip2/retrieval",
            "parts": {"encoders": {"image": encoder}, "connectors": {"image": connector}},
            "tokenizers": published.tokenizers(None, reads_text=True, tiny=tiny),
            "stages": {"retrieval": stage},
            "evaluations": {name: published.retrieval(data, tiny=tiny) for name, data in benchmarks.items()},
        }
    )
