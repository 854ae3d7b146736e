"""Every config under experiments/ lowers for TPUs at its released size; no TPU, and no array, is needed for it."""

from __future__ import annotations

import jax
import pytest

from mmjax.parallel.topology import find_devices, parse_topology, prepare
from mmjax.training.plan.program import make_program
from mmjax.training.step import lower_step
from tests.experiments.test_configs import CONFIGS, resolve, stages

TOPOLOGY = "v5e:2x2"
FILES = stages(*((module, "") for module in dict.fromkeys(module for module, _ in CONFIGS)))
VARIANTS = [each for each in stages(*CONFIGS) if each not in FILES]


def lower(module: str, arg: str, name: str) -> None:
    topology = parse_topology(TOPOLOGY)
    prepare(topology)
    experiment = resolve(module, arg)
    program = make_program(experiment, experiment.stages[name], find_devices(topology))
    lowered = lower_step(program.step, program.assembly.state, program.assembly.frozen, program.batch)
    assert jax.tree.structure(lowered.out_info[0]) == jax.tree.structure(program.assembly.state)
    assert {device.platform for device in program.assembly.mesh.devices.flat} == {"tpu"}


@pytest.mark.parametrize(("module", "arg", "name"), FILES)
def test_every_config_lowers_for_tpus(module, arg, name):
    lower(module, arg, name)


@pytest.mark.heavy
@pytest.mark.parametrize(("module", "arg", "name"), VARIANTS)
def test_every_argument_lowers_for_tpus(module, arg, name):
    lower(module, arg, name)
