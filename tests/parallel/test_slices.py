"""Two slices of TPUs, seen by the TPU's compiler: what goes over the slow links between them, and in which precision."""

from __future__ import annotations

import math
import re

import pytest

from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.topology import find_devices, parse_topology, prepare
from mmjax.systems.objectives import make_objective
from mmjax.training.assembly import assemble
from mmjax.training.plan.collectives import read_collectives
from mmjax.training.step import lower_step, make_train_step
from tests.parallel.systems import configured, draw_batch


@pytest.mark.heavy
def test_only_gradients_of_what_is_trained_cross_slices_and_no_weight_is_gathered_in_float32():
    topology = parse_topology("v5e:2x4*2")
    prepare(topology)
    mesh = make_mesh({"replica": 2, "fsdp": 4, "sequence": 2}, list(find_devices(topology)))
    experiment, stage = configured(
        "llava_lora", compute_dtype="bfloat16", remat="full", lora=((r"llm\.layers\..*\.kernel", 256),)
    )
    experiment.parts["connectors.image"]["output_width"] = 512
    experiment.parts["llm"].update(width=512, ffn=2048, heads=4, kv_heads=4)  # tiles that are filled up do not count
    made = assemble(experiment, stage, mesh)
    objective = make_objective(stage.objective.name, {})
    step = make_train_step(made.definition, stage, objective, made.optimizer, made.state, made.frozen)
    program = lower_step(step, made.state, made.frozen, draw_batch(experiment, stage)).compile().as_text()

    crossing = [each for each in read_collectives(program, dict(mesh.shape)) if "replica" in each.axes]
    assert {(each.kind, each.axes) for each in crossing} == {("all-reduce", ("replica",))}, "slices exchange nothing but sums"
    gradients = sum(2 * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in made.state.trainable.values())
    assert sum(each.bytes for each in crossing) <= 1.1 * gradients, "a chip sends its share, in bfloat16"

    assert " all-gather" in program and not re.findall(r" = \(?f32\[\d+,[\d,]*\]\S* all-gather", program)
