"""OPT: cache, packing, vocabulary, depth and sizes. Parity with transformers is in tests/interop."""

from __future__ import annotations

import math

import pytest

from mmjax.layers.parameters import define
from mmjax.llms.opt import OPT, OPTConfig
from tests.llms import checks


def make_config(layers=2, **fields):
    return OPTConfig(vocab=checks.VOCAB, width=16, layers=layers, heads=2, ffn=32, max_positions=16, **fields)


@pytest.mark.parametrize("fields", [{}, {"embedding_width": 12, "norm_first": False, "final_norm": False}])
def test_cache_equals_whole(fields):
    checks.cache_equals_whole(OPT, make_config(**fields))


def test_packing_changes_nothing():
    checks.packing_changes_nothing(OPT, make_config())


def test_padded_vocabulary_is_never_chosen():
    checks.padded_vocabulary_is_never_chosen(OPT, make_config())


def test_depth_adds_no_leaf_and_no_equation():
    checks.depth_adds_no_leaf_and_no_equation(OPT, make_config)


def test_depth_hardly_lengthens_the_program():
    checks.depth_hardly_lengthens_the_program(OPT, make_config)


@pytest.mark.parametrize(
    ("name", "parameters"), [("opt_125m", 125_239_296), ("opt_350m", 331_196_416), ("opt_2_7b", 2_651_596_800)]
)
def test_released_sizes(name, parameters):
    config = getattr(OPTConfig, name)()
    specs = define(OPT(config)).specs
    padding = (specs["token_embedding.table"].shape[0] - config.vocab) * config.embedding_width
    assert sum(math.prod(spec.shape) for spec in specs.values()) - padding == parameters


def test_sizes_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="width=10 is not a multiple of heads=4"):
        OPTConfig(vocab=9, width=10, layers=1, heads=4, ffn=8)
    with pytest.raises(ValueError, match="final_norm=True needs norm_first=True"):
        make_config(norm_first=False)
