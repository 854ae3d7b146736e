"""T5 computes what `transformers` computes, in every layout of its files, and goes there and back without losing a bit."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import mmjax
from mmjax.data.processor import Processor
from mmjax.interop import hf_forward
from mmjax.systems.parts import build_definition
from mmjax.types import Model, UserError
from tests.decoding import world
from tests.interop import tiny

TINY = {
    "vocab_size": 50, "d_model": 24, "d_kv": 10, "d_ff": 44, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 3,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 11, "decoder_start_token_id": 0,
}  # fmt: skip
FLAN = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# Flan-T5 and v1.1; 1.0; BLIP-2's Flan-T5, with exact gelu; deeper decoder with wide buckets; one head.
VARIANTS = {
    "flan": FLAN,
    "original": {"feed_forward_proj": "relu"},
    "exact_gelu": {**FLAN, "dense_act_fn": "gelu"},
    "deep_decoder": {
        **FLAN, "num_layers": 1, "num_decoder_layers": 4, "relative_attention_num_buckets": 6, "layer_norm_epsilon": 1e-3,
    },
    "one_head": {"feed_forward_proj": "gated-silu", "num_heads": 1, "d_kv": 6, "relative_attention_max_distance": 128},
}  # fmt: skip


@torch.no_grad()
def make(directory, variant, own_head=None):
    """A random model, saved and loaded back. A head of its own has to be written into the file: a new T5 never has one."""
    torch.manual_seed(0)
    config = transformers.T5Config(**{**TINY, **VARIANTS[variant]})
    model = transformers.T5ForConditionalGeneration(config)
    for key, parameter in model.named_parameters():
        parameter.copy_(torch.randn_like(parameter) * (1.0 if key == "shared.weight" else 0.25) + float("norm" in key))
    model.save_pretrained(directory)
    if own_head if own_head is not None else "tie_word_embeddings" in VARIANTS[variant]:
        tensors = load_file(directory / "model.safetensors")
        tensors["lm_head.weight"] = np.random.default_rng(0).normal(0, 0.5, (50, 24)).astype(np.float32)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return transformers.T5ForConditionalGeneration.from_pretrained(directory).eval()


def inputs(long=False):
    """Two rows; the second is padded, its source on the left and its text on the right, in another batch the other way."""
    draw, s, t = np.random.default_rng(1), 40 if long else 9, 30 if long else 6
    masks = np.ones((2, s), int), np.ones((2, t), int)
    masks[0][1, :4], masks[1][1, -2:] = 0, 0
    source, text = draw.integers(2, 50, (2, s)), draw.integers(2, 50, (2, t))
    return {
        "input_ids": source, "attention_mask": masks[0], "decoder_input_ids": text, "decoder_attention_mask": masks[1],
    }  # fmt: skip


def compare(directory, reference, arrays, tolerance=1e-4):
    """Logits, and the hidden states of both stacks at every depth."""
    arrays = {**arrays, "output_hidden_states": True}
    with torch.no_grad():
        expected = reference(**tiny.tensors(arrays))
    got = hf_forward(mmjax.from_pretrained(directory), arrays)
    masks = {
        "logits": "decoder_attention_mask", "encoder_last_hidden_state": "attention_mask",
        "encoder_hidden_states": "attention_mask", "decoder_hidden_states": "decoder_attention_mask",
    }  # fmt: skip
    assert got.keys() == masks.keys() | {"last_hidden_state"}
    read = arrays["decoder_attention_mask"] > 0 if "decoder_attention_mask" in arrays else slice(None)
    theirs = expected["decoder_hidden_states"][-1].numpy()
    np.testing.assert_allclose(got["last_hidden_state"][read], theirs[read], rtol=0, atol=tolerance)
    for key, mask in masks.items():
        read = arrays[mask] > 0 if mask in arrays else slice(None)
        pairs = zip(got[key], expected[key], strict=True) if isinstance(got[key], tuple) else [(got[key], expected[key])]
        for depth, (ours, theirs) in enumerate(pairs):
            assert theirs[read].std() > 0.4
            np.testing.assert_allclose(ours[read], theirs[read], rtol=0, atol=tolerance, err_msg=f"{key}, depth {depth}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_are_those_of_transformers(tmp_path, variant):
    reference = make(tmp_path, variant)
    compare(tmp_path, reference, inputs())
    flipped = {key: value[:, ::-1].copy() if key.endswith("mask") else value for key, value in inputs().items()}
    compare(tmp_path, reference, flipped)


@pytest.mark.usefixtures("optimised")
def test_distances_beyond_the_last_bucket_and_no_masks(tmp_path):
    arrays = {key: value for key, value in inputs(long=True).items() if not key.endswith("mask")}
    # Without masks, logits reach 9.4, where float32 itself ends: those of PyTorch are 0.9e-4 off its own in float64.
    compare(tmp_path, make(tmp_path, "flan"), arrays, tolerance=2e-4)


@pytest.mark.parametrize(("tie", "scale", "own_head"), [(None, True, False), (False, False, True), (True, None, True)])
def test_the_file_says_whether_the_head_is_tied_and_the_config_whether_it_is_scaled(tmp_path, tie, scale, own_head):
    """The flags as the releases 4 and 5 write them, among them those of a Flan-T5 that release 5 has saved again."""
    reference = make(tmp_path, "flan", own_head)
    config = json.loads((tmp_path / "config.json").read_text())
    flags = {"tie_word_embeddings": tie, "scale_decoder_outputs": scale}
    config = {key: value for key, value in config.items() if key not in flags}
    config |= {key: value for key, value in flags.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    reference = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(reference.lm_head.weight, reference.shared.weight) != own_head
    compare(tmp_path, reference, inputs())
    assert mmjax.from_pretrained(tmp_path).config["parts"]["llm"]["tied"] != own_head


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back_is_equal_to_the_byte(tmp_path, variant):
    reference = make(tmp_path, variant)
    export = mmjax.save_pretrained(mmjax.from_pretrained(tmp_path), tmp_path / "again")
    before, after = (load_file(directory / "model.safetensors") for directory in (tmp_path, tmp_path / "again"))
    assert before.keys() == after.keys() and export.left_out == ()
    assert all(before[key].dtype == after[key].dtype and before[key].tobytes() == after[key].tobytes() for key in before)
    again, report = type(reference).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(report.values()), report
    assert again.config.scale_decoder_outputs == reference.config.scale_decoder_outputs
    compare(tmp_path / "again", again.eval(), inputs())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_encoder_alone(tmp_path, variant):
    make(tmp_path / "whole", variant)
    reference = transformers.T5EncoderModel.from_pretrained(tmp_path / "whole").eval()
    reference.save_pretrained(tmp_path / "encoder")
    arrays = {key: value for key, value in inputs().items() if not key.startswith("decoder")} | {"output_hidden_states": True}
    with torch.no_grad():
        expected = reference(**tiny.tensors(arrays))
    model, read = mmjax.from_pretrained(tmp_path / "encoder"), arrays["attention_mask"] > 0
    got = hf_forward(model, arrays)
    np.testing.assert_allclose(got["last_hidden_state"][read], expected.last_hidden_state[read], rtol=0, atol=1e-4)
    for depth, (ours, theirs) in enumerate(zip(got["hidden_states"], expected.hidden_states, strict=True)):
        np.testing.assert_allclose(ours[read], theirs[read], rtol=0, atol=1e-4, err_msg=f"depth {depth}")
    for source in (model, Model(model.definition, model.parameters, None, {"parts": model.config["parts"]})):
        export = mmjax.save_pretrained(source, tmp_path / "again")
        assert export.architecture == "T5EncoderModel" and not export.left_out
        before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("encoder", "again"))
        assert before.keys() == after.keys() and all(before[key].tobytes() == after[key].tobytes() for key in before)
        _, report = transformers.T5EncoderModel.from_pretrained(tmp_path / "again", output_loading_info=True)
        assert not any(report.values()), report


def test_an_encoder_alone_writes_nothing():
    parts = {"llm": {"family": "t5", "vocab": 25, "width": 16, "layers": 1, "decoder_layers": 0, "heads": 2, "ffn": 32}}
    definition = build_definition(parts)
    processor = Processor(world.make_tokenizer(), encoder_decoder=True)
    model = Model(definition, definition.initialise(jax.random.key(0)), processor, {"parts": parts})
    for ask in (mmjax.generate, lambda model, prompts: mmjax.score(model, prompts, ["red"])):
        with pytest.raises(UserError, match="this T5 is an encoder alone"):
            ask(model, ["how many red?"])


def test_copies_and_strays_of_old_files_are_passed_over(tmp_path):
    """Release 4 wrote the embedding up to four times, and the first releases a bias that no attention reads."""
    reference = make(tmp_path, "original")
    tensors = load_file(tmp_path / "model.safetensors")
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    stray = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.ones((8, 3), np.float32)}
    save_file({**tensors, **{key: tensors["shared.weight"].copy() for key in copies}, **stray}, tmp_path / "model.safetensors")
    compare(tmp_path, reference, inputs())
    save_file({**tensors, copies[0]: tensors["shared.weight"] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="different from the tensor that it should repeat: encoder.embed_tokens.weight"):
        mmjax.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense_act_fn": "tanh"}, "activation='tanh' is unknown"),
        ({"relative_attention_num_buckets": 2}, "buckets=2 must be 4 or more"),
        ({"num_decoder_layers": 3}, "14 missing: .*decoder.block.2"),
        ({"d_ff": 43}, r"expected \(43, 24\), got \(44, 24\)"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(tmp_path, changes, message):
    make(tmp_path, "flan")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message) as error:
        mmjax.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_ids_outside_the_vocabulary_are_refused(tmp_path):
    make(tmp_path, "flan")
    model, arrays = mmjax.from_pretrained(tmp_path), inputs()
    with pytest.raises(UserError, match="decoder_input_ids: expected ids from 0 to 49, got"):
        hf_forward(model, {**arrays, "decoder_input_ids": arrays["decoder_input_ids"] + 20})


def test_an_exported_model_reads_and_answers_as_ours(tmp_path):
    """From text: their tokenizer ends the source, their generation begins with the pad token, as ours do."""
    parts = {"llm": {"family": "t5", "vocab": 25, "width": 16, "layers": 2, "decoder_layers": 2, "heads": 2, "ffn": 32}}
    definition, generator = build_definition(parts), np.random.default_rng(0)
    parameters = {path: world.draw(path, definition.specs[path].shape, generator) for path in sorted(definition.specs)}
    processor = Processor(world.make_tokenizer(), encoder_decoder=True)
    model = Model(definition, parameters, processor, {"parts": parts})
    export = mmjax.save_pretrained(model, tmp_path)
    assert export.architecture == "T5ForConditionalGeneration" and export.left_out == ()
    prompts = ["question: how many red? answer:", "is there blue?"]
    inputs = transformers.AutoTokenizer.from_pretrained(tmp_path)(prompts, return_tensors="pt", padding=True)
    reference = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    output = reference.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=5, do_sample=False
    )
    for again in (model, mmjax.from_pretrained(tmp_path)):
        batch = again.processor.prompts(prompts)
        width = inputs["input_ids"].shape[1]
        np.testing.assert_array_equal(batch.source.tokens[:, :width], inputs["input_ids"])
        np.testing.assert_array_equal(batch.source.segments[:, :width], inputs["attention_mask"])
        answers = mmjax.generate(again, prompts, max_new_tokens=5)
        for answer, row in zip(answers, output[:, 1:].tolist(), strict=True):
            assert list(answer.tokens) == row[: len(answer.tokens)] and len(answer.tokens) > 0
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_start_token_id": 7}))
    with pytest.raises(UserError, match="decoder_start_token_id=7; only the pad token, 1, can begin"):
        mmjax.from_pretrained(tmp_path)
