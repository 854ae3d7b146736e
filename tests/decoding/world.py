"""A tiny untrained BLIP-2 that reads coloured pictures, and examples to ask it about."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmjax.data.processor import Processor
from mmjax.systems.parts import build_definition
from mmjax.types import Example, Medium, Part, Turn
from mmjax.types.model import Model

WORDS = "<unk> <pad> </s> [CLS] [SEP] [DEC] <image> question : answer ? what colour how many is there a red blue 0 1 2 yes no"
PARTS = {
    "encoders.image": {"family": "vit", "width": 16, "layers": 1, "heads": 2, "ffn": 32, "patch_size": 6, "image_size": 12},
    "connectors.image": {
        "family": "qformer", "width": 16, "layers": 2, "heads": 2, "ffn": 32, "queries": 3, "encoder_width": 16,
        "output_width": 16, "vocab": 32, "max_positions": 16,
    },
    "llm": {"family": "llama", "vocab": 25, "width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "ffn": 32},
}  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS.split())}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict(
        unk_token="<unk>", pad_token="<pad>", bos_token="</s>", eos_token="</s>", cls_token="[CLS]", sep_token="[SEP]"
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, additional_special_tokens=["[DEC]", "<image>"])


def draw(path: str, shape: tuple[int, ...], generator: np.random.Generator) -> jax.Array:
    """Weights large enough that answers depend on the pictures, whatever the initialisers of the modules are."""
    if path.endswith(("scale", "bias")):
        return jnp.full(shape, float(path.endswith("scale")))
    deviation = 0.4 if ".cross." in path else 0.16 if path.startswith("connectors") else 0.24
    return jnp.asarray(generator.normal(0, deviation, shape), jnp.float32)


def make_model():
    """Random weights."""
    definition, generator = build_definition(PARTS), np.random.default_rng(0)
    parameters = {path: draw(path, definition.specs[path].shape, generator) for path in sorted(definition.specs)}
    processor = Processor(make_tokenizer(), soft_tokens=3, image_size=12, query_length=16)
    return Model(definition, parameters, processor, {"parts": PARTS})


def pixels(number: int) -> np.ndarray:
    """One colour, other for each number."""
    return np.broadcast_to(np.random.default_rng(number).integers(0, 256, 3, dtype=np.uint8), (12, 12, 3)).copy()


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "PNG")
    return file.getvalue()


def make_example(number: int) -> Example:
    """A picture with two questions."""
    turns = (
        Turn("user", (Part(medium=0), Part(text="What colour is there?"))),
        Turn("assistant", (Part(text="red" if number % 2 else "blue"),)),
        Turn("user", (Part(text="How many?"),)),
        Turn("assistant", (Part(text=str(number % 3)),)),
    )
    media = (Medium("image", png(number), "image/png"),)
    return Example(f"world/test/{number}", media=media, turns=turns, meta={"kinds": ["colour", "count_all"]})
