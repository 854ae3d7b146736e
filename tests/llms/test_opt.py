"""OPT: cache, packing, vocabulary and depth. Parity with transformers is in tests/interop."""

from __future__ import annotations

import pytest

from mmjax.llms.opt import OPT, OPTConfig
from tests.llms import checks


def make_config(layers=2):
    return OPTConfig(vocab=checks.VOCAB, width=16, layers=layers, heads=2, ffn=32, max_positions=16)


def test_cache_equals_whole():
    checks.cache_equals_whole(OPT, make_config())


def test_packing_changes_nothing():
    checks.packing_changes_nothing(OPT, make_config())


def test_padded_vocabulary_is_never_chosen():
    checks.padded_vocabulary_is_never_chosen(OPT, make_config())


def test_depth_adds_no_leaf_and_no_equation():
    checks.depth_adds_no_leaf_and_no_equation(OPT, make_config)


def test_sizes_are_checked_and_released_ones_known():
    with pytest.raises(ValueError, match="width=10 is not a multiple of heads=4"):
        OPTConfig(vocab=9, width=10, layers=1, heads=4, ffn=8)
    assert OPTConfig.opt_2_7b().width == 2560
