"""The processes of a run: which one this is, found before JAX touches a device, and how they become one.

A run on several hosts is the same command on every one of them. What tells them apart is looked up in a table of ways, by
environment variables and files alone, so that a laptop waits for no network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from mmjax.parallel import roll_call
from mmjax.parallel.last_words import speak_at_abort
from mmjax.types.errors import UserError

MISSING_AFTER, GIVE_UP_AFTER = 60.0, 1800.0  # seconds
JOIN_SECONDS = 120  # for JAX to connect processes that are known to be there
# JAX ends a process this long after another one has gone, with a stack instead of a sentence. A watchdog is to be faster.
HEARTBEAT_SECONDS = 100


@dataclasses.dataclass(frozen=True)
class Place:
    """A process among those of its run.

    Args:
      coordinator: "HOST:PORT" at which process 0 can be reached.
      count, index: how many processes, and which of them this is, from 0.
      own_devices: numbers of the host's GPUs that are this process's, where several share the host; None = all devices.
    """

    coordinator: str
    count: int
    index: int
    own_devices: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to find a process's place.

    Args:
      name: for messages.
      find: the place, or None where nothing speaks of several processes.
      remedy: how processes that do not come are started.
    """

    name: str
    find: Callable[[], Place | None]
    remedy: str


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    missing_after: float = MISSING_AFTER,
    give_up_after: float = GIVE_UP_AFTER,
) -> Place | None:
    """Joins the processes of a run; to be called before JAX touches a device, on every one of them.

    Args:
      coordinator, num_processes, process_id: the place of this process, all three or none; none = by the table WAYS.
      missing_after: seconds after which processes that have not come are named, and again and again.
      give_up_after: seconds after which the run ends without them.

    Returns:
      the place; None where the process is alone.

    Raises:
      UserError: flags that do not belong together, a place that is taken already, or processes that never came.
    """
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    ways = (Way("flags", lambda: _by_flags(given), FLAGS_REMEDY), *WAYS)
    way, place = next(((way, place) for way in ways if (place := way.find()) is not None), (None, None))
    if way is None or place is None or place.count == 1:
        return None
    roll_call.answer(
        place.coordinator, place.count, place.index, way.remedy, missing_after=missing_after, give_up_after=give_up_after
    )
    _join(place)
    _introduce(place, way)
    return place


def several() -> bool:
    """Whether this process has joined others."""
    jax = sys.modules.get("jax")  # a command that was refused at once has not imported it
    return jax is not None and jax.distributed.is_initialized()


@contextlib.contextmanager
def in_turn(name: str) -> Iterator[None]:
    """What process 0 does first and the others find done, where they see its disk: building a data set."""
    if not several():
        yield
        return
    import jax
    from jax.experimental import multihost_utils

    if jax.process_index():
        multihost_utils.sync_global_devices(name)
    yield
    if not jax.process_index():
        multihost_utils.sync_global_devices(name)


def leave(code: int) -> NoReturn:
    """Ends the process after a failure. JAX's own way out would wait for the other processes, which wait for this one."""
    if not several():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _join(place: Place) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        local_device_ids=place.own_devices,
        cluster_detection_method="deactivate",  # it is found already
        initialization_timeout=JOIN_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )

    speak_at_abort(
        f"process {place.index} on {socket.gethostname()} ends, because process 0 at {place.coordinator}, which keeps the run "
        "together, has ended or has found another one gone. Look there for the cause; the same command on all hosts resumes "
        "from the last checkpoint."
    )


def _introduce(place: Place, way: Way) -> None:
    import jax

    if place.index == 0:
        kind = jax.devices()[0].device_kind
        print(
            f"{place.count} processes with {jax.device_count()} devices ({kind}), found by {way.name}; process 0 is on "
            f"{socket.gethostname()}",
            flush=True,
        )


def _by_flags(given: dict[str, str | int | None]) -> Place | None:
    if all(value is None for value in given.values()):
        return None
    if missing := [flag for flag, value in given.items() if value is None]:
        raise UserError(f"{missing[0]} is missing: {', '.join(given)} go together, on every process")
    coordinator, count, index = given.values()
    assert isinstance(coordinator, str) and isinstance(count, int) and isinstance(index, int)
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UserError(f"--coordinator={coordinator}: expected HOST:PORT, a port of process 0's host that is free")
    if not 0 <= index < count:
        raise UserError(f"--process_id={index}: with --num_processes={count} it must be one of 0 … {count - 1}")
    return Place(coordinator, count, index)


def _by_environment() -> Place | None:
    """JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES; and JAX_PROCESS_ID, or the index that Kubernetes gives a pod of a Job."""
    index = os.environ.get("JAX_PROCESS_ID", os.environ.get("JOB_COMPLETION_INDEX"))
    coordinator, count = os.environ.get("JAX_COORDINATOR_ADDRESS"), os.environ.get("JAX_NUM_PROCESSES")
    return Place(coordinator, int(count), int(index)) if coordinator and count and index else None


def _by_slurm() -> Place | None:
    """What srun gives to every task. A task that shares its node with others of the run has one of the node's GPUs."""
    tasks, nodes = int(os.environ.get("SLURM_NTASKS", 1)), int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    sees_one = len(os.environ.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1  # srun --gpus-per-task
    own = (int(os.environ.get("SLURM_LOCALID", 0)),) if tasks > nodes and not sees_one else None
    return _by_jax("slurm_cluster", "SlurmCluster", own) if tasks > 1 else None


def _by_gke() -> Place | None:
    """What GKE tells every pod of a TPU slice, and of each of several slices (MEGASCALE_…)."""
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES", ""))
    several = "," in hosts or int(os.environ.get("MEGASCALE_NUM_SLICES") or 1) > 1
    return _by_jax("cloud_tpu_cluster", "GkeTpuCluster") if several and "TPU_WORKER_ID" in os.environ else None


def _by_metadata() -> Place | None:
    """What the metadata server tells a TPU VM; nobody else has a TPU's device files, and is asked."""
    return _by_jax("cloud_tpu_cluster", "GceTpuCluster")


def _by_jax(module: str, name: str, own_devices: tuple[int, ...] | None = None) -> Place | None:
    """A place as JAX's own detection of that cluster finds it."""
    cluster = getattr(importlib.import_module(f"jax._src.clusters.{module}"), name)
    if not cluster.is_env_present():
        return None
    port = os.environ.get("JAX_COORDINATOR_PORT")
    address = cluster.get_coordinator_address(timeout_secs=JOIN_SECONDS, override_coordinator_port=port)
    return Place(address, cluster.get_process_count(), cluster.get_process_id(), own_devices)


FLAGS_REMEDY = "start the same command on their hosts, each with its own --process_id"
TPU_REMEDY = "start the same command on all hosts: gcloud compute tpus tpu-vm ssh NAME --worker=all --command=…"
POD_REMEDY = "look why their pods do not run (kubectl get pods, kubectl describe pod); all pods must run at once"

# First match wins. Flags come before all of them.
WAYS = (
    Way("JAX_COORDINATOR_ADDRESS", _by_environment, f"start them with their own JAX_PROCESS_ID; in Kubernetes, {POD_REMEDY}"),
    Way("Slurm", _by_slurm, "start one task for each with srun, for example srun --nodes=4 --ntasks-per-node=1 COMMAND"),
    Way("GKE", _by_gke, POD_REMEDY),
    Way("the TPU VM's metadata", _by_metadata, TPU_REMEDY),
)
