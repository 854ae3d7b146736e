"""Tiny random language models of `transformers`, with the odd shapes and settings that released ones have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import transformers

from tests.interop import tiny

VOCAB, LENGTH = 50, 12
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 44, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OPT = {
    "vocab_size": VOCAB, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 44,
    "max_position_embeddings": 32, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
ORIGINAL = {"original_max_position_embeddings": 8}
FACTORS = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 3.5]}

# name -> (model_type, what differs from the sizes above)
CASES = {
    "llama": ("llama", {"head_dim": 10, "rms_norm_eps": 1e-5, "rope_theta": 500.0}),
    "llama_one_kv_head": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama_all_kv_heads": ("llama", {"num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True}),
    "llama_gelu": ("llama", {"hidden_act": "gelu", "num_key_value_heads": 3, "num_hidden_layers": 1}),
    "linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "dynamic": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}, "max_position_embeddings": 8}),
    "llama3": (
        "llama",
        {
            "rope_theta": 50.0,
            "head_dim": 16,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, **ORIGINAL,
            },
        },
    ),
    "yarn": ("llama", {"head_dim": 16, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, **ORIGINAL}}),
    "yarn_strengths": (
        "qwen2",
        {
            "head_dim": 16,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 8.0, "beta_fast": 4.0, "beta_slow": 0.5, "mscale": 0.7, "mscale_all_dim": 1.3,
                "truncate": False, **ORIGINAL,
            },
        },
    ),
    "longrope_beyond": ("llama", {"rope_scaling": {"rope_type": "longrope", **FACTORS, **ORIGINAL}}),
    "longrope_within": (
        "llama", {"rope_scaling": {"rope_type": "longrope", **FACTORS, "original_max_position_embeddings": 16}},
    ),
    "mistral": ("mistral", {"sliding_window": 4, "head_dim": 6, "num_hidden_layers": 4}),
    "mistral_odd_width": ("mistral", {"hidden_size": 26, "num_attention_heads": 4}),
    "mistral_no_window": ("mistral", {"sliding_window": None, "num_key_value_heads": 3}),
    "qwen2": ("qwen2", {"rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen2_windows": (
        "qwen2",
        {
            "use_sliding_window": True, "sliding_window": 3, "num_hidden_layers": 4, "num_key_value_heads": 6,
            "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen2_odd_width": ("qwen2", {"hidden_size": 26, "num_attention_heads": 4, "num_key_value_heads": 1}),
    "qwen3": ("qwen3", {"head_dim": 10, "rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen3_bias": ("qwen3", {"head_dim": 4, "attention_bias": True, "num_key_value_heads": 1, "num_hidden_layers": 3}),
    "opt": ("opt", {}),
    "opt_350m": ("opt", {"word_embed_proj_dim": 12, "do_layer_norm_before": False}),
    "opt_projected": ("opt", {"word_embed_proj_dim": 28, "activation_function": "gelu", "tie_word_embeddings": False}),
    "opt_old": ("opt", {"_remove_final_layer_norm": True, "enable_bias": False}),
    "opt_plain_norms": ("opt", {"layer_norm_elementwise_affine": False, "num_hidden_layers": 3}),
    "palm": ("cohere", {"num_key_value_heads": 1, "logit_scale": 1.0, "rope_theta": 10000.0}),
    "palm_wide_heads": ("cohere", {"num_key_value_heads": 1, "head_dim": 10, "logit_scale": 24**-0.5, "num_hidden_layers": 3}),
    "palm_grouped": ("cohere", {"tie_word_embeddings": False, "hidden_act": "gelu"}),
}  # fmt: skip


def build(name: str) -> transformers.PreTrainedModel:
    """The model, not yet drawn."""
    model_type, fields = CASES[name]
    fields = {key: dict(value) if isinstance(value, dict) else value for key, value in fields.items()}
    config = transformers.AutoConfig.for_model(model_type, **{**(OPT if model_type == "opt" else SIZES), **fields})
    return transformers.AutoModelForCausalLM.from_config(config)


def make(name: str, directory: Path) -> transformers.PreTrainedModel:
    """Draws a model and saves it."""
    return tiny.draw(build(name), directory)


def inputs() -> dict[str, np.ndarray]:
    """Three rows: one whole, one padded on the left, one on the right."""
    draw = np.random.default_rng(1)
    mask = np.array([[1] * LENGTH, [0] * 4 + [1] * (LENGTH - 4), [1] * (LENGTH - 5) + [0] * 5])
    return {"input_ids": draw.integers(3, VOCAB, mask.shape), "attention_mask": mask}
