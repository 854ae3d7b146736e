"""MiniGPT-4's published checkpoints (arXiv 2304.10592): a .pth file of one linear map, the only thing that was trained.

Everything else is frozen and comes from where its authors took it:
  Vicuna v0: tower, norm and Q-Former of BLIP-2's second stage with Flan-T5-XXL;
  Llama 2: the tower alone. No Q-Former: four features side by side in raster order become one soft token, behind a norm that
    was never trained and is the plain normalisation, even where the tower's source has a trained one.
No checkpoint tells which Q-Former it was trained behind: that of another BLIP-2 fits too, and the answers are wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mmjax.connectors import linear
from mmjax.interop import lavis
from mmjax.interop.pretrained import Export, from_pretrained, resolved_parts
from mmjax.layers.lora import lora_scales, merge_lora
from mmjax.layers.parameters import Definition, Parameters, define
from mmjax.parallel.axes import shardings
from mmjax.systems.parts import build, build_part, part_config, soft_tokens
from mmjax.types import UserError
from mmjax.types.model import Model
from mmjax.weights import pickles
from mmjax.weights import table as tables
from mmjax.weights.safetensors import Tensors
from mmjax.weights.table import Table, prefixed

PROJECTION = "llama_proj"
MERGE = 4  # features that become one soft token where there is no Q-Former
CONNECTOR, ENCODER, NORM = "connectors.image", "encoders.image", "encoders.image.norm."
QFORMER = "that of BLIP-2's second stage with Flan-T5-XXL"
Part = dict[str, Any]


def recognise(path: str | Path) -> bool:
    """Whether a file is a checkpoint of MiniGPT-4, and no file of LAVIS."""
    tensors = lavis.open_file(path)
    return f"{PROJECTION}.weight" in tensors and "query_tokens" not in tensors


def open_file(path: str | Path) -> Tensors:
    """The linear map of a checkpoint.

    Raises:
      UserError: a damaged file, or one of MiniGPT-v2, whose language model was trained too.
    """
    tensors = lavis.open_file(path)
    if trained := sum("lora" in key for key in tensors):
        raise UserError(
            f"{path} holds {trained} LoRA factors of a language model: it is a checkpoint of MiniGPT-v2, which is not supported"
        )
    return tensors


def projection_table(part: Mapping[str, Any]) -> Table:
    """The linear map in our connector, behind a Q-Former or by itself."""
    if part["family"] == "qformer":
        return tables.linear(f"{CONNECTOR}.projection", PROJECTION)
    return prefixed(linear.weight_table(part_config(CONNECTOR, part), (PROJECTION,)), f"{CONNECTOR}.", "")


def read_projection(path: str | Path, part: Mapping[str, Any], dtype: Any = None, mesh: Mesh | None = None) -> Parameters:
    """The parameters of a connector that a checkpoint holds.

    Args:
      path: of the file.
      part: the connector's fields.
      dtype, mesh: as of `mmjax.from_pretrained`.

    Raises:
      UserError: as of `open_file`, and for a map of another size.
    """
    specs = {f"{CONNECTOR}.{name}": spec for name, spec in define(build_part(CONNECTOR, part)).specs.items()}
    placement = None if mesh is None else shardings(specs, mesh)
    return tables.read(projection_table(part), open_file(path), specs, dtype, placement)


def from_file(
    path: str | Path,
    sources: Mapping[str, str] | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
    *,
    heads: Mapping[str, int] | None = None,
) -> Model:
    """Puts a model together from a checkpoint and the frozen parts.

    Args:
      path: of the .pth file, of which nothing but tensors is let through.
      sources: where those parts are, each a directory in Hugging Face layout, a hub id, or a file as LAVIS publishes them.
        "llm": of the language model and its tokenizer. "connectors.image": of the Q-Former and of the norm before it; leave it
        out for a map of four features. "encoders.image": of the tower, by default where the Q-Former is.
      dtype, mesh: as of `mmjax.from_pretrained`.
      heads: of "encoders.image" and "connectors.image" in files; default: those of the released models.

    Raises:
      UserError: a damaged file, one of MiniGPT-v2, a part whose source is not told, parts that do not fit the map.
    """
    sources, how = dict(sources or {}), {"dtype": dtype, "mesh": mesh, "heads": heads}
    output_width, width = open_file(path)[f"{PROJECTION}.weight"].shape
    llm = from_pretrained(_told(sources, "llm", path), dtype, mesh, pickle=True)
    if CONNECTOR in sources:
        parts, parameters = _behind_qformer(sources, how)
        fits, reads = parts[CONNECTOR]["width"], "its Q-Former's features"
    else:
        parts, parameters = _merged(_told(sources, ENCODER, path), how)
        fits, reads = (
            MERGE * parts[ENCODER]["width"],
            f"{MERGE} features of its tower, since no --part={CONNECTOR}=PATH is told",
        )
    if width != fits:
        raise UserError(f"{path} maps vectors of {width}, but {reads} are {fits} wide: this is another model's map")
    if "llm" not in llm.config["parts"] or output_width != llm.config["parts"]["llm"]["width"]:
        raise UserError(f"{path} maps to vectors of {output_width}: {sources['llm']} is no language model of that width")
    parts[CONNECTOR] |= {"output_width": output_width}
    parts["llm"] = llm.config["parts"]["llm"]
    definition = define(build(parts))
    parameters |= {name: value for name, value in llm.parameters.items() if name.startswith("llm.")}
    parameters |= read_projection(path, parts[CONNECTOR], dtype, mesh)
    parameters |= _untrained(definition, parameters.keys(), dtype, mesh)
    processor = llm.processor and dataclasses.replace(
        llm.processor, soft_tokens=soft_tokens(parts), image_size=parts[ENCODER]["image_size"]
    )
    return Model(definition, parameters, processor, {"parts": parts, "source": str(path)})


def _told(sources: Mapping[str, str], name: str, path: str | Path) -> str:
    if name not in sources:
        raise UserError(f"{path} holds no {name}; say where it is: --part={name}=PATH")
    return sources[name]


def _behind_qformer(sources: Mapping[str, str], how: Mapping[str, Any]) -> tuple[dict[str, Part], Parameters]:
    """Tower, norm and Q-Former of BLIP-2, without its linear map."""
    blip2 = sources[CONNECTOR]
    tower = sources.get(ENCODER, blip2)
    encoder, features = lavis.read_part(ENCODER, tower, **how)
    if tower != blip2:
        _, others = lavis.read_part(ENCODER, blip2, part=encoder, **how)
        features |= {name: value for name, value in others.items() if name.startswith(NORM)}
    connector, queries = lavis.read_part(CONNECTOR, blip2, **how)
    if connector.get("vocab") or connector.get("stage1"):
        raise UserError(f"the Q-Former in {blip2} reads text (InstructBLIP, or BLIP-2's first stage); MiniGPT-4's is {QFORMER}")
    if missing := [name for name in ("scale", "bias") if NORM + name not in features]:
        raise UserError(f"neither {blip2} nor {tower} holds {NORM}{missing[0]}, the norm before the Q-Former")
    queries = {name: value for name, value in queries.items() if not name.startswith(f"{CONNECTOR}.projection.")}
    return {ENCODER: {**encoder, "final_eps": lavis.LN_VISION_EPS}, CONNECTOR: connector}, features | queries


def _merged(tower: str, how: Mapping[str, Any]) -> tuple[dict[str, Part], Parameters]:
    """The tower without the norm behind it, and a linear map of four features."""
    encoder, features = lavis.read_part(ENCODER, tower, **how)
    connector = {"family": "linear", "encoder_width": encoder["width"], "merge": MERGE, "skip": 1}
    parts = {ENCODER: {**encoder, "final_eps": lavis.LN_VISION_EPS}, CONNECTOR: connector}
    return parts, {name: value for name, value in features.items() if not name.startswith(NORM)}


def _untrained(definition: Definition, held: Collection[str], dtype: Any, mesh: Mesh | None) -> Parameters:
    """The norm behind the tower as it is before any training, where nothing holds it: scale one, bias zero."""
    specs = {name: spec for name, spec in definition.specs.items() if name.startswith(NORM) and name not in held}
    placement = None if mesh is None else shardings(specs, mesh)
    drawn = Definition(definition.graphdef, specs).initialise(jax.random.key(0))
    return {
        name: jax.device_put(value if dtype is None else value.astype(dtype), placement and placement[name])
        for name, value in drawn.items()
    }


def save_minigpt4(model: Model, path: str | Path) -> Export:
    """Writes the linear map as MiniGPT-4 publishes it, in its dtype; the frozen parts are left out.

    Args:
      model: whose connector ends in one linear map behind a Q-Former, or is one of four features.
      path: of the file, usually .pth.

    Raises:
      UserError: another connector.
    """
    parts = resolved_parts(model)
    connector = parts.get(CONNECTOR, {})
    expected = {
        "qformer": {"vocab": 0, "stage1": False},
        "linear": {"layers": 1, "merge": MERGE, "skip": 1, "bias": True, "newline": False},
    }.get(connector.get("family", ""))
    if "llm" not in parts or expected is None or any(connector[name] != value for name, value in expected.items()):
        raise UserError(
            f"MiniGPT-4's files hold one linear map into a language model, behind a Q-Former that reads no text or of {MERGE} "
            "features; this model has another connector"
        )
    table = projection_table(connector)
    parameters = merge_lora(dict(model.parameters), lora_scales(model.definition))
    file = pickles.write_file(path, tables.write(table, parameters, model.definition.specs), within="model")
    written = {row.ours for row in table}
    rest = (name for name in parts if any(path.startswith(f"{name}.") and path not in written for path in parameters))
    return Export("MiniGPT-4", (file,), tuple(rest))
