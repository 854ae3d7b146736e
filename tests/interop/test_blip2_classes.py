"""Every class that transformers has for BLIP-2 and InstructBLIP is read, computed and written."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from transformers.models import blip_2, instructblip, instructblipvideo

import mmjax
from mmjax.decoding.writer import writer_of
from mmjax.interop import hf_forward
from mmjax.interop.registry import ARCHITECTURES
from mmjax.types import UserError
from tests.interop import tiny

TOLERANCE = {"rtol": 0, "atol": 1e-4}
OPT = {"model_type": "opt", **tiny.OPT}
TEXT = {**tiny.QFORMER, "use_qformer_text_input": True}
WHOLE = {"vision_config": tiny.VISION, "text_config": OPT, "num_query_tokens": tiny.QUERIES, "image_text_hidden_size": 7}
ASKED = {"qformer_config": tiny.QFORMER, "image_token_index": tiny.PLACEHOLDER, "video_token_index": tiny.PLACEHOLDER}
# Those that no other test reads: class -> fields of its config, name of its inputs.
CLASSES = {
    "Blip2Model": ({**WHOLE, "qformer_config": tiny.QFORMER, "image_token_index": tiny.PLACEHOLDER}, "blip2"),
    "Blip2VisionModelWithProjection": ({**WHOLE, "qformer_config": TEXT}, "pictures"),
    "Blip2VisionModel": (tiny.VISION, "pictures"),
    "InstructBlipVisionModel": (tiny.VISION, "pictures"),
    "InstructBlipVideoVisionModel": (tiny.VISION, "pictures"),
    "Blip2TextModelWithProjection": ({**WHOLE, "qformer_config": TEXT}, "text"),
    "Blip2QFormerModel": (tiny.QFORMER, "queries"),
    "InstructBlipQFormerModel": (tiny.QFORMER, "queries_text"),
    "InstructBlipVideoQFormerModel": (tiny.QFORMER, "queries_text"),
    "InstructBlipModel": ({**WHOLE, **ASKED, "text_config": {"model_type": "llama", **tiny.LLAMA}}, "instructblip_llama"),
    "InstructBlipVideoModel": ({**WHOLE, **ASKED, "text_config": {"model_type": "t5", **tiny.T5}}, "video_t5"),
}
ELSEWHERE = {  # tests/interop/test_pretrained.py
    "Blip2ForConditionalGeneration", "Blip2ForImageTextRetrieval", "InstructBlipForConditionalGeneration",
    "InstructBlipVideoForConditionalGeneration",
}  # fmt: skip


def test_every_class_is_known():
    modules = (blip_2.modeling_blip_2, instructblip.modeling_instructblip, instructblipvideo.modeling_instructblipvideo)
    theirs = {name for module in modules for name in module.__all__ if not name.endswith("PreTrainedModel")}
    assert theirs == set(CLASSES) | ELSEWHERE
    assert set(CLASSES) | ELSEWHERE <= set(ARCHITECTURES)


# The whole video model; its pieces and InstructBlipModel stay in the default run.
@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.heavy] * (name == "InstructBlipVideoModel")) for name in CLASSES])
def case(request, tmp_path):
    """A class's directory, its model and inputs."""
    cls, (fields, name) = getattr(transformers, request.param), CLASSES[request.param]
    reference = tiny.draw(cls(cls.config_class(**fields)), tmp_path / "theirs")
    return tmp_path, reference, inputs(name)


def inputs(name):
    """Of pieces of models what they read from the others."""
    draw, mask = np.random.default_rng(0), np.array([[1] * 5, [1] * 3 + [0] * 2])
    text = {"input_ids": draw.integers(3, 40, (2, 5)), "attention_mask": mask}
    queries = {
        "query_embeds": draw.normal(size=(2, 7, 24)).astype(np.float32),
        "encoder_hidden_states": draw.normal(size=(2, 5, 16)).astype(np.float32),
        "encoder_attention_mask": np.ones((2, 5), int),
    }
    pieces = {
        "pictures": {"pixel_values": draw.normal(size=(2, 3, 28, 28)).astype(np.float32)},
        "text": text,
        "queries": queries,
        "queries_text": {**text, **queries, "attention_mask": np.concatenate([np.ones((2, 7), int), mask], 1)},
    }
    return pieces[name] if name in pieces else tiny.inputs(name)


def test_outputs_depths_and_bytes(case):
    directory, reference, arrays = case
    model = mmjax.from_pretrained(directory / "theirs")
    with torch.no_grad():
        expected = reference(**tiny.tensors({**arrays, "output_hidden_states": True}))
    got = hf_forward(model, {**arrays, "output_hidden_states": True})
    compared = 0
    for key in ("logits", "image_embeds", "text_embeds", "last_hidden_state", "pooler_output"):
        if isinstance(value := expected.get(key), torch.Tensor):
            read = arrays["attention_mask"] > 0 if key == "logits" else ...
            np.testing.assert_allclose(got[key][read], value.numpy()[read], **TOLERANCE, err_msg=key)
            compared += 1
    if "language_model_outputs" in expected and "logits" not in expected:
        last = expected["language_model_outputs"].last_hidden_state
        read = arrays.get("decoder_attention_mask", arrays["attention_mask"]) > 0
        np.testing.assert_allclose(got["last_hidden_state"][read], last[read], **TOLERANCE)
        assert "logits" not in got
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


def drawn(name, directory, **fields):
    """A class's reference, and our model of its directory."""
    cls = getattr(transformers, name)
    reference = tiny.draw(cls(cls.config_class(**CLASSES[name][0] | fields)), directory)
    return reference, mmjax.from_pretrained(directory)


@pytest.mark.parametrize("left_out", [(), ("query_embeds", "encoder_hidden_states"), ("input_ids", "attention_mask")])
def test_a_qformer_reads_queries_or_a_text_alone(tmp_path, left_out):
    reference, model = drawn("InstructBlipQFormerModel", tmp_path, cross_attention_frequency=1)
    arrays = {
        name: array for name, array in inputs("queries_text").items() if name not in (*left_out, "encoder_attention_mask")
    }
    if "query_embeds" in left_out:
        arrays["attention_mask"] = arrays["attention_mask"][:, 7:]
    with torch.no_grad():
        expected = reference(**{"input_ids": None, **tiny.tensors(arrays)}).last_hidden_state
    np.testing.assert_allclose(hf_forward(model, arrays)["last_hidden_state"], expected, **TOLERANCE)


def test_the_qformer_of_stage_1_keeps_the_blocks_of_its_text(tmp_path):
    reference, model = drawn("Blip2QFormerModel", tmp_path / "theirs", use_qformer_text_input=True)
    arrays = inputs("queries")
    with torch.no_grad():
        expected = reference(**tiny.tensors(arrays)).last_hidden_state
    np.testing.assert_allclose(hf_forward(model, arrays)["last_hidden_state"], expected, **TOLERANCE)
    mmjax.save_pretrained(model, tmp_path / "ours")
    _, report = type(reference).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Blip2QFormerModel", {"input_ids": np.ones((2, 5), int)}, "input_ids is not read"),
        ("Blip2QFormerModel", {"query_embeds": None}, "inputs lack query_embeds"),
        ("Blip2QFormerModel", {"encoder_hidden_states": None}, "query_embeds and encoder_hidden_states go together"),
        ("Blip2QFormerModel", {"encoder_attention_mask": np.eye(2, 5)}, "the first 5 columns, .* cannot be hidden"),
        ("InstructBlipQFormerModel", {"attention_mask": np.ones((2, 5), int)}, "attention_mask: expected 12 columns"),
        ("InstructBlipQFormerModel", {"attention_mask": np.eye(2, 12)}, "the first 7 columns, .* cannot be hidden"),
        ("InstructBlipQFormerModel", {"input_ids": np.full((2, 5), 40)}, "input_ids: expected ids from 0 to 39, got 40"),
        ("InstructBlipQFormerModel", {"input_ids": np.ones((2, 33), int)}, "at most 32 tokens in each row, got 33"),
        ("InstructBlipQFormerModel", {"query_embeds": np.ones((2, 7, 16))}, r"query_embeds: expected \[rows, length, 24\]"),
        (
            "InstructBlipQFormerModel",
            {"input_ids": np.ones((3, 5), int)},
            "equally many rows, got input_ids=3, .*query_embeds=2",
        ),
        ("Blip2TextModelWithProjection", {"position_ids": np.ones((2, 5), int)}, "position_ids is not read"),
    ],
)
def test_inputs_that_a_qformer_does_not_read_are_one_line(tmp_path, name, changes, message):
    _, model = drawn(name, tmp_path)
    with pytest.raises(UserError, match=message) as error:
        hf_forward(model, {**inputs(CLASSES[name][1]), **changes})
    assert "\n" not in str(error.value)


def test_a_model_without_head_writes_nothing(tmp_path):
    _, model = drawn("InstructBlipModel", tmp_path)
    assert model.config["absent"] == ("llm.head.kernel",)
    with pytest.raises(UserError, match="without its language model's head, which InstructBlipModel does not store"):
        writer_of(dataclasses.replace(model, processor=object()))
