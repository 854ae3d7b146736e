"""PaLM: cache, packing, vocabulary, depth, sizes and sharding. Parity with transformers is in tests/interop."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers.parameters import define
from mmjax.llms.palm import PaLM, PaLMConfig
from mmjax.parallel.axes import shardings
from mmjax.parallel.mesh import make_mesh
from tests.llms import checks


def make_config(layers=2, **fields):
    return PaLMConfig(vocab=checks.VOCAB, width=16, layers=layers, heads=4, head_dim=6, ffn=32, **fields)


def test_cache_equals_whole():
    checks.cache_equals_whole(PaLM, make_config())


def test_packing_changes_nothing():
    checks.packing_changes_nothing(PaLM, make_config())


def test_padded_vocabulary_is_never_chosen():
    checks.padded_vocabulary_is_never_chosen(PaLM, make_config())


def test_depth_adds_no_leaf_and_no_equation():
    checks.depth_adds_no_leaf_and_no_equation(PaLM, make_config)


def test_depth_hardly_lengthens_the_program():
    checks.depth_hardly_lengthens_the_program(PaLM, make_config)


@pytest.mark.parametrize(("name", "billions"), [("palm_8b", 8.63), ("palm_62b", 62.50), ("palm_540b", 540.36)])
def test_sizes_of_the_paper(name, billions):
    specs = define(PaLM(getattr(PaLMConfig, name)())).specs
    assert round(sum(math.prod(spec.shape) for spec in specs.values()) / 1e9, 2) == billions


def test_logits_begin_near_one():
    """Embeddings of variance 1 and the scale width^−½ keep fresh logits of order one at any width."""
    config = make_config(logit_scale=0.0)
    assert config.logit_scale == 0.25
    definition = define(PaLM(config))
    parameters = definition.initialise(jax.random.key(0))
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(64, 16)), jnp.float32)
    assert 0.5 < np.asarray(definition.bind(parameters).logits(hidden))[:, : checks.VOCAB].std() < 2


def test_the_single_head_of_keys_is_whole_on_every_device_of_a_tensor_group():
    specs = define(PaLM(make_config())).specs
    placed = shardings(specs, make_mesh({"tensor": 4, "fsdp": 2}))
    assert placed["layers.attention.query.kernel"].spec[-1] == "tensor"
    for name in ("key", "value"):
        assert "tensor" not in jax.tree.leaves(tuple(placed[f"layers.attention.{name}.kernel"].spec))
