"""A stage put together: its model, rules, mesh and shardings before any array exists, and then the arrays.

Where the values of a parameter come from, first that applies:
  1. the last checkpoint of the latest stage that has trained it,
  2. the directories or files that its part names as `source`, in their order,
  3. a draw from (the run's seed, its path).
Frozen parameters are therefore never stored by a run: the same three questions give them again, bit for bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

import mmjax
from mmjax.connectors.qformer import from_bert
from mmjax.encoders.vit import ViTConfig
from mmjax.interop import lavis, llava_original, minigpt4, pretrained
from mmjax.interop.image_size import with_image_size
from mmjax.layers.lora import is_factor, lora_scales, merge_lora
from mmjax.layers.parameters import Definition, Parameters
from mmjax.layers.quantised import INT8, quantise
from mmjax.parallel.axes import shardings
from mmjax.parallel.mesh import count_slices, make_mesh
from mmjax.parallel.mesh import resolve as resolve_mesh
from mmjax.systems.parts import build_definition, connector_only, encoders_only, part_config, soft_tokens
from mmjax.training.optimizer import Optimizer, make_optimizer
from mmjax.training.rules import Resolved, resolve
from mmjax.training.stage import Experiment, Stage
from mmjax.training.state import State, abstract_parameters, abstract_state, init_parameters, init_state, partition
from mmjax.types import UserError
from mmjax.types.files import is_workdir
from mmjax.weights import table

log = logging.getLogger(__name__)

# What one stage of BLIP-2 has and another lacks: a source may hold all of such a piece, or nothing.
PIECES = {
    "text branch of the Q-Former": r"connectors\.image\.((word|position)_embedding\.table|layers\..*\.text_(mlp|end)\..*)",
    "projection to a language model": r"connectors\.image\.projection\..*",
    "norm behind the encoder": r"encoders\.image\.norm\..*",
    "heads of stage 1": r"connectors\.image\.heads\..*",
}


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A stage without arrays.

    Args:
      stage: its config.
      definition: its model, adapters included.
      rules: what the stage's rules say of every parameter.
      mesh: its devices.
      shardings: of every parameter.
      optimizer: over the trainable parameters.
      state, frozen: shapes, dtypes and shardings.
    """

    stage: Stage
    definition: Definition
    rules: Resolved
    mesh: Mesh
    shardings: dict[str, NamedSharding]
    optimizer: Optimizer
    state: State
    frozen: dict[str, Any]


def assemble(experiment: Experiment, stage: Stage, mesh: Mesh | None = None) -> Assembly:
    """Puts a stage together.

    Args:
      mesh: None = the one that the stage's config asks for.

    Raises:
      UserError: the parts, rules or mesh do not fit.
    """
    if encoders_only(experiment.parts) or connector_only(experiment.parts):
        raise UserError("config.parts names no llm")
    definition = build_definition(experiment.parts, stage.lora, stage.lora_alpha)
    _check_data(experiment, stage)
    rules = resolve(stage, definition.specs)
    mesh = stage_mesh(stage) if mesh is None else mesh
    placement = shardings(definition.specs, mesh, rules.sharding, stage=stage.name)
    trainable, frozen = partition(abstract_parameters(definition.specs, rules.dtype, placement), rules.trainable)
    optimizer = make_optimizer(stage.optimizer, stage.steps, rules.learning_rate, rules.weight_decay)
    state = abstract_state(trainable, optimizer, placement, ema=bool(stage.optimizer.ema))
    return Assembly(stage, definition, rules, mesh, placement, optimizer, state, frozen)


def stage_mesh(stage: Stage, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh that a stage asks for, over all devices or these; what it leaves open follows from its micro-batch.

    Raises:
      UserError: the sizes that are given do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    data = stage.data
    sizes = resolve_mesh(
        dataclasses.asdict(stage.mesh),
        len(devices),
        data.rows // stage.optimizer.accumulation,
        [length for length in (data.length, data.source_length) if length],
        slices=count_slices(devices),
    )
    return make_mesh(sizes, devices, stage=stage.name)


def _check_data(experiment: Experiment, stage: Stage) -> None:
    """What the data hand to the image encoder and its connector must be what these read."""
    parts, data, flag = experiment.parts, stage.data, f"--config.stages.{stage.name}.data"
    if data.length and data.media and data.soft_tokens != (wanted := soft_tokens(parts)):
        # The text has as many places for an image as the connector has soft tokens for it.
        raise UserError(
            f"{flag}.soft_tokens={data.soft_tokens}, but the connector gives {wanted} for each image; write "
            f"{flag}.soft_tokens={wanted}"
        )
    if not data.media or "connectors.image" not in parts:
        return
    size = part_config("encoders.image", parts["encoders.image"]).image_size
    if data.image_size != size:
        raise UserError(f"{flag}.image_size={data.image_size} must be --config.parts.encoders.image.image_size={size}")
    connector, theirs = part_config("connectors.image", parts["connectors.image"]), "--config.parts.connectors.image"
    if data.queries and not getattr(connector, "vocab", 0):
        raise UserError(f"{flag}.queries={data.queries} ask a connector that reads no text ({theirs}.vocab); set it to 0")
    if data.queries and data.query_length > connector.max_positions:
        raise UserError(
            f"{flag}.query_length={data.query_length} is more than the Q-Former has positions for text, "
            f"{theirs}.max_positions={connector.max_positions}"
        )


def stage_seed(seed: int, stage: str) -> int:
    """The seed of a stage's data order and dropout: stages differ, and none depends on which others there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:4], "little") >> 1


def fill(assembly: Assembly, experiment: Experiment, trained: Mapping[str, Array], paths: Collection[str]) -> Parameters:
    """The values of these parameters before the stage, in its dtypes and on its devices.

    Args:
      assembly: of the stage.
      experiment: names seed and sources.
      trained: what earlier stages have trained, on any mesh.
      paths: of the parameters wanted.

    Raises:
      UserError: an earlier stage has trained what this one has no place for, or a source does not fit its part.
    """
    specs = assembly.definition.specs
    homeless = [path for path in trained if path not in specs]
    if homeless:
        raise UserError(
            f"an earlier stage has trained {homeless[0]} (and {len(homeless) - 1} more), for which stage "
            f"{assembly.stage.name!r} has no place; give --config.stages.{assembly.stage.name}.lora the same rules"
        )
    values = {path: trained[path] for path in paths if path in trained}
    for name, part in experiment.parts.items():
        # A stage's adapters are its own: they are drawn, and those of the source are merged into its weights.
        wanted = [path for path in paths if path not in values and path.startswith(f"{name}.") and not is_factor(path)]
        wanted = [path for path in wanted if not re.fullmatch(part.get("fresh", ""), path)]
        if part.get("source") and wanted:
            values |= _read_source(assembly, name, part, wanted)
    # One after the other, so that what is read and what is stored of it are never there as a whole together.
    values = {path: _place(assembly, path, values.pop(path)) for path in list(values)}
    rest = {path: specs[path] for path in paths if path not in values}
    if rest:
        values |= init_parameters(
            Definition(assembly.definition.graphdef, rest),
            jax.random.key(experiment.seed),
            assembly.rules.dtype,
            {path: assembly.shardings[path] for path in rest},
        )
    return {path: values[path] for path in paths}


def in_floats(assembly: Assembly) -> Assembly:
    """The stage with its int8 matrices in the dtype of the forward pass: as its model is used and written after training,
    since a source's own values are better than what is left of them, and an adapter fits both."""
    dtypes = {
        path: jnp.dtype(assembly.stage.compute_dtype) if dtype == INT8 else dtype
        for path, dtype in assembly.rules.dtype.items()
    }
    return dataclasses.replace(assembly, rules=dataclasses.replace(assembly.rules, dtype=dtypes))


def first_state(assembly: Assembly, experiment: Experiment, trained: Mapping[str, Array]) -> State:
    """The state before the first step of a stage."""
    trainable = fill(assembly, experiment, trained, list(assembly.state.trainable))
    key = jax.random.key(stage_seed(experiment.seed, assembly.stage.name))
    ema = bool(assembly.stage.optimizer.ema)
    return init_state(trainable, assembly.optimizer, assembly.shardings, key=key, ema=ema)


def _place(assembly: Assembly, path: str, value: Array) -> Any:
    """A value in the stage's dtype on the stage's devices."""
    spec = assembly.definition.specs[path]
    if value.shape != spec.shape:
        raise UserError(f"{path}: the config makes it {list(spec.shape)}, its stored values are {list(value.shape)}")
    dtype, sharding = assembly.rules.dtype[path], assembly.shardings[path]
    if dtype != INT8:
        return jax.device_put(value.astype(dtype), sharding)
    placement = jax.tree.map(lambda leaf: leaf.sharding, assembly.frozen[path])
    return jax.jit(quantise, out_shardings=placement)(jax.device_put(value, sharding))


def _read_source(assembly: Assembly, part: str, config: Mapping[str, Any], paths: Collection[str]) -> dict[str, Array]:
    """A part's weights from its sources; what these are known not to store is left to be drawn."""
    sources = [config["source"]] if isinstance(config["source"], str) else list(config["source"])
    source, weights, absent = " and ".join(sources), {}, set()
    for each in sources:
        if all(path in weights or path in absent for path in paths):
            break
        stored, never = _stored(assembly, part, config, each)
        weights, absent = stored | weights, absent.union(never)
    found = {path: weights[path] for path in paths if path in weights}
    if not found:
        raise UserError(f"--config.parts.{part}.source={source} holds no weights of {part}")
    missing = [path for path in paths if path not in found and path not in absent and not is_factor(path)]
    for piece, pattern in PIECES.items():
        unread = [path for path in missing if re.fullmatch(pattern, path)]
        if unread and not any(re.fullmatch(pattern, path) for path in weights):
            log.warning("%s holds no %s; drawn anew: %s", source, piece, table.report("parameters", unread, []))
            missing = [path for path in missing if path not in unread]
    if missing:
        raise UserError(
            f"--config.parts.{part}.source={source} lacks {missing[0]} (and {len(missing) - 1} more): it stores but some of "
            f"the part, or the sizes in --config.parts.{part} are not those of the stored model"
        )
    return found


def _stored(assembly: Assembly, part: str, config: Mapping[str, Any], source: str) -> tuple[Parameters, Collection[str]]:
    """What a source of a part holds, and the paths that are never stored in such a source.

    The workdir of a finished run or a directory in Hugging Face layout, of which an image encoder that is to read pictures of
    another size gets its positions resized, and of a CLIP only what BLIP-2 reads is taken; the directory of a BERT, from which
    a Q-Former begins; a file of LAVIS; a checkpoint of MiniGPT-4; or LLaVA's file of a connector.
    """
    if Path(source).is_file():
        if part == minigpt4.CONNECTOR and minigpt4.recognise(source):
            return minigpt4.read_projection(source, config, mesh=assembly.mesh), ()
        if config["family"] == "linear":
            return llava_original.read_connector(source, config, assembly.mesh), ("connectors.image.newline",)
        heads = {part: heads} if (heads := config.get("heads")) else {}
        return lavis.read_part(part, source, mesh=assembly.mesh, heads=heads, part=config)[1], ()
    if is_workdir(source):
        model = mmjax.from_pretrained(source, mesh=assembly.mesh)
    else:
        model = pretrained.from_pretrained(source, mesh=assembly.mesh, part=part)
    if part == "encoders.image" and part in model.config["parts"]:
        model = with_image_size(model, config["image_size"])
    absent: Any = model.config.get("absent", ())
    weights = merge_lora(dict(model.parameters), lora_scales(model.definition))  # a stage's adapters are its own
    if part == "connectors.image" and part not in model.config["parts"] and "encoders.text" in model.config["parts"]:
        text = {path.removeprefix("encoders.text."): value for path, value in weights.items()}
        qformer = from_bert(part_config(part, config), text)
        return {f"{part}.{path}": value for path, value in qformer.items()}, assembly.definition.specs
    if part == "encoders.image" and part in model.config["parts"]:
        weights = _tower(weights, part_config(part, model.config["parts"][part]), part_config(part, config))
    return {path: value for path, value in weights.items() if path not in absent}, absent


def _tower(weights: Parameters, stored: ViTConfig, wanted: ViTConfig) -> Parameters:
    """The weights of an image encoder that a part reads.

    Where the part has a norm behind its features and the stored tower one for its pooled vector only, the part is BLIP-2's
    reading of a CLIP (arXiv 2301.12597, section 4.1): the features before the last block, under a norm that begins anew.
    """
    if wanted.norm_pooled or not stored.norm_pooled:
        return weights
    blocks, norm = "encoders.image.layers.", "encoders.image.norm."
    kept = {path: value for path, value in weights.items() if not path.startswith(norm)}
    return {path: value[: wanted.layers] if path.startswith(blocks) else value for path, value in kept.items()}
