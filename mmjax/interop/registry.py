"""The Hugging Face classes that are read and written: for each its config, its weights and its forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmjax.connectors import qformer
from mmjax.encoders import vit
from mmjax.interop import blip2, forward
from mmjax.interop.language_models import language_config, language_part
from mmjax.llms import llama, opt, palm, t5
from mmjax.systems.parts import part_config
from mmjax.types import UserError
from mmjax.types.config import suggest
from mmjax.weights.safetensors import Tensors
from mmjax.weights.table import Table, prefixed

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
    table = prefixed(
        vit.weight_table(part_config("encoders.image", parts["encoders.image"])), "encoders.image.", "vision_model."
    )
    config = dataclasses.replace(part_config("connectors.image", parts["connectors.image"]), **connector)
    table += prefixed(qformer.weight_table(config), "connectors.image.", "")
    if config.output_width:
        table += prefixed(_language_table(parts), "", "language_model.")
    return table


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One Hugging Face class.

    Args:
      model_type: of its config.json.
      parts: config.json -> our parts.
      config: our parts -> config.json.
      table: our parts -> the weight table of the whole.
      forward: (bound system, inputs, config.json) -> outputs, under the class's own names.
    """

    model_type: str
    parts: Callable[[Mapping[str, Any]], Parts]
    config: Callable[[Parts], dict[str, Any]]
    table: Callable[[Parts], Table]
    forward: Callable[[Any, Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]

    def settled(self, parts: Parts, tensors: Tensors) -> Parts:
        """The parts, with the language model's head tied or not as the files have it.

        The config's flag is not enough: it has meant several things, and `transformers` itself goes by the files. A head that
        they lack is the token embedding; one that differs from it is a head of its own.

        Args:
          parts: of the config.
          tensors: of the files.
        """
        llm = parts.get("llm", {})
        if "tied" not in llm:
            return parts
        table = self.table({**parts, "llm": {**llm, "tied": True}})
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


ARCHITECTURES: dict[str, Architecture] = {
    "OPTForCausalLM": _language_model("opt"),
    "LlamaForCausalLM": _language_model("llama"),
    "MistralForCausalLM": _language_model("mistral"),
    "Qwen2ForCausalLM": _language_model("qwen2"),
    "Qwen3ForCausalLM": _language_model("qwen3"),
    "CohereForCausalLM": _language_model("cohere"),
    "T5ForConditionalGeneration": _language_model("t5", forward.seq2seq_lm),
    "Blip2ForConditionalGeneration": Architecture(
        "blip-2", blip2.blip2_parts, blip2.blip2_config,
        lambda parts: _blip2_table(parts, vocab=0, stage1=False), forward.blip2,
    ),
    "InstructBlipForConditionalGeneration": Architecture(
        "instructblip", blip2.instructblip_parts, blip2.instructblip_config,
        lambda parts: _blip2_table(parts, stage1=False), forward.blip2,
    ),
    "Blip2ForImageTextRetrieval": Architecture(
        "blip-2", blip2.retrieval_parts, blip2.retrieval_config,
        lambda parts: _blip2_table(parts, output_width=0), forward.retrieval,
    ),
}  # fmt: skip


def recognise(config: Mapping[str, Any]) -> str:
    """The class that a config.json asks for: its `architectures`, else the first class of its `model_type`.

    Raises:
      UserError: it is not supported.
    """
    named = [name for name in config.get("architectures") or () if name in ARCHITECTURES]
    if named:
        return named[0]
    asked = (config.get("architectures") or [config.get("model_type")])[0]
    of_type = [name for name, entry in ARCHITECTURES.items() if entry.model_type == config.get("model_type")]
    if of_type and not config.get("architectures"):
        return of_type[0]
    raise UserError(f"config.json asks for {asked!r}, which is not supported{suggest(str(asked), ARCHITECTURES)}")


def choose(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The class that computes what these parts compute.

    A Q-Former that reads the question makes it InstructBLIP, whatever stages trained it; one without a language model is
    scored by image-text retrieval.
    """
    connector = parts.get("connectors.image")
    if connector is None:
        model_type = language_config(parts["llm"])["model_type"]
        return next(name for name, entry in ARCHITECTURES.items() if entry.model_type == model_type)
    if "llm" not in parts:
        return "Blip2ForImageTextRetrieval"
    return "InstructBlipForConditionalGeneration" if connector.get("vocab") else "Blip2ForConditionalGeneration"
