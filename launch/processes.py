"""The flags of commands that run on several processes: TPU pods, GKE and Slurm need none of them."""

from __future__ import annotations

from absl import flags

from mmjax.parallel import processes

COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, with --num_processes and --process_id")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many processes the run has", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "which of them this is, from 0", lower_bound=0)
MISSING_AFTER = flags.DEFINE_float("missing_after", processes.MISSING_AFTER, "seconds until missing processes are named")
GIVE_UP_AFTER = flags.DEFINE_float("give_up_after", processes.GIVE_UP_AFTER, "seconds to wait for them at all")


def start() -> processes.Place | None:
    """Joins the processes of the run, where there are several; see `mmjax.parallel.processes.start`."""
    return processes.start(
        COORDINATOR.value,
        NUM_PROCESSES.value,
        PROCESS_ID.value,
        missing_after=MISSING_AFTER.value,
        give_up_after=GIVE_UP_AFTER.value,
    )
