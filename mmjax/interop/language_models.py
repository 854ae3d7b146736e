"""Configs of language models: Hugging Face's config.json <-> the fields of our `llm` part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.interop.rotary import read_rotary, write_rotary
from mmjax.systems.parts import part_config
from mmjax.types import UserError

Config = Mapping[str, Any]
Part = dict[str, Any]


def require(config: Config, what: str, **wanted: Any) -> None:
    """Refuses a config that asks for what is not built; a setting that it does not name passes."""
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise UserError(f"{what}: config.json has {name}={config[name]!r}; only {value!r} is supported")


# Fields that only bear another name: ours -> theirs.
SHARED = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
    "tied": "tie_word_embeddings",
}
OPT = SHARED | {
    "ffn": "ffn_dim",
    "embedding_width": "word_embed_proj_dim",
    "activation": "activation_function",
    "norm_first": "do_layer_norm_before",
    "bias": "enable_bias",
    "affine_norms": "layer_norm_elementwise_affine",
}
ROTARY = SHARED | {
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
    "activation": "hidden_act",
}
LLAMA = ROTARY | {"eps": "rms_norm_eps"}
COHERE = ROTARY | {"eps": "layer_norm_eps", "logit_scale": "logit_scale"}


def _read(names: Config, config: Config) -> Part:
    """The fields under our names; null stands for what our default says too."""
    return {ours: config[theirs] for ours, theirs in names.items() if config.get(theirs) is not None}


def _write(names: Config, part: Config) -> dict[str, Any]:
    return {theirs: part[ours] for ours, theirs in names.items()}


def _opt_part(config: Config) -> Part:
    final_norm = config["do_layer_norm_before"] and not config["_remove_final_layer_norm"]
    return _read(OPT, config) | {"final_norm": final_norm}


def _opt_config(part: Config) -> dict[str, Any]:
    removed = part["norm_first"] and not part["final_norm"]
    return _write(OPT, part) | {"_remove_final_layer_norm": removed}


def _rotary_part(names: Config, config: Config, base: float = 10000.0) -> Part:
    kv_heads = config["num_key_value_heads"] or config["num_attention_heads"]
    return _read(names, config) | {"kv_heads": kv_heads} | read_rotary(config, config["model_type"], base)


def _rotary_config(names: Config, part: Config) -> dict[str, Any]:
    return _write(names, part) | write_rotary(part)


def _llama_part(config: Config) -> Part:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads:  # whatever its head_dim
        raise UserError(f"llama: hidden_size={width} is not a multiple of num_attention_heads={heads}, which its class refuses")
    bias = config["attention_bias"]
    biases = {"attention_bias": bias, "output_bias": bias, "mlp_bias": config["mlp_bias"]}
    return _rotary_part(LLAMA, config) | biases


def _llama_config(part: Config) -> dict[str, Any]:
    return _rotary_config(LLAMA, part) | {"attention_bias": part["attention_bias"], "mlp_bias": part["mlp_bias"]}


def _mistral_part(config: Config) -> Part:
    return _rotary_part(LLAMA, config) | {"window": config["sliding_window"] or 0}


def _mistral_config(part: Config) -> dict[str, Any]:
    return _rotary_config(LLAMA, part) | {"sliding_window": part["window"] or None}


def _qwen2_part(config: Config) -> Part:
    return _rotary_part(LLAMA, config) | _read_windows(config) | {"attention_bias": True}


def _qwen2_config(part: Config) -> dict[str, Any]:
    return _rotary_config(LLAMA, part) | _write_windows(part)


def _qwen3_part(config: Config) -> Part:
    bias = config["attention_bias"]
    special = {"attention_bias": bias, "output_bias": bias, "head_norm": True}
    return _rotary_part(LLAMA, config) | _read_windows(config) | special


def _qwen3_config(part: Config) -> dict[str, Any]:
    return _rotary_config(LLAMA, part) | _write_windows(part) | {"attention_bias": part["attention_bias"]}


def _read_windows(config: Config) -> Part:
    """Qwen's windows, told by `layer_types` or, in files of transformers 4, by the number of layers without one."""
    window, layers = config["sliding_window"] if config["use_sliding_window"] else None, config["num_hidden_layers"]
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [
            "sliding_attention" if window and i >= config["max_window_layers"] else "full_attention" for i in range(layers)
        ]
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown or len(kinds) != layers or ("sliding_attention" in kinds and not window):
        raise UserError(
            f"{config['model_type']}: config.json has layer_types={list(kinds)} with num_hidden_layers={layers}, "
            f"use_sliding_window={config['use_sliding_window']}, sliding_window={config['sliding_window']}; expected "
            "'full_attention' or, with a window, 'sliding_attention' for each layer"
        )
    full = tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    return {"window": 0, "full_layers": ()} if len(full) == layers else {"window": window, "full_layers": full}


def _write_windows(part: Config) -> dict[str, Any]:
    window, full, layers = part["window"], part["full_layers"], part["layers"]
    kinds = ["sliding_attention" if window and i not in full else "full_attention" for i in range(layers)]
    # transformers 4 knows no `layer_types`, only windows that begin at some layer.
    begin = {"max_window_layers": len(full)} if window else {}
    return {"layer_types": kinds, "use_sliding_window": bool(window), "sliding_window": window or None, **begin}


def _cohere_part(config: Config) -> Part:
    require(config, "cohere", attention_bias=False, use_qk_norm=False)
    return _rotary_part(COHERE, config, base=500000.0)


def _cohere_config(part: Config) -> dict[str, Any]:
    return _rotary_config(COHERE, part) | {"attention_bias": False, "use_qk_norm": False}


def _t5_part(config: Config) -> Part:
    """`scale_decoder_outputs` is transformers 5's name for what `tie_word_embeddings` meant before."""
    gated, _, activation = config.get("feed_forward_proj", "relu").rpartition("-")
    activation = "gelu_new" if (gated, activation) == ("gated", "gelu") else activation
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    layers = config.get("num_layers", 6)
    return {
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


def _t5_config(part: Config) -> dict[str, Any]:
    activation = "gelu" if part["gated"] and part["activation"] == "gelu_new" else part["activation"]
    return {
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


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """One `model_type` of Hugging Face.

    Args:
      family: of our part.
      read: config.json -> the part's fields.
      write: a part with every field -> config.json.
      defaults: what the class assumes where config.json says nothing; other settings must be there.
    """

    family: str
    read: Callable[[Config], Part]
    write: Callable[[Config], dict[str, Any]]
    defaults: Config = dataclasses.field(default_factory=dict)


_ROTARY_DEFAULTS = {"num_key_value_heads": None, "hidden_act": "silu", "attention_bias": False}
_LLAMA_DEFAULTS = _ROTARY_DEFAULTS | {
    "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "mlp_bias": False,
}  # fmt: skip
_QWEN_DEFAULTS = _LLAMA_DEFAULTS | {
    "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip

# Where several types can hold a part, the first is written.
LANGUAGE_MODELS: dict[str, LanguageModel] = {
    "opt": LanguageModel("opt", _opt_part, _opt_config, {
        "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072,
        "max_position_embeddings": 2048, "activation_function": "relu", "do_layer_norm_before": True,
        "_remove_final_layer_norm": False, "enable_bias": True, "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
    }),
    "llama": LanguageModel("llama", _llama_part, _llama_config, _LLAMA_DEFAULTS),
    "mistral": LanguageModel("llama", _mistral_part, _mistral_config, _LLAMA_DEFAULTS | {
        "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096,
    }),
    "qwen2": LanguageModel("llama", _qwen2_part, _qwen2_config, _QWEN_DEFAULTS),
    "qwen3": LanguageModel("llama", _qwen3_part, _qwen3_config, _QWEN_DEFAULTS | {"head_dim": 128}),
    "cohere": LanguageModel("palm", _cohere_part, _cohere_config, _ROTARY_DEFAULTS | {
        "vocab_size": 256000, "hidden_size": 8192, "num_hidden_layers": 40, "num_attention_heads": 64,
        "intermediate_size": 22528, "max_position_embeddings": 8192, "layer_norm_eps": 1e-5, "logit_scale": 0.0625,
        "tie_word_embeddings": True, "use_qk_norm": False,
    }),
    "t5": LanguageModel("t5", _t5_part, _t5_config),
}  # fmt: skip


def language_part(config: Config) -> Part:
    """The `llm` part of a (nested) text config.

    Raises:
      UserError: a model type or a setting that is not built.
    """
    kind = config.get("model_type")
    if kind not in LANGUAGE_MODELS:
        raise UserError(f"config.json: language model {kind!r} is not supported; there are {', '.join(LANGUAGE_MODELS)}")
    model = LANGUAGE_MODELS[kind]
    return {"family": model.family, **model.read({**model.defaults, **config})}


def language_config(part: Config, model_type: str | None = None) -> dict[str, Any]:
    """The text config of an `llm` part.

    Args:
      part: with every field.
      model_type: to write; None = the first that computes what the part computes.

    Raises:
      UserError: no model type, or not this one, has a place for everything that the part says.
    """
    reports = []
    for kind in [model_type] if model_type else LANGUAGE_MODELS:
        model = LANGUAGE_MODELS[kind]
        if model.family != part["family"]:
            continue
        config = {"model_type": kind, **model.write(part)}
        try:
            wanted, got = (dataclasses.asdict(part_config("llm", p)) for p in (part, language_part(config)))
        except UserError as error:
            reports.append(str(error))
            continue
        # Whether the head is tied is for the weights to say, see `mmjax.interop.registry.Architecture.settled`.
        lost = [f"{name}={value!r}" for name, value in wanted.items() if got[name] != value and name != "tied"]
        if not lost:
            return config
        reports.append(f"{kind} has no place for {', '.join(lost)}")
    raise UserError("; ".join(reports) or f"{model_type} holds no language model of the family {part['family']!r}")
