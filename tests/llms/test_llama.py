"""LLaMA and its kin: cache, packing, vocabulary, depth and sizes. Parity with transformers is in tests/interop."""

from __future__ import annotations

import math

import pytest

from mmjax.layers.parameters import define
from mmjax.llms.llama import Llama, LlamaConfig
from tests.llms import checks


def make_config(layers=2, **fields):
    sizes = {"kv_heads": 2, "head_dim": 10, **fields}
    return LlamaConfig(vocab=checks.VOCAB, width=16, layers=layers, heads=4, ffn=32, **sizes)


VARIANTS = {
    "llama": {},
    "tied": {"kv_heads": 1, "tied": True},
    "mistral": {"window": 3},
    "qwen2": {"attention_bias": True, "kv_heads": 4, "window": 2, "full_layers": (0,)},
    "qwen3": {"head_norm": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_cache_equals_whole(variant):
    checks.cache_equals_whole(Llama, make_config(**VARIANTS[variant]))


@pytest.mark.parametrize("variant", ["llama", "qwen2"])
def test_packing_changes_nothing(variant):
    checks.packing_changes_nothing(Llama, make_config(**VARIANTS[variant]))


@pytest.mark.parametrize("tied", [False, True])
def test_padded_vocabulary_is_never_chosen(tied):
    checks.padded_vocabulary_is_never_chosen(Llama, make_config(tied=tied))


def test_depth_adds_no_leaf_and_no_equation():
    checks.depth_adds_no_leaf_and_no_equation(Llama, make_config)


def test_depth_hardly_lengthens_the_program():
    checks.depth_hardly_lengthens_the_program(Llama, lambda layers: make_config(layers, window=3))


# Parameters of the released files, as their model cards or indices count them.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama_7b", 6_738_415_616),
        ("llama_13b", 13_015_864_320),
        ("llama_30b", 32_528_943_616),
        ("llama_65b", 65_285_660_672),
        ("vicuna_v0_7b", 6_738_415_616),
        ("vicuna_v0_13b", 13_015_864_320),
        ("vicuna_7b", 6_738_415_616),
        ("vicuna_13b", 13_015_864_320),
        ("vicuna_33b", 32_528_943_616),
        ("vicuna_v1_5_7b", 6_738_415_616),
        ("vicuna_v1_5_13b", 13_015_864_320),
        ("llama2_7b", 6_738_415_616),
        ("llama2_13b", 13_015_864_320),
        ("llama2_70b", 68_976_648_192),
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("llama3_1_8b", 8_030_261_248),
        ("llama3_1_70b", 70_553_706_496),
        ("llama3_1_405b", 405_853_388_800),
        ("llama3_2_1b", 1_235_814_400),
        ("llama3_2_3b", 3_212_749_824),
        ("mistral_7b_v0_1", 7_241_732_096),
        ("mistral_7b_v0_2", 7_241_732_096),
        ("mistral_7b_v0_3", 7_248_023_552),
        ("qwen2_0_5b", 494_032_768),
        ("qwen2_1_5b", 1_543_714_304),
        ("qwen2_5_3b", 3_085_938_688),
        ("qwen2_7b", 7_615_616_512),
        ("qwen2_5_14b", 14_770_033_664),
        ("qwen2_5_32b", 32_763_876_352),
        ("qwen2_72b", 72_706_203_648),
        ("qwen3_0_6b", 596_049_920),
        ("qwen3_1_7b", 1_720_574_976),
        ("qwen3_4b", 4_022_468_096),
        ("qwen3_8b", 8_190_735_360),
        ("qwen3_14b", 14_768_307_200),
        ("qwen3_32b", 32_762_123_264),
        ("smollm2_135m", 134_515_008),
        ("smollm2_360m", 361_821_120),
        ("smollm2_1_7b", 1_711_376_384),
    ],
)
def test_released_sizes(name, parameters):
    specs = define(Llama(getattr(LlamaConfig, name)())).specs
    assert sum(math.prod(spec.shape) for spec in specs.values()) == parameters


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kv_heads": 3}, "heads=4 is not a multiple of kv_heads=3"),
        ({"head_dim": 9}, "head_dim=9 is odd"),
        ({"full_layers": (2,)}, "full_layers names layer 2; there are layers 0 to 1"),
        ({"activation": "snake"}, "activation='snake' is unknown"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)
