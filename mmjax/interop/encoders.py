"""Configs of encoders: Hugging Face's config.json <-> the fields of our `encoders.*` and `similarity` parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.encoders.vit import HALF
from mmjax.interop.language_models import require
from mmjax.types import UserError

Config = Mapping[str, Any]
Part = dict[str, Any]
Parts = dict[str, Part]


def side(size: Any) -> int:
    """A length in pixels, from a number or equal numbers.

    Raises:
      UserError: they differ.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise UserError(f"config.json: the vision tower reads {size} pixels; only squares are supported")
    return sides.pop()


def _trunk(config: Config, width: int, layers: int, heads: int, ffn: int, activation: str, eps: float) -> Part:
    """The fields that all have, with the defaults of a class."""
    return {
        "width": config.get("hidden_size", width),
        "layers": config.get("num_hidden_layers", layers),
        "heads": config.get("num_attention_heads", heads),
        "ffn": config.get("intermediate_size", ffn),
        "activation": config.get("hidden_act", activation),
        "eps": config.get("layer_norm_eps", eps),
    }


def _vision(config: Config, patch_size: int, *trunk: Any) -> Part:
    require(config, "the vision tower", num_channels=3)
    part = _trunk(config, *trunk)
    sizes = {"image_size": side(config.get("image_size", 224)), "patch_size": side(config.get("patch_size", patch_size))}
    return {"family": "vit", **part, "final_eps": part["eps"], **sizes}


def _trunk_config(part: Config) -> dict[str, Any]:
    return {
        "hidden_size": part["width"],
        "num_hidden_layers": part["layers"],
        "num_attention_heads": part["heads"],
        "intermediate_size": part["ffn"],
        "hidden_act": part["activation"],
        "layer_norm_eps": part["eps"],
    }


def _vision_config(part: Config, model_type: str, **required: Any) -> dict[str, Any]:
    refuse_other(part, model_type, final_eps=part["eps"], **required)
    sizes = {"image_size": part["image_size"], "patch_size": part["patch_size"]}
    return {"model_type": model_type, **_trunk_config(part), **sizes}


def refuse_other(part: Config, what: str, **required: Any) -> None:
    """Refuses to write a part as a class that computes something else."""
    for name, value in required.items():
        if part[name] != value:
            raise UserError(f"a part with {name}={part[name]!r} cannot be written as {what}, which has {value!r}")


def vit_part(config: Config) -> Part:
    """ViTModel."""
    width = config.get("hidden_size", 768)
    require(config, "ViT", pooler_act="tanh", pooler_output_size=config.get("pooler_output_size") and width)
    part = _vision(config, 16, 768, 12, 12, 3072, "gelu", 1e-12)
    bias = config.get("qkv_bias", True)
    return {**part, "qkv_bias": bias, "key_bias": bias, "pooling": "tanh", "mean": HALF, "std": HALF}


def vit_config(part: Config) -> dict[str, Any]:
    """ViTConfig of a part."""
    config = _vision_config(
        part, "vit", key_bias=part["qkv_bias"], patch_bias=True, class_token=True, pre_norm=False, norm_pooled=False,
        projection=0,
    )  # fmt: skip
    return {**config, "qkv_bias": part["qkv_bias"]}


def classifier_part(config: Config) -> Part:
    """ViTForImageClassification: no pooler, a head on the class token."""
    labels = config.get("id2label") or range(config.get("num_labels", 2))
    if not len(labels):
        raise UserError("config.json has num_labels=0: a ViTForImageClassification without classes is a ViTModel")
    return {**vit_part(config), "pooling": "class", "classes": len(labels)}


def classifier_config(part: Config) -> dict[str, Any]:
    """ViTConfig of a part with classes; their names are lost unless the config that it was read from has them."""
    return {**vit_config(part), "num_labels": part["classes"]}


def clip_vision_part(config: Config, projection: int = 0) -> Part:
    """CLIPVisionModel, or a tower whose pooled vectors are projected."""
    part = _vision(config, 32, 768, 12, 12, 3072, "quick_gelu", 1e-5)
    return {**part, "key_bias": True, "patch_bias": False, "pre_norm": True, "norm_pooled": True, "projection": projection}


def clip_vision_projected_part(config: Config) -> Part:
    """CLIPVisionModelWithProjection."""
    return clip_vision_part(config, config.get("projection_dim", 512))


def clip_vision_config(part: Config) -> dict[str, Any]:
    """CLIPVisionConfig of a part."""
    config = _vision_config(
        part, "clip_vision_model", qkv_bias=True, key_bias=True, patch_bias=False, class_token=True, pre_norm=True,
        norm_pooled=True, pooling="class",
    )  # fmt: skip
    return {**config, **({"projection_dim": part["projection"]} if part["projection"] else {})}


def siglip_vision_part(config: Config) -> Part:
    """SiglipVisionModel."""
    part = _vision(config, 16, 768, 12, 12, 3072, "gelu_pytorch_tanh", 1e-6)
    pooling = "attention" if config.get("vision_use_head", True) else "mean"
    return {**part, "key_bias": True, "class_token": False, "pooling": pooling, "mean": HALF, "std": HALF}


def siglip_vision_config(part: Config) -> dict[str, Any]:
    """SiglipVisionConfig of a part."""
    config = _vision_config(
        part, "siglip_vision_model", qkv_bias=True, key_bias=True, patch_bias=True, class_token=False, pre_norm=False,
        norm_pooled=False, projection=0,
    )  # fmt: skip
    return {**config, "vision_use_head": part["pooling"] == "attention"}


def eva_part(config: Config) -> Part:
    """Blip2VisionModel and the vision tower of InstructBLIP."""
    part = _vision(config, 14, 1408, 39, 16, 6144, "gelu", 1e-6)
    return {**part, "qkv_bias": config.get("qkv_bias", True)}


def eva_config(part: Config, model_type: str = "blip_2_vision_model") -> dict[str, Any]:
    """Blip2VisionConfig of a part."""
    refuse_other(
        part, model_type, patch_bias=True, class_token=True, pre_norm=False, norm_pooled=False, pooling="class", depth=None
    )
    sizes = {"image_size": part["image_size"], "patch_size": part["patch_size"]}
    return {"model_type": model_type, **_trunk_config(part), **sizes, "qkv_bias": part["qkv_bias"]}


def _text(config: Config, max_positions: int, vocab: int, *trunk: Any) -> Part:
    sizes = {"vocab": vocab, "max_positions": max_positions}
    names = {"vocab": "vocab_size", "max_positions": "max_position_embeddings"}
    fields = {ours: config.get(theirs, sizes[ours]) for ours, theirs in names.items()}
    return {"family": "text", **fields, **_trunk(config, *trunk)}


def _text_config(part: Config, model_type: str, **required: Any) -> dict[str, Any]:
    refuse_other(part, model_type, **required)
    sizes = {"vocab_size": part["vocab"], "max_position_embeddings": part["max_positions"]}
    return {"model_type": model_type, **_trunk_config(part), **sizes}


def bert_part(config: Config) -> Part:
    """BertModel."""
    require(config, "BERT", is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    part = _text(config, 512, 30522, 768, 12, 12, 3072, "gelu", 1e-12)
    return {**part, "token_types": config.get("type_vocab_size", 2), "pooling": "tanh"}


def bert_config(part: Config) -> dict[str, Any]:
    """BertConfig of a part."""
    config = _text_config(part, "bert", padding_id=None, **_BERT)
    return {**config, "type_vocab_size": part["token_types"]}


def roberta_part(config: Config) -> Part:
    """RobertaModel."""
    require(config, "RoBERTa", is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    part = _text(config, 512, 50265, 768, 12, 12, 3072, "gelu", 1e-12)
    kind = {"token_types": config.get("type_vocab_size", 2), "pooling": "tanh", "padding_id": config.get("pad_token_id", 1)}
    return {**part, **kind}


def roberta_config(part: Config) -> dict[str, Any]:
    """RobertaConfig of a part."""
    config = _text_config(part, "roberta", **_BERT)
    return {**config, "type_vocab_size": part["token_types"], "pad_token_id": part["padding_id"]}


_BERT = {"post_norm": True, "causal": False, "projection": 0}


def clip_text_part(config: Config, projection: int = 0) -> Part:
    """CLIPTextModel, or a tower whose pooled vectors are projected."""
    part = _text(config, 77, 49408, 512, 12, 8, 2048, "quick_gelu", 1e-5)
    # A config of an old release names token 2, of another meaning: the class then looks for the largest id.
    end = config.get("eos_token_id", 49407)
    if not isinstance(end, int):
        raise UserError(f"CLIP: config.json has eos_token_id={end!r}; one id is expected")
    return {**part, "post_norm": False, "causal": True, "pooling": "end", "end_id": end, "projection": projection}


def clip_text_projected_part(config: Config) -> Part:
    """CLIPTextModelWithProjection."""
    return clip_text_part(config, config.get("projection_dim", 512))


def clip_text_config(part: Config) -> dict[str, Any]:
    """CLIPTextConfig of a part."""
    config = _text_config(part, "clip_text_model", causal=True, pooling="end", projection_bias=False, **_PRE_NORM)
    projection = {"projection_dim": part["projection"]} if part["projection"] else {}
    return {**config, "eos_token_id": part["end_id"], **projection}


def siglip_text_part(config: Config) -> Part:
    """SiglipTextModel, whose head is its projection."""
    part = _text(config, 64, 32000, 768, 12, 12, 3072, "gelu_pytorch_tanh", 1e-6)
    width = config.get("projection_size") or part["width"]
    return {**part, "post_norm": False, "pooling": "last", "projection": width, "projection_bias": True}


def siglip_text_config(part: Config) -> dict[str, Any]:
    """SiglipTextConfig of a part."""
    config = _text_config(part, "siglip_text_model", causal=False, pooling="last", projection_bias=True, **_PRE_NORM)
    return {**config, "projection_size": part["projection"]}


_PRE_NORM = {"post_norm": False, "token_types": 0, "padding_id": None}


def _inner(config: Config, name: str) -> dict[str, Any]:
    """A nested config; old files repeat it as `<name>_dict`, which prevails."""
    return {**(config.get(name) or {}), **(config.get(f"{name}_dict") or {})}


def clip_parts(config: Config) -> Parts:
    """CLIPModel."""
    projection = config.get("projection_dim", 512)
    return {
        "encoders.image": clip_vision_part(_inner(config, "vision_config"), projection),
        "encoders.text": clip_text_part(_inner(config, "text_config"), projection),
        "similarity": {"family": "exponential", "initial_log_scale": config.get("logit_scale_init_value", 2.6592)},
    }


def clip_config(parts: Parts) -> dict[str, Any]:
    """CLIPConfig of parts."""
    vision, text = parts["encoders.image"], parts["encoders.text"]
    refuse_other(parts["similarity"], "clip", bias=False)
    return {
        "model_type": "clip",
        "projection_dim": vision["projection"],
        "logit_scale_init_value": parts["similarity"]["initial_log_scale"],
        "vision_config": clip_vision_config(vision),
        "text_config": clip_text_config(text),
    }


def siglip_parts(config: Config) -> Parts:
    """SiglipModel."""
    return {
        "encoders.image": siglip_vision_part(_inner(config, "vision_config")),
        "encoders.text": siglip_text_part(_inner(config, "text_config")),
        "similarity": {"family": "exponential", "bias": True},
    }


def siglip_config(parts: Parts) -> dict[str, Any]:
    """SiglipConfig of parts."""
    refuse_other(parts["similarity"], "siglip", bias=True)
    return {
        "model_type": "siglip",
        "vision_config": siglip_vision_config(parts["encoders.image"]),
        "text_config": siglip_text_config(parts["encoders.text"]),
    }


def as_stored(parts: Parts, tensors: Mapping[str, np.ndarray]) -> Parts:
    """The parts with what only the weights tell.

    transformers stores towers with and without their pooler under one class and one config, and has room for biases of EVA's
    keys, which are zeros in every release.
    """
    stored = {name: dict(part) for name, part in parts.items()}
    for part in stored.values():
        if part.get("pooling") == "tanh" and not any(key.endswith("pooler.dense.weight") for key in tensors):
            part["pooling"] = "class" if part["family"] == "vit" else "first"
    biases = [np.split(value, 3)[1] for key, value in tensors.items() if key.endswith("self_attn.qkv.bias")]
    if any(bias.any() for bias in biases):
        stored["encoders.image"]["key_bias"] = True
    return stored
