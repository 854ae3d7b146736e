"""FLOPs worked out from a config against those counted in the traced step: every recipe, every remat policy."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from launch.command import load_config
from mmjax.layers.stack import REMAT_POLICIES
from mmjax.training.flops import count_by_scope
from mmjax.training.flops_model import Block, Flops, Product, block_flops, model_flops
from mmjax.training.parts import step_flops
from mmjax.training.plan.program import Program, make_program
from mmjax.training.stage import Experiment, MeshConfig, Stage
from mmjax.types.config import from_config

RECIPES = {
    "llava_projector": "llava/pretrain.py:tiny",
    "llava_lora": "llava/finetune_lora.py:tiny",
    "llava_full": "llava/finetune.py:tiny",
    "blip2_stage1": "blip2/stage1.py:tiny",
    "blip2_stage2": "blip2/stage2.py:tiny",
    "blip2_stage2_t5": "blip2/stage2.py:llm=flan_t5_xl,tiny",
    "instructblip": "instructblip/instruct.py:tiny",
    "minigpt4": "minigpt4/stage1.py:tiny",
}
EVERY_POLICY = ("llava_lora", "blip2_stage2")  # by default; the others' are heavy
# Besides: an image encoder that is trained, by itself and with everything else; a connector without a Q-Former.
OTHERS = {
    "llava_tiles": "llava/finetune.py:version=1.6,tiny",
    "blip2_retrieval": "blip2/retrieval.py:tiny",
    "blip2_vqa": "blip2/vqa.py:tiny",
    "instructblip_t5": "instructblip/instruct.py:llm=flan_t5_xl,tiny",
    "minigpt4_llama2": "minigpt4/stage1.py:llm=llama2_7b,tiny",
}


def last_stage(spec: str) -> tuple[Experiment, Stage]:
    experiment = from_config(Experiment, load_config(f"experiments/{spec}"))
    return experiment, list(experiment.stages.values())[-1]


def stage_program(spec: str, remat: str) -> tuple[Experiment, Program]:
    experiment, stage = last_stage(spec)
    return experiment, make_program(experiment, dataclasses.replace(stage, remat=remat), jax.devices()[:1])


def worked_out(experiment: Experiment, program: Program) -> dict[str, Flops]:
    return model_flops(experiment, program.stage, program.assembly.definition, program.assembly.state.trainable)


COMBINATIONS = [
    pytest.param(spec, remat, id=f"{name}-{remat}", marks=() if remat == "full" or name in EVERY_POLICY else pytest.mark.heavy)
    for name, spec in RECIPES.items()
    for remat in REMAT_POLICIES
]


@pytest.mark.parametrize(("spec", "remat"), COMBINATIONS)
def test_paper_and_program_agree_in_every_part(spec, remat):
    experiment, program = stage_program(spec, remat)
    expected = worked_out(experiment, program)
    counted = count_by_scope(program.step, program.assembly.state, program.assembly.frozen, program.batch, scopes=expected)
    assert counted == {part: pytest.approx(flops.total, rel=1e-3) for part, flops in expected.items()}


@pytest.mark.parametrize("spec", OTHERS.values(), ids=OTHERS)
def test_forward_and_backward_of_recipes_with_other_parts(spec):
    experiment, program = stage_program(spec, "full")
    made = program.assembly
    counted = step_flops(
        made.definition, program.stage, program.objective, program.step, made.state, made.frozen, program.batch
    )
    for part, flops in worked_out(experiment, program).items():
        assert counted[part] == pytest.approx((flops.forward, flops.backward + flops.again), rel=1e-3)


@pytest.mark.parametrize("spec", ["llava/finetune.py:tiny", "instructblip/instruct.py:tiny"])
def test_sequence_parallelism_fills_up_media_slots_and_chunks(spec):
    experiment, stage = last_stage(spec)
    objective = dataclasses.replace(stage.objective, chunk=100)
    stage = dataclasses.replace(stage, mesh=MeshConfig(fsdp=2, sequence=4), objective=objective, remat="full")
    program = make_program(experiment, stage, jax.devices())
    made = program.assembly
    expected = model_flops(experiment, stage, made.definition, made.state.trainable, made.mesh.shape)
    counted = count_by_scope(program.step, made.state, made.frozen, program.batch, scopes=expected)
    assert counted == {part: pytest.approx(flops.total, rel=1e-3) for part, flops in expected.items()}


def test_published_formulas_of_a_7b():
    """FLOPs a token at width 4096, 32 layers and 2,048 positions: 4N, and 6N with all weights trained, plus attention."""
    ffn, width, length, layers = 11008, 4096, 2048, 32
    shapes = {"up": width * ffn, "gate": width * ffn, "down": ffn * width}
    weights = 4 * width * width + sum(shapes.values())
    pairs = 2 * length * width
    products = (
        *(Product(name, 2 * width * width, ("carry",), name) for name in ("query", "key", "value")),
        Product("scores", pairs, ("query",), times=("key",), linear=True),
        Product("attended", pairs, ("scores",), times=("value",)),
        Product("output", 2 * width * width, ("attended",), "output", linear=True),
        *(Product(name, 2 * size, ("carry", "output"), name) for name, size in list(shapes.items())[:2]),
        Product("down", 2 * shapes["down"], ("gate", "up"), "down"),
    )
    block = Block("llm", products, layers, gradients=frozenset({"carry"}), remat="full")
    attention, n, last = 2 * pairs * layers, weights * layers, shapes["down"] * layers
    frozen, full = block_flops(block, ()), block_flops(block, {product.weight for product in products if product.weight})
    assert frozen.forward + frozen.backward == 4 * n + 3 * attention
    assert full.forward + full.backward == 6 * n + 3 * attention
    assert frozen.again == full.again == 2 * (n - last) + attention


def test_useful_flops_leave_out_remat_and_what_is_masked():
    experiment, program = stage_program("llava/finetune.py:tiny", "full")
    made, data = program.assembly, program.stage.data
    arguments = (experiment, program.stage, made.definition, made.state.trainable)
    hardware, useful = (model_flops(*arguments, useful=each)["llm"] for each in (False, True))
    layers, _, width = made.definition.specs["llm.layers.attention.query.kernel"].shape
    masked = layers * 2 * 2 * data.rows * data.length * width * (data.length - (data.length / data.media + 1) / 2)
    assert useful.again == 0 < hardware.again
    assert hardware.forward - useful.forward == pytest.approx(masked)
