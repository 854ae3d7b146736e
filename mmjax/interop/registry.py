"""The Hugging Face classes that are read and written: for each its config, its weights and its forward pass."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmjax.connectors import qformer
from mmjax.encoders import text, vit
from mmjax.interop import blip2, encoders, forward, llava
from mmjax.interop.language_models import language_config, language_part
from mmjax.llms import llama, opt, palm, t5
from mmjax.systems.parts import encoders_only, part_config
from mmjax.types import UserError
from mmjax.types.config import suggest
from mmjax.weights.safetensors import Tensors
from mmjax.weights.table import Entry, Spelling, Table, leading, linear, prefixed, spellings

Parts = dict[str, dict[str, Any]]

LLM_TABLES: dict[str, Callable[[Any], Table]] = {
    "opt": opt.weight_table,
    "llama": llama.weight_table,
    "palm": palm.weight_table,
    "t5": t5.weight_table,
}


def _language_table(parts: Parts) -> Table:
    return prefixed(LLM_TABLES[parts["llm"]["family"]](part_config("llm", parts["llm"])), "llm.", "")


def _blip2_table(parts: Parts, **connector: Any) -> Table:
    """The parts' tables under BLIP-2's prefixes; `connector` overrides the Q-Former fields that the class does not have."""
    table = _image_table(parts, "eva", "vision_model.") if "encoders.image" in parts else []
    config = dataclasses.replace(part_config("connectors.image", parts["connectors.image"]), **connector)
    table += prefixed(qformer.weight_table(config), "connectors.image.", "")
    if config.output_width:
        table += prefixed(_language_table(parts), "", "language_model.")
    return table


def _headless_table(parts: Parts) -> Table:
    """InstructBLIP around a language model without head, whose keys lack the "model." that stands before all but the head's."""
    table, whole = _blip2_table(parts, stage1=False), "language_model."
    named = [(row, tuple({key.replace(f"{whole}model.", whole): None for key in spellings(row.theirs)})) for row in table]
    return [dataclasses.replace(row, theirs=keys) for row, keys in named if f"{whole}lm_head.weight" not in keys]


def _qformer_table(parts: Parts, *, stage1: bool) -> Table:
    """A Q-Former without queries, projection and heads; in the classes of `stage1` the embeddings stand outside of it too."""
    part = part_config("connectors.image", parts["connectors.image"])
    table = qformer.weight_table(dataclasses.replace(part, stage1=stage1 and part.vocab > 0))
    named = [(row, str(row.theirs).partition("qformer.")) for row in table]
    own = [dataclasses.replace(row, theirs=key) for row, (before, stem, key) in named if stem and not before]
    return prefixed(own, "connectors.image.", "")


def _blip2_text_table(parts: Parts) -> Table:
    """Of the retrieval model what texts pass, and the queries and cross-attention that its class has besides: one head."""
    return [
        row for row in _blip2_table(parts) if not re.match(r"connectors\.image\.heads\.(?!text_projection)", row.ours or "")
    ]


def _blip2_vision_table(parts: Parts) -> Table:
    """Of the retrieval model what pictures pass: no embeddings of text, one head."""
    left_out = r"connectors\.image\.(word_embedding|position_embedding|heads\.(?!image_projection))"
    return [row for row in _blip2_table(parts, output_width=0) if not re.match(left_out, row.ours or "")]


def _llava_table(parts: Parts) -> Table:
    return llava.weight_table(parts, _language_table(parts))


def _image_table(parts: Parts, layout: vit.Layout, theirs: Spelling = "") -> Table:
    config = part_config("encoders.image", parts["encoders.image"])
    return prefixed(vit.weight_table(config, layout), "encoders.image.", theirs)


def _text_table(parts: Parts, layout: text.Layout, theirs: Spelling = "") -> Table:
    config = part_config("encoders.text", parts["encoders.text"])
    return prefixed(text.weight_table(config, layout), "encoders.text.", theirs)


_VISUAL_PROJECTION = linear("encoders.image.projection", "visual_projection", bias=False)
_TEXT_PROJECTION = linear("encoders.text.projection", "text_projection", bias=False)
_CLASSIFIER = linear("encoders.image.classifier", "classifier")


def _clip_table(parts: Parts) -> Table:
    towers = _image_table(parts, "clip", "vision_model.") + _text_table(parts, "clip", "text_model.")
    return [*towers, *_VISUAL_PROJECTION, *_TEXT_PROJECTION, Entry("similarity.log_scale", "logit_scale")]


def _siglip_table(parts: Parts) -> Table:
    towers = _image_table(parts, "siglip", "vision_model.") + _siglip_text_table(parts, "text_model.")
    scalars = {"similarity.log_scale": "logit_scale", "similarity.bias": "logit_bias"}
    return [*towers, *(Entry(ours, theirs, leading(1)) for ours, theirs in scalars.items())]


def _siglip_text_table(parts: Parts, theirs: Spelling) -> Table:
    return _text_table(parts, "clip", theirs) + prefixed(linear("projection", "head"), "encoders.text.", theirs)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One Hugging Face class.

    Args:
      model_type: of its config.json.
      parts: config.json -> our parts.
      config: our parts -> config.json.
      table: our parts -> the weight table of the whole.
      forward: (bound system, inputs, config.json) -> outputs, under the class's own names.
      defaults: what the class assumes where config.json is silent, unless `parts` knows it.
      reads_text: whether its inputs hold input_ids, where its parts could read them.
    """

    model_type: str
    parts: Callable[[Mapping[str, Any]], Parts]
    config: Callable[[Parts], dict[str, Any]]
    table: Callable[[Parts], Table]
    forward: Callable[[Any, Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reads_text: bool = True

    def settled(self, parts: Parts, tensors: Tensors) -> Parts:
        """The parts with what only the files tell: poolers (`mmjax.interop.encoders.as_stored`), and whether the language
        model's head is tied.

        The config's flag for that is not enough: it has meant several things, and `transformers` itself goes by the files. A
        head that they lack is the token embedding; one that differs from it is a head of its own.

        Args:
          parts: of the config.
          tensors: of the files.
        """
        parts = encoders.as_stored(parts, tensors)
        llm = parts.get("llm", {})
        if "tied" not in llm:
            return parts
        table = self.table({**parts, "llm": {**llm, "tied": True}})
        if not any(key.endswith("lm_head.weight") for entry in table for key in spellings(entry.theirs)):
            return parts  # a class without head: the config alone can tell
        tables = [entry for entry in table if entry.ours == "llm.token_embedding.table"]
        found = [next((key for key in entry.keys()[0] if key in tensors), None) for entry in tables]
        embedding, head = found[0], next((key for key in found if key and key.endswith("lm_head.weight")), None)
        tied = head is None or (llm["tied"] and embedding is not None and np.array_equal(tensors[embedding], tensors[head]))
        return {**parts, "llm": {**llm, "tied": tied}}


def _language_model(model_type: str, forward_pass: Callable = forward.causal_lm) -> Architecture:
    return Architecture(
        model_type,
        lambda config: {"llm": language_part({"model_type": model_type, **config})},
        lambda parts: language_config(parts["llm"], model_type),
        _language_table,
        forward_pass,
    )


def _image_tower(model_type: str, part: Any, config: Any, table: Any, run: Any = forward.vision_tower) -> Architecture:
    """A class of one vision tower: part <- config.json, config.json <- part."""
    name = "encoders.image"
    return Architecture(model_type, lambda file: {name: part(file)}, lambda parts: config(parts[name]), table, run)


def _text_tower(model_type: str, part: Any, config: Any, table: Any, run: Any = forward.text_tower) -> Architecture:
    """A class of one text tower."""
    name = "encoders.text"
    return Architecture(model_type, lambda file: {name: part(file)}, lambda parts: config(parts[name]), table, run)


ARCHITECTURES: dict[str, Architecture] = {
    "OPTForCausalLM": _language_model("opt"),
    "LlamaForCausalLM": _language_model("llama"),
    "MistralForCausalLM": _language_model("mistral"),
    "Qwen2ForCausalLM": _language_model("qwen2"),
    "Qwen3ForCausalLM": _language_model("qwen3"),
    "CohereForCausalLM": _language_model("cohere"),
    "T5ForConditionalGeneration": _language_model("t5", forward.seq2seq_lm),
    "T5EncoderModel": Architecture(
        "t5", lambda config: {"llm": {**language_part({"model_type": "t5", **config}), "decoder_layers": 0}},
        lambda parts: language_config(parts["llm"], "t5"), _language_table, forward.encoder_only,
    ),
    "Blip2ForConditionalGeneration": Architecture(
        "blip-2", blip2.blip2_parts, blip2.blip2_config,
        lambda parts: _blip2_table(parts, vocab=0, stage1=False), forward.blip2,
    ),
    "InstructBlipForConditionalGeneration": Architecture(
        "instructblip", blip2.instructblip_parts, blip2.instructblip_config,
        lambda parts: _blip2_table(parts, stage1=False), forward.blip2,
    ),
    "InstructBlipVideoForConditionalGeneration": Architecture(
        "instructblipvideo", blip2.instructblip_parts, blip2.instructblip_video_config,
        lambda parts: _blip2_table(parts, stage1=False), forward.blip2,
    ),
    "Blip2ForImageTextRetrieval": Architecture(
        "blip-2", blip2.retrieval_parts, blip2.retrieval_config,
        lambda parts: _blip2_table(parts, output_width=0), forward.retrieval,
    ),
    "Blip2Model": Architecture(
        "blip-2", blip2.blip2_parts, blip2.blip2_config,
        lambda parts: _blip2_table(parts, vocab=0, stage1=False), forward.blip2,
    ),
    "Blip2VisionModelWithProjection": Architecture(
        "blip-2", blip2.retrieval_parts, blip2.retrieval_config, _blip2_vision_table, forward.blip2_vision, reads_text=False,
    ),
    "Blip2TextModelWithProjection": Architecture(
        "blip-2", blip2.text_parts, blip2.text_config, _blip2_text_table, forward.blip2_text,
    ),
    "Blip2QFormerModel": Architecture(
        "blip_2_qformer", blip2.blip2_qformer_parts, blip2.blip2_qformer_config,
        functools.partial(_qformer_table, stage1=True), forward.qformer, reads_text=False,
    ),
    **{
        name: Architecture(
            model_type, functools.partial(blip2.qformer_parts, reads_text=True),
            functools.partial(blip2.instructblip_qformer_config, model_type=model_type),
            functools.partial(_qformer_table, stage1=False), forward.qformer,
        )
        for name, model_type in {
            "InstructBlipQFormerModel": "instructblip_qformer",
            "InstructBlipVideoQFormerModel": "instructblipvideo_qformer",
        }.items()
    },
    "InstructBlipModel": Architecture(
        "instructblip", blip2.instructblip_parts, blip2.instructblip_config, _headless_table, forward.blip2_headless,
    ),
    "InstructBlipVideoModel": Architecture(
        "instructblipvideo", blip2.instructblip_parts, blip2.instructblip_video_config, _headless_table,
        forward.blip2_headless,
    ),
    "LlavaForConditionalGeneration": Architecture(
        "llava", llava.llava_parts, llava.llava_config, _llava_table, forward.llava, llava.DEFAULTS,
    ),
    "LlavaNextForConditionalGeneration": Architecture(
        "llava_next", llava.llava_next_parts, llava.llava_next_config, _llava_table, forward.llava, llava.NEXT_DEFAULTS,
    ),
    # Where two prefixes are given, files of transformers 4 have the second.
    "ViTModel": _image_tower(
        "vit", encoders.vit_part, encoders.vit_config, lambda parts: _image_table(parts, "vit", ("", "vit.")),
    ),
    "ViTForImageClassification": _image_tower(
        "vit", encoders.classifier_part, encoders.classifier_config,
        lambda parts: _image_table(parts, "vit", "vit.") + _CLASSIFIER, forward.classifier,
    ),
    "CLIPModel": Architecture("clip", encoders.clip_parts, encoders.clip_config, _clip_table, forward.dual_encoder),
    "CLIPVisionModel": _image_tower(
        "clip_vision_model", encoders.clip_vision_part, encoders.clip_vision_config,
        lambda parts: _image_table(parts, "clip", ("", "vision_model.")),
    ),
    "CLIPVisionModelWithProjection": _image_tower(
        "clip_vision_model", encoders.clip_vision_projected_part, encoders.clip_vision_config,
        lambda parts: _image_table(parts, "clip", "vision_model.") + _VISUAL_PROJECTION, forward.vision_projection,
    ),
    "CLIPTextModel": _text_tower(
        "clip_text_model", encoders.clip_text_part, encoders.clip_text_config,
        lambda parts: _text_table(parts, "clip", ("", "text_model.")),
    ),
    "CLIPTextModelWithProjection": _text_tower(
        "clip_text_model", encoders.clip_text_projected_part, encoders.clip_text_config,
        lambda parts: _text_table(parts, "clip", "text_model.") + _TEXT_PROJECTION, forward.text_projection,
    ),
    "SiglipModel": Architecture("siglip", encoders.siglip_parts, encoders.siglip_config, _siglip_table, forward.dual_encoder),
    "SiglipVisionModel": _image_tower(
        "siglip_vision_model", encoders.siglip_vision_part, encoders.siglip_vision_config,
        lambda parts: _image_table(parts, "siglip", ("", "vision_model.")),
    ),
    "SiglipTextModel": _text_tower(
        "siglip_text_model", encoders.siglip_text_part, encoders.siglip_text_config,
        lambda parts: _siglip_text_table(parts, ("", "text_model.")),
    ),
    "Blip2VisionModel": _image_tower(
        "blip_2_vision_model", encoders.eva_part, encoders.eva_config,
        lambda parts: _image_table(parts, "eva", ("", "vision_model.")), forward.eva_tower,
    ),
    **{
        name: _image_tower(
            model_type, encoders.eva_part, functools.partial(encoders.eva_config, model_type=model_type),
            lambda parts: _image_table(parts, "eva"), forward.eva_tower,
        )
        for name, model_type in {
            "InstructBlipVisionModel": "instructblip_vision_model",
            "InstructBlipVideoVisionModel": "instructblipvideo_vision_model",
        }.items()
    },
    "BertModel": _text_tower(
        "bert", encoders.bert_part, encoders.bert_config, lambda parts: _text_table(parts, "bert", ("", "bert.")),
    ),
    "RobertaModel": _text_tower(
        "roberta", encoders.roberta_part, encoders.roberta_config,
        lambda parts: _text_table(parts, "bert", ("", "roberta.")),
    ),
}  # fmt: skip


# Classes of which the trunk alone is read.
TRUNKS = {"BertForMaskedLM": "BertModel", "BertForPreTraining": "BertModel"}


def recognise(config: Mapping[str, Any]) -> str:
    """The class that a config.json asks for: its `architectures`, else the first class of its `model_type`.

    Raises:
      UserError: it is not supported.
    """
    asked_for = [TRUNKS.get(name, name) for name in config.get("architectures") or ()]
    named = [name for name in asked_for if name in ARCHITECTURES]
    if named:
        return named[0]
    asked = (config.get("architectures") or [config.get("model_type")])[0]
    of_type = [name for name, entry in ARCHITECTURES.items() if entry.model_type == config.get("model_type")]
    if of_type and not config.get("architectures"):
        return of_type[0]
    known = f"; there are {', '.join(ARCHITECTURES)}"
    raise UserError(f"config.json asks for {asked!r}, which is not supported{suggest(str(asked), ARCHITECTURES) or known}")


def choose(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The class that computes what these parts compute.

    A Q-Former that reads the question makes it InstructBLIP, whatever stages trained it; one without a language model is
    scored by image-text retrieval.

    Raises:
      UserError: no class computes it.
    """
    if encoders_only(parts):
        return _choose_encoders(parts)
    connector = parts.get("connectors.image")
    if connector is None and parts["llm"].get("decoder_layers") == 0:
        return "T5EncoderModel"
    if connector is None:
        model_type = language_config(parts["llm"])["model_type"]
        return next(name for name, entry in ARCHITECTURES.items() if entry.model_type == model_type)
    if "llm" not in parts:
        return "Blip2ForImageTextRetrieval"
    if connector.get("merge", 1) > 1:
        raise UserError(
            "no Hugging Face class makes a soft token of several features; MiniGPT-4's file does, with --to=minigpt4"
        )
    if connector["family"] == "linear":
        return "LlavaNextForConditionalGeneration" if connector.get("newline") else "LlavaForConditionalGeneration"
    return "InstructBlipForConditionalGeneration" if connector.get("vocab") else "Blip2ForConditionalGeneration"


def _choose_encoders(parts: Mapping[str, Mapping[str, Any]]) -> str:
    if "similarity" in parts:
        return "SiglipModel" if parts["similarity"]["bias"] else "CLIPModel"
    if len(parts) > 1:
        raise UserError("no Hugging Face class holds two encoders that are not compared; give the parts a `similarity`")
    image, text = parts.get("encoders.image"), parts.get("encoders.text")
    if image is not None:
        kinds = {
            "CLIPVisionModelWithProjection": image["projection"],
            "CLIPVisionModel": image["pre_norm"],
            "SiglipVisionModel": not image["class_token"],
            "ViTForImageClassification": image["classes"],
            "Blip2VisionModel": image["qkv_bias"] and not image["key_bias"],
        }
        return next((name for name, fits in kinds.items() if fits), "ViTModel")
    kinds = {
        "SiglipTextModel": text["pooling"] == "last",
        "CLIPTextModelWithProjection": text["projection"],
        "CLIPTextModel": text["pooling"] == "end",
        "RobertaModel": text["padding_id"] is not None,
    }
    return next((name for name, fits in kinds.items() if fits), "BertModel")
