"""Models of BLIP-2 and InstructBLIP written as files that LAVIS loads: with its names, and what is its own.

The language model is left out, as in the files of its authors: LAVIS reads that from its own directory.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np

from mmjax.interop.encoders import refuse_other
from mmjax.interop.lavis import LN_VISION_EPS, TOWER, Part, qformer_table, renamed, tower_table
from mmjax.interop.pretrained import Export, resolved_parts
from mmjax.layers.lora import lora_scales, merge_lora
from mmjax.types import UserError
from mmjax.types.model import Model
from mmjax.weights import pickles
from mmjax.weights import table as tables
from mmjax.weights.safetensors import Tensor
from mmjax.weights.table import Table, norm, prefixed

log = logging.getLogger(__name__)

# Language model -> what LAVIS calls the projection into it.
PROJECTION = {"opt": "opt_proj", "t5": "t5_proj", "llama": "llm_proj"}


def save_lavis(model: Model, path: str | Path) -> Export:
    """Writes the image tower, the Q-Former and all its heads, in their dtypes, LoRA adapters merged.

    Args:
      model: BLIP-2 after either stage, or InstructBLIP.
      path: of the file, usually .pth.

    Returns:
      The file, and what LAVIS's files have no place for.

    Raises:
      UserError: another system, or parts that LAVIS has not.
    """
    parts = resolved_parts(model)
    vision, connector, llm = (parts.get(name, {}) for name in ("encoders.image", "connectors.image", "llm"))
    if connector.get("family") != "qformer":
        raise UserError("LAVIS's files hold a Q-Former, which this model has not; write it with --to=hf")
    if llm and llm["family"] not in PROJECTION:
        raise UserError(f"LAVIS joins no language model of the family {llm['family']!r}; there are {', '.join(PROJECTION)}")
    rows = [*_tower_rows(vision), *_qformer_rows(connector, PROJECTION.get(llm.get("family", ""), ""))]
    parameters = merge_lora(dict(model.parameters), lora_scales(model.definition))
    tensors = tables.write(rows, parameters, model.definition.specs)
    # A buffer of its BERT, which no checkpoint of LAVIS is without.
    numbers = np.arange(connector["max_positions"])[None]
    tensors["Qformer.bert.embeddings.position_ids"] = Tensor(numbers.shape, numbers.dtype, lambda: numbers)
    file = pickles.write_file(path, tensors, within="model")
    written = {row.ours for row in rows}
    left_out = [path for path in parameters if path not in written and not path.startswith("llm.")]
    return Export("LAVIS", (file,), (*left_out, *(("llm",) if llm else ())))


def _tower_rows(part: Part) -> Table:
    """The image tower and the norm behind it; a CLIP's has its own norm in front, EVA's has none and no bias of keys."""
    is_clip = part["pre_norm"]
    refuse_other(
        part, "a tower of LAVIS", class_token=True, pooling="class", projection=0, qkv_bias=True, key_bias=is_clip,
        patch_bias=not is_clip,
    )  # fmt: skip
    if part["final_eps"] != LN_VISION_EPS:
        log.warning("LAVIS's ln_vision has eps %g, the norm after this tower %g", LN_VISION_EPS, part["final_eps"])
    return [*prefixed(tower_table(part), "encoders.image.", TOWER), *norm("encoders.image.norm", "ln_vision")]


def _qformer_rows(part: Part, projection: str) -> Table:
    """The Q-Former, with the copies of the captioning head that a torch module has, and the projection under its name."""
    table = renamed(qformer_table(part), ((r"^opt_proj", projection),))
    return prefixed([dataclasses.replace(row, duplicate=False) for row in table], "connectors.image.", "")
