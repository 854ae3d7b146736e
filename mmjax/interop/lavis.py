"""The files of BLIP-2's authors (LAVIS): whole or trimmed to what was trained, of stage 1, stage 2 and InstructBLIP.

Their names are those of the Hugging Face classes under other prefixes, so that their tables are made from those of the parts.
Sizes come from the tensors. What no tensor tells is the number of heads: that of the released models, unless told.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mmjax.connectors import qformer
from mmjax.data.processor import Processor
from mmjax.data.tokenizer import load_tokenizer
from mmjax.encoders import vit
from mmjax.interop.pretrained import from_pretrained
from mmjax.interop.processors import QUERY_LENGTH
from mmjax.interop.registry import LLM_TABLES
from mmjax.layers.parameters import Definition, Parameters, define
from mmjax.parallel.axes import shardings
from mmjax.systems.parts import build, build_part, learned_positions, part_config, reads_source
from mmjax.types import UserError
from mmjax.types.model import Model
from mmjax.weights import pickles
from mmjax.weights import table as tables
from mmjax.weights.safetensors import Tensors
from mmjax.weights.table import Entry, Table, linear, norm, prefixed, spellings

Part = dict[str, Any]
Names = tuple[tuple[str, str], ...]  # (regular expression over a Hugging Face key, its replacement), one after the other

# Language model -> what LAVIS begins its texts with, and ends its answers with, where that is not the tokenizer's BOS and EOS.
TOKENS = {"opt": {"end": "\n"}, "llama": {"begin": "</s>"}}
HEADS = {"encoders.image": 16, "connectors.image": 12}
TOWER = "visual_encoder."
LN_VISION_EPS = 1e-5
LLMS = ("opt_model.", "t5_model.", "llm_model.")
PROJECTIONS = ("opt_proj", "t5_proj", "llm_proj")
IGNORABLE = (
    *tables.IGNORABLE,
    r"(visual_encoder\.)?(norm|fc_norm|head|ln_post|proj)(\.\w+)?",
)  # heads of the towers' own training

EVA: Names = (
    (r"^embeddings\.class_embedding", "cls_token"),
    (r"^embeddings\.position_embedding", "pos_embed"),
    (r"^embeddings\.patch_embedding", "patch_embed.proj"),
    (r"^encoder\.layers", "blocks"),
    (r"self_attn\.projection", "attn.proj"),
    (r"self_attn", "attn"),
    (r"layer_norm", "norm"),
)
CLIP: Names = (
    (r"^embeddings\.class_embedding", "class_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^embeddings\.patch_embedding", "conv1"),
    (r"^pre_layrnorm", "ln_pre"),
    (r"^encoder\.layers", "transformer.resblocks"),
    (r"self_attn\.[qkv]_proj\.", "attn.in_proj_"),
    (r"self_attn", "attn"),
    (r"layer_norm", "ln_"),
    (r"fc1", "c_fc"),
    (r"fc2", "c_proj"),
)
QFORMER: Names = (
    (r"^qformer\.(embeddings\.)?layernorm", "Qformer.bert.embeddings.LayerNorm"),
    (r"^(qformer\.)?embeddings", "Qformer.bert.embeddings"),
    (r"^qformer\.encoder", "Qformer.bert.encoder"),
    (r"attention\.attention", "attention.self"),
    (r"^(vision|text)_projection", r"\1_proj"),
)


def renamed(table: Table, names: Names) -> Table:
    """A table under other names."""

    def key(theirs: str) -> str:
        for pattern, replacement in names:
            theirs = re.sub(pattern, replacement, theirs)
        return theirs

    return [dataclasses.replace(entry, theirs=tuple(map(key, spellings(entry.theirs)))) for entry in table]


def tower_table(part: Part) -> Table:
    """The image tower, without LAVIS's prefix and without the norm after it, which is LAVIS's own."""
    config = part_config("encoders.image", part)
    table = vit.weight_table(config, "clip" if config.pre_norm else "eva")
    table = [entry for entry in table if entry.ours not in ("norm.scale", "norm.bias")]
    return renamed(_fused(table), CLIP) if config.pre_norm else renamed(_separate_biases(table), EVA)


def _fused(table: Table) -> Table:
    """CLIP's own files have one tensor where the Hugging Face class has three, of queries, keys and values."""
    which = [(entry, re.search(r"self_attn\.([qkv])_proj", str(entry.theirs))) for entry in table]
    return [dataclasses.replace(entry, part=("qkv".index(found[1]), 3)) if found else entry for entry, found in which]


def _separate_biases(table: Table) -> Table:
    """EVA's own files have a bias of queries and one of values where the Hugging Face class has three in one."""
    names = {(0, 3): "q_bias", (2, 3): "v_bias"}
    separate = []
    for entry in table:
        theirs = str(entry.theirs)
        if not theirs.endswith("qkv.bias"):
            separate.append(entry)
        elif entry.part in names:
            theirs = theirs.replace("qkv.bias", names[entry.part])
            separate.append(dataclasses.replace(entry, theirs=theirs, part=(0, 1)))
    return separate


def qformer_table(part: Part) -> Table:
    """The Q-Former with its queries, projection and, in stage 1, all heads; the temperature and the captioning head too."""
    config = part_config("connectors.image", part)
    table = [entry for entry in qformer.weight_table(config) if not (entry.ours or "").startswith("projection.")]
    table = renamed(table, QFORMER)
    if config.output_width:
        table += linear("projection", PROJECTIONS)
    if config.stage1:
        head = "Qformer.cls.predictions"
        table += [
            Entry("heads.temperature", "temp"),
            Entry("heads.bias", f"{head}.bias"),
            Entry("heads.bias", f"{head}.decoder.bias", duplicate=True),
            Entry("word_embedding.table", f"{head}.decoder.weight", duplicate=True),
            *linear("heads.transform", f"{head}.transform.dense"),
            *norm("heads.transform_norm", f"{head}.transform.LayerNorm"),
        ]
    return table


def tower_part(tensors: Mapping[str, Any], prefix: str, heads: int) -> Part:
    """Sizes of an image tower. A tower that stands alone loses its last block, as BLIP-2 uses it."""
    is_clip = f"{prefix}conv1.weight" in tensors
    width, _, patch, _ = tensors[prefix + ("conv1.weight" if is_clip else "patch_embed.proj.weight")].shape
    positions = tensors[prefix + ("positional_embedding" if is_clip else "pos_embed")].shape[-2]
    block, up = ("transformer.resblocks", "mlp.c_fc") if is_clip else ("blocks", "mlp.fc1")
    part = {
        "family": "vit",
        "width": width,
        "layers": len(_numbers(tensors, rf"{prefix}{block}\.(\d+)\.{up}\.weight")) - (not prefix),
        "heads": heads,
        "ffn": tensors[f"{prefix}{block}.0.{up}.weight"].shape[0],
        "patch_size": patch,
        "image_size": patch * math.isqrt(positions - 1),
        "final_eps": LN_VISION_EPS,
    }
    if is_clip:
        part |= {"activation": "quick_gelu", "eps": 1e-5, "key_bias": True, "patch_bias": False, "pre_norm": True}
    return part


def qformer_part(tensors: Mapping[str, Any], heads: int) -> Part:
    """Sizes and kind of a Q-Former."""
    layer = "Qformer.bert.encoder.layer"
    crossed = _numbers(tensors, rf"{layer}\.(\d+)\.crossattention\.self\.key\.weight")
    layers = len(_numbers(tensors, rf"{layer}\.(\d+)\.attention\.self\.key\.weight"))
    _, queries, width = tensors["query_tokens"].shape
    embeddings, is_stage1 = "Qformer.bert.embeddings", "vision_proj.weight" in tensors
    has_text = f"{embeddings}.word_embeddings.weight" in tensors
    projection = next((tensors[f"{name}.weight"] for name in PROJECTIONS if f"{name}.weight" in tensors), None)
    part = {
        "family": "qformer",
        "width": width,
        "layers": layers,
        "heads": heads,
        "ffn": tensors[f"{layer}.0.intermediate_query.dense.weight"].shape[0],
        "queries": queries,
        "encoder_width": tensors[f"{layer}.0.crossattention.self.key.weight"].shape[1],
        "output_width": 0 if projection is None else projection.shape[0],
        "frequency": crossed[1] if len(crossed) > 1 else layers,
        "vocab": tensors[f"{embeddings}.word_embeddings.weight"].shape[0] if has_text else 0,
        "stage1": is_stage1,
    }
    part |= {"max_positions": tensors[f"{embeddings}.position_embeddings.weight"].shape[0]} if has_text else {}
    return part | ({"projection": tensors["vision_proj.weight"].shape[0]} if is_stage1 else {})


def _numbers(tensors: Iterable[str], pattern: str) -> list[int]:
    return sorted(int(match[1]) for key in tensors if (match := re.fullmatch(pattern, key)))


def contents(tensors: Tensors, heads: Mapping[str, int] = HEADS) -> tuple[dict[str, Part], Table]:
    """The parts that a file holds, and the table of all that it holds: with a trimmed file, of ln_vision too.

    Raises:
      UserError: it holds none of LAVIS's.
    """
    parts, table = {}, []
    prefix = next((p for p in (TOWER, "") if {f"{p}conv1.weight", f"{p}patch_embed.proj.weight"} & set(tensors)), None)
    try:
        if prefix is not None:
            part = parts["encoders.image"] = tower_part(tensors, prefix, heads["encoders.image"])
            table += prefixed(tower_table(part), "encoders.image.", prefix)
        if "ln_vision.weight" in tensors:
            table += norm("encoders.image.norm", "ln_vision")
        if "query_tokens" in tensors:
            part = parts["connectors.image"] = qformer_part(tensors, heads["connectors.image"])
            table += prefixed(qformer_table(part), "connectors.image.", "")
    except (KeyError, ValueError) as error:
        raise UserError(f"{tensors.source} is no file of LAVIS: {error}") from None
    if not parts:
        raise UserError(f"{tensors.source} holds neither a Q-Former (query_tokens) nor an image tower (patch_embed, conv1)")
    return parts, table


def from_file(
    path: str | Path,
    sources: Mapping[str, str] | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
    *,
    heads: Mapping[str, int] | None = None,
) -> Model:
    """Reads a file of LAVIS, an EVA-CLIP tower (eva_vit_g.pth) or OpenAI's CLIP tower (clip_vit_L.pth).

    Args:
      path: of the .pth file, of which nothing but tensors is let through.
      sources: where the parts are that a trimmed file lacks: "llm" a directory in Hugging Face layout, "encoders.image" such a
        one or a tower's file, "tokenizers.connector" the directory of the Q-Former's tokenizer.
      dtype, mesh: as of `mmjax.from_pretrained`.
      heads: of "encoders.image" and "connectors.image"; default: those of the released models.

    Returns:
      The model. config["absent"] names the parameters that nothing holds, which are drawn anew.

    Raises:
      UserError: a damaged file, a part that it lacks, weights that do not fit.
    """
    sources, heads = dict(sources or {}), dict(heads or {})
    if wrong := [name for name in heads if name not in HEADS]:
        raise UserError(f"heads are told of {' and '.join(HEADS)}, not of {wrong[0]}")
    tensors = open_file(path)
    parts, rows = contents(tensors, HEADS | heads)
    needed = {"encoders.image": True, "llm": parts.get("connectors.image", {}).get("output_width", 0) > 0}
    parameters: Parameters = {}
    for name in (name for name, needs in needed.items() if needs and name not in parts):
        if name not in sources:
            raise UserError(f"{path} holds no {name}; say where it is: --part={name}=PATH")
        parts[name], values = read_part(name, sources[name], dtype, mesh, heads=heads)
        parameters |= values
    if "llm" in parts:
        rows += _language_rows(parts["llm"], tensors)
    definition = define(build(parts))
    placement = None if mesh is None else shardings(definition.specs, mesh)
    parameters |= tables.read(rows, tensors, definition.specs, dtype, placement, ignored(rows))
    absent = {path: spec for path, spec in definition.specs.items() if path not in parameters}
    drawn = Definition(definition.graphdef, absent).initialise(jax.random.key(0))
    parameters |= {
        path: jax.device_put(value if dtype is None else value.astype(dtype), placement and placement[path])
        for path, value in drawn.items()
    }
    config = {"parts": parts, "source": str(path), "absent": tuple(absent), "unread": tables.unread(rows, tensors)}
    return Model(definition, parameters, _processor(parts, sources), config)


def ignored(rows: Table) -> tuple[str, ...]:
    """Keys that may stay unread: besides heads of the towers, the block that a tower standing alone loses."""
    ups = [entry for entry in rows if entry.ours == "encoders.image.layers.mlp.up.kernel"]
    lost = [(*entry.keys()[-1][0].partition(".mlp")[0].rpartition("."), len(entry.keys())) for entry in ups]
    return (*IGNORABLE, *(rf"{re.escape(stem)}\.{layer}\..*" for stem, _, _, layer in lost if not stem.startswith(TOWER)))


def open_file(path: str | Path) -> Tensors:
    """The tensors of a file that holds them by name, or under "model" beside a training run's other state."""
    return Tensors(Path(path), pickles.read_file(path, within="model"))


def read_part(
    name: str,
    source: str | Path,
    dtype: Any = None,
    mesh: Mesh | None = None,
    *,
    heads: Mapping[str, int] | None = None,
    part: Mapping[str, Any] | None = None,
) -> tuple[Part, Parameters]:
    """One part out of whatever holds it: a file as `from_file` reads it, or a directory in Hugging Face layout.

    Args:
      name: of the part.
      source: of the file or directory, whose weights may be pickled.
      dtype, mesh, heads: as of `from_file`.
      part: its fields, for a file that holds too little to tell them: a trimmed one has of a tower the norm behind it.

    Returns:
      The part's fields, and what the source holds of its parameters.

    Raises:
      UserError: the source holds no such part.
    """
    if not Path(source).is_file():
        model = from_pretrained(source, dtype, mesh, pickle=True, part=name)
        absent, parts = model.config["absent"], model.config["parts"]
        found = list(parts)
        held = {path: value for path, value in model.parameters.items() if path not in absent}
    else:
        tensors = open_file(source)
        parts, rows = contents(tensors, {**HEADS, **(heads or {})})
        found, parts = list(parts), parts if part is None else {name: dict(part), **parts}
        rows = [row for row in rows if name in parts and row.ours and row.ours.startswith(f"{name}.")]
        specs = {} if name not in parts else define(build_part(name, parts[name])).specs
        specs = {f"{name}.{path}": spec for path, spec in specs.items()}
        placement = None if mesh is None else shardings(specs, mesh)
        held = tables.read(rows, tensors, specs, dtype, placement, (r".*",))
    held = {path: value for path, value in held.items() if path.startswith(f"{name}.")}
    if not held:
        raise UserError(f"{source} holds no {name}; it holds {', '.join(found)}")
    return dict(parts[name]), held


def _language_rows(part: Part, tensors: Tensors) -> Table:
    """The language model, where the file holds it too."""
    prefix = next((prefix for prefix in LLMS if any(key.startswith(prefix) for key in tensors)), None)
    if prefix is None:
        return []
    return prefixed(LLM_TABLES[part["family"]](part_config("llm", part)), "llm.", prefix)


def _processor(parts: Mapping[str, Part], sources: Mapping[str, str]) -> Processor | None:
    """Made of the tokenizers that stand with the sources; None where one is missing."""
    asks = bool(parts.get("connectors.image", {}).get("vocab"))
    connector = load_tokenizer(sources["tokenizers.connector"]) if asks and "tokenizers.connector" in sources else None
    if "connectors.image" not in parts or (asks and connector is None):
        return None
    has_llm = "llm" in parts and (Path(sources["llm"]) / "tokenizer.json").is_file()
    llm = load_tokenizer(sources["llm"]) if has_llm else connector
    if llm is None or ("llm" in parts and not has_llm):
        return None
    qformer = part_config("connectors.image", parts["connectors.image"])
    return Processor(
        llm,
        connector,
        **TOKENS.get(parts.get("llm", {}).get("family", ""), {}),
        soft_tokens=qformer.queries,
        image_size=parts["encoders.image"]["image_size"],
        query_length=min(QUERY_LENGTH, qformer.max_positions) if asks else 0,
        truncate_query="left" if asks and "llm" in parts else "",
        vocabulary=parts["llm"]["vocab"] if "llm" in parts else 0,
        encoder_decoder=reads_source(parts),
        positions=learned_positions(parts),
    )
