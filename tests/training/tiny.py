"""A tiny system for the tests of training: an encoder, a connector and a stacked language model, with an objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.data.config import DataConfig, SourceConfig
from mmjax.layers.linear import Linear
from mmjax.layers.mlp import MLP
from mmjax.layers.parameters import Definition, define, normal, parameter, stack
from mmjax.layers.stack import run
from mmjax.parallel.axes import shardings
from mmjax.parallel.mesh import make_mesh
from mmjax.training.optimizer import make_optimizer
from mmjax.training.rules import Resolved, resolve
from mmjax.training.stage import GuardConfig, ObjectiveConfig, OptimizerConfig, Stage
from mmjax.training.state import init_parameters, init_state, partition
from mmjax.training.step import make_train_step

PIXELS, VISION, WIDTH, FFN, CLASSES = 6, 12, 16, 32, 8


class Encoder(nnx.Module):
    def __init__(self):
        self.layer = Linear(PIXELS, VISION, ("channels", "embed"))

    def __call__(self, pixels):
        return jax.nn.gelu(self.layer(pixels))


class Trunk(nnx.Module):
    def __init__(self, layers: int):
        self.layers = stack(MLP(WIDTH, FFN, "gelu"), layers)
        self.scale = parameter((), (), nnx.initializers.ones_init())
        self.head = parameter((WIDTH, CLASSES), ("embed", "vocab"), normal(0.1))

    def __call__(self, x):
        x, _ = run(self.layers, lambda layer, carry, _: (carry + layer(carry), None), x)
        return (x * self.scale[...]) @ self.head[...].astype(x.dtype)


class System(nnx.Module):
    def __init__(self, layers: int):
        self.encoders = nnx.Dict(image=Encoder())
        self.connectors = nnx.Dict(image=Linear(VISION, WIDTH, ("embed", "embed")))
        self.llm = Trunk(layers)

    def __call__(self, pixels):
        with jax.named_scope("encoders.image"):
            features = self.encoders["image"](pixels)
        with jax.named_scope("connectors.image"):
            soft = self.connectors["image"](features)
        with jax.named_scope("llm"):
            return self.llm(soft)


@dataclasses.dataclass(frozen=True)
class Classification:
    """Weighted cross-entropy, with an optional dropout on the logits."""

    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    pairwise: bool = False
    dropout: float = 0.0

    def counts(self, batch):
        return {"class": batch["weights"].sum()}

    def sums(self, module, batch, key):
        logits = module(jnp.asarray(batch["pixels"])).astype(jnp.float32)
        logits = logits * jax.random.bernoulli(key, 1 - self.dropout, logits.shape)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["labels"][:, None], 1)[:, 0]
        correct = (logits.argmax(-1) == batch["labels"]) * batch["weights"]
        return {"class": (losses * batch["weights"]).sum()}, {"accuracy": (correct.sum(), batch["weights"].sum())}


def tiny_definition(layers: int = 2) -> Definition:
    return define(System(layers))


def tiny_stage(
    rows: int = 16, guard: GuardConfig | None = None, optimizer: dict[str, Any] | None = None, **fields: Any
) -> Stage:
    settings = {"learning_rate": 1e-2, "schedule": "constant", "weight_decay": 0.1, **(optimizer or {})}
    return Stage(
        name="tiny",
        steps=10,
        objective=ObjectiveConfig(name="classification"),
        data=DataConfig(mixture={"noise": SourceConfig(path="")}, rows=rows, length=0),
        optimizer=OptimizerConfig(**settings),
        guard=guard or GuardConfig(),
        **fields,
    )


def tiny_batch(rows: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "pixels": random.normal(size=(rows, PIXELS)).astype(np.float32),
        "labels": random.integers(0, CLASSES, rows),
        "weights": random.random(rows).astype(np.float32),
    }


@dataclasses.dataclass
class Setup:
    """A stage made ready on a mesh."""

    definition: Definition
    stage: Stage
    resolved: Resolved
    optimizer: Any
    placement: dict[str, Any]
    state: Any
    frozen: dict[str, Any]
    step: Callable[..., Any]


_made: dict[str, Setup] = {}


def set_up(stage: Stage, mesh_sizes: dict[str, int] | None = None, layers: int = 2, objective: Any = None) -> Setup:
    """Everything of a stage; one device unless mesh sizes are given. What is compiled is shared, the state is fresh."""
    name = repr((stage, mesh_sizes, layers, objective))
    if name not in _made:
        _made[name] = _set_up(stage, mesh_sizes, layers, objective or Classification())
    setup = _made[name]
    return dataclasses.replace(setup, state=jax.tree.map(jnp.copy, setup.state))


def _set_up(stage: Stage, mesh_sizes: dict[str, int] | None, layers: int, objective: Any) -> Setup:
    definition = tiny_definition(layers)
    mesh = make_mesh(mesh_sizes or {}, jax.devices() if mesh_sizes else jax.devices()[:1])
    resolved = resolve(stage, definition.specs)
    placement = shardings(definition.specs, mesh, resolved.sharding)
    optimizer = make_optimizer(stage.optimizer, stage.steps, resolved.learning_rate, resolved.weight_decay)
    parameters = init_parameters(definition, jax.random.key(0), resolved.dtype, placement)
    trainable, frozen = partition(parameters, resolved.trainable)
    state = init_state(trainable, optimizer, placement, key=jax.random.key(1), ema=stage.optimizer.ema > 0)
    step = make_train_step(definition, stage, objective, optimizer, state, frozen)
    return Setup(definition, stage, resolved, optimizer, placement, state, frozen, step)
