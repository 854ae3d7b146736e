"""One run per workdir: a lock that dies with its process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from mmjax.types import UserError


@contextlib.contextmanager
def run_lock(workdir: Path) -> Iterator[None]:
    """Holds `<workdir>/lock.json`, which names the run's process.

    The kernel drops the lock when the process ends in whatever way, so that no file left behind ever has to be judged.

    Args:
      workdir: of the run; made if it does not exist.

    Raises:
      UserError: another process trains here, or the directory cannot be written.
    """
    path = Path(workdir) / "lock.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}; give a directory that can") from None
    # A forked child would share the lock and keep it after our death.
    os.register_at_fork(after_in_child=lambda: file.closed or file.close())
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{_owner(file.read())} is training in {workdir}; wait for it, stop it, or give another --workdir"
            ) from None
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}, file)
        file.flush()
        yield


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']} (since {owner['started']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
