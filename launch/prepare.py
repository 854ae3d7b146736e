"""Prepares a data set: `python -m launch.prepare --dataset=NAME --out=DIR [--raw=DIR] [--runner=local] [--limit=N]`.

Raw release -> ArrayRecord shards (or, for pretrained weights, a Hugging Face directory). Exit codes: 0 done or nothing to do,
2 user error.
"""

from __future__ import annotations

import sys

from absl import app, flags

import data_pipelines
from mmjax.types import UserError

_DATASET = flags.DEFINE_string("dataset", None, f"Which: {', '.join(data_pipelines.BUILDERS)}.", required=True)
_OUT = flags.DEFINE_string("out", None, "Directory to make.", required=True)
_RAW = flags.DEFINE_string("raw", None, "Directory of the raw release, where the data set needs one.")
_RUNNER = flags.DEFINE_string("runner", "local", "What runs the steps: local (processes of this machine).")
_LIMIT = flags.DEFINE_integer("limit", 0, "The first N examples of each split only; 0 = all.", lower_bound=0)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"flags only, got {argv[1:]}")
    try:
        made = data_pipelines.prepare(_DATASET.value, _OUT.value, _RAW.value, _RUNNER.value, _LIMIT.value)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{_OUT.value}: {'made' if made else 'already complete, nothing to do'}")


if __name__ == "__main__":
    app.run(main)
