"""Models written as directories of LLaVA's authors (github.com/haotian-liu/LLaVA), 1.0 with its one linear map included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmjax.data.processor import Processor
from mmjax.interop import llava, processors
from mmjax.interop.language_models import language_config
from mmjax.interop.llava_original import LANGUAGES, SKIPPED, TOWER, Part, connector_table
from mmjax.interop.pretrained import Export, resolved_parts
from mmjax.interop.registry import LLM_TABLES
from mmjax.layers.lora import lora_scales, merge_lora
from mmjax.systems.parts import part_config
from mmjax.types import UserError
from mmjax.types.model import Model
from mmjax.weights import safetensors
from mmjax.weights import table as tables
from mmjax.weights.table import prefixed

MODEL_TYPES = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}  # ours -> theirs
CLIP = {224: "openai/clip-vit-large-patch14", 336: "openai/clip-vit-large-patch14-336"}  # by image size


def save_llava(model: Model, directory: str | Path) -> Export:
    """Writes language model, connector and vision tower under the authors' names, LoRA adapters merged.

    Args:
      model: with a linear connector and a language model of the LLaMA family.
      directory: made where it does not exist.

    Returns:
      The class, the files, and what they have no place for.

    Raises:
      UserError: another system, or a part that their code has not.
    """
    parts, directory = resolved_parts(model), Path(directory)
    vision, connector, llm = (parts.get(name, {}) for name in ("encoders.image", "connectors.image", "llm"))
    if connector.get("family") != "linear" or connector["merge"] != 1 or llm.get("family") != "llama":
        raise UserError("LLaVA's directories hold a linear connector between a CLIP and a LLaMA; write this model with --to=hf")
    text = {key: value for key, value in language_config(llm).items() if value is not None}
    if text["model_type"] not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise UserError(f"LLaVA's code has no class for the language model {text['model_type']!r}; it has {known}")
    rows = prefixed(LLM_TABLES["llama"](part_config("llm", llm)), "llm.", "")
    rows += connector_table(connector) + llava.tower_table(vision, TOWER)
    parameters = merge_lora(dict(model.parameters), lora_scales(model.definition))
    files = safetensors.save_directory(directory, tables.write(rows, parameters, model.definition.specs))
    name = next(name for name, kind in LANGUAGES.items() if kind == text["model_type"])
    config = {
        **processors.with_token_ids({**text, "architectures": [name]}, model.processor),
        "model_type": MODEL_TYPES[text["model_type"]],
        **_connector_config(connector, vision),
        **_fit_config(connector, model.processor),
    }
    files.append(processors.write_json(directory / "config.json", config))
    if isinstance(model.processor, Processor):
        files += [Path(file) for file in model.processor.llm.save_pretrained(str(directory)) if Path(file).is_file()]
    written = {row.ours for row in rows}
    return Export(name, tuple(files), tuple(path for path in parameters if path not in written))


def _connector_config(connector: Part, vision: Part) -> dict[str, Any]:
    """What their config.json says of connector and tower.

    `unfreeze_mm_vision_tower` makes their code take the tower's weights from this directory; `mm_vision_tower` is then only
    where they find its sizes.
    """
    features = {skipped: name for name, skipped in SKIPPED.items()}
    if connector["skip"] not in features or connector["activation"] != "gelu" or not connector["bias"]:
        raise UserError("LLaVA's connector leaves out 0 or 1 features, and has biases and GELU between its maps")
    layers = connector["layers"]
    return {
        "use_mm_proj": True,
        "mm_hidden_size": vision["width"],
        "mm_projector_type": "linear" if layers == 1 else f"mlp{layers}x_gelu",
        "mm_vision_select_feature": features[connector["skip"]],
        "mm_vision_select_layer": -1 if vision["depth"] is None else vision["depth"],
        "mm_vision_tower": CLIP.get(vision["image_size"], ""),
        "unfreeze_mm_vision_tower": True,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
    }


def _fit_config(connector: Part, processor: Any) -> dict[str, Any]:
    """How pictures get the tower's size; their grids are (width, height)."""
    tiling, transform = (getattr(processor, name, None) for name in ("tiling", "transform"))
    if (tiling is not None) != connector["newline"]:
        raise UserError("LLaVA's code reads pictures in tiles if and only if its connector has a newline")
    if tiling is not None:
        grids = [[width, height] for height, width in tiling.grids]
        return {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad", "image_grid_pinpoints": grids}
    padded = transform is not None and transform.pad is not None
    return {"image_aspect_ratio": "pad" if padded else "square", "mm_patch_merge_type": "flat"}
