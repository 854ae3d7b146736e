"""Configs of the BLIP-2 family: Hugging Face's config.json <-> our parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmjax.interop.encoders import eva_config, eva_part
from mmjax.interop.language_models import language_config, language_part, require

Config = Mapping[str, Any]
Parts = dict[str, dict[str, Any]]


def _qformer_part(config: Config, whole: Config, **fields: Any) -> dict[str, Any]:
    dropout = config.get("hidden_dropout_prob", 0.1)
    require(config, "the Q-Former", attention_probs_dropout_prob=dropout)
    return {
        "family": "qformer",
        "width": config.get("hidden_size", 768),
        "layers": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "ffn": config.get("intermediate_size", 3072),
        "queries": whole.get("num_query_tokens", 32),
        "frequency": config.get("cross_attention_frequency", 2),
        "max_positions": config.get("max_position_embeddings", 512),
        "activation": config.get("hidden_act", "gelu"),
        "eps": config.get("layer_norm_eps", 1e-12),
        "dropout": dropout,
        **fields,
    }


def blip2_parts(config: Config) -> Parts:
    """Blip2ForConditionalGeneration: its Q-Former reads no text."""
    return _generative_parts(config, vocab=0)


def instructblip_parts(config: Config) -> Parts:
    """InstructBLIP's and InstructBlipVideo's whole models: their Q-Former reads the question."""
    return _generative_parts(config, vocab=config["qformer_config"].get("vocab_size", 30522))


def _generative_parts(config: Config, vocab: int) -> Parts:
    vision, llm = eva_part(config["vision_config"]), language_part(config["text_config"])
    widths = {"encoder_width": vision["width"], "output_width": llm["width"]}
    connector = _qformer_part(config["qformer_config"], config, vocab=vocab, **widths)
    return {"encoders.image": vision, "connectors.image": connector, "llm": llm}


def retrieval_parts(config: Config) -> Parts:
    """Blip2ForImageTextRetrieval: the heads of stage 1 and no language model."""
    return {"encoders.image": eva_part(config["vision_config"]), **text_parts(config)}


def text_parts(config: Config) -> Parts:
    """Blip2TextModelWithProjection: of image-text retrieval the Q-Former alone, which reads texts."""
    vision, qformer = eva_part(config["vision_config"]), config["qformer_config"]
    require(qformer, "image-text retrieval", use_qformer_text_input=True)
    connector = _qformer_part(
        qformer, config, vocab=qformer.get("vocab_size", 30522), encoder_width=vision["width"], output_width=0,
        stage1=True, projection=config.get("image_text_hidden_size", 256),
    )  # fmt: skip
    return {"connectors.image": connector}


def qformer_parts(config: Config, *, reads_text: bool) -> Parts:
    """A class of one Q-Former, which is given its queries.

    Args:
      config: of the Q-Former itself.
      reads_text: whether it has feed-forward blocks for text.
    """
    widths = {"encoder_width": config.get("encoder_hidden_size", 1408), "output_width": 0}
    vocab = config.get("vocab_size", 30522) if reads_text else 0
    return {"connectors.image": _qformer_part(config, {}, vocab=vocab, **widths)}


def blip2_qformer_parts(config: Config) -> Parts:
    """Blip2QFormerModel."""
    return qformer_parts(config, reads_text=config.get("use_qformer_text_input", False))


def qformer_config(part: Config, model_type: str) -> dict[str, Any]:
    """Config of a Q-Former."""
    vocabulary = {"vocab_size": part["vocab"]} if part["vocab"] else {}
    return {
        "model_type": model_type,
        "hidden_size": part["width"],
        "num_hidden_layers": part["layers"],
        "num_attention_heads": part["heads"],
        "intermediate_size": part["ffn"],
        "cross_attention_frequency": part["frequency"],
        "encoder_hidden_size": part["encoder_width"],
        "max_position_embeddings": part["max_positions"],
        "hidden_act": part["activation"],
        "layer_norm_eps": part["eps"],
        "hidden_dropout_prob": part["dropout"],
        "attention_probs_dropout_prob": part["dropout"],
        **vocabulary,
    }


def blip2_config(parts: Parts) -> dict[str, Any]:
    """Config of Blip2ForConditionalGeneration."""
    connector = {**parts["connectors.image"], "vocab": 0}
    return _generative_config({**parts, "connectors.image": connector}, "blip-2", "blip_2")


def instructblip_config(parts: Parts) -> dict[str, Any]:
    """Config of InstructBlipForConditionalGeneration."""
    return _generative_config(parts, "instructblip", "instructblip")


def instructblip_video_config(parts: Parts) -> dict[str, Any]:
    """Config of InstructBlipVideoForConditionalGeneration."""
    return _generative_config(parts, "instructblipvideo", "instructblipvideo")


def _generative_config(parts: Parts, model_type: str, stem: str) -> dict[str, Any]:
    """`stem`: what the model types of vision tower and Q-Former begin with."""
    connector = parts["connectors.image"]
    return {
        "model_type": model_type,
        "num_query_tokens": connector["queries"],
        "vision_config": eva_config(parts["encoders.image"], f"{stem}_vision_model"),
        "qformer_config": qformer_config(connector, f"{stem}_qformer"),
        "text_config": language_config(parts["llm"]),
    }


def blip2_qformer_config(parts: Parts) -> dict[str, Any]:
    """Config of Blip2QFormerModel."""
    part = parts["connectors.image"]
    return qformer_config(part, "blip_2_qformer") | {"use_qformer_text_input": bool(part["vocab"])}


def instructblip_qformer_config(parts: Parts, model_type: str) -> dict[str, Any]:
    """Config of InstructBlipQFormerModel or InstructBlipVideoQFormerModel."""
    return qformer_config(parts["connectors.image"], model_type)


def retrieval_config(parts: Parts) -> dict[str, Any]:
    """Config of Blip2ForImageTextRetrieval."""
    return text_config(parts) | {"vision_config": eva_config(parts["encoders.image"], "blip_2_vision_model")}


def text_config(parts: Parts) -> dict[str, Any]:
    """Config of Blip2TextModelWithProjection. Its class asks for a text config, of which it builds nothing."""
    connector = parts["connectors.image"]
    return {
        "model_type": "blip-2",
        "num_query_tokens": connector["queries"],
        "image_text_hidden_size": connector["projection"],
        "qformer_config": blip2_qformer_config(parts),
        "text_config": {"model_type": "opt"},
    }
