"""One run per workdir."""

from __future__ import annotations

import json
import os
import signal

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
