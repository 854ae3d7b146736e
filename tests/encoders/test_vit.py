"""The vision tower against Hugging Face's Blip2VisionModel, patch by patch and with its final norm."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.encoders.text import TextConfig, TextEncoder
from mmjax.encoders.vit import OPENAI_MEAN, OPENAI_STD, ViT, ViTConfig, weight_table
from mmjax.layers import stack
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
    with pytest.raises(ValueError, match="image_size=12 is smaller than patch_size=14"):
        ViTConfig(width=16, layers=1, heads=2, ffn=8, patch_size=14, image_size=12)
    with pytest.raises(ValueError, match="pooling='class' needs class_token=True"):
        ViTConfig(width=16, layers=1, heads=2, ffn=8, patch_size=14, image_size=28, class_token=False)
    with pytest.raises(ValueError, match="depth=-3 lies outside the tower's 1 layers"):
        ViTConfig(width=16, layers=1, heads=2, ffn=8, patch_size=14, image_size=28, depth=-3)
    with pytest.raises(ValueError, match="width=15 is not a multiple of heads=2"):
        ViTConfig(width=15, layers=1, heads=2, ffn=8, patch_size=14, image_size=28)
    config = ViTConfig.eva_clip_g()
    assert config.grid == 16
    total = sum(np.prod(spec.shape) for spec in define(ViT(config)).specs.values())
    assert total == 985_894_528 + 2 * 1408  # the tower, and the norm after it


def total(*modules):
    return sum(int(np.prod(spec.shape)) for module in modules for spec in define(module).specs.values())


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (ViTConfig.vit_b(), 86_389_248),
        (ViTConfig.vit_l(), 304_351_232),
        (ViTConfig.vit_h(), 632_404_480),
    ],
)
def test_released_sizes(config, parameters):
    assert total(ViT(config)) == parameters


@pytest.mark.parametrize(
    ("vision", "text", "scalars", "parameters"),
    [
        (ViTConfig.clip_b(32), TextConfig.clip_b(), 1, 151_277_313),
        (ViTConfig.clip_b(16), TextConfig.clip_b(), 1, 149_620_737),
        (ViTConfig.clip_l(), TextConfig.clip_l(), 1, 427_616_513),
        (ViTConfig.clip_l(336), TextConfig.clip_l(), 1, 427_944_193),
        (ViTConfig.clip_h(), TextConfig.clip_h(), 1, 986_109_441),
        (ViTConfig.clip_g(), TextConfig.clip_h(), 1, 1_366_678_273),
        (ViTConfig.clip_bigg(), TextConfig.clip_bigg(), 1, 2_539_567_105),
        (ViTConfig.siglip_b(), TextConfig.siglip_b(), 2, 203_155_970),
        (ViTConfig.siglip_l(), TextConfig.siglip_l(), 2, 652_150_786),
        (ViTConfig.siglip_so400m(), TextConfig.siglip_so400m(), 2, 877_960_498),
    ],
)
def test_released_pairs(vision, text, scalars, parameters):
    assert total(ViT(vision), TextEncoder(text)) + scalars == parameters


def test_features_of_an_earlier_depth():
    """−2, as LLaVA reads CLIP: the output of the last block but one, not normalised; its last block is not run."""
    fields = {**dataclasses.asdict(ViTConfig.clip_b()), "width": 16, "layers": 3, "heads": 2, "ffn": 32, "projection": 0}
    fields |= {"patch_size": 7, "image_size": 28}
    definition = define(ViT(ViTConfig(**fields)))
    parameters = definition.initialise(jax.random.key(0))
    pixels = jax.random.normal(jax.random.key(1), (1, 28, 28, 3))
    with stack.record() as read:
        whole = definition.bind(parameters).encode(pixels)
    states = [*read[0], whole]
    for depth in (-4, -2, -1, 1, 3):
        tower = define(ViT(ViTConfig(**{**fields, "depth": depth}))).bind(parameters)
        np.testing.assert_allclose(tower(pixels), states[depth], atol=1e-5)
    broken = parameters | {path: value.at[2].set(jnp.nan) for path, value in parameters.items() if path.startswith("layers")}
    assert np.isfinite(define(ViT(ViTConfig(**{**fields, "depth": -2}))).bind(broken)(pixels)).all()


def test_depth_adds_no_leaf_and_no_equation():
    programs = []
    for layers in (12, 48):
        definition = define(ViT(dataclasses.replace(CONFIG, layers=layers, pooling="attention", class_token=False)))

        def loss(parameters, definition=definition):
            return definition.bind(parameters).embedding(jnp.ones((1, 28, 28, 3))).sum()

        program = str(jax.make_jaxpr(jax.grad(loss))(definition.abstract()))
        programs.append((len(definition.specs), program.count("\n")))
    assert programs[0] == programs[1]


def test_pictures_of_another_size_are_not_read_by_accident():
    definition = define(ViT(CONFIG))
    with pytest.raises(ValueError, match="expected 2 × 2 patches, got 3 × 2"):
        jax.eval_shape(lambda parameters: definition.bind(parameters)(jnp.ones((1, 42, 28, 3))), definition.abstract())
