"""Tiny random LLaVA models of `transformers`, and rows of text and pictures for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import transformers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mmjax.data.media.tiles import Tiling
from tests.interop import tiny

IMAGE, VOCAB, SIDE, PATCHES = 49, 50, 28, 2
GRIDS = ((28, 56), (56, 28), (56, 56), (84, 28), (28, 84))
TILING = Tiling(GRIDS, SIDE, PATCHES)
VISION = {
    "clip": {"model_type": "clip_vision_model", **tiny.VISION, "projection_dim": 8},
    "siglip": {"model_type": "siglip_vision_model", **tiny.VISION},
}
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
TEXT = {
    "llama": {"model_type": "llama", **SIZES, "rms_norm_eps": 1e-5},
    "mistral": {"model_type": "mistral", **SIZES, "sliding_window": 9, "head_dim": 6},
    "qwen2": {"model_type": "qwen2", **SIZES},
    "qwen3": {"model_type": "qwen3", **SIZES, "head_dim": 6},
}
CLASSES = {
    "llava": (transformers.LlavaConfig, transformers.LlavaForConditionalGeneration),
    "next": (transformers.LlavaNextConfig, transformers.LlavaNextForConditionalGeneration),
}


def make(directory: Path, kind: str, text: str = "llama", vision: str = "clip", how: dict | None = None, **settings):
    """Draws a model and saves it; `how` goes to save_pretrained, `settings` into its config."""
    config, cls = CLASSES[kind]
    grids = {"image_grid_pinpoints": [list(grid) for grid in GRIDS]} if kind == "next" else {}
    defaults = {"image_token_index": IMAGE, "image_seq_length": PATCHES**2, **grids}
    parts = {"vision_config": VISION[vision], "text_config": {**TEXT[text], **settings.pop("text_config", {})}}
    return tiny.draw(cls(config(**{**parts, **defaults, **settings})), directory, **(how or {}))


WORDS = (
    "user : assistant system what colour is in this picture and that one ? a an the red blue dog cat yes no how many 1 2 3 ."
)
# As the directories on the hub have it: contents are typed, and a turn's pictures come before its words.
CHAT = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words, and `<image>` with the last id of the vocabulary."""
    words = [*"<pad> <s> </s> <unk>".split(), *WORDS.split()]
    words += [f"w{number}" for number in range(len(words), IMAGE)]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, padding_side="left")


def add_processor(directory: Path, kind: str, *, chat_template: str | None = CHAT, **settings) -> None:
    """Tokenizer and image processor, as they are published beside a model; `settings` go into preprocessor_config.json."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    grids = {"image_grid_pinpoints": config["image_grid_pinpoints"]} if kind == "next" else {}
    name = "LlavaNext" if kind == "next" else "Llava"
    images = {
        "image_processor_type": f"{name}ImageProcessor", "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE}, **grids, **settings,
    }  # fmt: skip
    (directory / "preprocessor_config.json").write_text(json.dumps(images))
    clip = config["vision_config"]["model_type"] == "clip_vision_model"
    whole = {
        "processor_class": f"{name}Processor", "patch_size": config["vision_config"]["patch_size"],
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
        "num_additional_image_tokens": int(clip), "image_token": "<image>",
    }  # fmt: skip
    (directory / "processor_config.json").write_text(json.dumps(whole))


def inputs(pictures: list[list[tuple[int, int]]], tokens: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of text with the pictures of these (height, width) in them, in odd places, padded on the left.

    Args:
      tokens: soft tokens of each picture; None = in tiles, as LLaVA-NeXT reads them.
    """
    draw = np.random.default_rng(seed)
    rows = []
    for sizes in pictures:
        row = draw.integers(3, 48, 5).tolist()
        for number, size in enumerate(sizes):
            row[2 * number : 2 * number] = [IMAGE] * (tokens or len(TILING.layout(*size)))
            row += draw.integers(3, 48, 3).tolist()
        rows.append([1, *row])
    width = max(map(len, rows))
    arrays = {
        "input_ids": np.array([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }
    sizes = [size for row in pictures for size in row]
    if sizes and tokens:
        arrays["pixel_values"] = draw.normal(size=(len(sizes), 3, SIDE, SIDE)).astype(np.float32)
    elif sizes:
        counts = [TILING.count(*size) for size in sizes]
        pixels = draw.normal(size=(len(sizes), max(counts), 3, SIDE, SIDE)).astype(np.float32)
        arrays |= {"pixel_values": pixels, "image_sizes": np.array(sizes)}
    return arrays
