"""What the published recipes of BLIP-2 and InstructBLIP share: parts at released sizes, and their stand-ins at toy width.

Two presets exist wherever the paper (arXiv 2301.12597) and the code that was released with it (LAVIS) disagree: `paper` and
`upstream`. A recipe lists its differences in one table. Weights and tokenizers are directories under `weights/`, by the names
that the Hugging Face hub has (`hf download facebook/opt-2.7b --local-dir weights/facebook/opt-2.7b`); prepared data sets stand
under `data/`.

`tiny` replaces sizes, weights and data by those of `data/shapes`, which any CPU trains on: the same stages, objectives,
templates and rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.connectors.qformer import QFormerConfig
from mmjax.decoding.published import PUBLISHED
from mmjax.encoders.vit import ViTConfig
from mmjax.llms.llama import LlamaConfig
from mmjax.llms.opt import OPTConfig
from mmjax.llms.t5 import T5Config
from mmjax.types import UserError

Part = dict[str, Any]

BERT = "weights/google-bert/bert-base-uncased"
BERT_VOCAB = 30523  # BERT's, and [DEC]
TINY_WIDTH, TINY_VOCAB, TINY_QUERIES, TINY_IMAGE, TINY_DEC = 48, 128, 4, 36, 5

# The 23 blocks of CLIP ViT-L/14 that BLIP-2 reads, with a norm of its own behind them.
CLIP_L = dataclasses.replace(ViTConfig.clip_l(), layers=23, pooling="class", projection=0, norm_pooled=False, final_eps=1e-5)
ENCODERS: dict[str, tuple[ViTConfig, str]] = {
    "eva_clip_g": (dataclasses.replace(ViTConfig.eva_clip_g(), final_eps=1e-5), "weights/eva_vit_g.pth"),
    "clip_l": (CLIP_L, "weights/openai/clip-vit-large-patch14"),
}


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A language model that the recipes freeze.

    Args:
      family: of `mmjax.llms`.
      config: its released size.
      source: its weights and tokenizer.
      begin, end: text of the token that begins a text, and of that which ends an answer; "" = BOS and EOS.
      rows: of the batch with which stage 2 trained it, and InstructBLIP's instructions.
      layer_decay: learning-rate decay over the ViT's layers in fine-tuning on captions, and on questions.
    """

    family: str
    config: Any
    source: str
    begin: str = ""
    end: str = ""
    rows: tuple[int, int] = (1920, 128)
    layer_decay: tuple[float, float] = (1.0, 0.95)


def _flan(config: T5Config) -> T5Config:
    return dataclasses.replace(config, activation="gelu")  # LAVIS computes it exactly, Flan-T5 itself by tanh


LLMS: dict[str, LanguageModel] = {
    "opt_2_7b": LanguageModel("opt", OPTConfig.opt_2_7b(), "weights/facebook/opt-2.7b", end="\n"),
    "opt_6_7b": LanguageModel("opt", OPTConfig.opt_6_7b(), "weights/facebook/opt-6.7b", end="\n", layer_decay=(0.95, 0.9)),
    "flan_t5_xl": LanguageModel("t5", _flan(T5Config.xl()), "weights/google/flan-t5-xl", rows=(1520, 192)),
    "flan_t5_xxl": LanguageModel("t5", _flan(T5Config.xxl()), "weights/google/flan-t5-xxl", rows=(1520, 64)),
    "vicuna_7b": LanguageModel("llama", LlamaConfig.llama_7b(), "weights/lmsys/vicuna-7b-v1.1", begin="</s>"),
    "vicuna_13b": LanguageModel(
        "llama", LlamaConfig.llama_13b(), "weights/lmsys/vicuna-13b-v1.1", begin="</s>", rows=(1920, 64)
    ),
}
TINY_LLM: dict[str, dict[str, Any]] = {
    "opt": {"embedding_width": 0},
    "t5": {"decoder_layers": 2, "head_dim": 16},
    "llama": {"kv_heads": 3, "head_dim": 0},
}


def earlier(chosen: str, usual: str, tiny: bool) -> str:
    """The finished run that a recipe begins with: the chosen one, else the usual one; a toy may begin with nothing."""
    return chosen or ("" if tiny else usual)


def image_encoder(name: str, image_size: int, *, source: str = "", tiny: bool = False) -> Part:
    """The image encoder for pictures of a size; `source` instead of its own weights."""
    config, weights = ENCODERS[name]
    if tiny:
        sizes = {"width": TINY_WIDTH, "layers": 2, "heads": 3, "ffn": 2 * TINY_WIDTH, "patch_size": 12}
        config = dataclasses.replace(config, **sizes, image_size=TINY_IMAGE)
        return {"family": "vit", "source": source, **dataclasses.asdict(config)}
    config = dataclasses.replace(config, image_size=image_size)
    return {"family": "vit", "source": source or weights, **dataclasses.asdict(config)}


def qformer(encoder: Part, llm: Part | None, *, source: str, tiny: bool = False, **fields: Any) -> Part:
    """The Q-Former between two parts; `fields` are of its config."""
    sizes: dict[str, Any] = {"encoder_width": encoder["width"], "output_width": llm["width"] if llm else 0}
    if fields.get("vocab") is None:
        fields["vocab"] = TINY_VOCAB if tiny else BERT_VOCAB
    if tiny:
        sizes |= {"width": TINY_WIDTH, "layers": 2, "heads": 3, "ffn": 2 * TINY_WIDTH, "queries": TINY_QUERIES}
        sizes |= {"max_positions": 64, "decoder_start": TINY_DEC if fields["vocab"] else -1}
    return {"family": "qformer", "source": source, **dataclasses.asdict(QFormerConfig(**sizes, **fields))}


def language_model(name: str, *, tiny: bool = False) -> Part:
    """The language model."""
    chosen = LLMS[name]
    if not tiny:
        return {"family": chosen.family, "source": chosen.source, **dataclasses.asdict(chosen.config)}
    sizes: dict[str, Any] = {"width": TINY_WIDTH, "layers": 2, "heads": 3, "ffn": 2 * TINY_WIDTH, "vocab": TINY_VOCAB}
    config = dataclasses.replace(chosen.config, **sizes, **TINY_LLM[chosen.family])
    return {"family": chosen.family, **dataclasses.asdict(config)}


def tokenizers(llm: str | None, *, reads_text: bool, tiny: bool = False) -> dict[str, str]:
    """The tokenizers; `reads_text` says whether the Q-Former has one of its own."""
    if tiny:
        return {"llm": "data/shapes/tokenizer", "connector": ""}
    if llm is None:
        return {"llm": BERT}
    chosen = LLMS[llm]
    return {"llm": chosen.source, "connector": BERT if reads_text else "", "begin": chosen.begin, "end": chosen.end}


def mixture(sources: Mapping[str, Mapping[str, Any]], *, tiny: bool = False) -> dict[str, dict[str, Any]]:
    """The data sets of a stage, as `launch.prepare` makes them under `data/`; toys read shapes under every name.

    Args:
      sources: what each says that is its own; `builder` is the name of its data set, unless it is that of the source.
      tiny: for a toy.
    """
    made = {}
    for name, source in sources.items():
        source = {"builder": name, "split": "train", "cleaning": "blip2", **source}
        source |= {"builder": "shapes", "split": "train"} if tiny else {}
        made[name] = {"path": f"data/{source['builder']}", **source}
    return made


def frozen_towers(llm: bool) -> list[list[Any]]:
    """What BLIP-2 leaves alone: the language model, and the encoder but for the norm behind it."""
    return [[r"encoders\.image\.norm\..*", True], [r"encoders\..*", False], *([[r"llm\..*", False]] if llm else [])]


def half_precision(llm: bool, *, encoder: bool = True, tiny: bool = False) -> dict[str, Any]:
    """Frozen parts are kept, and everything is computed, in bfloat16, layers again in the backward pass; a toy in float32."""
    if tiny:
        return {"compute_dtype": "float32"}
    rules = [[r"encoders\.image\.(?!norm\.).*", "bfloat16"]] if encoder else []
    rules += [[r"llm\..*", "bfloat16"]] if llm else []
    return {"compute_dtype": "bfloat16", "dtype": rules, "remat": "full"}


def layer_decay(layers: int, rate: float) -> list[list[Any]]:
    """Learning-rate rules of a ViT: each layer learns `rate` times as fast as the next, the embeddings slowest."""
    if rate == 1.0:
        return []
    stack = [round(rate ** (layers - layer), 6) for layer in range(layers)]
    below = r"encoders\.image\.(patch_embedding|class_token|position_embedding|pre_norm).*"
    return [[r"encoders\.image\.layers\..*", stack], [below, round(rate ** (layers + 1), 6)]]


def optimizer(rate: float, fields: Mapping[str, Any], *, tiny: bool = False) -> dict[str, Any]:
    """AdamW as all recipes have it: decay 0.05 but of vectors and scalars, no clipping. A toy learns faster."""
    made = {"learning_rate": rate, "weight_decay": 0.05, "clip_norm": 0.0, **fields}
    toy = {"learning_rate": 1e-3, "warmup_steps": 10, "warmup_from": 0.0, "schedule_every": 1, "decay_from_start": False}
    return {**made, **toy} if tiny else made


# Fine-tuning: LAVIS stores the scale of each layer's learning rate, and never multiplies it in.
LAYER_DECAY = {"paper": True, "upstream": False}


def choose(presets: Mapping[str, Any], name: str) -> Any:
    """The preset of that name."""
    if name not in presets:
        raise UserError(f"preset={name!r} is unknown; there are {', '.join(presets)}")
    return presets[name]


def retrieval(name: str = "coco_caption", *, tiny: bool = False) -> dict[str, Any]:
    """Which caption of a data set's test split belongs to which picture, the first 128 scored again by the matching head."""
    template = {"split": "test", "template": "caption_pair", "cleaning": "blip2"}
    if tiny:
        source = {"path": "data/shapes", "builder": "shapes", **template}
        return {"source": source, "task": "retrieval", "limit": 64, "rerank": 8, "batch_size": 32}
    return {"source": {"path": f"data/{name}", "builder": name, **template}, "task": "retrieval", "rerank": 128}


def lengths(read: int, written: int, *, splits: bool) -> dict[str, int]:
    """Positions of a row: `read` of the prompt, `written` of the rest, in one text or, for an encoder–decoder, in two."""
    return {"source_length": read + written, "length": written + 2} if splits else {"length": read + written}


QUESTION_SETS: dict[str, dict[str, Any]] = {
    "vqav2": {"split": "val", "metric": "vqa_accuracy"},
    "gqa": {"split": "testdev", "metric": "gqa_accuracy"},
}


def questions(name: str, system: str, *, tiny: bool = False) -> dict[str, Any]:
    """Questions as their authors asked them. Blank pictures are the control.

    Args:
      name: of QUESTION_SETS.
      system: of `mmjax.decoding.published`, which has the prompts and the decoding.
    """
    asked = PUBLISHED[system]["vqa"]
    if tiny:
        source = {"path": "data/shapes", "builder": "shapes", "split": "test", "template": asked.template, "cleaning": "blip2"}
        return {"source": source, "limit": 20, "max_new_tokens": 4, "control": "blank"}
    chosen = QUESTION_SETS[name]
    source = {
        "path": f"data/{name}",
        "builder": name,
        "split": chosen["split"],
        "template": asked.template,
        "cleaning": "blip2",
    }
    return {"source": source, "metric": chosen["metric"], "control": "blank", **asked.options}


def captions(*, tiny: bool = False) -> dict[str, Any]:
    """Captions of COCO's test pictures after "a photo of": five beams, 8 to 30 tokens."""
    if tiny:
        source = {"path": "data/shapes", "builder": "shapes", "split": "test", "template": "caption_photo"}
        return {"source": source, "task": "caption", "prompt": "a photo of", "limit": 20, "max_new_tokens": 30}
    source = {"path": "data/coco_caption", "builder": "coco_caption", "split": "test", "template": "caption_photo"}
    return {"source": source, "task": "caption", "prompt": "a photo of", **PUBLISHED["blip2_opt"]["caption"].options}
