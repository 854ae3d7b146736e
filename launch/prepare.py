"""Prepares a data set: `python -m launch.prepare --dataset=NAME --out=DIR [--raw=DIR] [--limit=N] [--skips=N]`.

Raw release -> ArrayRecord shards (for pretrained weights: a Hugging Face directory). What is already complete is left alone.
"""

from __future__ import annotations

from absl import flags

import data_pipelines
from launch import command

_DATASET = flags.DEFINE_string("dataset", None, f"Which: {', '.join(data_pipelines.BUILDERS)}.", required=True)
_OUT = flags.DEFINE_string("out", None, "Directory to make.", required=True)
_RAW = flags.DEFINE_string("raw", None, "Directory of the raw release, for data sets whose release is not found by itself.")
_RUNNER = flags.DEFINE_string("runner", "local", "What runs the steps: local (processes of this machine).")
_LIMIT = flags.DEFINE_integer("limit", 0, "The first N items of each split only; 0 = all.", lower_bound=0)
_SKIPS = flags.DEFINE_integer("skips", 0, "How many unusable examples may be left out (skipped.jsonl).", lower_bound=0)


def main() -> None:
    made = data_pipelines.prepare(_DATASET.value, _OUT.value, _RAW.value, _RUNNER.value, _LIMIT.value, _SKIPS.value)
    print(f"{_OUT.value}: {'made' if made else 'already complete, nothing to do'}")


if __name__ == "__main__":
    command.run(main)
