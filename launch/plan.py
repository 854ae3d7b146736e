"""Shows what a run will do: `python -m launch.plan --config=F.py[:argument] [--stage=S] [--config.x.y=value]`.

Prints the resolved config and, of each stage, the parts table: parameters, bytes and FLOPs from shapes alone. Where the data
and the tokenizer are on this machine, one row of the data follows, with what is learnt marked. With `--topology=v5e:4x4` the
step is compiled for that slice: bytes of each chip, FLOPs, collectives, and the least time of a step; the command ends with 3
where it does not fit. `--search` compiles other meshes, remat policies and accumulations too and ranks them. `--json=FILE`
writes the same. Needs no data, no network and no accelerator.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from launch import command
from mmjax.parallel.topology import parse_topology, prepare
from mmjax.types.config import suggest
from mmjax.types.errors import UserError

STAGE = flags.DEFINE_string("stage", None, "show this stage only")
TOPOLOGY = flags.DEFINE_string("topology", None, "what to compile for: v5e:4x4, v5e:16x16*2, v5p:2x2x2, cpu:8, gpu:8, …")
JSON = flags.DEFINE_string("json", None, "also write the plan to this file; without --topology that for cpu:1")
SEARCH = flags.DEFINE_bool("search", False, "also compile other meshes, remat policies and accumulations, and rank them")
SEARCH_MINUTES = flags.DEFINE_float("search_minutes", 20.0, "after which --search begins no other one", lower_bound=0.1)
DOES_NOT_FIT = 3


def main() -> None:
    experiment = command.experiment()
    if STAGE.value is not None and STAGE.value not in experiment.stages:
        raise UserError(f"--stage={STAGE.value}: the config has no such stage{suggest(STAGE.value, experiment.stages)}")
    names = [STAGE.value] if STAGE.value else list(experiment.stages)
    topology = parse_topology(TOPOLOGY.value or "cpu:1")
    prepare(topology)
    from mmjax.training.plan.show import show

    compiled = topology if TOPOLOGY.value or JSON.value or SEARCH.value else None
    file, seconds = Path(JSON.value) if JSON.value else None, 60 * SEARCH_MINUTES.value * SEARCH.value
    if not show(experiment, names, compiled, file, seconds):
        sys.exit(DOES_NOT_FIT)


if __name__ == "__main__":
    command.run(main, config=True)
