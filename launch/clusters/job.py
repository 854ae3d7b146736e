"""What is to run on a cluster, and the mistakes that can be found before anything is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from launch.clusters.slices import Slices
from mmjax.types.errors import UserError

_LOCAL = re.compile(r"/(tmp|var|dev|run|proc|root)(/|$)")  # directories of one machine


@dataclass(frozen=True)
class Job:
    """A training run and where it runs.

    Attributes:
      name: what the engine calls the run.
      slices: the accelerators.
      workdir: the run's directory, which every host must reach.
      train: arguments of `launch.train`, but for the workdir.
      revision: name of the archive of the code.
      options: further flags of the command that asks for the machines.
      restarts: how often the run is started again after a failure; after a preemption always.
      spot: machines that may be taken away, at a lower price.
      keep: leave the machines when the run has ended.
      zone: where, in clouds.
      queue: Kueue's local queue.
      image: container image.
    """

    name: str
    slices: Slices
    workdir: str
    train: tuple[str, ...]
    revision: str
    options: tuple[str, ...] = ()
    restarts: int = 3
    spot: bool = False
    keep: bool = False
    zone: str = ""
    queue: str = ""
    image: str = ""

    @property
    def archive(self) -> str:
        return f"{self.workdir}/code/{self.revision}.tar.gz"


def default_name(workdir: str) -> str:
    """A name for a run, from the last part of its workdir."""
    last = re.sub(r"[^a-z0-9]+", "-", workdir.rstrip("/").rpartition("/")[2].lower()).strip("-")
    return last if last[:1].isalpha() else f"run-{last}".rstrip("-")


def check_name(name: str, longest: int) -> None:
    """Raises UserError unless a name is one that the engine takes: lower case, digits, hyphens, and not too long."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise UserError(f"--name={name}: expected lower-case letters, digits and hyphens, beginning with a letter")
    if len(name) > longest:
        raise UserError(f"--name={name}: {len(name)} characters, but here the engine allows {longest}; give a shorter --name")


def check_workdir(workdir: str, bucket: bool) -> None:
    """Raises UserError unless all hosts reach a workdir.

    Args:
      workdir: what --workdir says.
      bucket: it has to be in a bucket; else on a file system that the hosts share.
    """
    if bucket and not workdir.startswith("gs://"):
        raise UserError(f"--workdir={workdir} is not shared between the hosts; name one in a bucket: gs://BUCKET/DIRECTORY")
    if bucket and not re.fullmatch(r"gs://[a-z0-9][-_.a-z0-9]+/.+", workdir):
        raise UserError(f"--workdir={workdir}: expected gs://BUCKET/DIRECTORY")
    if not bucket and (not workdir.startswith("/") or _LOCAL.match(workdir)):
        raise UserError(f"--workdir={workdir} is not shared between the hosts; give a full path on their shared file system")


def train_arguments(arguments: list[str]) -> tuple[str, ...]:
    """Those of a command line that are for `launch.train`: the config, its overrides and the stage.

    Args:
      arguments: of this process, in either spelling, `--config=F.py` or `--config F.py`.
    """
    kept = []
    for i, argument in enumerate(arguments):
        name, equals, _ = argument.lstrip("-").partition("=")
        if argument.startswith("-") and re.fullmatch(r"stage|(no)?config(\..+)?", name):
            follows = not equals and i + 1 < len(arguments) and not arguments[i + 1].startswith("-")
            kept.append(f"--{name}={arguments[i + 1]}" if follows else f"--{argument.lstrip('-')}")
    return tuple(kept)
