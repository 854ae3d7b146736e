"""What MiniGPT-4's two stages share: its variants as a table, and their parts at released sizes and at toy width.

Source: arXiv 2304.10592 and the code released with it. One linear map is trained; everything else is frozen.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.blip2 import published
from mmjax.connectors.linear import LinearConfig
from mmjax.connectors.qformer import QFormerConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.llms.llama import LlamaConfig
from mmjax.systems.parts import soft_tokens
from mmjax.types import UserError

# Tower, norm and Q-Former are those of BLIP-2's second stage with Flan-T5-XXL; that of another language model fits too, and the
# captions are wrong. LAVIS's files will do: `source` is then [blip2_pretrained_flant5xxl.pth, eva_vit_g.pth].
BLIP2 = "weights/Salesforce/blip2-flan-t5-xxl"
EVA = "weights/eva_vit_g.pth"
NORM, PROJECTION = r"encoders\.image\.norm\..*", r"connectors\.image\.projection\..*"
TINY = {"width": 48, "layers": 2, "heads": 3, "ffn": 96}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A language model, and how pictures reach it.

    Args:
      llm, source: the language model.
      qformer: whether a Q-Former stands before the linear map, which else takes four features at once.
      system: which of `mmjax.decoding.published`; its stage 2 learns by the template of that name.
    """

    llm: LlamaConfig
    source: str
    qformer: bool
    system: str


VARIANTS = {
    "vicuna_13b": Variant(LlamaConfig.llama_13b(), "weights/vicuna-13b-v0", True, "minigpt4"),
    "vicuna_7b": Variant(LlamaConfig.llama_7b(), "weights/vicuna-7b-v0", True, "minigpt4"),
    "llama2_7b": Variant(LlamaConfig.llama2_7b(), "weights/meta-llama/Llama-2-7b-chat-hf", False, "minigpt4_llama_2"),
}


def variant(name: str) -> Variant:
    """The variant of that name."""
    if name not in VARIANTS:
        raise UserError(f"llm={name} is unknown; there are {', '.join(VARIANTS)}")
    return VARIANTS[name]


def parts(chosen: Variant, *, trained: str, tiny: bool) -> dict[str, Any]:
    """The parts of a variant.

    Args:
      trained: where the linear map comes from, a finished run or a published checkpoint; "" = it is drawn.
      tiny: toy width; its frozen parts are those of that run, or drawn.
    """
    encoder, llm = dataclasses.replace(ViTConfig.eva_clip_g(), final_eps=1e-5), chosen.llm
    seeing, reading = BLIP2 if chosen.qformer else EVA, chosen.source
    if tiny:
        encoder = dataclasses.replace(encoder, **TINY, patch_size=6, image_size=published.TINY_IMAGE)
        llm = dataclasses.replace(llm, **TINY, kv_heads=3, vocab=published.TINY_VOCAB)
        seeing = reading = trained
    widths = {"encoder_width": encoder.width, "output_width": llm.width}
    if chosen.qformer:  # without dropout: its authors keep it out of training mode
        sizes: dict[str, Any] = {**TINY, "queries": published.TINY_QUERIES} if tiny else {}
        fields = dataclasses.asdict(QFormerConfig(**widths, **sizes, dropout=0.0))
        connector = {"family": "qformer", "source": [path for path in (trained, seeing) if path], **fields}
        connector |= {} if trained or tiny else {"fresh": PROJECTION}
        plain = {}
    else:  # the norm behind the tower is never read from anywhere, and stays the plain normalisation
        fields = dataclasses.asdict(LinearConfig(**widths, merge=4))
        connector = {"family": "linear", "source": trained, **fields}
        plain = {"fresh": NORM}
    return {
        "encoders": {"image": {"family": "vit", "source": seeing, **plain, **dataclasses.asdict(encoder)}},
        "connectors": {"image": connector},
        "llm": {"family": "llama", "source": reading, **dataclasses.asdict(llm)},
    }


def stage(data: dict[str, Any], *, positions: int, learnt: int, parts: dict[str, Any], tiny: bool) -> dict[str, Any]:
    """What the two stages have in common: the linear map learns to make the language model write.

    Args:
      data: of the stage.
      positions: of what is read besides the image.
      learnt: tokens that are learnt, their end included; a longer text loses its end.
      parts: of the experiment.
      tiny: of toy width.
    """
    encoder, connector = parts["encoders"]["image"], parts["connectors"]["image"]
    soft = soft_tokens({"encoders.image": encoder, "connectors.image": connector})
    projection = PROJECTION if connector["family"] == "qformer" else r"connectors\.image\..*"
    return {
        "objective": {"name": "language_modelling"},
        "data": {
            "length": soft + positions + learnt,
            "answer_length": learnt,
            "soft_tokens": soft,
            "image_size": encoder["image_size"],
            **data,
        },
        "trainable": [[projection, True], [".*", False]],
        **published.half_precision(llm=True, tiny=tiny),
    }


def tokenizers(chosen: Variant, *, tiny: bool) -> dict[str, str]:
    """The tokenizer of the language model."""
    return {"llm": "data/shapes/tokenizer" if tiny else chosen.source}
