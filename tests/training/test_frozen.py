"""A frozen tower costs its weights and one forward pass: no gradient, no moments, no residuals."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from mmjax.parallel.mesh import MESH_AXES
from mmjax.systems.objectives import make_objective
from mmjax.training.assembly import Assembly, assemble
from mmjax.training.stage import Experiment
from mmjax.training.step import lower_step, make_train_step
from mmjax.types import Batch, Media, Text
from mmjax.types.config import from_config

WIDTH, ROWS, SIDE, QUERIES, LENGTH = 32, 8, 24, 4, 16
FROZEN = {
    "encoder": [[r"encoders\.image\.norm\..*", True], [r"(encoders|llm)\..*", False], [".*", True]],
    "llm": [[r"llm\..*", False], [".*", True]],
}


def build(trainable: list, *, encoder_layers: int = 4, llm_layers: int = 4) -> Assembly:
    """BLIP-2's stage 2, without arrays."""
    sizes = {"width": WIDTH, "heads": 2, "ffn": 2 * WIDTH}
    experiment = from_config(
        Experiment,
        {
            "name": "test",
            "parts": {
                "encoders.image": {"family": "vit", **sizes, "layers": encoder_layers, "patch_size": 4, "image_size": SIDE},
                "connectors.image": {
                    "family": "qformer", **sizes, "layers": 2, "queries": QUERIES, "encoder_width": WIDTH,
                    "output_width": WIDTH, "dropout": 0.0,
                },
                "llm": {"family": "opt", **sizes, "layers": llm_layers, "vocab": 64, "max_positions": 32},
            },
            "tokenizers": {"llm": "none"},
            "stages": {
                "stage2": {
                    "steps": 10,
                    "objective": {"name": "language_modelling"},
                    "data": {
                        "mixture": {"none": {"path": "none"}}, "rows": ROWS, "length": LENGTH, "soft_tokens": QUERIES,
                        "image_size": SIDE,
                    },
                    "optimizer": {"learning_rate": 1e-3},
                    "trainable": trainable,
                }
            },
        },
    )  # fmt: skip
    stage = dataclasses.replace(experiment.stages["stage2"], name="stage2")
    return assemble(experiment, stage, Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), MESH_AXES))


def temporary_bytes(assembly: Assembly) -> int:
    """What the compiled step needs besides its arguments and outputs."""

    def array(*shape, dtype=np.int32):
        return np.zeros((ROWS, *shape), dtype)

    text = Text(array(LENGTH), array(LENGTH), array(LENGTH, dtype=np.float32), array(LENGTH), array(LENGTH))
    pixels = array(1, SIDE, SIDE, 3, dtype=np.uint8)
    batch = Batch(text=text, media={"image": Media(pixels, array(1, dtype=bool))}, feature_index=array(LENGTH))
    objective = make_objective("language_modelling", {})
    step = make_train_step(assembly.definition, assembly.stage, objective, assembly.optimizer, assembly.state, assembly.frozen)
    return lower_step(step, assembly.state, assembly.frozen, batch).compile().memory_analysis().temp_size_in_bytes


def test_the_state_holds_nothing_of_a_frozen_part():
    assembly = build(FROZEN["encoder"])
    kept = [path for path in assembly.state.trainable if not path.startswith("connectors.")]
    assert sorted(kept) == ["encoders.image.norm.bias", "encoders.image.norm.scale"], "BLIP-2 trains the norm after its tower"
    shapes = {leaf.shape for leaf in jax.tree.leaves(assembly.state.opt_state) if leaf.ndim}
    trained = {leaf.shape for leaf in assembly.state.trainable.values()}
    assert shapes == trained


@pytest.mark.heavy
def test_a_frozen_tower_keeps_no_residuals():
    """Three times the layers need no byte more where they are frozen, and a multiple where they are trained."""
    frozen = [temporary_bytes(build(FROZEN["encoder"], encoder_layers=layers)) for layers in (4, 12)]
    trained = [temporary_bytes(build(FROZEN["llm"], encoder_layers=layers)) for layers in (4, 12)]
    assert frozen[1] <= 1.02 * frozen[0]
    assert trained[1] - trained[0] > 4 * abs(frozen[1] - frozen[0]) + 2**20
    assert trained[0] > 1.2 * frozen[0]


@pytest.mark.heavy
def test_a_frozen_language_model_has_no_weight_gradient():
    """Gradients pass through it, but of its matrices none is computed: the buffers that hold them are missing."""
    frozen = temporary_bytes(build(FROZEN["llm"]))
    trained = temporary_bytes(build([[".*", True]]))
    assembly = build(FROZEN["llm"])
    weights = sum(leaf.size * 4 for path, leaf in assembly.frozen.items() if path.startswith("llm."))
    assert trained - frozen > 0.5 * weights
