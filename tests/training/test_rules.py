"""Ordered rules over parameter paths."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.training.rules import match_multipliers, match_rules, resolve
from mmjax.types import UserError
from tests.training.tiny import tiny_definition, tiny_stage

SPECS = tiny_definition(layers=3).specs


def test_the_first_match_wins_and_the_whole_path_must_match():
    values = match_rules(((r"llm\.layers\..*", 1), (r"llm\..*", 2), ("head", 9))[:2], SPECS, 0)
    assert values["llm.layers.up.kernel"] == 1 and values["llm.head"] == 2 and values["encoders.image.layer.bias"] == 0


def test_a_falsy_value_is_a_match():
    assert match_rules(((r"llm\..*", None), (".*", 1)), SPECS, 2)["llm.head"] is None


def test_the_default_may_look_at_the_spec():
    values = match_rules((), SPECS, lambda spec: len(spec.unstacked_shape))
    assert values["llm.layers.up.bias"] == 1 and values["llm.scale"] == 0


def test_a_rule_that_matches_nothing_names_the_nearest_paths():
    with pytest.raises(
        UserError, match=r"--config\.x: rule 'encoders\\.image\\.layers\\.kernel'.*encoders\.image\.layer\.kernel"
    ):
        match_rules(((r"encoders\.image\.layers\.kernel", 1),), SPECS, flag="--config.x")


def test_a_list_is_one_value_per_layer():
    values = match_multipliers(((r"llm\.layers\..*", [0.1, 0.5, 1]),), SPECS)
    np.testing.assert_allclose(values["llm.layers.up.kernel"], [0.1, 0.5, 1])
    assert values["llm.head"] == 1.0
    with pytest.raises(UserError, match="3 layers, got 2"):
        match_multipliers(((r"llm\.layers\..*", [0.1, 0.5]),), SPECS)
    with pytest.raises(UserError, match="no stack"):
        match_multipliers(((r"llm\.head", [0.1]),), SPECS)


def test_a_stage_resolves_with_its_defaults():
    stage = tiny_stage(
        trainable=((r"llm\..*", True),),
        dtype=((r"encoders\..*", "bfloat16"),),
        weight_decay=((r"llm\.head", 0.5),),
        sharding=((r"llm\.layers\.up\.kernel", [None, "fsdp"]),),
    )
    resolved = resolve(stage, SPECS)
    assert resolved.trainable["llm.head"] and not resolved.trainable["connectors.image.bias"]
    assert resolved.dtype["encoders.image.layer.bias"] == jnp.bfloat16 and resolved.dtype["llm.head"] == jnp.float32
    decays = {path: resolved.weight_decay[path] for path in SPECS if path.startswith("llm.")}
    assert decays == {
        "llm.head": 0.5, "llm.scale": 0.0, "llm.layers.up.kernel": 1.0, "llm.layers.up.bias": 0.0,
        "llm.layers.down.kernel": 1.0, "llm.layers.down.bias": 0.0,
    }  # fmt: skip
    assert resolved.sharding == {"llm.layers.up.kernel": [None, "fsdp"]}


def test_a_stage_that_trains_nothing_or_names_no_dtype_is_refused():
    with pytest.raises(UserError, match=r"stages\.tiny\.trainable: no parameter"):
        resolve(tiny_stage(trainable=((".*", False),)), SPECS)
    with pytest.raises(UserError, match="got 'float31'"):
        resolve(tiny_stage(dtype=((".*", "float31"),)), SPECS)
