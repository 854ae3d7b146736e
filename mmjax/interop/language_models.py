"""Configs of language models: Hugging Face's config.json <-> the fields of our `llm` part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmjax.types import UserError

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


# model_type -> (config.json -> part, part -> config.json)
LANGUAGE_MODELS: dict[str, tuple[Callable[[Config], dict[str, Any]], Callable[[Config], dict[str, Any]]]] = {
    "opt": (opt_part, opt_config),
    "llama": (llama_part, llama_config),
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
