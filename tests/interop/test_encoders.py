"""Encoders compute what the classes of transformers compute, at every depth, and go there and back without losing a bit."""

from __future__ import annotations

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import mmjax
from mmjax.interop import hf_forward, with_image_size
from mmjax.interop.pretrained import describe
from mmjax.types import Model, UserError
from tests.interop import encoder_models as tiny

TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> (directory, Hugging Face model, ours), made once."""
    made = {}

    def get(name):
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            reference = tiny.make(name, directory)
            made[name] = directory, reference, mmjax.from_pretrained(directory)
        return made[name]

    return get


def stored(directory):
    with safe_open(directory / "model.safetensors", "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def compare(got, expected):
    assert set(got) == set(expected)
    for key, value in expected.items():
        ours = np.stack(got[key]) if key == "hidden_states" else got[key]
        assert ours.dtype == np.float32 and ours.shape == value.shape, key
        np.testing.assert_allclose(ours, value, **TOLERANCE, err_msg=key)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_every_depth_and_output_is_that_of_transformers(models, name):
    """Padding of the texts is compared too: SigLIP pools it."""
    _, reference, model = models(name)
    arrays = {**tiny.inputs(name), "output_hidden_states": True}
    expected = tiny.outputs(reference, arrays)
    assert expected[max(expected)].std() > 0.05
    compare(hf_forward(model, arrays), expected)


@pytest.mark.parametrize("name", tiny.VISUAL)
def test_positions_are_resized_as_transformers_does(models, name):
    _, reference, model = models(name)
    arrays = {**tiny.inputs(name, 44, 23), "interpolate_pos_encoding": True}
    compare(hf_forward(model, arrays), tiny.outputs(reference, arrays))


@pytest.mark.parametrize("name", ["clip_text", "bert", "roberta", "siglip_text"])
def test_texts_without_mask_and_with_positions_of_their_own(models, name):
    _, reference, model = models(name)
    arrays = {"input_ids": tiny.inputs(name)["input_ids"]}
    compare(hf_forward(model, arrays), tiny.outputs(reference, arrays))
    arrays["position_ids"] = np.arange(9)[::-1][None] + 2
    compare(hf_forward(model, arrays), tiny.outputs(reference, arrays))


@pytest.mark.parametrize("name", tiny.MODELS)
def test_there_and_back_is_equal_to_the_byte(models, tmp_path, name):
    directory, reference, model = models(name)
    export = mmjax.save_pretrained(model, tmp_path)
    before, after = stored(directory), stored(tmp_path)
    assert before.keys() == after.keys() and export.left_out == ()
    assert all(before[key].dtype == after[key].dtype and before[key].tobytes() == after[key].tobytes() for key in before)
    _, constructor = type(reference), tiny.MODELS[name][2]
    again, report = type(reference).from_pretrained(tmp_path, output_loading_info=True, **constructor)
    assert not any(report.values()), report
    assert again.config.num_labels == reference.config.num_labels


@pytest.mark.parametrize("name", ["vit", "vit_classes"])
def test_the_names_of_transformers_5_are_read(models, tmp_path, name):
    tiny.make(name, tmp_path, save_original_format=False)
    assert stored(tmp_path).keys() != stored(models(name)[0]).keys()
    arrays = tiny.inputs(name)
    for key, value in hf_forward(mmjax.from_pretrained(tmp_path), arrays).items():
        np.testing.assert_array_equal(value, hf_forward(models(name)[2], arrays)[key])


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("clip_vision", "vision_model."), ("clip_text", "text_model."), ("bert", "bert."), ("siglip_vision", "vision_model.")],
)
def test_the_prefixes_and_buffers_of_transformers_4_are_read(models, tmp_path, name, prefix):
    directory, _, model = models(name)
    shutil.copy(directory / "config.json", tmp_path)
    tensors = {prefix + key: value for key, value in stored(directory).items()}
    save_file(tensors | {f"{prefix}embeddings.position_ids": np.arange(16)[None]}, tmp_path / "model.safetensors")
    arrays = tiny.inputs(name)
    for key, value in hf_forward(mmjax.from_pretrained(tmp_path), arrays).items():
        np.testing.assert_array_equal(value, hf_forward(model, arrays)[key])


def test_old_configs_of_clip_repeat_their_towers(models, tmp_path):
    """`vision_config_dict` prevails over `vision_config`, and the end token is 2."""
    directory, reference, _ = models("clip")
    config = json.loads((directory / "config.json").read_text())
    config["vision_config_dict"] = config["vision_config"]
    config["vision_config"] = {**config["vision_config"], "num_hidden_layers": 7}
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(directory / "model.safetensors", tmp_path)
    arrays = tiny.inputs("clip")
    compare(hf_forward(mmjax.from_pretrained(tmp_path), arrays), tiny.outputs(reference, arrays))


def test_half_precision_stays(models, tmp_path):
    mmjax.save_pretrained(mmjax.from_pretrained(models("siglip")[0], dtype=jnp.bfloat16), tmp_path / "half")
    half = mmjax.from_pretrained(tmp_path / "half")
    mmjax.save_pretrained(half, tmp_path / "again")
    paths = [tmp_path / name / "model.safetensors" for name in ("half", "again")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert {str(value.dtype) for value in half.parameters.values()} == {"bfloat16"}


@pytest.mark.parametrize("name", [name for name in tiny.MODELS if name != "clip_text_legacy"])
def test_the_class_is_found_from_the_parts(models, name):
    """As for a model that was trained here; only a missing bias or pooler may make it another class of the same outputs."""
    _, reference, model = models(name)
    parts = model.config["parts"]
    if name == "eva":  # these have a bias of the keys, which makes it a ViT
        parts = {"encoders.image": {**parts["encoders.image"], "key_bias": False}}
    assert describe(Model(model.definition, model.parameters, None, {"parts": parts}))[0] == type(reference).__name__


def test_a_tower_for_larger_pictures(models):
    """`with_image_size` resizes once what `interpolate_pos_encoding` resizes in every pass."""
    for name in ("vit", "siglip", "eva"):
        _, reference, model = models(name)
        arrays = tiny.inputs(name, 44, 44)
        larger = with_image_size(model, 44)
        expected = tiny.outputs(reference, {**arrays, "interpolate_pos_encoding": True})
        got = hf_forward(larger, arrays)
        for key, value in got.items():
            np.testing.assert_allclose(value, expected[key], **TOLERANCE, err_msg=key)
        assert larger.config["parts"]["encoders.image"]["image_size"] == 44 and larger.processor.transform.resize == (44, 44)
        assert with_image_size(model, 30) is model


def test_a_larger_tower_is_written_and_read(models, tmp_path):
    _, _, model = models("clip")
    larger = with_image_size(model, 37)
    mmjax.save_pretrained(larger, tmp_path)
    again = mmjax.from_pretrained(tmp_path)
    assert again.processor == larger.processor and again.processor.image_size == 37
    arrays = tiny.inputs("clip", 37, 37)
    reference = type(models("clip")[1]).from_pretrained(tmp_path, dtype=torch.float32)
    compare(hf_forward(again, arrays), tiny.outputs(reference, arrays))


def edited(models, tmp_path, name, **changes):
    directory, _, _ = models(name)
    config = json.loads((directory / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(directory / "model.safetensors", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vit", {"num_channels": 1}, "num_channels=1; only 3"),
        ("vit", {"image_size": [30, 44]}, "only squares are supported"),
        ("vit", {"pooler_act": "relu"}, "pooler_act='relu'"),
        ("vit", {"hidden_act": "mish"}, "activation='mish' is unknown"),
        ("vit", {"patch_size": 31}, "image_size=30 is smaller than patch_size=31"),
        ("clip_text", {"eos_token_id": [1, 2]}, "one id is expected"),
        ("bert", {"is_decoder": True}, "is_decoder=True"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("bert", {"architectures": ["BertForTokenClassification"]}, "'BertForTokenClassification', which is not supported"),
        ("roberta", {"pad_token_id": 15}, "max_positions=16 leaves no position"),
    ],
)
def test_what_is_not_built_is_refused_in_one_line(models, tmp_path, name, changes, message):
    with pytest.raises(UserError, match=message) as error:
        mmjax.from_pretrained(edited(models, tmp_path, name, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("vit", {"pixel_values": np.zeros((1, 3, 44, 30), np.float32)}, r"expected \[b, 3, 30, 30\], got \[1, 3, 44, 30\]"),
        ("bert", {"input_ids": np.full((1, 3), 99)}, "expected ids from 0 to 98"),
        ("bert", {"input_ids": np.zeros((1, 17), int)}, "at most 16 tokens"),
        ("roberta", {"input_ids": np.zeros((1, 15), int)}, "at most 14 tokens"),
        ("bert", {"input_ids": np.zeros((1, 3), int), "token_type_ids": np.full((1, 3), 3)}, "token_type_ids: expected ids"),
    ],
)
def test_inputs_are_checked(models, name, arrays, message):
    with pytest.raises(UserError, match=message):
        hf_forward(models(name)[2], arrays)


def test_a_tower_is_not_written_as_what_it_is_not(models, tmp_path):
    with pytest.raises(UserError, match="a part with patch_bias=True cannot be written as clip_vision_model, which has False"):
        mmjax.save_pretrained(models("eva")[2], tmp_path, architecture="CLIPVisionModel")
