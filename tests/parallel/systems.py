"""Every published system at toy width, from its own config, with batches that are drawn and need no data set."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from mmjax.parallel.hosts import to_devices
from mmjax.parallel.mesh import make_mesh
from mmjax.systems.objectives import make_objective
from mmjax.systems.parts import part_config
from mmjax.training.assembly import Assembly, assemble
from mmjax.training.stage import Experiment, Stage
from mmjax.training.state import init_state, partition
from mmjax.training.step import make_train_step
from mmjax.types import Batch, Media, Queries, Text
from mmjax.types.config import from_config

# Name -> config file, its argument, the stage, and the sizes of its batches that differ from the config's.
SYSTEMS: dict[str, tuple[str, str, str, dict[str, int]]] = {
    "blip2_stage1": ("blip2.stage1", "tiny", "stage1", {}),
    "blip2_stage2": ("blip2.stage2", "tiny", "stage2", {}),
    "blip2_stage2_t5": ("blip2.stage2", "llm=flan_t5_xl,tiny", "stage2", {"source_length": 24, "length": 32}),
    "blip2_vqa": ("blip2.vqa", "tiny", "vqa", {}),
    "instructblip": ("instructblip.instruct", "tiny", "instruct", {"length": 128, "query_length": 8}),
    "instructblip_t5": (
        "instructblip.instruct", "llm=flan_t5_xl,tiny", "instruct", {"source_length": 96, "length": 64, "query_length": 8},
    ),
    "llava_1_5": ("llava.finetune", "tiny", "finetune", {"length": 128}),
    "llava_1_6": ("llava.finetune", "version=1.6,tiny", "finetune", {"length": 128, "media": 6}),
    "llava_lora": ("llava.finetune_lora", "tiny", "finetune", {"length": 128}),
    "minigpt4": ("minigpt4.stage2", "tiny", "stage2", {"length": 64}),
}  # fmt: skip
ROWS = 8
OPTIMIZER = {
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup_steps": 0,
    "warmup_from": 0.0,
    "schedule_every": 1,
    "eps": 1e-4,
}


def configured(name: str, rows: int = ROWS, drops: bool = True, **fields: Any) -> tuple[Experiment, Stage]:
    """The experiment of a system, and its stage with small batches and a learning rate that does not wait.

    Without `drops` no Q-Former has dropout, whose draws differ with the number of micro-batches.
    """
    module, arg, stage_name, sizes = SYSTEMS[name]
    config = importlib.import_module(f"experiments.{module}").get_config(arg)
    if "t5" in name:
        config.parts.llm.heads = 4  # the table of its relative positions has a column for each, over `tensor`
    qformer = config.parts.get("connectors.image")
    if not drops and "dropout" in qformer:
        qformer.dropout = 0.0
    experiment = from_config(Experiment, config)
    stage = experiment.stages[stage_name]
    optimizer = dataclasses.replace(stage.optimizer, **OPTIMIZER, accumulation=fields.pop("accumulation", 1))
    objective = dataclasses.replace(stage.objective, chunk=fields.pop("chunk", 24))
    data = dataclasses.replace(stage.data, rows=rows, **{**sizes, "longest": 0})
    return experiment, dataclasses.replace(stage, data=data, optimizer=optimizer, objective=objective, **fields)


def draw_batch(experiment: Experiment, stage: Stage, seed: int = 0) -> Batch:
    """A batch as the pipeline packs it: three segments a row and some padding, pictures in the first places."""
    data, random = stage.data, np.random.default_rng(seed)
    b, n, m, u, t, s = data.rows, data.media, data.queries, data.query_length, data.length, data.source_length
    words = part_config("llm", experiment.parts["llm"]).vocab if "llm" in experiment.parts else 0
    pixels = random.integers(0, 256, (b, n, data.image_size, data.image_size, 3), dtype=np.uint8)
    media = {"image": Media(pixels, np.ones((b, n), bool), random.integers(0, b, (b, n)).astype(np.int32))} if n else {}
    queries = {}
    if m:
        vocab = part_config("connectors.image", experiment.parts["connectors.image"]).vocab
        mask = np.arange(u) < random.integers(2, u + 1, (b, m, 1))
        medium = np.sort(random.integers(0, n, (b, m)), axis=1).astype(np.int32)
        queries = {"image": Queries(random.integers(1, vocab, (b, m, u)).astype(np.int32) * mask, mask, medium)}
    read = s or t
    soft = min((m or n) * data.soft_tokens, 3 * read // 4)
    index = np.full((b, read), -1, np.int32)
    index[:, 1 : 1 + soft] = np.arange(soft)
    return Batch(
        text=draw_text(random, b, t, words) if t else None,
        source=draw_text(random, b, s, words) if s else None,
        media=media,
        queries=queries,
        feature_index=index if t and n else None,
    )


def draw_text(random: np.random.Generator, rows: int, length: int, vocab: int) -> Text:
    """Rows of three segments; the end of each is learnt, the end of a row is padding."""
    ends = np.sort(np.stack([random.choice(np.arange(4, length - 2), 3, replace=False) for _ in range(rows)]))
    slots = np.arange(length)
    segments = (slots >= np.pad(ends, ((0, 0), (1, 0)))[:, :, None]).sum(1)
    segments = np.where(segments > 3, 0, segments).astype(np.int32)
    starts = np.take_along_axis(np.pad(ends, ((0, 0), (2, 0))), segments, axis=1)
    tokens = random.integers(0, vocab, (rows, length)).astype(np.int32)
    weights = (random.random((rows, length)) < 0.5) * (segments > 0)
    return Text(tokens, np.roll(tokens, -1, 1), weights.astype(np.float32), (slots - starts).astype(np.int32), segments)


@functools.cache
def values(name: str) -> dict[str, np.ndarray]:
    """Parameters of a system, none of them zero: adapters and biases count."""
    definition = assembled(*configured(name), {}).definition
    random = np.random.default_rng(0)
    drawn = jax.device_get(jax.jit(definition.initialise)(jax.random.key(0)))
    return {path: value + random.normal(0, 0.02, value.shape).astype(value.dtype) for path, value in drawn.items()}


def assembled(experiment: Experiment, stage: Stage, sizes: dict[str, int]) -> Assembly:
    """The stage on as many devices as a mesh of these sizes has."""
    return assemble(experiment, stage, make_mesh(sizes, jax.devices()[: math.prod(sizes.values())]))


@dataclasses.dataclass(frozen=True)
class Ready:
    """A system before its first step."""

    assembly: Assembly
    step: Any
    state: Any
    frozen: dict[str, Any]
    batch: Batch


def ready(name: str, sizes: dict[str, int], **fields: Any) -> Ready:
    """A system on a mesh of these sizes, with the same parameters and batch on any."""
    experiment, stage = configured(name, **fields)
    made = assembled(experiment, stage, sizes)
    placed = {
        path: jax.device_put(value.astype(made.rules.dtype[path]), made.shardings[path]) for path, value in values(name).items()
    }
    trainable, frozen = partition(placed, made.rules.trainable)
    state = init_state(trainable, made.optimizer, made.shardings, key=jax.random.key(1))
    config = stage.objective
    objective = make_objective(
        config.name, config.weights, label_smoothing=config.label_smoothing, chunk=config.chunk, positives=config.positives
    )
    step = make_train_step(made.definition, stage, objective, made.optimizer, state, frozen)
    batch = draw_batch(experiment, stage)
    return Ready(made, step, state, frozen, to_devices(made.mesh, stage.data.rows)(batch))


def first_step(name: str, sizes: dict[str, int], **fields: Any) -> tuple[Any, dict[str, float]]:
    """The state after one step, and its metrics."""
    made = ready(name, sizes, **fields)
    state, metrics = made.step(made.state, made.frozen, made.batch)
    return state, {key: float(value) for key, value in metrics.items()}


def distance(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all leaves."""

    def norm(leaves: Iterable[Any]) -> float:
        return float(np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in leaves)))

    return norm(np.asarray(ours[path]) - np.asarray(theirs[path]) for path in theirs) / norm(theirs.values())
