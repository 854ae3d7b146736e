"""From the `parts` of an experiment to a system: one table per kind of part, nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from flax import nnx

from mmjax.connectors.linear import LinearConfig, LinearConnector
from mmjax.connectors.qformer import QFormer, QFormerConfig
from mmjax.encoders.text import TextConfig, TextEncoder
from mmjax.encoders.vit import ViT, ViTConfig
from mmjax.layers.lora import Rules, add_lora
from mmjax.layers.parameters import Definition, define
from mmjax.llms.llama import Llama, LlamaConfig
from mmjax.llms.opt import OPT, OPTConfig
from mmjax.llms.palm import PaLM, PaLMConfig
from mmjax.llms.t5 import T5, T5Config
from mmjax.systems.dual_encoder import DualEncoder, Similarity, SimilarityConfig
from mmjax.systems.multimodal import MultimodalLM
from mmjax.types import UserError
from mmjax.types.config import from_config

Family = tuple[type, Callable[[Any], nnx.Module]]

FAMILIES: dict[str, dict[str, Family]] = {
    "encoders.image": {"vit": (ViTConfig, ViT)},
    "encoders.text": {"text": (TextConfig, TextEncoder)},
    "connectors.image": {"qformer": (QFormerConfig, QFormer), "linear": (LinearConfig, LinearConnector)},
    "llm": {"opt": (OPTConfig, OPT), "llama": (LlamaConfig, Llama), "palm": (PaLMConfig, PaLM), "t5": (T5Config, T5)},
    "similarity": {"exponential": (SimilarityConfig, Similarity)},
}
# Fields of a part that say where it comes from, not what it is.
PROVENANCE = ("family", "source", "builder", "fresh")


def part_config(name: str, part: Mapping[str, Any]) -> Any:
    """The family's config dataclass for a part, checked.

    Raises:
      UserError: an unknown part, family or field.
    """
    if name not in FAMILIES:
        raise UserError(f"config.parts.{name} is no part; there are {', '.join(FAMILIES)}")
    family = part.get("family")
    if family not in FAMILIES[name]:
        raise UserError(f"config.parts.{name}.family={family!r} is unknown; there are {', '.join(FAMILIES[name])}")
    fields = {key: value for key, value in part.items() if key not in PROVENANCE}
    return from_config(FAMILIES[name][family][0], fields, f"config.parts.{name}")


def reads_source(parts: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the language model of these parts is an encoder–decoder, whose prompts are the source."""
    return "llm" in parts and hasattr(FAMILIES["llm"][parts["llm"]["family"]][1], "encode")


def soft_tokens(parts: Mapping[str, Mapping[str, Any]]) -> int:
    """Soft tokens of an image by these parts, k; 0 without images.

    Raises:
      UserError: the connector cannot make soft tokens of the encoder's features.
    """
    if "connectors.image" not in parts:
        return 0
    connector = part_config("connectors.image", parts["connectors.image"])
    if isinstance(connector, QFormerConfig):
        return connector.queries
    try:
        return connector.soft_tokens(part_config("encoders.image", parts["encoders.image"]).positions)
    except ValueError as error:
        raise UserError(f"config.parts.connectors.image: {error}") from None


def learned_positions(parts: Mapping[str, Mapping[str, Any]]) -> int:
    """Rows of the language model's table of learned positions; 0 = it has none, or there is no language model."""
    llm: Any = build_part("llm", parts["llm"]) if "llm" in parts else None
    return 0 if llm is None else llm.positions


def build(parts: Mapping[str, Mapping[str, Any]]) -> MultimodalLM | DualEncoder:
    """The abstract system of these parts."""
    configs = {name: part_config(name, part) for name, part in parts.items()}
    modules = {name: build_part(name, part) for name, part in parts.items()}
    _check_widths(configs, modules.get("llm"))

    def of(kind: str) -> dict[str, nnx.Module]:
        return {name.removeprefix(kind): module for name, module in modules.items() if name.startswith(kind)}

    if encoders_only(parts):
        return DualEncoder(of("encoders."), modules.get("similarity"))
    return MultimodalLM(of("encoders."), of("connectors."), modules.get("llm"))


def build_part(name: str, part: Mapping[str, Any]) -> nnx.Module:
    """The abstract module of one part."""
    return FAMILIES[name][part["family"]][1](part_config(name, part))


def encoders_only(parts: Collection[str]) -> bool:
    """Whether the parts of these names are encoders, and perhaps the comparison of their vectors."""
    return bool(parts) and all(name.startswith("encoders.") or name == "similarity" for name in parts)


def connector_only(parts: Collection[str]) -> bool:
    """Whether there is a connector and nothing before or behind it."""
    return set(parts) == {"connectors.image"}


def build_definition(parts: Mapping[str, Mapping[str, Any]], lora: Rules = (), lora_alpha: float = 16.0) -> Definition:
    """The Definition of these parts, with adapters where the rules ask for them."""
    system = build(parts)
    add_lora(system, lora, lora_alpha)
    return define(system)


def _check_widths(configs: Mapping[str, Any], llm: Any) -> None:
    """Neighbouring parts must agree on the width of what they exchange."""
    if encoders_only(configs):
        return _check_dual(configs)
    encoder, connector = (configs.get(name) for name in ("encoders.image", "connectors.image"))
    if connector_only(configs):
        return None  # it reads features that somebody else has made
    if (encoder is None) != (connector is None):
        raise UserError("config.parts must name encoders.image and connectors.image together, or neither")
    if connector is not None and encoder is not None:
        expected = {"encoder_width": ("encoder", encoder.width), "output_width": ("llm", 0 if llm is None else llm.width)}
        for field, (neighbour, width) in expected.items():
            if getattr(connector, field) != width:
                path = f"config.parts.connectors.image.{field}"
                raise UserError(f"{path}={getattr(connector, field)} must be the {neighbour}'s width, {width}")
    if connector is None and llm is None:
        raise UserError("config.parts names no llm")


def _check_dual(configs: Mapping[str, Any]) -> None:
    """Vectors that are compared must be equally wide."""
    encoders = {name: config for name, config in configs.items() if name in ("encoders.image", "encoders.text")}
    widths = {name: config.projection or config.width for name, config in encoders.items()}
    if "similarity" in configs and (len(widths) < 2 or len(set(widths.values())) > 1):
        raise UserError(
            "config.parts.similarity compares the vectors of encoders.image and encoders.text, which must be equally wide; "
            f"there is {', '.join(f'{name} with {width}' for name, width in widths.items()) or 'neither'}"
        )


def config_dict(config: Any) -> dict[str, Any]:
    """A part's config as plain values."""
    return dataclasses.asdict(config)
