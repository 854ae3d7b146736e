"""Every class that transformers has for BLIP-2 and InstructBLIP is read, computed and written, or refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from transformers.models import blip_2, instructblip, instructblipvideo

import mmjax
from mmjax.interop import hf_forward
from mmjax.interop.registry import ARCHITECTURES, PIECES
from mmjax.types import UserError
from tests.interop import tiny

TOLERANCE = {"rtol": 0, "atol": 1e-4}
OPT = {"model_type": "opt", **tiny.OPT}
TEXT = {**tiny.QFORMER, "use_qformer_text_input": True}
WHOLE = {"vision_config": tiny.VISION, "text_config": OPT, "num_query_tokens": tiny.QUERIES, "image_text_hidden_size": 7}
# Those that no other test reads: class -> fields of its config, name of its inputs (None = pictures alone).
CLASSES = {
    "Blip2Model": ({**WHOLE, "qformer_config": tiny.QFORMER, "image_token_index": tiny.PLACEHOLDER}, "blip2"),
    "Blip2VisionModelWithProjection": ({**WHOLE, "qformer_config": TEXT}, None),
    "Blip2VisionModel": (tiny.VISION, None),
    "InstructBlipVisionModel": (tiny.VISION, None),
    "InstructBlipVideoVisionModel": (tiny.VISION, None),
}
ELSEWHERE = {  # tests/interop/test_pretrained.py
    "Blip2ForConditionalGeneration", "Blip2ForImageTextRetrieval", "InstructBlipForConditionalGeneration",
    "InstructBlipVideoForConditionalGeneration",
}  # fmt: skip


def test_every_class_is_known():
    modules = (blip_2.modeling_blip_2, instructblip.modeling_instructblip, instructblipvideo.modeling_instructblipvideo)
    theirs = {name for module in modules for name in module.__all__ if not name.endswith("PreTrainedModel")}
    assert theirs == set(CLASSES) | ELSEWHERE | set(PIECES)
    assert set(CLASSES) | ELSEWHERE <= set(ARCHITECTURES)


@pytest.fixture(params=CLASSES)
def case(request, tmp_path):
    """A class's directory, its model and inputs."""
    cls, (fields, name) = getattr(transformers, request.param), CLASSES[request.param]
    reference = tiny.draw(cls(cls.config_class(**fields)), tmp_path / "theirs")
    pixels = {"pixel_values": np.random.default_rng(0).normal(size=(2, 3, 28, 28)).astype(np.float32)}
    return tmp_path, reference, pixels if name is None else tiny.inputs(name)


def test_outputs_depths_and_bytes(case):
    directory, reference, arrays = case
    model = mmjax.from_pretrained(directory / "theirs")
    with torch.no_grad():
        expected = reference(**tiny.tensors({**arrays, "output_hidden_states": True}))
    got = hf_forward(model, {**arrays, "output_hidden_states": True})
    compared = 0
    for key in ("logits", "image_embeds", "last_hidden_state", "pooler_output"):
        if isinstance(value := expected.get(key), torch.Tensor):
            read = arrays["attention_mask"] > 0 if key == "logits" else ...
            np.testing.assert_allclose(got[key][read], value.numpy()[read], **TOLERANCE, err_msg=key)
            compared += 1
    depths = expected.get("hidden_states") or expected["vision_outputs"].hidden_states
    for ours, theirs in zip(got.get("hidden_states", got.get("vision_hidden_states")), depths, strict=True):
        np.testing.assert_allclose(ours, theirs, **TOLERANCE)
    assert compared

    export = mmjax.save_pretrained(model, directory / "ours")
    before, after = (load_file(directory / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys() and export.architecture == type(reference).__name__
    assert all(before[key].tobytes() == after[key].tobytes() and before[key].dtype == after[key].dtype for key in before)
    _, report = type(reference).from_pretrained(directory / "ours", output_loading_info=True)
    assert not any(report.values()), report


@pytest.mark.parametrize("matching", [False, True])
def test_retrieval_gives_the_depths_of_its_tower(tmp_path, matching):
    reference = tiny.make("retrieval", tmp_path)
    arrays = {**tiny.inputs("retrieval"), "use_image_text_matching_head": matching, "output_hidden_states": True}
    with torch.no_grad():
        expected = reference(**tiny.tensors(arrays)).vision_model_output.hidden_states
    got = hf_forward(mmjax.from_pretrained(tmp_path), arrays)["vision_hidden_states"]
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **TOLERANCE)


def test_a_tower_with_projection_embeds_pictures_alone(tmp_path):
    cls = transformers.Blip2VisionModelWithProjection
    tiny.draw(cls(cls.config_class(**CLASSES["Blip2VisionModelWithProjection"][0])), tmp_path)
    model = mmjax.from_pretrained(tmp_path)
    assert "connectors.image.word_embedding.table" in model.config["absent"]
    with pytest.raises(UserError, match="the model embeds image, not text"):
        mmjax.embed(model, texts=["a"])


@pytest.mark.parametrize("name", PIECES)
def test_pieces_are_refused_by_name(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name], "model_type": "blip-2"}))
    with pytest.raises(UserError, match=f"asks for {name}, a piece that is not read alone: take {PIECES[name]}") as error:
        mmjax.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
