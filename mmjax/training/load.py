"""The model of a run: for its own evaluations, and for whoever opens its workdir."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mmjax.data.config import DataConfig
from mmjax.data.media.image import ImageTransform
from mmjax.data.media.tiles import Tiling
from mmjax.data.processor import Processor, load_processor, make_processor
from mmjax.layers.parameters import Parameters
from mmjax.parallel.mesh import make_mesh
from mmjax.systems.parts import learned_positions, part_config, reads_source
from mmjax.training.assembly import Assembly, assemble, fill, in_floats
from mmjax.training.checkpoint import Checkpoints, restore_leaves
from mmjax.training.stage import Experiment, Stage
from mmjax.types import UserError
from mmjax.types.config import from_config
from mmjax.types.model import Model


def make_model(
    assembly: Assembly,
    parameters: Parameters,
    processor: Processor,
    experiment: Experiment,
    source: Path,
    cache: dict[Any, Any],
) -> Model:
    """A stage's model, ready to answer. `config["template"]` is the one that it was trained with, if that was one."""
    templates = {each.template for each in assembly.stage.data.mixture.values()}
    config = {"parts": experiment.parts, "source": str(source), "stage": assembly.stage.name}
    config["template"] = templates.pop() if len(templates) == 1 else None
    return Model(assembly.definition, parameters, processor, config, cache)


def load_model(workdir: str | Path, dtype: Any = None, mesh: Mesh | None = None, stage: str | None = None) -> Model:
    """The model of a run's workdir.

    Args:
      workdir: of `train`; a run under way may be read.
      dtype: of the parameters; None keeps that of the stage, but for int8: those are read anew in its compute dtype.
      mesh: how to shard them; None = the default device.
      stage: after this stage; None = after the latest that has a checkpoint.

    Raises:
      UserError: no such run or stage, or no good checkpoint.
    """
    workdir = Path(workdir)
    experiment = from_config(Experiment, json.loads((workdir / "config.json").read_text()), str(workdir / "config.json"))
    saved = [name for name in experiment.stages if Checkpoints(workdir / "checkpoints" / name, writable=False).steps()]
    if not saved or stage not in (None, *saved):
        raise UserError(f"{workdir} has checkpoints of {', '.join(saved) or 'no stage'}; train {stage or 'it'} first")
    saved = saved[: saved.index(stage) + 1] if stage else saved
    mesh = make_mesh({}, jax.local_devices()[:1]) if mesh is None else mesh
    trained: Parameters = {}
    for name in saved:
        assembly = assemble(experiment, experiment.stages[name], mesh)
        averaged = name == saved[-1] and assembly.stage.optimizer.ema
        prefix = "ema/" if averaged else "trainable/"
        trained |= restore_leaves(workdir / "checkpoints" / name, prefix, assembly.shardings.__getitem__)[1]
    parameters = fill(in_floats(assembly), experiment, trained, list(assembly.definition.specs))
    if dtype is not None:
        parameters = {path: value.astype(dtype) for path, value in parameters.items()}
    sizes = processor_sizes(experiment, assembly.stage)
    processor = dataclasses.replace(load_processor(workdir / "tokenizer"), **sizes)
    return make_model(assembly, parameters, processor, experiment, workdir, {})


def processor_sizes(experiment: Experiment, stage: Stage) -> dict[str, Any]:
    """What a stage's processor has besides its tokenizers."""
    data = stage.data
    vocabulary = part_config("llm", experiment.parts["llm"]).vocab if "llm" in experiment.parts else 0
    names = ("soft_tokens", "image_size", "query_length", "truncate_query", "frames")
    sizes = {name: getattr(data, name) for name in names}
    facts = {"vocabulary": vocabulary, "encoder_decoder": reads_source(experiment.parts)}
    facts["positions"] = learned_positions(experiment.parts)
    return {**sizes, **facts, **image_fit(experiment.parts, data)}


def image_fit(parts: Mapping[str, Mapping[str, Any]], data: DataConfig) -> dict[str, Any]:
    """How a stage's images reach the encoder's size."""
    if data.fit == "tiles":
        grid = math.isqrt(data.soft_tokens)
        return {"tiling": Tiling(data.grids, data.image_size, grid)}
    if data.fit == "stretch":
        return {}
    size = data.image_size
    colour = part_config("encoders.image", parts["encoders.image"]).mean
    pad = tuple(int(255 * value) for value in colour) if data.fit == "pad" else None
    return {"transform": ImageTransform(size, (size, size), pad=pad)}


def stage_processor(experiment: Experiment, stage: Stage) -> Processor:
    """The tokenizers of an experiment with a stage's sizes."""
    return make_processor(experiment.tokenizers, **processor_sizes(experiment, stage))
