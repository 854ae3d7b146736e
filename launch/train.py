"""Trains: `python -m launch.train --config=F.py[:argument] --workdir=DIR [--stage=S] [--config.x.y=value]`.

The same command again resumes. Data sets that the config names a builder for are prepared first when they are missing. On
several hosts it is the same command on each: TPU pods, GKE and Slurm are found, otherwise add
`--coordinator=HOST:PORT --num_processes=N --process_id=I`.
"""

from __future__ import annotations

from absl import flags

from launch import command
from launch.processes import start
from mmjax.parallel.processes import in_turn
from mmjax.types.config import suggest
from mmjax.types.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "directory that holds everything of the run", required=True)
STAGE = flags.DEFINE_string("stage", None, "train this stage only; those before it must be finished")


def main() -> None:
    experiment = command.experiment()
    if STAGE.value is not None and STAGE.value not in experiment.stages:
        raise UserError(f"--stage={STAGE.value}: the config has no such stage{suggest(STAGE.value, experiment.stages)}")
    start()
    with in_turn("data"):
        command.prepare_missing(experiment)
    import mmjax

    mmjax.train(experiment, WORKDIR.value, stage=STAGE.value)


if __name__ == "__main__":
    command.run(main, config=True)
