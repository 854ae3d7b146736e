"""Shows what a run will do: `python -m launch.plan --config=F.py[:argument] [--stage=S] [--config.x.y=value]`.

Prints the resolved config and, of each stage, the parts table: parameters, bytes and FLOPs from shapes alone. Where the data
and the tokenizer are on this machine, one row of the data follows, with what is learnt marked. Needs no data, no network and
no accelerator.
"""

from __future__ import annotations

import os

from absl import flags

from launch import command
from mmjax.types.config import suggest
from mmjax.types.errors import UserError

STAGE = flags.DEFINE_string("stage", None, "show this stage only")


def main() -> None:
    experiment = command.experiment()
    if STAGE.value is not None and STAGE.value not in experiment.stages:
        raise UserError(f"--stage={STAGE.value}: the config has no such stage{suggest(STAGE.value, experiment.stages)}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # an accelerator may be busy, and is not needed
    from mmjax.training.plan import print_plan

    print_plan(experiment, [STAGE.value] if STAGE.value else list(experiment.stages))


if __name__ == "__main__":
    command.run(main, config=True)
