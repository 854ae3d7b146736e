"""A stage compiled by the TPU's compiler, with no TPU: what it needs, what it sends, and what is said where it does not fit."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os

import jax
import pytest
from rich.console import Console

from launch.command import load_config
from mmjax.parallel.topology import Topology, parse_topology, prepare
from mmjax.training.plan.collectives import find_collectives
from mmjax.training.plan.program import _refused, _text
from mmjax.training.plan.report import plan_json, print_plan, verdict, write_json
from mmjax.training.plan.stage_plan import Plan, make_plan
from mmjax.training.stage import Experiment
from mmjax.types import UserError
from mmjax.types.config import from_config

KEYS = {
    "fits", "hbm_bytes_per_chip", "hbm_limit_bytes", "useful_flops_per_step", "hardware_flops_per_step", "roofline_seconds",
    "collectives", "compile_seconds", "parts",
}  # fmt: skip
GIB = 2**30
DEPTH = 5  # of the language model: deeper stacks are a loop of the same program


def llava(width: int = 512, **stage) -> Experiment:
    """LLaVA's fine-tuning at a small width and depth, in bfloat16 from float32 weights like the published one."""
    config = load_config("experiments/llava/finetune.py:tiny")
    config.parts.llm.update({"layers": DEPTH, "width": width, "heads": 4, "kv_heads": 4, "head_dim": 128, "ffn": 2 * width})
    config.parts.connectors.image.output_width = width
    config.stages.finetune.update({"compute_dtype": "bfloat16", "remat": "full", **stage})
    config.stages.finetune.dtype = [[r"(connectors|llm)\..*", "float32"], [".*", "bfloat16"]]
    return from_config(Experiment, config)


def planned(experiment: Experiment, topology: str) -> Plan:
    prepare(parse_topology(topology))
    (stage,) = experiment.stages.values()
    return make_plan(experiment, stage, parse_topology(topology))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned(llava(), "v5e:2x2")


@pytest.mark.heavy
def test_the_state_is_split_evenly_and_given_back_in_place(plan):
    state = plan.program.assembly.state
    trained = sum(math.prod(leaf.shape) for leaf in state.trainable.values())
    ideal, memory = 12 * trained / plan.topology.size, plan.compiled.memory
    assert ideal <= memory.aliased <= 1.05 * ideal, "float32 weights and two moments, a share on every chip"
    shard = [math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)]
    assert memory.aliased == pytest.approx(sum(shard), rel=0.01)
    assert memory.aliased <= memory.arguments <= plan.needed <= plan.limit == int(15.75 * GIB)
    assert plan.fits


def test_no_weight_is_gathered_in_float32(plan):
    """All of them are float32 in the state; what is gathered has been cast first."""
    gathered = [each for each in find_collectives(plan.compiled.text) if each.kind == "all-gather"]
    assert any(dtype == "bf16" for each in gathered for dtype, _ in each.arrays)
    smallest = 512 * 512  # the smallest matrix of the language model
    for each in gathered:
        for dtype, shape in each.arrays:
            assert dtype != "f32" or math.prod(shape) < smallest, f"{each.name} gathers float32 {shape}"


def test_every_layer_gathers_its_weights_and_scatters_its_gradients(plan):
    sent = {
        kind: sum(each.bytes for each in plan.collectives if each.kind == kind) for kind in ("all-gather", "reduce-scatter")
    }
    layer = 2 * sum(
        math.prod(spec.unstacked_shape)
        for path, spec in plan.program.assembly.definition.specs.items()
        if path.startswith("llm.layers.") and len(spec.unstacked_shape) == 2
    )
    assert sent["all-gather"] >= 2 * DEPTH * layer * 3 / 4, "forward, and again backward"
    assert sent["reduce-scatter"] >= DEPTH * layer * 3 / 4 * 0.9
    assert plan.read and {axis for each in plan.collectives for axis in each.axes} == {"fsdp"}


def test_work_and_time(plan):
    assert plan.counted == pytest.approx(plan.hardware_flops, rel=1e-3)
    assert 0 < plan.useful_flops < plan.hardware_flops
    times = plan.roofline
    assert times.seconds == max(times.compute, times.hbm, times.ici) and times.dcn == 0
    assert times.compute == pytest.approx(plan.hardware_flops / (4 * 197e12))
    assert getattr(times, times.bound) == times.seconds


def test_it_is_printed_and_written(plan, tmp_path):
    out = io.StringIO()
    print_plan(plan, Console(file=out, width=160))
    text = out.getvalue()
    assert "fits: " in text and "GiB to spare" in text and "all-gather" in text and "bound by" in text
    write_json({"finetune": plan}, tmp_path / "plan.json")
    read = json.loads((tmp_path / "plan.json").read_text())
    assert set(read) >= KEYS and read["fits"] is True and read["hbm_limit_bytes"] == plan.limit
    write_json({"a": plan, "b": plan}, tmp_path / "plan.json")
    assert set(json.loads((tmp_path / "plan.json").read_text())["stages"]) == {"a", "b"}


def test_the_compilers_refusals_are_read():
    early = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries (800.00G) exceeds available HBM (15.75G). HLO module: jit_f."  # noqa: E501
    late = 'RESOURCE_EXHAUSTED: E1000: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 15.76G of 15.75G hbm. Exceeded hbm capacity by 14.08M.\n\n  1. Size: 3.52G\n     Operator: op_name="jit(f)/dot"\n     Shape: f32[2,32]{1,0:T(8,128)}\n     Unpadded size: 3.52G\n'  # noqa: E501
    assert [(_refused(text, 1.0).needed, _refused(text, 1.0).limit) for text in (early, late)] == [
        (800 * GIB, int(15.75 * GIB)), (int(15.76 * GIB), int(15.75 * GIB)),
    ]  # fmt: skip
    assert _refused(late, 1.0).refusal == "3.52G f32[2,32] of jit(f)/dot"
    assert _refused(early, 1.0).refusal.startswith("the total memory required for HLO temporaries (800.00G)")


class Unprintable:
    """A program for v5p, as libtpu has it."""

    def as_text(self) -> str:
        os.write(2, b"RET_CHECK failure\n*** Begin stack trace ***\n")
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")


def test_what_libtpu_logs_of_a_program_that_it_cannot_print_is_not_shown(capfd):
    assert _text(Unprintable()) is None
    os.write(2, b"said afterwards")
    assert capfd.readouterr().err == "said afterwards"


def test_a_plan_that_does_not_fit_says_by_how_much(plan):
    refused = dataclasses.replace(plan, compiled=_refused("Used 20.00G of 15.75G hbm. Exceeded", 1.0))
    assert not refused.fits and refused.needed == 20 * GIB and plan_json(refused)["memory"] is None
    assert verdict(refused).startswith("does not fit: needs 20.00 GiB of the 15.75 GiB of a chip, 5.51 GiB more than")


def test_a_mesh_that_the_topology_has_no_devices_for_names_the_flag():
    with pytest.raises(UserError, match=r"4 devices; set --config\.stages\.finetune\.mesh\.tensor"):
        planned(llava(mesh={"tensor": 3}), "v5e:2x2")


@pytest.mark.heavy
def test_cpus_and_the_gpus_in_whose_place_they_stand():
    topology = Topology("cpu", (2,))
    experiment = llava(128)
    (stage,) = experiment.stages.values()
    plan = make_plan(experiment, stage, topology)
    assert plan.fits and plan.counted == pytest.approx(plan.hardware_flops, rel=1e-3)
    assert plan.collectives and plan.read
