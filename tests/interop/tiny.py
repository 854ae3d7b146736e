"""Tiny random Hugging Face models, with every parameter drawn so that outputs are of order one and no term hides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

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
# As in BLIP-2's Flan-T5: exact gelu, and a head that is not the embedding, which only a file can give a T5.
T5 = {
    "vocab_size": 50, "d_model": 20, "d_kv": 6, "d_ff": 36, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 3,
    "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 11, "tie_word_embeddings": False, "scale_decoder_outputs": False,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
FRAMES = 4  # of a video: transformers knows no other number


def _parts(qformer: dict, text: dict) -> dict:
    return {
        "vision_config": VISION, "qformer_config": qformer, "text_config": text, "num_query_tokens": QUERIES,
        "image_token_index": PLACEHOLDER,
    }  # fmt: skip


def _model(name: str) -> transformers.PreTrainedModel:
    opt, llama, t5 = {"model_type": "opt", **OPT}, {"model_type": "llama", **LLAMA}, {"model_type": "t5", **T5}
    match name:
        case "opt":
            return transformers.OPTForCausalLM(transformers.OPTConfig(**OPT))
        case "llama" | "llama_tied":
            return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, tie_word_embeddings=name == "llama_tied"))
        case "vision":
            return transformers.Blip2VisionModel(transformers.Blip2VisionConfig(**VISION))
        case "blip2":
            return transformers.Blip2ForConditionalGeneration(transformers.Blip2Config(**_parts(QFORMER, opt)))
        case "blip2_t5":
            return transformers.Blip2ForConditionalGeneration(transformers.Blip2Config(**_parts(QFORMER, t5)))
        case "instructblip_opt" | "instructblip_llama" | "instructblip_t5":
            text = {"opt": opt, "llama": llama, "t5": t5}[name.removeprefix("instructblip_")]
            config = transformers.InstructBlipConfig(**_parts(QFORMER, text))
            return transformers.InstructBlipForConditionalGeneration(config)
        case "video_llama" | "video_t5":
            text = llama if name == "video_llama" else t5
            config = transformers.InstructBlipVideoConfig(**_parts(QFORMER, text), video_token_index=PLACEHOLDER)
            return transformers.InstructBlipVideoForConditionalGeneration(config)
        case "retrieval":
            qformer = {**QFORMER, "use_qformer_text_input": True}
            config = transformers.Blip2Config(**_parts(qformer, opt), image_text_hidden_size=8)
            return transformers.Blip2ForImageTextRetrieval(config)
    raise ValueError(name)


MODELS = (
    "opt", "llama", "llama_tied", "blip2", "blip2_t5", "instructblip_opt", "instructblip_llama", "instructblip_t5",
    "video_llama", "video_t5", "retrieval",
)  # fmt: skip


def make(name: str, directory: Path, **how: bool) -> transformers.PreTrainedModel:
    """Draws a model and saves it; `how` goes to save_pretrained."""
    model = draw(_model(name), directory, **how)
    return with_own_head(model, directory) if name.endswith("_t5") else model


def with_own_head(model: transformers.PreTrainedModel, directory: Path) -> transformers.PreTrainedModel:
    """The model with a T5 whose head is not tied, which has to be written into its file: a new T5 never has one."""
    tensors, head = load_file(directory / "model.safetensors"), np.random.default_rng(0).normal(0, 0.3, (50, 20))
    tensors["language_model.lm_head.weight"] = head.astype(np.float32)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return type(model).from_pretrained(directory).eval()


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
    frames = (FRAMES,) if name.startswith("video") else ()
    pixels = draw.normal(size=(2, *frames, 3, 28, 28)).astype(np.float32)
    slots = np.full((2, QUERIES * (FRAMES if frames else 1)), PLACEHOLDER)
    seen = np.ones_like(slots)
    if name == "retrieval":
        text, text_mask = query, query_mask
    common = {
        "input_ids": np.concatenate([slots, text], 1), "attention_mask": np.concatenate([seen, text_mask], 1),
        "pixel_values": pixels,
    }  # fmt: skip
    if name.startswith(("instructblip", "video")):
        common |= {"qformer_input_ids": query, "qformer_attention_mask": query_mask}
    if name.endswith("_t5"):
        common |= {
            "decoder_input_ids": draw.integers(2, 48, (2, 5)),
            "decoder_attention_mask": np.array([[1] * 5, [1, 1, 1, 0, 0]]),
        }
    return common


def tensors(arrays: dict) -> dict:
    """Arrays as the reference takes them; flags stay as they are."""
    return {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in arrays.items()}


@torch.no_grad()
def outputs(model: transformers.PreTrainedModel, arrays: dict) -> dict[str, np.ndarray]:
    """What the model computes, arrays only; soft tokens under the name that they had before transformers 5.24."""
    result = dict(model(**tensors(arrays)))
    if result.get("image_outputs") is not None:
        features = result["image_outputs"].pooler_output
        result["image_hidden_states"] = features if isinstance(features, torch.Tensor) else torch.cat(features)
    return {key: value.numpy() for key, value in result.items() if isinstance(value, torch.Tensor)}
