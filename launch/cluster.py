"""Trains on a cluster: `python -m launch.cluster --engine=tpu_vm --topology=v5e:4x4 --config=F.py --workdir=gs://B/DIR …`.

Ships the code as an archive of the commit, has the engine start `launch.train` on every host, and shows the log until the run
ends; the same command again follows it. `--print_only` shows every command and file instead. docs/clusters.md has examples.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from launch import command
from launch.clusters import archive, slices
from launch.clusters.engines import ENGINES, check_programs, fill, start
from launch.clusters.job import Job, default_name, train_arguments

ENGINE = flags.DEFINE_enum(
    "engine", None, list(ENGINES), "; ".join(f"{k}: {v.what}" for k, v in ENGINES.items()), required=True
)
TOPOLOGY = flags.DEFINE_string("topology", None, "v5e:4x4, v6e:16x16*2 (two slices) or h100:8*4 (four machines)", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run that all hosts reach: gs://BUCKET/RUN", required=True)
STAGE = flags.DEFINE_string("stage", None, "train this stage only")
NAME = flags.DEFINE_string("name", "", "what the engine calls the run; default: from the last part of --workdir")
ZONE = flags.DEFINE_string("zone", "", "of the cloud, for example us-east5-a")
QUEUE = flags.DEFINE_string("queue", "", "Kueue's local queue")
IMAGE = flags.DEFINE_string("image", "", "container image with Python 3.11 or newer")
OPTION = flags.DEFINE_multi_string("option", [], "a further flag for what asks for the machines, as --option=--reservation=R")
SPOT = flags.DEFINE_bool("spot", False, "machines that may be taken away; the run then resumes on others")
KEEP = flags.DEFINE_bool("keep", False, "leave the machines when the run has ended")
RESTARTS = flags.DEFINE_integer(
    "restarts", 3, "how often a failed run starts again; a preempted one always does", lower_bound=0
)
DIRTY = flags.DEFINE_bool("dirty", False, "ship files that differ from the commit as they are")
PRINT_ONLY = flags.DEFINE_bool("print_only", False, "only show what would be run")


def main() -> None:
    command.experiment()
    where, root = slices.parse(TOPOLOGY.value), Path(__file__).resolve().parents[1]
    code = archive.find(root, DIRTY.value)
    name, workdir = NAME.value or default_name(WORKDIR.value), WORKDIR.value.rstrip("/")
    options = {"spot": SPOT.value, "keep": KEEP.value, "zone": ZONE.value, "queue": QUEUE.value, "image": IMAGE.value}
    train = train_arguments(sys.argv[1:])
    job = Job(name, where, workdir, train, code.revision, tuple(OPTION.value), RESTARTS.value, **options)
    files = fill(ENGINE.value, job)
    if PRINT_ONLY.value:
        print("\n".join(f"==> {file} <==\n{text}" for file, text in files.items()), end="")
        return
    check_programs(ENGINE.value)
    directory = root / "runs" / "clusters" / name
    print(f"{where} with {ENGINES[ENGINE.value].what}; stop: bash {directory}/run.sh stop", file=sys.stderr)
    archive.write(root, code, directory)
    sys.exit(start(files, directory))


if __name__ == "__main__":
    command.run(main, config=True)
