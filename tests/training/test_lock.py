"""One run per workdir."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from mmjax.training.lock import run_lock
from mmjax.types import UserError


def test_second_is_refused_by_name(tmp_path):
    with run_lock(tmp_path / "run"):
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* is training in .*--workdir"):
            with run_lock(tmp_path / "run"):
                pass
        assert json.loads((tmp_path / "run" / "lock.json").read_text())["pid"] == os.getpid()
    with run_lock(tmp_path / "run"):
        pass


def test_stale_or_broken_file_is_taken_over(tmp_path):
    (tmp_path / "lock.json").write_text('{"pid": 1, "ho')
    with run_lock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()


def left_by(host, beats=0):
    return json.dumps({"pid": 7, "host": host, "started": "now", "beats": beats})


def test_an_end_is_known_at_once_and_an_own_crash_too(tmp_path):
    with run_lock(tmp_path):
        pass
    assert (tmp_path / "lock.json").read_text() == ""
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    assert (tmp_path / "lock.json").read_text() == "", "an error is an end too"
    for text in ("", left_by(socket.gethostname())):
        (tmp_path / "lock.json").write_text(text)
        began = time.monotonic()
        with run_lock(tmp_path, patience=60.0):
            assert time.monotonic() - began < 30


def test_the_file_goes_on_being_written(tmp_path):
    with run_lock(tmp_path, beat=0.05):
        while json.loads((tmp_path / "lock.json").read_text() or '{"beats": 0}')["beats"] < 3:
            time.sleep(0.01)


def test_a_run_on_another_host_that_shares_no_locks_is_noticed(tmp_path):
    """As on a mounted bucket: nobody holds a lock here, but the file is written."""
    path, ended = tmp_path / "lock.json", threading.Event()
    path.write_text(left_by("far"))

    def far():
        for beats in itertools.count(1):
            if ended.wait(0.3):
                return
            path.write_text(left_by("far", beats))

    thread = threading.Thread(target=far)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"process 7 on far \(since now\) is training in .*--workdir"):
            with run_lock(tmp_path, patience=30.0):
                pass
    finally:
        ended.set()
        thread.join()
    assert "far" in path.read_text(), "its file is left alone"


def test_a_run_on_another_host_that_has_died_is_followed(tmp_path, capsys):
    (tmp_path / "lock.json").write_text(left_by("far"))
    with run_lock(tmp_path, patience=0.5):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert "process 7 on far (since now) has left" in capsys.readouterr().out


def test_of_two_that_start_at_once_without_locks_one_ends(tmp_path, monkeypatch):
    """As on a mounted bucket: both find an empty file, and the last one to write stands in it."""
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    told, wait = [], threading.Event()

    def first_ended(reason):
        told.append(reason)
        wait.set()

    with run_lock(tmp_path, beat=0.3, end=first_ended):
        (tmp_path / "lock.json").write_text(left_by("far"))
        assert wait.wait(10)
        assert told == [
            f"process 7 on far (since now) is training in {tmp_path}; wait for it, stop it, or give another --workdir"
        ]
        time.sleep(0.7)
        assert "far" in (tmp_path / "lock.json").read_text(), "and it writes no more"


@pytest.mark.parametrize(("number", "ends"), [(errno.ESTALE, True), (errno.EIO, False)])
def test_a_write_that_fails(tmp_path, monkeypatch, capsys, number, ends):
    """A mounted bucket refuses to write over another host's file with ESTALE; other failures pass."""
    told = []
    with run_lock(tmp_path, beat=0.05, end=told.append):
        real = os.fsync

        def fail_once(_):
            monkeypatch.setattr("os.fsync", real)
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("os.fsync", fail_once)
        time.sleep(0.5)
        assert bool(told) == ends
        assert ("trying again" in capsys.readouterr().err) != ends
        if not ends:
            assert json.loads((tmp_path / "lock.json").read_text())["beats"] > 1


def test_the_process_that_has_lost_its_workdir_ends(tmp_path):
    code = f"""
import fcntl, pathlib, time
from mmjax.training.lock import run_lock
fcntl.flock = lambda *_: None
with run_lock({str(tmp_path)!r}, beat=0.1):
    pathlib.Path({str(tmp_path / "lock.json")!r}).write_text({left_by("far")!r})
    time.sleep(60)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert ended.returncode == 1
    assert "process 7 on far (since now) is training in" in ended.stderr
    assert "far" in (tmp_path / "lock.json").read_text()


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_surviving_child_does_not_hold_it(tmp_path):
    """Data workers may outlive a killed trainer."""
    ready, tell = os.pipe()
    with run_lock(tmp_path):
        child = os.fork()
        if not child:
            os.write(tell, b".")
            signal.pause()
        os.read(ready, 1)  # the child is past its hooks
    try:
        with run_lock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        with run_lock(tmp_path / "file"):
            pass
