"""The fused cross-entropy beside XLA's: values, gradients and what it refuses; where tokamax is installed."""

from __future__ import annotations

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.objectives.fused import fused_next_token_loss
from mmjax.objectives.language_modelling import next_token_loss
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.rows import rows_on
from mmjax.parallel.topology import find_devices, parse_topology, prepare
from mmjax.training.stage import ObjectiveConfig
from mmjax.types import UserError

needs_tokamax = pytest.mark.skipif(importlib.util.find_spec("tokamax") is None, reason="tokamax needs Python 3.12")


def arrays(rows=2, length=256, width=128, vocab=384):
    numbers = np.random.default_rng(0)
    hidden = numbers.normal(size=(rows, length, width)).astype(np.float32)
    head = (numbers.normal(size=(width, vocab)) * 0.2).astype(np.float32)
    targets = numbers.integers(0, vocab, (rows, length)).astype(np.int32)
    weights = (numbers.random((rows, length)) < 0.3).astype(np.float32) * 0.5
    return tuple(map(jnp.asarray, (hidden, head, targets, weights)))


@needs_tokamax
@pytest.mark.parametrize("chunk", [512, 50])
def test_loss_and_gradients_equal_those_of_xla(chunk):
    """Also where chunks are skipped, and are no multiple of what the kernel reads at once."""
    hidden, head, targets, weights = arrays()

    def fused(hidden, head):
        return 2 * fused_next_token_loss(hidden, head, targets, weights, chunk=chunk)

    def plain(hidden, head):
        return 2 * next_token_loss(lambda x: x @ head, hidden, targets, weights)[0]

    (ours, our_gradients), (theirs, their_gradients) = (
        jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, head) for loss in (fused, plain)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    for our, their in zip(our_gradients, their_gradients, strict=True):
        np.testing.assert_allclose(our, their, atol=1e-5 * np.abs(their).max())


@needs_tokamax
@pytest.mark.heavy
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
def test_it_compiles_for_tpus(topology):
    """On a mesh that splits rows and positions; no array of the size of the logits exists."""
    topology = parse_topology(topology)
    prepare(topology)
    mesh = make_mesh({"fsdp": 2, "sequence": 2}, list(find_devices(topology)))
    hidden, head, targets, weights = arrays(16, 2048, 512, 32064)  # no multiple of 128
    rows = NamedSharding(mesh, PartitionSpec("fsdp", "sequence"))
    split = NamedSharding(mesh, PartitionSpec(None, ("fsdp", "sequence")))
    abstract = lambda x, sharding, dtype: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding)  # noqa: E731

    def loss(hidden, head, targets, weights):
        with rows_on(mesh):
            return fused_next_token_loss(hidden, head, targets, weights)

    compiled = (
        jax.jit(jax.value_and_grad(loss, (0, 1)))
        .lower(
            abstract(hidden, rows, jnp.bfloat16), abstract(head, split, jnp.float32),
            abstract(targets, rows, jnp.int32), abstract(weights, rows, jnp.float32),
        )
        .compile()
    )  # fmt: skip
    logits = 16 // 2 * 2048 // 2 * 32064 * 2  # of a device's positions, in bfloat16
    assert compiled.memory_analysis().temp_size_in_bytes < logits / 2


@needs_tokamax
def test_tensor_parallelism_is_refused():
    arguments = arrays(8, 16)
    with rows_on(make_mesh({"tensor": 2}, jax.devices()[:2])), pytest.raises(UserError, match="set mesh.tensor to 1"):
        fused_next_token_loss(*arguments)


def test_without_tokamax_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokamax", None)
    with pytest.raises(UserError, match=r"pip install 'mmjax\[kernels\]' with Python 3.12 or newer, or set it to xla"):
        fused_next_token_loss(*arrays(8, 16))


def test_what_it_cannot_do_is_refused_by_the_config():
    ObjectiveConfig(name="language_modelling", cross_entropy="tokamax")
    for wrong in ({"label_smoothing": 0.1}, {"answer_prior": 0.1}, {"name": "blip2_stage1"}):
        with pytest.raises(ValueError, match="is for language_modelling without"):
            ObjectiveConfig(**{"name": "language_modelling", "cross_entropy": "tokamax"} | wrong)
    with pytest.raises(ValueError, match="cross_entropy must be 'xla' or 'tokamax'"):
        ObjectiveConfig(name="language_modelling", cross_entropy="cuda")
