"""Tiny random Hugging Face models, with every parameter drawn so that outputs are of order one and no term hides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

PLACEHOLDER, QUERIES = 49, 3
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QFORMER = {
    "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 32, "encoder_hidden_size": 16,
}  # fmt: skip
OPT = {
    "vocab_size": 50, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 40,
    "max_position_embeddings": 32, "word_embed_proj_dim": 20, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
# Six wide heads: head_dim is not width / heads, and three heads share a key.
LLAMA = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 10, "intermediate_size": 44, "max_position_embeddings": 32, "rope_theta": 500.0, "rms_norm_eps": 1e-5,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _parts(qformer: dict, text: dict) -> dict:
    return {
        "vision_config": VISION, "qformer_config": qformer, "text_config": text, "num_query_tokens": QUERIES,
        "image_token_index": PLACEHOLDER,
    }  # fmt: skip


def _model(name: str) -> transformers.PreTrainedModel:
    opt, llama = {"model_type": "opt", **OPT}, {"model_type": "llama", **LLAMA}
    match name:
        case "opt":
            return transformers.OPTForCausalLM(transformers.OPTConfig(**OPT))
        case "llama" | "llama_tied":
            return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, tie_word_embeddings=name == "llama_tied"))
        case "vision":
            return transformers.Blip2VisionModel(transformers.Blip2VisionConfig(**VISION))
        case "blip2":
            return transformers.Blip2ForConditionalGeneration(transformers.Blip2Config(**_parts(QFORMER, opt)))
        case "instructblip_opt":
            config = transformers.InstructBlipConfig(**_parts(QFORMER, opt))
            return transformers.InstructBlipForConditionalGeneration(config)
        case "instructblip_llama":
            config = transformers.InstructBlipConfig(**_parts(QFORMER, llama))
            return transformers.InstructBlipForConditionalGeneration(config)
        case "retrieval":
            qformer = {**QFORMER, "use_qformer_text_input": True}
            config = transformers.Blip2Config(**_parts(qformer, opt), image_text_hidden_size=8)
            return transformers.Blip2ForImageTextRetrieval(config)
    raise ValueError(name)


MODELS = ("opt", "llama", "llama_tied", "blip2", "instructblip_opt", "instructblip_llama", "retrieval")


def make(name: str, directory: Path, **how: bool) -> transformers.PreTrainedModel:
    """Draws a model and saves it; `how` goes to save_pretrained."""
    return draw(_model(name), directory, **how)


@torch.no_grad()
def draw(model: transformers.PreTrainedModel, directory: Path, **how: bool) -> transformers.PreTrainedModel:
    """Draws the parameters of a model and saves it; `how` goes to save_pretrained."""
    torch.manual_seed(0)
    model = model.eval()
    for key, parameter in model.named_parameters():
        is_norm = parameter.ndim == 1 and key.endswith("weight")
        parameter.copy_(torch.randn_like(parameter) * 0.25 + float(is_norm))
        if key.endswith("qkv.bias"):  # EVA has no bias on its keys
            parameter[len(parameter) // 3 : 2 * len(parameter) // 3] = 0
    model.save_pretrained(directory, **how)
    return model


def inputs(name: str) -> dict[str, np.ndarray]:
    """Two rows, the second padded: on the left for the language models, on the right for texts that a Q-Former reads."""
    draw = np.random.default_rng(1)
    query, query_mask = draw.integers(3, 40, (2, 5)), np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    text, text_mask = draw.integers(3, 48, (2, 7)), np.array([[1] * 7, [0] * 3 + [1] * 4])
    if name in ("opt", "llama", "llama_tied"):
        return {"input_ids": text, "attention_mask": text_mask}
    pixels = draw.normal(size=(2, 3, 28, 28)).astype(np.float32)
    slots, seen = np.full((2, QUERIES), PLACEHOLDER), np.ones((2, QUERIES), int)
    if name == "retrieval":
        text, text_mask = query, query_mask
    common = {
        "input_ids": np.concatenate([slots, text], 1), "attention_mask": np.concatenate([seen, text_mask], 1),
        "pixel_values": pixels,
    }  # fmt: skip
    if name.startswith("instructblip"):
        return {**common, "qformer_input_ids": query, "qformer_attention_mask": query_mask}
    return common


def tensors(arrays: dict) -> dict:
    """Arrays as the reference takes them; flags stay as they are."""
    return {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in arrays.items()}


@torch.no_grad()
def outputs(model: transformers.PreTrainedModel, arrays: dict) -> dict[str, np.ndarray]:
    """What the model computes, arrays only."""
    result = model(**tensors(arrays))
    return {key: value.numpy() for key, value in result.items() if isinstance(value, torch.Tensor)}
