from __future__ import annotations

import pytest

from launch.clusters.slices import GENERATIONS, Slices, parse
from mmjax.types.errors import UserError


@pytest.mark.parametrize(
    ("topology", "accelerator_type", "machine_type", "hosts"),
    [
        # Google's tables of TPU versions: slices, their accelerator types and their VMs.
        ("v4:2x2x1", "v4-8", "ct4p-hightpu-4t", 1),
        ("v4:4x4x8", "v4-256", "ct4p-hightpu-4t", 32),
        ("v5e:1x1", "v5litepod-1", "ct5lp-hightpu-1t", 1),
        ("v5e:2x4", "v5litepod-8", "ct5lp-hightpu-8t", 1),
        ("v5e:4x4", "v5litepod-16", "ct5lp-hightpu-4t", 4),
        ("v5e:16x16", "v5litepod-256", "ct5lp-hightpu-4t", 64),
        ("v5p:2x2x1", "v5p-8", "ct5p-hightpu-4t", 1),
        ("v5p:8x8x8", "v5p-1024", "ct5p-hightpu-4t", 128),
        ("v6e:2x2", "v6e-4", "ct6e-standard-4t", 1),
        ("v6e:4x8", "v6e-32", "ct6e-standard-4t", 8),
        ("tpu7x:4x4x4", "", "tpu7x-standard-4t", 16),
        ("h100:8", "", "", 1),
    ],
)
def test_names_of_a_slice(topology, accelerator_type, machine_type, hosts):
    slices = parse(topology)
    assert (slices.accelerator_type, slices.machine_type, slices.hosts) == (accelerator_type, machine_type, hosts)
    assert slices.chips == hosts * slices.chips_per_host


def test_several_slices():
    assert parse("v6e:16x16*2") == Slices("v6e", "16x16", 2)
    assert str(parse("V6E:16x16*2")) == "2 x v6e:16x16 (128 hosts of 4 chips)"
    assert str(parse("H100:8*4")) == "4 x h100:8 (4 hosts of 8 chips)"


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5e", "expected KIND:SHAPE"),
        ("v5e:4x4*0", "expected KIND:SHAPE"),
        ("v5e:4x-4", "expected KIND:SHAPE"),
        ("v6p:4x4", "no such TPU; did you mean"),
        ("v5e:4x5", "v5e has no slice of 4x5; there is 1x1, 2x2, 2x4"),
        ("v5e:8", "v5e has no slice of 8; there is 1x1"),
        ("v5p:4x4", "v5p has no slice of 4x4; there is 2x2x1"),
        ("v5p:4x4x6", "or AxBxC of multiples of 4"),
        ("v5p:0x4x4", "v5p has no slice of 0x4x4"),
        ("h100:32", "expected 1 to 16 GPUs in a machine; h100:8*4 is four machines of eight"),
    ],
)
def test_what_is_no_topology(topology, message):
    with pytest.raises(UserError) as error:
        parse(topology)
    assert str(error.value).startswith(f"--topology={topology}: ") and message in str(error.value)


def test_every_generation_is_complete():
    for name, generation in GENERATIONS.items():
        assert generation.label and "{}" in generation.machine and generation.axes in (2, 3), name
        assert bool(generation.accelerator) == bool(generation.runtime), name
