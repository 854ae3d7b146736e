"""The vision tower against Hugging Face's Blip2VisionModel, patch by patch and with its final norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.encoders.vit import OPENAI_MEAN, OPENAI_STD, ViT, ViTConfig, weight_table
from mmjax.layers.parameters import define
from mmjax.weights.safetensors import open_directory, read_file, save_directory
from mmjax.weights.table import read, write
from tests.interop import tiny

CONFIG = ViTConfig(width=16, layers=3, heads=2, ffn=32, patch_size=14, image_size=28)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vision")
    reference = tiny.make("vision", directory)
    definition = define(ViT(CONFIG))
    return directory, reference, definition, read(weight_table(CONFIG), open_directory(directory), definition.specs)


def test_features_are_those_of_transformers(loaded):
    _, reference, definition, parameters = loaded
    pixels = np.random.default_rng(0).normal(size=(2, 3, 28, 28)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(pixels)).last_hidden_state.numpy()
    got = jax.jit(lambda parameters, pixels: definition.bind(parameters)(pixels))(parameters, pixels.transpose(0, 2, 3, 1))
    assert got.shape == (2, 5, 16)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_weights_go_back_to_the_byte(loaded, tmp_path):
    directory, _, definition, parameters = loaded
    save_directory(tmp_path, write(weight_table(CONFIG), parameters, definition.specs))
    before, after = read_file(directory / "model.safetensors"), read_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)


def test_a_bias_of_the_keys_changes_nothing(loaded):
    """Why it is not read: it moves all scores of a query alike."""
    _, reference, _, _ = loaded
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = reference(pixels).last_hidden_state
        biases = [layer.self_attn.qkv.bias for layer in reference.encoder.layers]
        for bias in biases:
            bias[16:32] = 1.5
        after = reference(pixels).last_hidden_state
        for bias in biases:
            bias[16:32] = 0
    np.testing.assert_allclose(before, after, atol=1e-4)


def test_pixels_are_normalised():
    images = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 3), dtype=np.uint8)
    expected = (images / 255 - np.array(OPENAI_MEAN)) / np.array(OPENAI_STD)
    np.testing.assert_allclose(ViT(CONFIG).pixels(jnp.asarray(images)), expected, atol=1e-5)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="image_size=30 is not a multiple of patch_size=14"):
        ViTConfig(width=16, layers=1, heads=2, ffn=8, patch_size=14, image_size=30)
    with pytest.raises(ValueError, match="width=15 is not a multiple of heads=2"):
        ViTConfig(width=15, layers=1, heads=2, ffn=8, patch_size=14, image_size=28)
    config = ViTConfig.eva_clip_g()
    assert config.grid == 16
    total = sum(np.prod(spec.shape) for spec in define(ViT(config)).specs.values())
    assert total == 985_894_528 + 2 * 1408  # the tower, and the norm after it
