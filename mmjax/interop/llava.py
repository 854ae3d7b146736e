"""LLaVA and LLaVA-NeXT: Hugging Face's config.json <-> our parts, and where their files keep the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.connectors import linear
from mmjax.encoders import vit
from mmjax.interop import encoders
from mmjax.interop.language_models import language_config, language_part
from mmjax.systems.parts import part_config, soft_tokens
from mmjax.types import UserError
from mmjax.types.config import suggest
from mmjax.weights.table import Spelling, Table, prefixed, spellings

Config = Mapping[str, Any]
Parts = dict[str, dict[str, Any]]

# (height, width) of LLaVA-NeXT's grids of tiles.
GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
# What both classes assume where config.json is silent.
DEFAULTS: Config = {
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "patch_size": 14, "image_size": 336,
    },
    "text_config": {"model_type": "llama"},
}  # fmt: skip
NEXT_DEFAULTS: Config = {**DEFAULTS, "image_grid_pinpoints": GRIDS}
SKIPPED = {"default": 1, "full": 0}  # features left out by each vision_feature_select_strategy


@dataclasses.dataclass(frozen=True)
class Tower:
    """A class of vision towers that LLaVA's classes can hold.

    Args:
      read: its config.json -> the fields of `encoders.image`.
      write: a part with every field -> its config.json.
      layout: of its weights.
    """

    read: Callable[[Config], dict[str, Any]]
    write: Callable[[Config], dict[str, Any]]
    layout: vit.Layout


TOWERS: dict[str, Tower] = {
    "clip_vision_model": Tower(encoders.clip_vision_part, encoders.clip_vision_config, "clip"),
    "siglip_vision_model": Tower(encoders.siglip_vision_part, encoders.siglip_vision_config, "siglip"),
}


def _tower_of(part: Config) -> Tower:
    return TOWERS["clip_vision_model" if part["class_token"] else "siglip_vision_model"]


def llava_parts(config: Config) -> Parts:
    """LlavaForConditionalGeneration.

    Args:
      config: with DEFAULTS filled in.
    """
    vision = config["vision_config"]
    kind = vision.get("model_type", "clip_vision_model")
    if kind not in TOWERS:
        raise UserError(f"config.json: vision tower {kind!r} is not supported{suggest(kind, TOWERS)}")
    tower = TOWERS[kind].read(vision) | {"depth": _depth(config["vision_feature_layer"])}
    strategy = config["vision_feature_select_strategy"]
    if strategy not in SKIPPED:
        raise UserError(f"config.json has vision_feature_select_strategy={strategy!r}; there are {', '.join(SKIPPED)}")
    llm = language_part({"model_type": "llama", **config["text_config"]})
    if llm["family"] != "llama":
        raise UserError(f"config.json: LLaVA with the language model {config['text_config']['model_type']!r} is not supported")
    llm["tied"] = bool(config.get("tie_word_embeddings") or llm.get("tied"))
    connector = {
        "family": "linear",
        "encoder_width": tower["width"],
        "output_width": llm["width"],
        "layers": 2,
        "activation": config["projector_hidden_act"],
        "bias": config["multimodal_projector_bias"],
        "skip": SKIPPED[strategy],
    }
    return {"encoders.image": tower, "connectors.image": connector, "llm": llm}


def llava_next_parts(config: Config) -> Parts:
    """LlavaNextForConditionalGeneration; arguments as of `llava_parts`."""
    parts = llava_parts(config)
    parts["connectors.image"] = {**parts["connectors.image"], "newline": True}
    tokens, grid = soft_tokens(parts), part_config("encoders.image", parts["encoders.image"]).grid
    if tokens != grid**2:
        strategy = config["vision_feature_select_strategy"]
        raise UserError(
            f"config.json: vision_feature_select_strategy={strategy!r} leaves {tokens} features of a tile, which has "
            f"{grid} x {grid} patches"
        )
    return parts


def _depth(layer: Any) -> int:
    """The one layer whose features are taken, counted as `ViTConfig.depth` counts."""
    layers = [layer] if isinstance(layer, int) else layer
    if len(layers) != 1:
        raise UserError(f"config.json has vision_feature_layer={layer!r}; features of a single layer are supported")
    return layers[0]


def llava_config(parts: Parts) -> dict[str, Any]:
    """Config of LlavaForConditionalGeneration."""
    return _config(parts, "llava", newline=False)


def llava_next_config(parts: Parts) -> dict[str, Any]:
    """Config of LlavaNextForConditionalGeneration, but for its grids of tiles, which are no part's."""
    return _config(parts, "llava_next", newline=True)


def _config(parts: Parts, model_type: str, *, newline: bool) -> dict[str, Any]:
    vision, connector, llm = (parts[name] for name in ("encoders.image", "connectors.image", "llm"))
    encoders.refuse_other(connector, model_type, layers=2, merge=1, newline=newline)
    strategies = {skipped: name for name, skipped in SKIPPED.items()}
    if connector["skip"] not in strategies:
        raise UserError(f"a connector with skip={connector['skip']} cannot be written as {model_type}, which has 0 or 1")
    if vision["depth"] is None and not vision["norm_pooled"]:
        raise UserError(f"features behind the tower's final norm (depth=None) cannot be written as {model_type}")
    if llm["family"] != "llama":
        raise UserError(f"a language model of the family {llm['family']!r} cannot be written inside of {model_type}")
    return {
        "model_type": model_type,
        "projector_hidden_act": connector["activation"],
        "multimodal_projector_bias": connector["bias"],
        "vision_feature_layer": -1 if vision["depth"] is None else vision["depth"],
        "vision_feature_select_strategy": strategies[connector["skip"]],
        "image_seq_length": soft_tokens(parts),
        "tie_word_embeddings": llm["tied"],
        "vision_config": _tower_of(vision).write(vision),
        "text_config": language_config(llm),
    }


# Where each part stands: in files of transformers 5, of 4, and in the memory of transformers 5, which can be written too.
TOWER = ("vision_tower.", "vision_tower.vision_model.", "model.vision_tower.", "model.vision_tower.vision_model.")
TRUNK = ("language_model.model.", "model.language_model.")
HEAD = ("language_model.lm_head.", "lm_head.")
MAPS = tuple((f"multi_modal_projector.linear_{n}", f"model.multi_modal_projector.linear_{n}") for n in (1, 2))
NEWLINE = ("image_newline", "model.image_newline")


def weight_table(parts: Parts, language: Table) -> Table:
    """The table of both classes.

    Args:
      parts: with a linear connector.
      language: the table of the language model by itself, under our paths.
    """
    return [
        *_moved(language, "model.", TRUNK),
        *_moved(language, "lm_head.", HEAD),
        *tower_table(parts["encoders.image"], TOWER),
        *projector_table(parts["connectors.image"], MAPS),
    ]


def tower_table(part: Config, theirs: Spelling) -> Table:
    """The table of the vision tower under these prefixes."""
    config = part_config("encoders.image", part)
    return prefixed(vit.weight_table(config, "clip" if config.class_token else "siglip"), "encoders.image.", theirs)


def projector_table(part: Config, maps: tuple[Spelling, ...], newline: Spelling = NEWLINE) -> Table:
    """The table of the connector, whose linear maps and newline have these names."""
    table = linear.weight_table(part_config("connectors.image", part), maps, newline)
    return prefixed(table, "connectors.image.", "")


def _moved(table: Table, theirs: str, places: tuple[str, ...]) -> Table:
    """The rows whose keys begin with `theirs`, which stands elsewhere."""
    rows = [entry for entry in table if spellings(entry.theirs)[0].startswith(theirs)]
    bare = [
        dataclasses.replace(entry, theirs=tuple(key.removeprefix(theirs) for key in spellings(entry.theirs))) for entry in rows
    ]
    return prefixed(bare, "", places)
