"""The engines that run a job on a cluster: what each needs, and what goes into its files.

An engine is its scripts: `ENGINE.sh` is what a user would type, `host.sh` what every host does, the YAML what the engine reads.
This table only says how their settings follow from a job.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.clusters.job import Job, check_name, check_workdir
from launch.clusters.render import render
from mmjax.types.errors import UserError

GCLOUD = "install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install"
IMAGE = "docker.io/library/python:3.12"
LOG = "/var/log/mmjax.log"  # of a host; the number of its process and, at last, the exit code stand beside it


@dataclass(frozen=True)
class Engine:
    """How jobs are given to one engine.

    Attributes:
      what: in words.
      settings: the settings of its files; raises UserError for a job that it cannot run.
      programs: what its script calls, and how to get it.
      files: the templates besides ENGINE.sh; a YAML holds host.sh itself.
      needs: flags that must be given.
      takes: further flags that mean something to it.
      longest_name: in characters, as far as the engine says.
      bucket: the workdir has to be in a bucket.
      host: the settings that differ in host.sh.
    """

    what: str
    settings: Callable[[Job], dict[str, Any]]
    programs: dict[str, str]
    files: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    longest_name: int = 63
    bucket: bool = True
    host: dict[str, Any] = field(default_factory=dict)


def _tpu_vm(job: Job) -> dict[str, Any]:
    """https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/create."""
    slices = job.slices
    if not slices.accelerator_type:
        raise UserError(f"--topology={slices.kind}:{slices.shape}: the Cloud TPU API has v4 to v6e; use --engine=gce or gke")
    one = slices.count == 1
    nodes = (f"--node-id={job.name}",) if one else (f"--node-prefix={job.name}", f"--node-count={slices.count}")
    where = (f"--accelerator-type={slices.accelerator_type}", f"--runtime-version={slices.tpu.runtime}")
    spot = ("--spot",) if job.spot else ()
    return {"NODE": job.name if one else f"{job.name}-0", "CREATE": (*where, *nodes, *spot, *job.options)}


def _gce(job: Job) -> dict[str, Any]:
    """https://docs.cloud.google.com/compute/docs/tpus/create-tpu-mig-multi-host-slice."""
    slices = job.slices
    if not (slices.tpu and slices.tpu.image):
        raise UserError(
            f"--topology={slices.kind}:{slices.shape}: instance groups have v5p, v6e and tpu7x only; use --engine=tpu_vm"
        )
    if slices.count > 1:
        raise UserError(f"--engine=gce runs one slice, not {slices.count}; use --engine=gke, or tpu_vm for v4 to v6e")
    template = (
        f"--machine-type={slices.machine_type}",
        f"--image-family={slices.tpu.image}",
        "--image-project=ubuntu-os-accelerator-images",
        "--boot-disk-size=200GB",
        "--maintenance-policy=TERMINATE",
        "--scopes=cloud-platform",
        *(("--provisioning-model=SPOT", "--instance-termination-action=STOP") if job.spot else ()),
        *job.options,
    )
    return {"REGION": job.zone.rpartition("-")[0], "TEMPLATE": template, "HOSTS": slices.hosts, "SHAPE": slices.shape}


def _gke(job: Job) -> dict[str, Any]:
    """https://docs.cloud.google.com/kubernetes-engine/docs/tutorials/tpu-multislice-kueue."""
    slices = job.slices
    if not slices.tpu:
        raise UserError(f"--topology={slices.kind}:{slices.shape}: --engine=gke runs TPUs; GPUs run with --engine=slurm or sky")
    # A pod is called NAME-slice-SLICE-HOST-xxxxx.
    check_name(job.name, 63 - len(f"-slice-{slices.count - 1}-{slices.hosts - 1}-xxxxx"))
    return {
        "QUEUE": job.queue,
        "SLICES": slices.count,
        "HOSTS": slices.hosts,
        "CHIPS": slices.chips_per_host,
        "LABEL": slices.tpu.label,
        "SHAPE": slices.shape,
        "SPOT": "true" if job.spot else None,
        "IMAGE": job.image or IMAGE,
    }


def _slurm(job: Job) -> dict[str, Any]:
    """https://slurm.schedmd.com/sbatch.html."""
    slices = job.slices
    if slices.tpu:
        raise UserError(f"--topology={slices.kind}:{slices.shape}: --engine=slurm runs GPUs, for example gpu:8*4 or h100:8*4")
    kind = "" if slices.kind == "gpu" else f"{slices.kind}:"
    return {
        "DIRECTORY": f"{job.workdir}/code",
        "BATCH": (f"--nodes={slices.count}", f"--gpus-per-node={kind}{slices.chips}", *job.options),
    }


def _sky(job: Job) -> dict[str, Any]:
    """https://docs.skypilot.co/en/latest/reference/yaml-spec.html."""
    slices = job.slices
    if slices.kind == "gpu":
        raise UserError("--topology=gpu: SkyPilot wants the type of the GPU, for example h100:8")
    if slices.tpu and not (slices.accelerator_type and slices.count == 1):
        raise UserError("--engine=sky runs one slice of v4 to v6e; use --engine=gke for tpu7x and for several slices")
    return {
        "ACCELERATORS": f"tpu-{slices.accelerator_type}" if slices.tpu else f"{slices.kind.upper()}:{slices.chips}",
        "ACCELERATOR_ARGS": {"runtime_version": slices.tpu.runtime} if slices.tpu else None,
        "MACHINES": slices.count,
        "SPOT": job.spot,
        "ARCHIVE_FILE": f"./{job.revision}.tar.gz",
    }


ENGINES = {
    "gce": Engine(
        "Compute Engine managed instance group",
        _gce,
        {"gcloud": GCLOUD},
        ("host.sh",),
        needs=("zone",),
        takes=("spot", "keep", "options"),
    ),
    "tpu_vm": Engine(
        "TPU VMs by queued resources",
        _tpu_vm,
        {"gcloud": GCLOUD},
        ("host.sh",),
        needs=("zone",),
        takes=("spot", "keep", "options"),
    ),
    "gke": Engine(
        "JobSet on GKE, admitted by Kueue",
        _gke,
        {"gcloud": GCLOUD, "kubectl": "gcloud components install kubectl gke-gcloud-auth-plugin"},
        ("gke.yaml",),
        needs=("queue",),
        takes=("spot", "image"),
        # JobSet starts the hosts again, all together. The init container has laid the archive there.
        host={"RESTARTS": "", "LOG": "", "DIRECTORY": "/code", "ARCHIVE": "/code/archive.tar.gz", "FETCH_PYTHON": False},
    ),
    "slurm": Engine(
        "Slurm",
        _slurm,
        {"sbatch": "launch from the cluster's login node, which has it"},
        ("host.sh", "slurm_batch.sh"),
        takes=("options",),
        bucket=False,
        host={"RESTARTS": "", "LOG": "", "FETCH_PYTHON": False},
    ),
    "sky": Engine(
        "SkyPilot managed job",
        _sky,
        {"sky": "pip install 'skypilot[gcp]'"},
        ("sky.yaml",),
        takes=("spot",),
        host={"LOG": "", "DIRECTORY": "/tmp/mmjax", "ARCHIVE": "/tmp/mmjax.tar.gz"},
    ),
}


def fill(engine: str, job: Job) -> dict[str, str]:
    """The files of a job: what would be run, and what it reads.

    Args:
      engine: a key of ENGINES.
      job: what is to run.

    Returns:
      File name -> text; the first, run.sh, starts and follows the run.

    Raises:
      UserError: the engine cannot run this job; the message names the flag.
    """
    about = ENGINES[engine]
    _check_flags(engine, job)
    check_name(job.name, about.longest_name)
    check_workdir(job.workdir, about.bucket)
    settings = {
        "NAME": job.name,
        "WORKDIR": job.workdir,
        "TRAIN": job.train,
        "REVISION": job.revision,
        "ARCHIVE": job.archive,
        "ACCELERATOR": "tpu" if job.slices.tpu else "cuda",
        "RESTARTS": job.restarts,
        "ZONE": job.zone,
        "KEEP": job.keep,
        "LOG": LOG,
        "DIRECTORY": "/opt/mmjax",
        "FETCH_PYTHON": True,
        **about.settings(job),
    }
    host = render("host.sh", {**settings, **about.host})
    others = {file: host if file == "host.sh" else render(file, {**settings, "host.sh": host}) for file in about.files}
    return {"run.sh": render(f"{engine}.sh", settings), **others}


def check_programs(engine: str) -> None:
    """Raises UserError when a program that an engine's script calls is not on this machine."""
    for program, how in ENGINES[engine].programs.items():
        if not shutil.which(program):
            raise UserError(f"--engine={engine} needs {program}: {how}; --print_only shows everything without it")


def start(files: Mapping[str, str], directory: Path) -> int:
    """Runs a job, or follows the one that runs.

    Args:
      files: what `fill` gave.
      directory: to write them into; it has the archive already.

    Returns:
      The exit code of the run: 0 done, 2 a mistake that the user can mend.
    """
    for file, text in files.items():
        (directory / file).write_text(text)
    return subprocess.run(["bash", directory / "run.sh"]).returncode


def _check_flags(engine: str, job: Job) -> None:
    about = ENGINES[engine]
    for flag in about.needs:
        if not getattr(job, flag):
            raise UserError(f"--engine={engine} needs --{flag}")
    for flag in ("zone", "queue", "image", "spot", "keep", "options"):
        if getattr(job, flag) and flag not in about.needs + about.takes:
            raise UserError(f"--{flag.removesuffix('s')} means nothing to --engine={engine}; leave it out")
