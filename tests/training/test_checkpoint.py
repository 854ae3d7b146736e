"""Checkpoints: exact, atomic, proven on restore."""

from __future__ import annotations

import json
import logging
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.training import checkpoint
from mmjax.training.checkpoint import Checkpoints, restore_leaves
from mmjax.types import UserError

# Orbax drops its other coroutines when one of them fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(scale: float = 1.0, width: int = 64):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(width, 64)) * scale, jnp.float32)
    return {
        "step": jnp.int32(3),
        "trainable": {"llm.layers.attention.query.kernel": kernel, "llm.norm.scale": kernel[0].astype(jnp.bfloat16)},
        "opt_state": (jnp.uint32(7), {"mask": jnp.array([True, False]), "nothing": jnp.zeros((0, 4))}),
        "key": jax.random.key(5),
    }


def equal(a, b) -> bool:
    as_data = lambda x: np.asarray(jax.random.key_data(x) if checkpoint.is_key(x) else x)  # noqa: E731
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and (as_data(x) == as_data(y)).all() for x, y in pairs)


def saved(directory, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(directory, keep=len(steps))
    for step in steps:
        checkpoints.save(step, make_state(step), {"data": {"batch": step}})
    checkpoints.close()
    return checkpoints


def test_round_trip_is_exact_and_owned(tmp_path):
    saved(tmp_path / "a", 4)
    restored = Checkpoints(tmp_path / "a").restore(make_state())
    assert (restored.step, restored.record) == (4, {"data": {"batch": 4}})
    assert equal(restored.state, make_state(4))
    # Donating what was restored must not disturb it.
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    bumped = bump(restored.state["trainable"])
    assert equal(bumped, jax.tree.map(lambda x: x + 1, make_state(4)["trainable"]))


def test_donated_while_the_save_runs(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {"x": jnp.arange(1 << 20, dtype=jnp.float32)}
    bump = jax.jit(lambda tree: {"x": tree["x"] * 0 - 1}, donate_argnums=0)
    checkpoints.save(1, state, {})
    bump(state)["x"].block_until_ready()
    checkpoints.close()
    restored = Checkpoints(tmp_path).restore({"x": jnp.zeros(1 << 20)})
    assert (np.asarray(restored.state["x"]) == np.arange(1 << 20)).all()


def test_nothing_saved_yet(tmp_path):
    assert Checkpoints(tmp_path / "none").restore(make_state()) is None


def test_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 10):
        checkpoints.save(step, make_state(step), {})
    checkpoints.save(10, make_state(99), {})  # committed already: not written twice
    checkpoints.close()
    assert checkpoints.steps() == [3, 10]
    assert equal(checkpoints.restore(make_state()).state, make_state(10))


def test_killed_between_a_save_and_the_tidying(tmp_path):
    saved(tmp_path, 1, 2, 3)
    assert Checkpoints(tmp_path, keep=2, writable=False).restore(make_state()).step == 3
    assert Checkpoints(tmp_path, keep=2, writable=False).steps() == [1, 2, 3]
    assert Checkpoints(tmp_path, keep=2).restore(make_state()).step == 3
    assert Checkpoints(tmp_path).steps() == [2, 3]


def test_leftovers_of_killed_runs(tmp_path):
    saved(tmp_path, 4)
    shutil.copytree(tmp_path / "4", tmp_path / "8.orbax-checkpoint-tmp")
    shutil.copytree(tmp_path / "4", tmp_path / "2.deleted")
    assert Checkpoints(tmp_path, writable=False).steps() == [4]
    assert (tmp_path / "8.orbax-checkpoint-tmp").exists()
    checkpoints = Checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4"]
    checkpoints.save(8, make_state(8), {})
    checkpoints.close()
    assert checkpoints.steps() == [4, 8]


def array_file(directory):
    return max((path for path in (directory / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path, position: float = 0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * position)] ^= 8
    path.write_bytes(data)


DAMAGES = {
    "bit flipped in an array": lambda step: flip(array_file(step)),
    "bit flipped in the record": lambda step: flip(step / "record" / "metadata"),
    "array file cut": lambda step: array_file(step).write_bytes(array_file(step).read_bytes()[:100]),
    "array file deleted": lambda step: array_file(step).unlink(),
    "state deleted": lambda step: shutil.rmtree(step / "state"),
    "record deleted": lambda step: (step / "record" / "metadata").unlink(),
    "tree metadata emptied": lambda step: (step / "state" / "_METADATA").write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_step_falls_back_loudly(tmp_path, caplog, damage):
    saved(tmp_path, 4, 8)
    DAMAGES[damage](tmp_path / "8")
    with caplog.at_level(logging.ERROR):
        restored = Checkpoints(tmp_path).restore(make_state())
    assert restored.step == 4 and equal(restored.state, make_state(4))
    assert "DAMAGED" in caplog.text and str(tmp_path / "8") in caplog.text
    assert (tmp_path / "8.damaged").exists() and Checkpoints(tmp_path).steps() == [4]


def test_flipped_bits_never_pass(tmp_path):
    """Any single bit of the array payload: either noticed, or in bytes that change no value."""
    saved(tmp_path / "good", 8)
    size = array_file(tmp_path / "good" / "8").stat().st_size
    noticed = 0
    for offset in np.linspace(0, size - 1, 12).astype(int):
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        flip(array_file(tmp_path / "bad" / "8"), offset / size)
        try:
            restored = Checkpoints(tmp_path / "bad", writable=False).restore(make_state())
            assert equal(restored.state, make_state(8))
        except UserError:
            noticed += 1
        shutil.rmtree(tmp_path / "bad")
    assert noticed >= 10


def test_a_wrong_value_names_its_leaf(tmp_path, caplog):
    """Values that differ although every file is well-formed: the digest's own case."""
    saved(tmp_path, 4, 8)
    shutil.rmtree(tmp_path / "8" / "state")
    shutil.copytree(tmp_path / "4" / "state", tmp_path / "8" / "state")
    assert Checkpoints(tmp_path).restore(make_state()).step == 4
    assert "trainable/llm.layers.attention.query.kernel is not what was saved (2 of 7 leaves differ)" in caplog.text


def test_none_good(tmp_path):
    saved(tmp_path, 4, 8)
    for step in ("4", "8"):
        array_file(tmp_path / step).unlink()
    with pytest.raises(UserError, match="no checkpoint in .* is good: step 8: .*; step 4: "):
        Checkpoints(tmp_path).restore(make_state())


def test_shape_and_dtype_are_never_cast(tmp_path):
    saved(tmp_path, 4)
    with pytest.raises(UserError, match=r"query.kernel: saved float32\[64, 64\], wanted float32\[4, 64\]"):
        Checkpoints(tmp_path).restore(make_state(width=4))
    target = make_state()
    target["trainable"]["llm.norm.scale"] = target["trainable"]["llm.norm.scale"].astype(jnp.int8)
    with pytest.raises(UserError, match=r"norm.scale: saved bfloat16\[64\], wanted int8\[64\]"):
        Checkpoints(tmp_path).restore(target)
    target = make_state()
    target["trainable"]["llm.extra"] = jnp.zeros(3)
    with pytest.raises(UserError, match=r"trainable/llm.extra: saved nothing, wanted float32\[3\]"):
        Checkpoints(tmp_path).restore(target)
    assert Checkpoints(tmp_path).steps() == [4], "a config that does not fit is no damage"


def test_disk_too_small_is_said_before_writing(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 4)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(UserError, match=r"step 8 needs .* MiB, .* has 0.0 MiB free.*--config.checkpoint.keep.*--workdir"):
        checkpoints.save(8, make_state(8), {})
    assert checkpoints.steps() == [4]


def test_write_failure_surfaces_and_old_steps_stay(tmp_path):
    """The disk fills up while the save runs, here by a limit on file sizes."""
    checkpoints = saved(tmp_path, 4)
    large = {"x": jax.random.normal(jax.random.key(0), (1 << 19,))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(UserError, match="failed: .*already saved \\(4\\) are intact"):
            checkpoints.save(8, large, {})
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Checkpoints(tmp_path).restore(make_state()).step == 4


def test_restores_onto_another_mesh(tmp_path):
    devices = jax.devices()
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    layouts = [NamedSharding(Mesh(np.array(devices), ("fsdp",)), PartitionSpec("fsdp"))]
    layouts.append(NamedSharding(Mesh(np.array(devices[:1]), ("fsdp",)), PartitionSpec()))
    layouts.append(NamedSharding(Mesh(np.array(devices).reshape(-1, 1), ("fsdp", "tensor")), PartitionSpec("tensor", "fsdp")))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": jax.device_put(x, layouts[0])}, {})
    checkpoints.close()
    for layout in layouts:
        restored = checkpoints.restore({"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)}).state["x"]
        assert restored.sharding == layout and (np.asarray(restored) == x).all()


def test_part_of_a_state(tmp_path):
    saved(tmp_path, 4, 8)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    step, leaves = restore_leaves(tmp_path, "trainable/", lambda path: device)
    assert step == 8 and equal(leaves, make_state(8)["trainable"])
    flip(array_file(tmp_path / "8"))
    assert restore_leaves(tmp_path, "trainable/", lambda path: device)[0] == 4
    with pytest.raises(UserError, match="train that stage first"):
        restore_leaves(tmp_path / "none", "trainable/", lambda path: device)


def test_record_is_a_copy_and_may_hold_nan(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    window = [float("nan")]
    checkpoints.save(1, make_state(), {"window": window})
    window.append(2.0)
    checkpoints.close()
    (value,) = checkpoints.restore(make_state()).record["window"]
    assert np.isnan(value)


def test_record_is_plain_json(tmp_path):
    saved(tmp_path, 4)
    record = json.loads((tmp_path / "4" / "record" / "metadata").read_text())["record"]
    assert record["leaves"]["step"]["dtype"] == "int32" and len(record["leaves"]["step"]["digest"]) == 16
