"""The search: what it tries, what it leaves out on paper, and in which order it compiles."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from launch.command import load_config
from mmjax.parallel.topology import CHIPS, Topology, find_devices
from mmjax.training.flops_model import model_flops
from mmjax.training.plan import search as module
from mmjax.training.plan.program import Compiled, Memory, make_program
from mmjax.training.plan.report import print_changes, print_ranking
from mmjax.training.plan.roofline import expected_collectives, roofline
from mmjax.training.plan.search import candidates, could_fit, meshes, search
from mmjax.training.plan.stage_plan import Plan
from mmjax.training.stage import Experiment
from mmjax.types.config import from_config

FOUR = Topology("cpu", (4,))


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return from_config(Experiment, load_config("experiments/llava/finetune.py:tiny"))


def pretend(needed, limit):
    """A compiler that finds `needed(candidate's stage)` bytes of a chip."""

    def make(experiment, stage, topology) -> Plan:
        program = make_program(experiment, stage, find_devices(topology))
        flops = model_flops(experiment, stage, program.assembly.definition, program.assembly.state.trainable)
        sent = expected_collectives(program, flops)
        size = needed(stage)
        memory = Memory(arguments=size, aliased=0, temporary=0, peak=size)
        compiled = Compiled(0.0, memory if size <= limit else None, needed=size, limit=limit)
        return Plan(topology, program, {}, {}, flops, 0, compiled, sent, False, roofline(program, topology, flops, sent))

    return make


def test_meshes_multiply_to_the_devices():
    found = list(meshes(Topology("cpu", (8,), slices=2)))
    assert {"replica": 2, "fsdp": 8, "tensor": 1, "sequence": 1} in found
    assert all(mesh["replica"] * mesh["fsdp"] * mesh["tensor"] * mesh["sequence"] == 16 for mesh in found)


def test_every_candidate_divides_and_names_what_it_changes(experiment):
    (stage,) = experiment.stages.values()
    every = list(candidates(experiment, stage, FOUR))
    assert len({each.changes for each in every}) == len(every)
    (same,) = [each for each in every if not each.changes]
    assert same.stage.remat == stage.remat and same.stage.mesh.fsdp == 4
    changed = next(each for each in every if len(each.changes) == 3)
    assert changed.changes[0].startswith(f"--config.stages.{stage.name}.mesh.replica=1 ")
    assert changed.changes[1].startswith(f"--config.stages.{stage.name}.remat=")
    assert changed.changes[2].startswith(f"--config.stages.{stage.name}.optimizer.accumulation=")
    assert all(each.stage.data.rows % each.stage.optimizer.accumulation == 0 for each in every)


def test_the_fastest_on_paper_are_compiled_first_and_what_cannot_fit_is_not(experiment, monkeypatch):
    """Only with remat does it fit, by this compiler: after one failure whatever keeps as much is passed over."""
    (stage,) = experiment.stages.values()
    monkeypatch.setattr(module, "make_plan", pretend(lambda stage: 10 if stage.remat == "full" else 1000, limit=100))
    tried = []
    found = search(
        experiment, stage, FOUR, seconds=60.0, report=lambda candidate, plan: tried.append(candidate) if plan is None else None
    )
    assert [each.seconds for each in tried] == sorted(each.seconds for each in tried)
    assert [plan.fits for _, plan in found] == sorted((plan.fits for _, plan in found), reverse=True)
    assert sum(plan.fits for _, plan in found) == module.ENOUGH and found[0][0].stage.remat == "full"
    times = [plan.roofline.seconds for _, plan in found if plan.fits]
    assert times == sorted(times)
    failed = [each for each in tried if each.stage.remat != "full"]
    assert not any(later.needs_more_than(each) for i, each in enumerate(failed) for later in failed[i + 1 :])
    out = io.StringIO()
    print_ranking(found, Console(file=out, width=60))
    assert "does not fit" in out.getvalue()
    for number, (candidate, _) in enumerate(found, 1):
        assert f"\n{number}: {' '.join(candidate.changes) or 'the config as it is'}\n" in out.getvalue(), "whole, on a line"


@pytest.mark.heavy
def test_the_budget_ends_the_search(experiment, monkeypatch):
    (stage,) = experiment.stages.values()
    monkeypatch.setattr(module, "make_plan", pretend(lambda stage: 10, limit=100))
    assert len(search(experiment, stage, FOUR, seconds=0.0)) == 1


def test_the_smallest_change_that_could_fit(experiment, monkeypatch):
    (stage,) = experiment.stages.values()
    now = next(each for each in candidates(experiment, stage, FOUR) if not each.changes)
    needed = round(now.fixed + 100 * now.inputs)
    small = dataclasses.replace(FOUR.chip, memory=round((now.fixed + 60 * now.inputs) / 0.92))
    monkeypatch.setitem(CHIPS, "cpu", small)
    refused = pretend(lambda stage: needed, limit=small.memory)(experiment, stage, FOUR)
    best, *_ = could_fit(experiment, refused)
    assert len(best.changes) == 1 and best.inputs <= 0.6 * now.inputs
    out = io.StringIO()
    print_changes([best], FOUR, Console(file=out))
    assert "could make it fit: --config.stages.finetune." in out.getvalue()
    print_changes([], FOUR, Console(file=out))
    assert "take a larger slice than cpu:4" in out.getvalue()
