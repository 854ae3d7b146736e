"""Configs of language models: Hugging Face's config.json <-> the fields of our `llm` part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmjax.types import UserError
from mmjax.weights.safetensors import Tensors

Config = Mapping[str, Any]


def require(config: Config, what: str, **wanted: Any) -> None:
    """Refuses a config that asks for what is not built; a setting that it does not name passes."""
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise UserError(f"{what}: config.json has {name}={config[name]!r}; only {value!r} is supported")


def opt_part(config: Config) -> dict[str, Any]:
    """An OPT part from Hugging Face's OPTConfig."""
    width = config["hidden_size"]
    require(
        config, "OPT", word_embed_proj_dim=width, do_layer_norm_before=True, enable_bias=True,
        layer_norm_elementwise_affine=True, _remove_final_layer_norm=False, tie_word_embeddings=True,
    )  # fmt: skip
    return {
        "family": "opt",
        "vocab": config["vocab_size"],
        "width": width,
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "ffn": config["ffn_dim"],
        "max_positions": config.get("max_position_embeddings", 2048),
        "activation": config.get("activation_function", "relu"),
    }


def opt_config(part: Config) -> dict[str, Any]:
    """Hugging Face's OPTConfig of an OPT part."""
    return {
        "model_type": "opt",
        "vocab_size": part["vocab"],
        "hidden_size": part["width"],
        "word_embed_proj_dim": part["width"],
        "num_hidden_layers": part["layers"],
        "num_attention_heads": part["heads"],
        "ffn_dim": part["ffn"],
        "max_position_embeddings": part["max_positions"],
        "activation_function": part["activation"],
        "do_layer_norm_before": True,
        "tie_word_embeddings": True,
    }


def llama_part(config: Config) -> dict[str, Any]:
    """A LLaMA part from Hugging Face's LlamaConfig, of transformers 4 (`rope_theta`) or 5 (`rope_parameters`)."""
    require(config, "LLaMA", attention_bias=False, mlp_bias=False)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"LLaMA: config.json has the rotary type {kind!r}; only 'default' is supported")
    return {
        "family": "llama",
        "vocab": config["vocab_size"],
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "ffn": config["intermediate_size"],
        "head_dim": config.get("head_dim") or 0,
        "rope_base": float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        "eps": config.get("rms_norm_eps", 1e-6),
        "activation": config.get("hidden_act", "silu"),
        "max_positions": config.get("max_position_embeddings", 2048),
        "tied": config.get("tie_word_embeddings", False),
    }


def llama_config(part: Config) -> dict[str, Any]:
    """Hugging Face's LlamaConfig of a LLaMA part."""
    return {
        "model_type": "llama",
        "vocab_size": part["vocab"],
        "hidden_size": part["width"],
        "num_hidden_layers": part["layers"],
        "num_attention_heads": part["heads"],
        "num_key_value_heads": part["kv_heads"],
        "intermediate_size": part["ffn"],
        "head_dim": part["head_dim"] or part["width"] // part["heads"],
        "rope_theta": part["rope_base"],
        "rope_parameters": {"rope_type": "default", "rope_theta": part["rope_base"]},
        "rms_norm_eps": part["eps"],
        "hidden_act": part["activation"],
        "max_position_embeddings": part["max_positions"],
        "tie_word_embeddings": part["tied"],
    }


def t5_part(config: Config) -> dict[str, Any]:
    """A T5 part from Hugging Face's T5Config; whether the head is tied is for the file to say (`t5_settled`).

    `scale_decoder_outputs` is transformers 5's name for what `tie_word_embeddings` meant before.
    """
    gated, _, activation = config.get("feed_forward_proj", "relu").rpartition("-")
    activation = "gelu_new" if (gated, activation) == ("gated", "gelu") else activation
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    layers = config.get("num_layers", 6)
    return {
        "family": "t5",
        "vocab": config.get("vocab_size", 32128),
        "width": config.get("d_model", 512),
        "layers": layers,
        "decoder_layers": layers if config.get("num_decoder_layers") is None else config["num_decoder_layers"],
        "heads": config.get("num_heads", 8),
        "head_dim": config.get("d_kv", 64),
        "ffn": config.get("d_ff", 2048),
        "activation": config.get("dense_act_fn", activation),
        "gated": config.get("is_gated_act", gated == "gated"),
        "buckets": config.get("relative_attention_num_buckets", 32),
        "max_distance": config.get("relative_attention_max_distance", 128),
        "eps": config.get("layer_norm_epsilon", 1e-6),
        "tied": config.get("tie_word_embeddings", True),
        "scaled": scaled,
    }


def t5_settled(part: Config, tensors: Tensors, prefix: str = "") -> dict[str, Any]:
    """A T5 part whose head is tied unless the file has one of its own: the config's flag has meant several things."""
    head, shared = tensors.get(f"{prefix}lm_head.weight"), tensors.get(f"{prefix}shared.weight")
    return {**part, "tied": head is None or (shared is not None and np.array_equal(head, shared))}


def t5_config(part: Config) -> dict[str, Any]:
    """Hugging Face's T5Config of a T5 part."""
    activation = "gelu" if part["gated"] and part["activation"] == "gelu_new" else part["activation"]
    return {
        "model_type": "t5",
        "is_encoder_decoder": part["decoder_layers"] > 0,
        "vocab_size": part["vocab"],
        "d_model": part["width"],
        "d_kv": part["head_dim"],
        "d_ff": part["ffn"],
        "num_layers": part["layers"],
        "num_decoder_layers": part["decoder_layers"],
        "num_heads": part["heads"],
        "relative_attention_num_buckets": part["buckets"],
        "relative_attention_max_distance": part["max_distance"],
        "layer_norm_epsilon": part["eps"],
        "feed_forward_proj": f"gated-{activation}" if part["gated"] else activation,
        "dense_act_fn": part["activation"],
        "is_gated_act": part["gated"],
        "tie_word_embeddings": part["tied"] or part["scaled"],
        "scale_decoder_outputs": part["scaled"],
    }


# model_type -> (config.json -> part, part -> config.json)
LANGUAGE_MODELS: dict[str, tuple[Callable[[Config], dict[str, Any]], Callable[[Config], dict[str, Any]]]] = {
    "opt": (opt_part, opt_config),
    "llama": (llama_part, llama_config),
    "t5": (t5_part, t5_config),
}


def language_part(config: Config) -> dict[str, Any]:
    """The `llm` part of a (nested) text config.

    Raises:
      UserError: a model type that is not built.
    """
    kind = config.get("model_type")
    if kind not in LANGUAGE_MODELS:
        raise UserError(f"config.json: language model {kind!r} is not supported; there are {', '.join(LANGUAGE_MODELS)}")
    return LANGUAGE_MODELS[kind][0](config)


def language_config(part: Config) -> dict[str, Any]:
    """The text config of an `llm` part."""
    return LANGUAGE_MODELS[part["family"]][1](part)
