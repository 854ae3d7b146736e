"""One run per workdir: a lock that dies with its process, and a heartbeat where disks share no locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mmjax.types import UserError

BEAT = 30.0  # seconds
PATIENCE = 120.0  # seconds: a mounted bucket may show a change a minute late
EXIT_CODE = 1


def _end(reason: str) -> None:
    """Ends the process as it stands: whatever it would still write belongs to another run's workdir."""
    print(reason, file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)


@contextlib.contextmanager
def run_lock(
    workdir: Path, *, beat: float = BEAT, patience: float = PATIENCE, end: Callable[[str], None] = _end
) -> Iterator[None]:
    """Holds `<workdir>/lock.json`, which names the run's process and host.

    The kernel drops the lock when the process ends in whatever way. Hosts that mount a bucket share no locks: what a run on
    another host has left behind without an end is watched, and whoever still writes to it holds the workdir. Of two that start
    at once, the one that finds the other's name in the file ends.

    Args:
      workdir: of the run; made if it does not exist.
      beat: seconds after which the file is written again.
      patience: seconds for which the file of another host is watched.
      end: called, in a thread, with the reason when another run has taken the workdir; it ends the process.

    Raises:
      UserError: another process trains here, or the directory cannot be written.
    """
    path = Path(workdir) / "lock.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}; give a directory that can") from None
    # A forked child would share the lock and keep it after our death.
    os.register_at_fork(after_in_child=lambda: file.closed or file.close())
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(path.read_bytes(), workdir) from None
        _watch(path, patience)
        try:
            with _beating(path, file, beat, end):
                yield
        finally:
            file.truncate(0)  # an end, or an error, that nobody has to wait for


def _watch(path: Path, patience: float) -> None:
    """Returns when the file of another host has not changed for so long, or at once where there is none."""
    left = path.read_bytes()
    owner = _read(left)
    if owner is None or owner["host"] == socket.gethostname():
        return
    print(f"{_name(owner)} has left {path} without an end; looking for {patience:.0f} s whether it still trains", flush=True)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        time.sleep(patience / 60)
        if path.read_bytes() != left:
            raise _taken(path.read_bytes() or left, path.parent)


@contextlib.contextmanager
def _beating(path: Path, file: io.FileIO, beat: float, end: Callable[[str], None]) -> Iterator[None]:
    """Writes the file now and after every `beat` seconds, until another's name stands in it."""
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    us, ended = _read(json.dumps(owner).encode()), threading.Event()

    def write(beats: int) -> None:
        file.truncate(0)
        file.write(json.dumps({**owner, "beats": beats}).encode())
        os.fsync(file.fileno())  # or a bucket would see nothing before the end

    def run() -> None:
        beats = 0
        while not ended.wait(beat):
            beats += 1
            try:
                text = path.read_bytes()
                if _read(text) not in (us, None):
                    return end(str(_taken(text, path.parent)))
                write(beats)
            except OSError as error:
                if error.errno == errno.ESTALE:  # how a mounted bucket says that another host has written the file
                    return end(str(_taken(b"", path.parent)))
                print(f"{path} cannot be written: {error.strerror}; trying again in {beat:.0f} s", file=sys.stderr, flush=True)

    write(0)
    thread = threading.Thread(target=run, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _taken(text: bytes, workdir: Path) -> UserError:
    owner = _read(text)
    who = _name(owner) if owner else "another process"
    return UserError(f"{who} is training in {workdir}; wait for it, stop it, or give another --workdir")


def _read(text: bytes) -> dict[str, str] | None:
    """Who holds the lock; None where nobody is named."""
    try:
        owner = json.loads(text)
        return {name: str(owner[name]) for name in ("pid", "host", "started")}
    except (ValueError, KeyError, TypeError):
        return None


def _name(owner: dict[str, str]) -> str:
    return f"process {owner['pid']} on {owner['host']} (since {owner['started']})"
