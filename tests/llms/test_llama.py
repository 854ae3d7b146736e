"""LLaMA: cache, packing, vocabulary and depth. Parity with transformers is in tests/interop."""

from __future__ import annotations

import math

import pytest

from mmjax.layers.parameters import define
from mmjax.llms.llama import Llama, LlamaConfig
from tests.llms import checks


def make_config(layers=2, **fields):
    sizes = {"kv_heads": 2, "head_dim": 10, **fields}
    return LlamaConfig(vocab=checks.VOCAB, width=16, layers=layers, heads=4, ffn=32, **sizes)


@pytest.mark.parametrize("fields", [{}, {"kv_heads": 1, "tied": True}])
def test_cache_equals_whole(fields):
    checks.cache_equals_whole(Llama, make_config(**fields))


def test_packing_changes_nothing():
    checks.packing_changes_nothing(Llama, make_config())


@pytest.mark.parametrize("tied", [False, True])
def test_padded_vocabulary_is_never_chosen(tied):
    checks.padded_vocabulary_is_never_chosen(Llama, make_config(tied=tied))


def test_depth_adds_no_leaf_and_no_equation():
    checks.depth_adds_no_leaf_and_no_equation(Llama, make_config)


def test_smollm2_has_135_million_parameters():
    specs = define(Llama(LlamaConfig.smollm2_135m())).specs
    assert sum(math.prod(spec.shape) for spec in specs.values()) == 134_515_008
    with pytest.raises(ValueError, match="heads=4 is not a multiple of kv_heads=3"):
        make_config(kv_heads=3)
