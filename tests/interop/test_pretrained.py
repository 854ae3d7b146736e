"""Our models compute what the Hugging Face classes compute, and go there and back without losing a bit."""

from __future__ import annotations

import contextlib
import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mmjax
from mmjax.interop import hf_forward
from mmjax.parallel.mesh import make_mesh
from mmjax.types import Model, UserError
from tests.interop import tiny

TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> (directory, Hugging Face model), made once."""
    made = {}

    def get(name):
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            made[name] = directory, tiny.make(name, directory)
        return made[name]

    return get


def stored(directory):
    with safe_open(directory / "model.safetensors", "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


@pytest.mark.parametrize("name", [name for name in tiny.MODELS if name != "retrieval"])
def test_logits_are_those_of_transformers(models, name):
    directory, reference = models(name)
    arrays = tiny.inputs(name)
    expected = tiny.outputs(reference, arrays)["logits"]
    got = hf_forward(mmjax.from_pretrained(directory), arrays)["logits"]
    read = arrays.get("decoder_attention_mask", arrays["attention_mask"]) > 0
    assert got.dtype == np.float32 and got.shape == expected.shape
    assert expected[read].std() > 0.5
    np.testing.assert_allclose(got[read], expected[read], **TOLERANCE)


@pytest.mark.parametrize("matching", [False, True])
def test_retrieval_scores_are_those_of_transformers(models, matching):
    directory, reference = models("retrieval")
    arrays = {**tiny.inputs("retrieval"), "use_image_text_matching_head": matching}
    expected, got = tiny.outputs(reference, arrays), hf_forward(mmjax.from_pretrained(directory), arrays)
    assert set(got) == {"logits_per_image", "logits_per_text", "text_embeds", "image_embeds"}
    visible = arrays["attention_mask"] > 0  # with the matching head, text_embeds holds padding too
    for key, value in got.items():
        rows = visible if matching and key == "text_embeds" else ...
        np.testing.assert_allclose(value[rows], expected[key][rows], **TOLERANCE, err_msg=key)


@pytest.mark.parametrize("name", ["blip2", "instructblip_opt", "instructblip_llama"])
def test_every_depth_of_every_part_is_that_of_transformers(models, name):
    """The class itself asks for the hidden states of its language model only; here all its parts are asked."""
    directory, reference = models(name)
    arrays = {**tiny.inputs(name), "output_hidden_states": True}
    asking = [
        getattr(reference, part).register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "output_hidden_states": True}), with_kwargs=True
        )
        for part in ("vision_model", "qformer")
    ]
    with torch.no_grad():
        outputs = reference(**tiny.tensors(arrays))
    for hook in asking:
        hook.remove()
    expected = {
        "vision_hidden_states": outputs.vision_outputs.hidden_states,
        "qformer_hidden_states": outputs.qformer_outputs.hidden_states,
        "qformer_last_hidden_state": outputs.qformer_outputs.last_hidden_state,
        "language_hidden_states": outputs.language_model_outputs.hidden_states,
    }
    got = hf_forward(mmjax.from_pretrained(directory), arrays)
    masks = {"vision": None, "qformer": arrays.get("qformer_attention_mask"), "language": arrays["attention_mask"]}
    assert got.keys() - expected.keys() == {"logits", "last_hidden_state", "image_embeds"}
    for key, theirs in expected.items():
        mask = masks[key.partition("_")[0]]
        pairs = zip(got[key], theirs, strict=True) if isinstance(got[key], tuple) else [(got[key], theirs)]
        for depth, (ours, value) in enumerate(pairs):
            assert ours.shape == value.shape and value.std() > 0.1
            read = np.ones(ours.shape[:2], bool)
            if mask is not None:  # queries come first, and all of them count
                read[:, read.shape[1] - mask.shape[1] :] = mask > 0
            np.testing.assert_allclose(ours[read], value.numpy()[read], **TOLERANCE, err_msg=f"{key}, depth {depth}")


@pytest.mark.parametrize(
    "name", ["blip2", "blip2_t5", "instructblip_llama", pytest.param("video_llama", marks=pytest.mark.heavy)]
)
def test_without_placeholders_soft_tokens_come_first(models, name):
    """As the files and inputs of transformers 4 have it, and a config that names no placeholder."""
    directory, reference = models(name)
    whole, model = tiny.inputs(name), mmjax.from_pretrained(directory)
    slots = (whole["input_ids"] == tiny.PLACEHOLDER)[0].sum()
    short = {**whole, "input_ids": whole["input_ids"][:, slots:], "attention_mask": whole["attention_mask"][:, slots:]}
    expected = hf_forward(model, whole)["logits"]
    config = {key: value for key, value in model.config["hf_config"].items() if not key.endswith("token_index")}
    old = Model(model.definition, model.parameters, None, {**model.config, "hf_config": config})
    for each in (model, old):
        np.testing.assert_array_equal(hf_forward(each, short)["logits"], expected)


def test_right_padding_and_no_mask(models):
    directory, reference = models("instructblip_opt")
    model = mmjax.from_pretrained(directory)
    arrays = tiny.inputs("instructblip_opt")
    arrays["attention_mask"] = arrays["attention_mask"][:, ::-1].copy()
    arrays["attention_mask"][:, : tiny.QUERIES] = 1
    read = arrays["attention_mask"] > 0
    got, expected = hf_forward(model, arrays)["logits"], tiny.outputs(reference, arrays)["logits"]
    np.testing.assert_allclose(got[read], expected[read], **TOLERANCE)
    whole = {key: value for key, value in arrays.items() if not key.endswith("mask")}
    np.testing.assert_allclose(hf_forward(model, whole)["logits"], tiny.outputs(reference, whole)["logits"], **TOLERANCE)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_there_and_back_is_equal_to_the_byte(models, tmp_path, name):
    directory, reference = models(name)
    model = mmjax.from_pretrained(directory)
    export = mmjax.save_pretrained(model, tmp_path)
    (before, _), (after, metadata) = stored(directory), stored(tmp_path)
    assert metadata == {"format": "pt"}
    assert before.keys() == after.keys()
    assert all(before[key].dtype == after[key].dtype and before[key].tobytes() == after[key].tobytes() for key in before)
    _, report = type(reference).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert export.architecture == type(reference).__name__
    heads = {path.rpartition("heads.")[2] for path in export.left_out}
    stage1_only = {"temperature", "bias", "transform.kernel", "transform.bias", "transform_norm.scale", "transform_norm.bias"}
    assert heads == (stage1_only if name == "retrieval" else set())
    assert set(model.config["absent"]) == set(export.left_out)


def whole(directory):
    """The tensors of all files of a directory's index, or of its only file, and how many files there are."""
    index = directory / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    tensors = [load_file(directory / name) for name in names]
    return {key: value for each in tensors for key, value in each.items()}, len(names)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "llama_tied"])
@pytest.mark.parametrize("sharded", [False, True])
def test_strays_are_passed_over_and_files_come_back_equal_to_the_byte(models, tmp_path, name, dtype, sharded):
    theirs, ours, (directory, reference) = tmp_path / "theirs", tmp_path / "ours", models(name)
    reference = type(reference).from_pretrained(directory, dtype=getattr(torch, dtype))
    reference.save_pretrained(theirs, max_shard_size="6KB" if sharded else "1GB")
    for stray in ("consolidated.safetensors", "model-00099-of-00099.safetensors"):
        save_file({"stray.weight": torch.ones(3)}, theirs / stray)
    mmjax.save_pretrained(mmjax.from_pretrained(theirs), ours, shard_bytes=6000 if sharded else 10**9)
    (before, _), (after, files) = whole(theirs), whole(ours)
    assert before.keys() == after.keys() and (files > 1) == sharded
    assert ("lm_head.weight" in after) == (name == "llama")
    assert all(after[key].dtype == getattr(torch, dtype) and torch.equal(before[key], after[key]) for key in before)
    with said_by_transformers() as messages:
        again, report = type(reference).from_pretrained(ours, output_loading_info=True)
    assert not messages and not any(report.values()), (messages, report)
    assert again.dtype == reference.dtype


@contextlib.contextmanager
def said_by_transformers():
    """Collects what transformers warns of."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger, verbosity = logging.getLogger("transformers"), transformers.logging.get_verbosity()
    logger.addHandler(handler)
    transformers.logging.set_verbosity_warning()
    try:
        yield messages
    finally:
        transformers.logging.set_verbosity(verbosity)
        logger.removeHandler(handler)


@pytest.mark.parametrize("name", ["llama", "instructblip_opt"])
def test_both_layouts_of_the_saver_are_read(tmp_path, name):
    arrays = tiny.inputs(name)
    results = []
    for original in (True, False):
        tiny.make(name, tmp_path / str(original), save_original_format=original)
        results.append(hf_forward(mmjax.from_pretrained(tmp_path / str(original)), arrays)["logits"])
    np.testing.assert_array_equal(*results)


def test_config_of_transformers_4(models, tmp_path):
    """`rope_theta` at the top, no `rope_parameters`, and an OPT file whose keys lack the leading `model.`."""
    for name, rename in (("llama", ""), ("opt", "model.")):
        directory, reference = models(name)
        target = tmp_path / name
        target.mkdir()
        config = json.loads((directory / "config.json").read_text())
        config |= {"rope_theta": (config.pop("rope_parameters", None) or {}).get("rope_theta", 0)}
        (target / "config.json").write_text(json.dumps(config))
        tensors = {key.removeprefix(rename): value for key, value in stored(directory)[0].items()}
        safetensors.numpy.save_file(tensors, target / "model.safetensors")
        arrays = {"input_ids": np.arange(3, 11)[None]}
        got = hf_forward(mmjax.from_pretrained(target), arrays)["logits"]
        np.testing.assert_allclose(got, tiny.outputs(reference, arrays)["logits"], **TOLERANCE)


def test_every_device_gets_its_own_slices(models):
    directory, _ = models("instructblip_llama")
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    whole, split = mmjax.from_pretrained(directory), mmjax.from_pretrained(directory, mesh=mesh)
    kernel = split.parameters["llm.layers.mlp.up.kernel"]
    assert len(kernel.sharding.device_set) == 8 and kernel.addressable_shards[0].data.size * 8 == kernel.size
    for path, value in whole.parameters.items():
        np.testing.assert_array_equal(value, split.parameters[path], err_msg=path)
    arrays = tiny.inputs("instructblip_llama")
    np.testing.assert_allclose(hf_forward(split, arrays)["logits"], hf_forward(whole, arrays)["logits"], **TOLERANCE)


def test_dtype_is_the_file_s_or_what_is_asked(models, tmp_path):
    directory, _ = models("opt")
    half = mmjax.from_pretrained(directory, dtype=jnp.bfloat16)
    assert {str(value.dtype) for value in half.parameters.values()} == {"bfloat16"}
    mmjax.save_pretrained(half, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    again = mmjax.from_pretrained(tmp_path)
    for path, value in half.parameters.items():
        assert again.parameters[path].dtype == jnp.bfloat16
        np.testing.assert_array_equal(
            np.asarray(value, np.float32), np.asarray(again.parameters[path], np.float32), err_msg=path
        )


def test_adapters_are_merged_on_the_way_out(models, tmp_path):
    from mmjax.systems.parts import build_definition

    directory, _ = models("opt")
    plain = mmjax.from_pretrained(directory)
    definition = build_definition(plain.config["parts"], ((r"llm\..*query\.kernel", 2),), 6.0)
    adapted = definition.initialise(jax.random.key(0)) | dict(plain.parameters)
    adapted = {path: value + 0.3 * (path.endswith("lora_b")) for path, value in adapted.items()}
    model = Model(definition, adapted, None, plain.config)
    arrays = tiny.inputs("opt")
    expected = hf_forward(model, arrays)["logits"]
    assert np.abs(expected - hf_forward(plain, arrays)["logits"]).max() > 0.1
    mmjax.save_pretrained(model, tmp_path)
    np.testing.assert_allclose(hf_forward(mmjax.from_pretrained(tmp_path), arrays)["logits"], expected, **TOLERANCE)


def edited(models, tmp_path, name, **changes):
    directory, _ = models(name)
    config = json.loads((directory / "config.json").read_text())
    for key, value in changes.items():
        config.pop(key, None) if value is None else config.update({key: value})
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("opt", {"architectures": ["OPTForCausalLn"]}, "did you mean 'OPTForCausalLM'"),
        ("blip2", {"qformer_config": None}, "lacks 'qformer_config'"),
        ("opt", {"activation_function": "snake"}, "activation='snake' is unknown; there are gelu"),
        ("opt", {"do_layer_norm_before": False}, r"2 unexpected: model.decoder.final_layer_norm"),
        ("opt", {"ffn_dim": 48}, r"8 of another shape: .*fc1.weight \[2\]|expected \(48, 20\), got \(40, 20\)"),
        ("opt", {"num_hidden_layers": 3}, r"16 missing: .*layers.2.fc1.weight"),
        ("opt", {"num_hidden_layers": 1}, r"16 unexpected: "),
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "rotary type 'llama3' without its factor"),
        ("llama", {"rope_parameters": {"rope_type": "proportional"}}, "rotary type 'proportional'; there are default, linear"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ("llama", {"head_dim": 9}, "head_dim=9 is odd"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(models, tmp_path, name, changes, message):
    with pytest.raises(UserError, match=message) as error:
        mmjax.from_pretrained(edited(models, tmp_path, name, **changes))
    assert "\n" not in str(error.value)


def test_inputs_are_checked(models, tmp_path):
    with pytest.raises(UserError, match="config.json does not exist"):
        mmjax.from_pretrained(tmp_path)
    model = mmjax.from_pretrained(models("blip2")[0])
    arrays = tiny.inputs("blip2")
    with pytest.raises(UserError, match=r"expected 3 placeholders .* got \[2, 2\]"):
        hf_forward(model, {key: value[:, 1:] if value.ndim == 2 else value for key, value in arrays.items()})
    with pytest.raises(UserError, match="expected ids from 0 to 49"):
        hf_forward(model, {**arrays, "input_ids": arrays["input_ids"] + 1})
    with pytest.raises(UserError, match="inputs lack pixel_values; there are input_ids, attention_mask"):
        hf_forward(model, {key: value for key, value in arrays.items() if key != "pixel_values"})
    video, arrays = mmjax.from_pretrained(models("video_t5")[0]), tiny.inputs("video_t5")
    with pytest.raises(UserError, match=r"expected 9 placeholders \(video_token_index=49\) in each row, got \[12, 12\]"):
        hf_forward(video, {**arrays, "pixel_values": arrays["pixel_values"][:, 1:]})
    with pytest.raises(UserError, match="inputs lack decoder_input_ids and qformer_input_ids; there are input_ids, "):
        hf_forward(video, {key: arrays[key] for key in ("input_ids", "pixel_values")})


def test_inputs_that_do_not_belong_together_are_told(models):
    model, arrays = mmjax.from_pretrained(models("blip2")[0]), tiny.inputs("blip2")
    bad = {
        "input_ids=2, pixel_values=3": {"pixel_values": np.repeat(arrays["pixel_values"], 2, 0)[:3]},
        "input_ids=2, pixel_values=1": {"pixel_values": arrays["pixel_values"][:1]},
        "input_ids=2, pixel_values=4": {"pixel_values": np.repeat(arrays["pixel_values"], 2, 0)},
        "pixel_values: expected [b, 3, 28, 28], got [2, 3, 28, 27]": {"pixel_values": arrays["pixel_values"][..., 1:]},
        "pixel_values: expected [b, 3, 28, 28], got [3, 28, 28]": {"pixel_values": arrays["pixel_values"][0]},
        "at least one patch, 14 × 14": {"pixel_values": arrays["pixel_values"][..., 20:], "interpolate_pos_encoding": True},
        "attention_mask: expected [2, 10], the shape of input_ids, got [2, 9]": {
            "attention_mask": arrays["attention_mask"][:, 1:]
        },
        "input_ids: expected whole numbers [rows, tokens], got float64 [2, 10]": {
            "input_ids": arrays["input_ids"].astype(float)
        },
        "input_ids: expected whole numbers [rows, tokens], got int64 [10]": {"input_ids": arrays["input_ids"][0]},
        "position_ids: expected [2, 10], the shape of input_ids, got [1, 3]": {"position_ids": np.arange(3)[None]},
    }
    for message, change in bad.items():
        with pytest.raises(UserError, match=re.escape(message)) as error:
            hf_forward(model, {**arrays, **change})
        assert "\n" not in str(error.value)
    instructed, arrays = mmjax.from_pretrained(models("instructblip_t5")[0]), tiny.inputs("instructblip_t5")
    query, mask = arrays["qformer_input_ids"], arrays["qformer_attention_mask"]
    bad = {
        "qformer_input_ids: expected at most 32 tokens in each row, got 35": {
            "qformer_input_ids": np.tile(query, 7), "qformer_attention_mask": np.tile(mask, 7),
        },
        "input_ids=2, pixel_values=2, decoder_input_ids=2, qformer_input_ids=1": {
            "qformer_input_ids": query[:1], "qformer_attention_mask": mask[:1],
        },
        "qformer_attention_mask: expected [2, 5]": {"qformer_attention_mask": mask[:, 1:]},
        "decoder_attention_mask: expected [2, 5]": {"decoder_attention_mask": arrays["decoder_attention_mask"][:1]},
    }  # fmt: skip
    for message, change in bad.items():
        with pytest.raises(UserError, match=re.escape(message)):
            hf_forward(instructed, {**arrays, **change})
    retrieval, arrays = mmjax.from_pretrained(models("retrieval")[0]), tiny.inputs("retrieval")
    long = {key: np.concatenate([arrays[key], np.ones((2, 30), int)], 1) for key in ("input_ids", "attention_mask")}
    with pytest.raises(UserError, match="input_ids: expected at most 35 tokens in each row, got 38"):
        hf_forward(retrieval, {**arrays, **long})
    with pytest.raises(UserError, match="input_ids=2, pixel_values=1"):
        hf_forward(retrieval, {**arrays, "pixel_values": arrays["pixel_values"][:1], "use_image_text_matching_head": True})
