"""Linear and MLP connectors against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.connectors.linear import LinearConfig, LinearConnector
from mmjax.layers.parameters import define


def connector(**fields):
    config = LinearConfig(encoder_width=6, output_width=10, **fields)
    definition = define(LinearConnector(config))
    parameters = {path: jax.random.normal(jax.random.key(len(path)), spec.shape) for path, spec in definition.specs.items()}
    return parameters, definition.bind(parameters)


FEATURES = np.random.default_rng(0).standard_normal((2, 3, 9, 6)).astype(np.float32)


def test_two_layers_of_llava():
    weights, bound = connector(layers=2)
    x = FEATURES[:, :, 1:].reshape(2, 24, 6)
    hidden = jax.nn.gelu(x @ weights["maps.0.kernel"] + weights["maps.0.bias"], approximate=False)
    wanted = hidden @ weights["maps.1.kernel"] + weights["maps.1.bias"]
    np.testing.assert_allclose(bound.connect(jnp.asarray(FEATURES)), wanted, rtol=1e-5, atol=1e-5)


def test_neighbours_are_merged_as_strips():
    weights, bound = connector(merge=4)
    x = np.stack([FEATURES[:, :, 1 + 4 * k : 5 + 4 * k].reshape(2, 3, 24) for k in range(2)], axis=2).reshape(2, 6, 24)
    wanted = x @ weights["maps.0.kernel"] + weights["maps.0.bias"]
    np.testing.assert_allclose(bound.connect(jnp.asarray(FEATURES)), wanted, rtol=1e-5, atol=1e-5)


def test_the_newline_comes_last():
    weights, bound = connector(newline=True, skip=0)
    made = bound.connect(jnp.asarray(FEATURES))
    assert made.shape == (2, 28, 10)
    np.testing.assert_array_equal(made[:, -1], np.broadcast_to(weights["newline"], (2, 10)))


@pytest.mark.parametrize(
    ("fields", "features", "count"), [({}, 577, 576), ({"merge": 4}, 257, 64), ({"skip": 0, "merge": 4}, 256, 64)]
)
def test_soft_tokens(fields, features, count):
    assert LinearConfig(encoder_width=6, output_width=10, **fields).soft_tokens(features) == count


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 0}, "layers must"),
        ({"merge": 0}, "merge must"),
        ({"skip": -1}, "skip must"),
        ({"activation": "x"}, "activation"),
    ],
)
def test_bad_sizes(fields, message):
    with pytest.raises(ValueError, match=message):
        LinearConfig(encoder_width=6, output_width=10, **fields)


def test_features_that_do_not_merge():
    with pytest.raises(ValueError, match="merge=3 does not divide the 256 features"):
        LinearConfig(encoder_width=6, output_width=10, merge=3).soft_tokens(257)
