"""Which process this is, and who is missing."""

from __future__ import annotations

import concurrent.futures
import os
import socket
import time

import pytest

from mmjax.parallel import processes, roll_call
from mmjax.parallel.processes import WAYS, Place
from mmjax.types import UserError

SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[03-04]", "SLURM_STEP_NUM_NODES": "2", "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
}  # fmt: skip
KUBERNETES = {"JAX_COORDINATOR_ADDRESS": "run-0.run:8476", "JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    for name in list(os.environ):
        if name.startswith(
            ("SLURM_", "JAX_COORD", "JAX_NUM_PROC", "JAX_PROCESS", "JOB_COMPLETION", "TPU_WORKER", "MEGASCALE_")
        ):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environment", "way", "place"),
    [
        (KUBERNETES, "JAX_COORDINATOR_ADDRESS", Place("run-0.run:8476", 4, 3)),
        (SLURM, "Slurm", Place("node03:61447", 2, 1)),
        (SLURM | {"SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}, "Slurm", Place("node03:61447", 4, 1, (1,))),
        (SLURM | {"SLURM_NTASKS": "1"}, None, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None, None),
        ({}, None, None),
    ],
)
def test_ways(monkeypatch, environment, way, place):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = [(each.name, each.find()) for each in WAYS]
    assert [each for each in found if each[1] is not None] == ([(way, place)] if way else [])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("a:1", None, None), "--num_processes is missing: --coordinator, --num_processes, --process_id go together"),
        (("a", 2, 0), "--coordinator=a: expected HOST:PORT"),
        (("a:1", 2, 2), "--process_id=2: with --num_processes=2 it must be one of 0 … 1"),
    ],
)
def test_flags_that_do_not_belong_together(flags, message):
    with pytest.raises(UserError, match=message):
        processes.start(*flags)


def test_alone():
    assert processes.start() is None
    assert not processes.several()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def call(port: int, count: int, index: int, after: float = 0.0, limit: float = 30.0) -> str:
    """What a process is told, "" when all have come."""
    time.sleep(after)
    try:
        roll_call.answer(f"127.0.0.1:{port}", count, index, "start them", missing_after=0.2, give_up_after=limit)
    except UserError as error:
        return str(error)
    return ""


def call_all(*calls) -> list[str]:
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor() as threads:
        return [each.result() for each in [threads.submit(call, port, *one) for one in calls]]


def test_all_come(capsys):
    assert call_all((3, 1), (3, 0), (3, 2, 1.5)) == ["", "", ""]
    assert "process 2 of 0 … 2 has not come; start them" in capsys.readouterr().err


def test_missing_processes_are_named_to_all():
    told = call_all((4, 0, 0.0, 2.0), (4, 2, 0.0, 2.0))
    assert told == ["process 1, 3 of 0 … 3 has not come; start them (given up after 2 s)"] * 2


def test_process_0_is_missing():
    (told,) = call_all((2, 1, 0.0, 1.0))
    assert told.startswith("process 0 does not answer at 127.0.0.1:")


def test_two_with_one_index_and_another_count_are_told():
    zero, one, double, other, two = call_all((3, 0), (3, 1), (3, 1, 1.0), (4, 2, 1.0), (3, 2, 2.5))
    assert (zero, one, two) == ("", "", "")
    assert "process 1 is there already, on " in double and "--process_id" in double
    assert "expects 4 processes, process 0 3" in other


def test_a_stranger_is_ignored():
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor() as threads:
        zero = threads.submit(call, port, 2, 0)
        time.sleep(0.5)
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert call(port, 2, 1) == "" and zero.result() == ""
