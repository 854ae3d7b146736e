"""What the recipes of LLaVA share: its three versions as tables, their parts at released sizes and at toy width.

Sources: arXiv 2304.08485 (1.0), arXiv 2310.03744 (1.5), llava-vl.github.io/blog/2024-01-30-llava-next (1.6). The published
batches count examples; ours are rows into which examples are packed, so each stage below also says how many examples it is
after: rows · length · fill / mean length. The mean lengths are estimates; a run prints the examples of its steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from mmjax.connectors.linear import LinearConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.llms.llama import LlamaConfig
from mmjax.types import UserError

Part = dict[str, Any]

TILES = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))  # (height, width)
TINY_WIDTH, TINY_VOCAB, TINY_IMAGE, TINY_PATCH = 96, 128, 36, 12


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a version.

    Args:
      data: name of the data set, a builder's.
      template: how its examples are rendered.
      steps: of the published batch.
      examples: that batch.
      learning_rate: at the peak.
      rows, length: of our batch, which holds about as many examples.
      fit: how pictures become square.
      media: media slots of a row.
    """

    data: str
    template: str
    steps: int
    examples: int
    learning_rate: float
    rows: int
    length: int
    fit: str
    media: int


@dataclasses.dataclass(frozen=True)
class Version:
    """A version of LLaVA.

    Args:
      image_size: of CLIP ViT-L/14.
      layers: linear maps of the connector.
      newline: whether rows of tiles end with a learned token.
      llms: language models by size: config and source.
      pretrain, finetune: its stages.
      tower: learning rate of the image encoder in fine-tuning, relative to the others'; 0 = frozen.
    """

    image_size: int
    layers: int
    llms: dict[str, tuple[LlamaConfig, str]]
    pretrain: Stage
    finetune: Stage
    newline: bool = False
    tower: float = 0.0


VICUNA_V0 = {
    "7b": (LlamaConfig.llama_7b(), "weights/vicuna-7b-v0"),
    "13b": (LlamaConfig.llama_13b(), "weights/vicuna-13b-v0"),
}
VICUNA_V1_5 = {
    "7b": (LlamaConfig.llama2_7b(), "weights/lmsys/vicuna-7b-v1.5"),
    "13b": (LlamaConfig.llama2_13b(), "weights/lmsys/vicuna-13b-v1.5"),
}
# 576 soft tokens and a caption of some 30: eight examples a row.
PRETRAIN_558K = Stage("llava_pretrain", "llava_plain", 2180, 256, 1e-3, rows=32, length=4864, fit="crop", media=8)

VERSIONS: dict[str, Version] = {
    "1.0": Version(
        224, 1, VICUNA_V0,
        # 256 soft tokens, an instruction and a caption: seven examples a row.
        pretrain=Stage("llava_cc3m_595k", "llava_v0", 4651, 128, 2e-3, rows=16, length=2816, fit="crop", media=8),
        # A mean of some 600 tokens.
        finetune=Stage("llava_instruct", "llava_v0", 14_812, 32, 2e-5, rows=8, length=2560, fit="crop", media=8),
    ),
    "1.5": Version(
        336, 2, VICUNA_V1_5,
        pretrain=PRETRAIN_558K,
        # A mean of some 900 tokens, by the estimates of benchmarks/packing.py: four examples a row.
        finetune=Stage("llava_mix665k", "vicuna_v1", 5198, 128, 2e-5, rows=32, length=3840, fit="pad", media=5),
    ),
    "1.6": Version(
        336, 2, VICUNA_V1_5, newline=True, tower=0.1,
        pretrain=PRETRAIN_558K,
        # Up to 2,928 soft tokens in up to five tiles a picture. The authors' 760,000 examples are not
        # one file; `conversations` reads those of one's own.
        finetune=Stage("conversations", "vicuna_v1", 5938, 128, 2e-5, rows=48, length=8192, fit="tiles", media=20),
    ),
}  # fmt: skip


def version(name: str, size: str) -> Version:
    """The version of that name, which must have that size."""
    for what, value, known in (("version", name, VERSIONS), ("size", size, VICUNA_V1_5)):
        if value not in known:
            raise UserError(f"{what}={value} is unknown; there are {', '.join(known)}")
    return VERSIONS[name]


def parts(chosen: Version, size: str, *, source: str, tiny: bool) -> dict[str, Any]:
    """The parts of a version; `source`, if any, is the run that all of them come from."""
    encoder = dataclasses.replace(ViTConfig.clip_l(chosen.image_size), depth=-2, projection=0)
    llm, weights = chosen.llms[size]
    sources = {"image": "weights/openai/clip-vit-large-patch14" + ("-336" if chosen.image_size == 336 else ""), "llm": weights}
    if tiny:
        sizes = {"width": TINY_WIDTH, "layers": 2, "heads": 3}
        encoder = dataclasses.replace(encoder, **sizes, ffn=3 * TINY_WIDTH, patch_size=TINY_PATCH, image_size=TINY_IMAGE)
        llm = dataclasses.replace(llm, **sizes, kv_heads=3, ffn=2 * TINY_WIDTH, vocab=TINY_VOCAB, max_positions=1024)
        sources = {"image": "", "llm": ""}
    connector = LinearConfig(encoder_width=encoder.width, output_width=llm.width, layers=chosen.layers, newline=chosen.newline)
    return {
        "encoders": {"image": {"family": "vit", "source": source or sources["image"], **dataclasses.asdict(encoder)}},
        "connectors": {"image": {"family": "linear", "source": source, **dataclasses.asdict(connector)}},
        "llm": {"family": "llama", "source": source or sources["llm"], **dataclasses.asdict(llm)},
    }


def experiment(name: str, chosen: Version, size: str, data_set: str, *, source: str, tiny: bool) -> ConfigDict:
    """All of an experiment but its stages. Their data sets refer to `config.data`: a `path`, and where a file has its `images`.

    Args:
      data_set: name of the released data set.
      source: the run that all parts come from; "" = their own weights, or none in a toy.
    """
    config = ConfigDict(
        {
            "name": name,
            "data": {"path": f"data/{'shapes' if tiny else data_set}", "images": ""},
            "parts": parts(chosen, size, source=source, tiny=tiny),
            "tokenizers": {"llm": "data/shapes/tokenizer" if tiny else chosen.llms[size][1]},
            "stages": {},
            "evaluations": {},
        }
    )
    return config


def place(config: ConfigDict) -> dict[str, Any]:
    """Where the data lie: what `--config.data.path` and `--config.data.images` say."""
    return {name: config.data.get_ref(name) for name in ("path", "images")}


def data(stage: Stage, image_size: int, config: ConfigDict, *, tiny: bool) -> dict[str, Any]:
    """The batches of a stage. A toy's are conversations about shapes."""
    side, patch = (TINY_IMAGE, TINY_PATCH) if tiny else (image_size, 14)
    name = "shapes" if tiny else stage.data
    tiles = stage.fit == "tiles"
    return {
        "mixture": {name: {**place(config), "builder": name, "template": stage.template}},
        "rows": 8 if tiny else stage.rows,
        "length": 512 if tiny else stage.length,
        "longest": 0 if tiny else 4096 if tiles else 2048,
        "media": stage.media,
        "soft_tokens": (side // patch) ** 2,
        "image_size": side,
        "fit": stage.fit,
        "grids": [[side * size // 336 for size in grid] for grid in TILES] if tiles else [],
        "pack": True,
    }


def words(config: ConfigDict) -> dict[str, Any]:
    """The stage in which a toy's language model learns from text what the released ones know."""
    return {
        "steps": 200,
        "objective": {"name": "language_modelling"},
        "data": {
            "mixture": {"shapes": {**place(config), "builder": "shapes", "template": "document"}},
            "rows": 16,
            "length": 256,
            "media": 0,
            "pack": True,
        },
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 50, "clip_norm": 1.0},
        "trainable": [[r"llm\..*", True], [".*", False]],
    }


def optimizer(rate: float, steps: int, *, tiny: bool) -> dict[str, Any]:
    """AdamW without decay, after a warm-up of 3 % of the steps, clipped at 1: the defaults of the Hugging Face trainer."""
    return {
        "learning_rate": 2e-3 if tiny else rate,
        "warmup_steps": round(0.03 * steps),
        "weight_decay": 0.0,
        "b2": 0.999,
        "clip_norm": 1.0,
    }


def half_precision(trained: str, *, tiny: bool) -> dict[str, Any]:
    """Computed in bfloat16; what is not trained (a regular expression says what is) is kept in it too."""
    if tiny:
        return {"compute_dtype": "float32"}
    return {"compute_dtype": "bfloat16", "dtype": [[trained, "float32"], [".*", "bfloat16"]], "remat": "full"}


def evaluations(chosen: Stage, *, tiny: bool) -> dict[str, Any]:
    """GQA, asked for a word or a phrase as LLaVA-1.5 asks; blank pictures are the control. A toy is asked about shapes."""
    if tiny:
        asked = {"batch_size": 100, "max_new_tokens": 4, "control": "blank"}
        source = {"path": "data/shapes", "builder": "shapes", "template": chosen.template}
        return {split: {"source": {**source, "split": split}, **asked} for split in ("test", "pairs")}
    source = {"path": "data/gqa", "builder": "gqa", "split": "testdev", "template": "vicuna_v1_short"}
    return {"gqa": {"source": source, "metric": "gqa_accuracy", "control": "blank", "max_new_tokens": 16}}
