"""Evaluates a run: `python -m launch.evaluate --config=F.py[:argument] --workdir=DIR [--config.x.y=value]`.

Writes `DIR/eval/<name>.json` (metrics) and `DIR/eval/<name>.jsonl` (every prediction) for each evaluation of the config.
"""

from __future__ import annotations

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run", required=True)


def main() -> None:
    experiment = command.experiment()
    command.check_model("workdir", WORKDIR.value)
    command.prepare_missing(experiment)
    import mmjax

    mmjax.evaluate(experiment, WORKDIR.value)


if __name__ == "__main__":
    command.run(main, config=True)
