"""The directories and files of LLaVA's authors (github.com/haotian-liu/LLaVA): read here, written in transformers' layout.

A directory is that of its language model, whose config.json also tells the connector (mm_…) and names the vision tower, which
is often not in it. Released connectors stand alone in a file, mm_projector.bin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from mmjax.data.media.image import ImageTransform
from mmjax.data.media.tiles import Tiling
from mmjax.encoders.vit import ViTConfig
from mmjax.interop import hub, llava, processors
from mmjax.interop.language_models import language_part, require
from mmjax.interop.pretrained import from_pretrained, open_weights
from mmjax.interop.registry import LLM_TABLES
from mmjax.layers.parameters import Parameters, define
from mmjax.parallel.axes import shardings
from mmjax.systems.parts import build, build_part, part_config
from mmjax.types import UserError
from mmjax.types.model import Model
from mmjax.weights import pickles
from mmjax.weights import table as tables
from mmjax.weights.safetensors import Tensors
from mmjax.weights.table import Spelling, Table, prefixed

Config = Mapping[str, Any]
Part = dict[str, Any]

LANGUAGES = {"LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral", "LlavaQwenForCausalLM": "qwen2"}
SKIPPED = {"patch": 1, "cls_patch": 0}  # features left out by each mm_vision_select_feature
TOWER = "model.vision_tower.vision_tower.vision_model."


def is_original(directory: str | Path) -> bool:
    """Whether a directory is one of LLaVA's authors."""
    file = Path(directory) / "config.json"
    return file.is_file() and bool(set(processors.read_json(file).get("architectures") or ()) & set(LANGUAGES))


def from_directory(
    source: str | Path,
    sources: Mapping[str, str] | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
    *,
    pickle: bool = False,
) -> Model:
    """Reads a directory of LLaVA 1.0, 1.5 or 1.6.

    Args:
      source: directory or hub id.
      sources: "encoders.image" a CLIP in Hugging Face layout, None = what config.json calls mm_vision_tower; "tokenizers.llm"
        the directory of the tokenizer, where there is no tokenizer.json beside the weights.
      dtype, mesh, pickle: as of `mmjax.from_pretrained`.

    Returns:
      The model; written by `save_pretrained`, it is a LlavaForConditionalGeneration or LlavaNextForConditionalGeneration.

    Raises:
      UserError: there is no tower, something that is not built, or weights that do not fit.
    """
    directory, sources = hub.local_directory(source, pickle=pickle), dict(sources or {})
    config = processors.read_json(directory / "config.json")
    require(config, "LLaVA", mm_use_im_start_end=False, mm_use_im_patch_token=False)
    tensors = open_weights(directory, pickle=pickle)
    tower, parameters = _tower(config, sources, str(source), dtype, mesh)
    kind = next(LANGUAGES[name] for name in config["architectures"] if name in LANGUAGES)
    llm = language_part({**config, "model_type": kind})
    connector = connector_part(config, tower["width"], llm["width"])
    parts = {"encoders.image": tower, "connectors.image": connector, "llm": llm}
    rows = prefixed(LLM_TABLES[llm["family"]](part_config("llm", llm)), "llm.", "")
    rows += connector_table(connector)
    if any(key.startswith(TOWER) for key in tensors):
        rows += llava.tower_table(tower, TOWER)
    definition = define(build(parts))
    placement = None if mesh is None else shardings(definition.specs, mesh)
    parameters |= tables.read(rows, tensors, definition.specs, dtype, placement)
    details = {"parts": parts, "source": str(source), "absent": (), "unread": tables.unread(rows, tensors)}
    tokenizer = Path(sources.get("tokenizers.llm", directory))
    return Model(definition, parameters, processors.load(tokenizer, config, parts, image_fit(config, tower)), details)


def _tower(config: Config, sources: Mapping[str, str], source: str, dtype: Any, mesh: Mesh | None) -> tuple[Part, Parameters]:
    """The vision tower: its part at the depth that LLaVA reads, and its weights."""
    name = sources.get("encoders.image") or config.get("mm_vision_tower") or ""
    try:
        model = from_pretrained(name, dtype, mesh, part="encoders.image")
        part = model.config["parts"]["encoders.image"]
    except (UserError, KeyError) as error:
        raise UserError(
            f"{source} takes its vision tower from {name!r}; say where it is: --part=encoders.image=DIR ({error})"
        ) from None
    # CLIP's map into the space of texts is no part of LLaVA; blocks above the depth are not used, but its classes store them.
    held = {path: value for path, value in model.parameters.items() if path.startswith("encoders.image.")}
    part = {**part, "projection": 0, "depth": config.get("mm_vision_select_layer", -2)}
    return part, {path: value for path, value in held.items() if not path.startswith("encoders.image.projection.")}


def connector_part(config: Config, encoder_width: int, output_width: int) -> Part:
    """The connector that a config.json tells.

    Raises:
      UserError: another kind.
    """
    kind = config.get("mm_projector_type") or "linear"
    depth = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if depth is None and kind != "linear":
        raise UserError(f"config.json has mm_projector_type={kind!r}; 'linear' and 'mlp…x_gelu' are supported")
    feature = config.get("mm_vision_select_feature", "patch")
    if feature not in SKIPPED:
        raise UserError(f"config.json has mm_vision_select_feature={feature!r}; there are {', '.join(SKIPPED)}")
    return {
        "family": "linear",
        "encoder_width": encoder_width,
        "output_width": output_width,
        "layers": int(depth[1]) if depth else 1,
        "skip": SKIPPED[feature],
        "newline": "unpad" in config.get("mm_patch_merge_type", "flat"),
    }


def connector_table(part: Config) -> Table:
    """The table of the connector, as it stands in a directory and in mm_projector.bin."""
    layers = part_config("connectors.image", part).layers
    names = [f"mm_projector.{2 * n}" for n in range(layers)] if layers > 1 else ["mm_projector"]
    maps: tuple[Spelling, ...] = tuple((f"model.{name}", name) for name in names)
    return llava.projector_table(part, maps, llava.NEWLINE[::-1])


def image_fit(config: Config, tower: Part) -> ImageTransform | Tiling:
    """How pictures get the tower's size.

    Raises:
      UserError: a way that is not built.
    """
    vision: ViTConfig = part_config("encoders.image", tower)
    size, how = vision.image_size, config.get("image_aspect_ratio") or "square"
    merge = config.get("mm_patch_merge_type", "flat")
    if how == "anyres" and merge == "spatial_unpad":
        grids = config["image_grid_pinpoints"]  # (width, height)
        return Tiling(tuple((height, width) for width, height in grids), size, vision.grid)
    if how not in ("square", "pad") or merge != "flat":
        raise UserError(
            f"config.json has image_aspect_ratio={how!r} with mm_patch_merge_type={merge!r}; supported are 'square' and 'pad' "
            "with 'flat', and 'anyres' with 'spatial_unpad'"
        )
    colour = tuple(int(255 * value) for value in vision.mean)
    return ImageTransform(size, (size, size), pad=colour if how == "pad" else None)


def read_connector(path: str | Path, part: Config, mesh: Mesh | None = None) -> Parameters:
    """The weights of a connector from its own file, mm_projector.bin.

    Args:
      path: of the file, of which nothing but tensors is let through.
      part: what the connector is to be.
      mesh: how to shard the weights; None = the default device.

    Raises:
      UserError: a damaged file, or weights of another connector.
    """
    tensors = Tensors(Path(path), pickles.read_file(path))
    specs = {f"connectors.image.{name}": spec for name, spec in define(build_part("connectors.image", part)).specs.items()}
    rows = connector_table(part)
    if not any(key in tensors for row in rows if row.ours == "connectors.image.newline" for key in row.keys()[0]):
        rows = [row for row in rows if row.ours != "connectors.image.newline"]  # stage 1 has none yet
    placement = None if mesh is None else shardings(specs, mesh)
    return tables.read(rows, tensors, specs, None, placement, ignorable=(r"model\.embed_tokens\.weight",))
