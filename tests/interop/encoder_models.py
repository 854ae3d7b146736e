"""Tiny random encoders of transformers, of odd sizes, and inputs for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

# Two pixels of a side lie beyond the 4 × 4 whole patches.
VISION = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 52, "image_size": 30,
    "patch_size": 7,
}  # fmt: skip
TEXT = {
    "hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 36, "vocab_size": 99,
    "max_position_embeddings": 16, "pad_token_id": 1, "bos_token_id": 97, "eos_token_id": 98,
}  # fmt: skip
BERT = {key: value for key, value in TEXT.items() if not key.endswith("token_id")}

# name -> (class, fields of its config, fields of its constructor)
MODELS = {
    "vit": ("ViTModel", VISION, {}),
    "vit_without_biases": ("ViTModel", {**VISION, "qkv_bias": False, "hidden_act": "relu"}, {}),
    "vit_without_pooler": ("ViTModel", VISION, {"add_pooling_layer": False}),
    "vit_classes": ("ViTForImageClassification", {**VISION, "num_labels": 3}, {}),
    "clip_vision": ("CLIPVisionModel", VISION, {}),
    "clip_vision_projected": ("CLIPVisionModelWithProjection", {**VISION, "projection_dim": 10, "hidden_act": "gelu"}, {}),
    "clip_text": ("CLIPTextModel", TEXT, {}),
    "clip_text_legacy": ("CLIPTextModel", {**TEXT, "eos_token_id": 2}, {}),
    "clip_text_projected": ("CLIPTextModelWithProjection", {**TEXT, "projection_dim": 10}, {}),
    "clip": ("CLIPModel", {"vision_config": VISION, "text_config": TEXT, "projection_dim": 10}, {}),
    "siglip_vision": ("SiglipVisionModel", VISION, {}),
    "siglip_vision_without_head": ("SiglipVisionModel", {**VISION, "vision_use_head": False}, {}),
    "siglip_text": ("SiglipTextModel", {**TEXT, "projection_size": 12}, {}),
    "siglip": ("SiglipModel", {"vision_config": VISION, "text_config": {**TEXT, "projection_size": 24}}, {}),
    "eva": ("Blip2VisionModel", VISION, {}),
    "bert": ("BertModel", {**BERT, "type_vocab_size": 3}, {}),
    "bert_without_pooler": ("BertModel", BERT, {"add_pooling_layer": False}),
    "roberta": ("RobertaModel", {**BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5}, {}),
}
VISUAL = [name for name in MODELS if "text" not in name and "bert" not in name]


@torch.no_grad()
def make(name: str, directory: Path, **how: bool) -> transformers.PreTrainedModel:
    """Draws a model and saves it; `how` goes to save_pretrained."""
    torch.manual_seed(0)
    architecture, fields, constructor = MODELS[name]
    cls = getattr(transformers, architecture)
    model = cls(cls.config_class(**fields), **constructor).eval()
    for key, parameter in model.named_parameters():
        is_norm = parameter.ndim == 1 and key.endswith("weight")
        parameter.copy_(torch.randn_like(parameter) * 0.25 + float(is_norm))
    model.save_pretrained(directory, **how)
    return model


def inputs(name: str, height: int = 30, width: int = 30) -> dict[str, np.ndarray]:
    """Two pictures, three texts of which two are padded on the right."""
    draw = np.random.default_rng(1)
    arrays = {}
    if name in VISUAL:
        arrays["pixel_values"] = draw.normal(size=(2, 3, height, width)).astype(np.float32)
    if name not in VISUAL or name in ("clip", "siglip"):
        lengths = np.array([[9], [6], [3]])
        tokens = draw.integers(3, 97, (3, 9))
        tokens[np.arange(9) == lengths - 1] = TEXT["eos_token_id"]
        arrays["input_ids"] = np.where(np.arange(9) < lengths, tokens, TEXT["pad_token_id"])
        arrays["attention_mask"] = (np.arange(9) < lengths).astype(int)
    if name == "bert":
        arrays["token_type_ids"] = draw.integers(0, 3, (3, 9))
    return arrays


@torch.no_grad()
def outputs(model: transformers.PreTrainedModel, arrays: dict) -> dict[str, np.ndarray]:
    """What the model computes; a tuple of hidden states as one array."""
    result = model(**{key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in arrays.items()})
    stacked = {key: torch.stack(value) if isinstance(value, tuple) else value for key, value in result.items()}
    return {key: value.numpy() for key, value in stacked.items() if isinstance(value, torch.Tensor)}
