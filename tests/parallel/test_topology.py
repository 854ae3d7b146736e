"""Topologies: their names, their sizes as libtpu gives them, and what is said of those that do not exist."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import jax
import pytest

from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.topology import CHIPS, find_devices, parse_topology, prepare
from mmjax.types import UserError


@pytest.mark.parametrize(
    ("name", "size", "rate"),
    [
        ("v4:2x2x1", 4, 2 * 45e9),
        ("v5e:4x4", 16, 2 * 45e9),
        ("v5e:16x16", 256, 4 * 45e9),
        ("v5e:1x1", 1, 45e9),
        ("v5e:2x4*2", 16, 2 * 45e9),
        ("v5p:2x2x2", 8, 3 * 90e9),
        ("v5p:4x4x4", 64, 6 * 90e9),
        ("v6e:2x4", 8, 2 * 90e9),
        ("tpu7x:2x2x1", 8, 2 * 45e9),
        ("cpu:8", 8, CHIPS["cpu"].link_rate),
    ],
)
def test_libtpu_gives_as_many_devices_as_the_name_says(name, size, rate):
    topology = parse_topology(name)
    assert topology.size == size and str(topology) == name and topology.link_rate == rate
    prepare(topology)
    devices = find_devices(topology)
    assert len(devices) == size and {device.platform for device in devices} == {topology.chip.platform}
    assert len({getattr(device, "slice_index", 0) for device in devices}) == topology.slices


@pytest.mark.parametrize("name", ["v5e:16x16", "v5e:16x16*2"])
def test_a_mesh_may_cut_a_side_of_the_grid(name):
    topology = parse_topology(name)
    prepare(topology)
    mesh = make_mesh({"replica": topology.slices, "fsdp": 32, "sequence": 8}, find_devices(topology))
    assert len(set(mesh.devices.flat)) == topology.size
    if topology.slices > 1:  # a replica is a slice
        assert [{device.slice_index for device in replica.flat} for replica in mesh.devices] == [{0}, {1}]


def test_gpus_are_h100s_unless_it_is_said():
    assert parse_topology("gpu") == parse_topology("h100:1") and parse_topology("gpu:8").size == 8
    assert parse_topology("h200:8").chip.memory == 141 * 10**9


@pytest.mark.parametrize(
    "name", ["v9:2x2", "v5e", "v5e:4", "v5e:4x4x4", "v5p:4x4", "v5e:0x4", "cpu:2x2", "v5e:4x4*0", "", "v5e:32x32"]
)
def test_a_name_that_is_none_is_answered_with_what_there_is(name):
    with pytest.raises(UserError, match=r"^--topology=.*; (write for example v4:2x2x2, v5e:4x4|add slices)") as error:
        parse_topology(name)
    assert "\n" not in str(error.value)


def test_a_grid_that_libtpu_refuses_is_one_line():
    topology = parse_topology("v5e:3x5")
    prepare(topology)
    with pytest.raises(UserError, match=r"^--topology=v5e:3x5: libtpu has no such slice .*not divisible") as error:
        find_devices(topology)
    assert "\n" not in str(error.value)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match=r"^--topology=v5e:4x4 needs the TPU compiler: pip install 'mmjax\[plan\]'$"):
        prepare(parse_topology("v5e:4x4"))


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match=f"this process has {jax.device_count()} devices; give --topology=cpu:8"):
        find_devices(parse_topology("cpu:64"))


def test_libtpu_without_a_tpu_is_quiet():
    """JAX looks for a TPU wherever libtpu is, unless told not to; what it finds missing is no news here."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_"))}
    code = "from mmjax.parallel.topology import quiet_libtpu; quiet_libtpu(); import jax; print(jax.devices()[0].platform)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0 and done.stdout.split() and done.stderr == ""
