"""Norms against torch's, with inputs far from zero mean, and in half precision."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.layers.norms import LayerNorm, RMSNorm
from mmjax.layers.parameters import define

DRAW = np.random.default_rng(0)


def both(kind, reference, x, eps):
    definition = define(kind(8, eps))
    parameters = {path: jnp.asarray(DRAW.normal(size=8), jnp.float32) for path in definition.specs}
    with torch.no_grad():
        reference.weight.copy_(torch.tensor(np.asarray(parameters["scale"])))
        if "bias" in parameters:
            reference.bias.copy_(torch.tensor(np.asarray(parameters["bias"])))
        return definition.bind(parameters)(jnp.asarray(x)), reference(torch.tensor(x)).numpy()


@pytest.mark.parametrize("eps", [1e-12, 1e-2])
@pytest.mark.parametrize(("kind", "reference"), [(LayerNorm, torch.nn.LayerNorm), (RMSNorm, torch.nn.RMSNorm)])
def test_norms_are_torch_s(kind, reference, eps):
    x = (DRAW.normal(size=(4, 3, 8)) * 0.1 + 50).astype(np.float32)
    got, expected = both(kind, reference(8, eps), x, eps)
    np.testing.assert_allclose(got, expected, atol=5e-4 if kind is LayerNorm else 1e-5)


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
def test_statistics_are_float32_in_half_precision(kind):
    x = jnp.asarray(DRAW.normal(size=(2, 8)) * 300 + 100, jnp.float32).astype(jnp.bfloat16)
    definition = define(kind(8, 1e-6))
    module = definition.bind({path: jnp.full(8, float(path == "scale")) for path in definition.specs})
    half, full = module(x), module(x.astype(jnp.float32))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, full.astype(jnp.bfloat16))


@pytest.mark.parametrize("parts", [{"bias": False}, {"scale": False, "bias": False}])
def test_scale_and_bias_may_be_absent(parts):
    definition = define(LayerNorm(8, 1e-5, **parts))
    assert list(definition.specs) == (["scale"] if "scale" not in parts else [])
    x = DRAW.normal(size=(3, 8)).astype(np.float32)
    scale = np.arange(1.0, 9.0, dtype=np.float32)
    expected = torch.nn.functional.layer_norm(torch.tensor(x), (8,)).numpy() * (scale if definition.specs else 1)
    got = definition.bind({path: jnp.asarray(scale) for path in definition.specs})(jnp.asarray(x))
    np.testing.assert_allclose(got, expected, atol=1e-5)
