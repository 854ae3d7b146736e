"""Decoder-only language models compute what the Hugging Face classes compute, at every depth, whatever their config says."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import mmjax
from mmjax.interop import hf_forward
from mmjax.interop.language_models import LANGUAGE_MODELS, language_config, language_part
from mmjax.systems.parts import config_dict, part_config
from mmjax.types import UserError
from tests.interop import language_models, tiny

TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.mark.parametrize("name", language_models.CASES)
def test_every_depth_is_that_of_transformers(name, tmp_path):
    reference = language_models.make(name, tmp_path)
    arrays = language_models.inputs()
    with torch.no_grad():
        expected = reference(**{key: torch.tensor(value) for key, value in arrays.items()}, output_hidden_states=True)
        last = reference.base_model(**{key: torch.tensor(value) for key, value in arrays.items()}).last_hidden_state
    got = hf_forward(mmjax.from_pretrained(tmp_path), {**arrays, "output_hidden_states": True})
    read = arrays["attention_mask"] > 0
    assert expected.logits.numpy()[read].std() > 0.5 * getattr(reference.config, "logit_scale", 1.0)
    np.testing.assert_allclose(got["logits"][read], expected.logits.numpy()[read], **TOLERANCE)
    np.testing.assert_allclose(got["last_hidden_state"][read], last.numpy()[read], **TOLERANCE)
    assert len(got["hidden_states"]) == len(expected.hidden_states) == reference.config.num_hidden_layers + 1
    for depth, (ours, theirs) in enumerate(zip(got["hidden_states"], expected.hidden_states, strict=True)):
        np.testing.assert_allclose(ours[read], theirs.numpy()[read], **TOLERANCE, err_msg=f"depth {depth}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen2_windows", "qwen3_bias", "opt_350m", "opt_projected", "palm"])
def test_there_and_back_is_equal_to_the_byte(name, dtype, tmp_path):
    tiny.draw(language_models.build(name).to(getattr(torch, dtype)), tmp_path / "theirs")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    export = mmjax.save_pretrained(mmjax.from_pretrained(tmp_path / "theirs"), tmp_path / "ours")
    before, after = (load_torch(tmp_path / side) for side in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]) for key in before)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert type(again) is type(reference) and export.architecture == type(again).__name__ and not export.left_out
    assert again.dtype == reference.dtype == getattr(torch, dtype)
    old, new = reference.config.to_dict(), again.config.to_dict()
    differing = {key for key in old if old[key] != new.get(key)}
    assert differing <= {"_name_or_path", "max_window_layers"}, {key: (old[key], new.get(key)) for key in differing}


def load_torch(directory):
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def rewritten(directory, target, config=None, tensors=None):
    """A copy of a directory with another config or other tensors."""
    target.mkdir()
    old = json.loads((directory / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(old if config is None else config(old)))
    weights = load_file(directory / "model.safetensors")
    save_file(weights if tensors is None else tensors(weights), target / "model.safetensors")
    return mmjax.from_pretrained(target)


@pytest.mark.parametrize("name", ["llama", "linear", "llama3", "yarn", "longrope_beyond"])
def test_rotary_fields_of_transformers_4(name, tmp_path):
    reference = language_models.make(name, tmp_path / "new")

    def old(config):
        rope = config.pop("rope_parameters")
        base, kind = rope.pop("rope_theta"), rope.pop("rope_type")
        return config | {"rope_theta": base, "rope_scaling": {"type": kind, **rope} if kind != "default" else None}

    arrays = language_models.inputs()
    model = rewritten(tmp_path / "new", tmp_path / "old", config=old)
    read = arrays["attention_mask"] > 0
    expected = tiny.outputs(reference, arrays)["logits"]
    np.testing.assert_allclose(hf_forward(model, arrays)["logits"][read], expected[read], **TOLERANCE)
    mmjax.save_pretrained(model, tmp_path / "back")
    again = transformers.AutoConfig.from_pretrained(tmp_path / "back").rope_parameters
    assert again.items() >= {k: v for k, v in reference.config.rope_parameters.items() if not isinstance(v, list)}.items()


def test_qwen2_windows_of_transformers_4(tmp_path):
    """Without `layer_types`, the last layers have the window."""
    language_models.make("qwen2_windows", tmp_path / "new")

    def old(config):
        del config["layer_types"]
        return config | {"max_window_layers": 3}

    model = rewritten(tmp_path / "new", tmp_path / "old", config=old)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "old")
    assert reference.config.layer_types == ["full_attention"] * 3 + ["sliding_attention"]
    arrays = language_models.inputs()
    read = arrays["attention_mask"] > 0
    expected = tiny.outputs(reference, arrays)["logits"]
    np.testing.assert_allclose(hf_forward(model, arrays)["logits"][read], expected[read], **TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "opt", "palm"])
def test_the_files_say_whether_the_head_is_tied(name, tmp_path):
    """A head that differs is kept although the config ties it; one that is absent is the embedding although it does not."""
    language_models.make(name, tmp_path / "made")
    embedding = next(key for key in load_file(tmp_path / "made/model.safetensors") if key.endswith("embed_tokens.weight"))
    other = np.random.default_rng(0).normal(size=(50, 20 if name == "opt" else 24)).astype(np.float32)
    arrays = language_models.inputs()
    for case, tie, head in (("differs", True, other), ("absent", False, None), ("repeats", True, "same")):

        def tensors(weights, head=head):
            weights.pop("lm_head.weight", None)
            if head is None:
                return weights
            return weights | {"lm_head.weight": weights[embedding].copy() if isinstance(head, str) else head}

        model = rewritten(
            tmp_path / "made", tmp_path / case, lambda config, tie=tie: config | {"tie_word_embeddings": tie}, tensors
        )
        parameters = model.parameters
        table = np.asarray(parameters["llm.token_embedding.table"])[:50]
        assert ("llm.head.kernel" in parameters) == (case == "differs")
        hidden, logits = (hf_forward(model, arrays)[key] for key in ("last_hidden_state", "logits"))
        expected = hidden @ (other if case == "differs" else table).T
        np.testing.assert_allclose(logits, expected, atol=1e-3)
        mmjax.save_pretrained(model, tmp_path / f"{case} back")
        config = json.loads((tmp_path / f"{case} back/config.json").read_text())
        assert config["tie_word_embeddings"] == (case != "differs")
        _, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{case} back", output_loading_info=True)
        assert not any(report.values()), report


def test_buffers_and_prefixes_of_old_files(tmp_path):
    reference = language_models.make("llama", tmp_path / "llama")
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(5, np.float32)}
    rewritten(tmp_path / "llama", tmp_path / "buffers", tensors=lambda weights: weights | buffer)
    reference = language_models.make("opt_350m", tmp_path / "opt")
    model = rewritten(
        tmp_path / "opt", tmp_path / "bare", tensors=lambda w: {key.removeprefix("model."): value for key, value in w.items()}
    )
    arrays = language_models.inputs()
    read = arrays["attention_mask"] > 0
    expected = tiny.outputs(reference, arrays)["logits"]
    np.testing.assert_allclose(hf_forward(model, arrays)["logits"][read], expected[read], **TOLERANCE)


def test_more_tokens_than_learned_positions_are_refused(tmp_path):
    language_models.make("opt", tmp_path)
    with pytest.raises(UserError, match="input_ids: expected 32 tokens at most, the positions of this OPT, got 33"):
        hf_forward(mmjax.from_pretrained(tmp_path), {"input_ids": np.full((1, 33), 5)})


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_what_a_config_leaves_out_is_what_its_class_assumes(model_type, caplog):
    with caplog.at_level(logging.WARNING):
        bare = language_part({"model_type": model_type})
    assert ("gives no rope_theta" in caplog.text) == (model_type not in ("opt", "t5"))
    whole = language_part(transformers.AutoConfig.for_model(model_type).to_dict())
    assert part_config("llm", bare) == part_config("llm", whole)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "language model 'gpt2' is not supported; there are opt, llama"),
        ({"model_type": "cohere", "use_qk_norm": True}, "use_qk_norm=True; only False"),
        ({"model_type": "llama", "num_attention_heads": 31}, "hidden_size=4096 is not a multiple of num_attention_heads=31"),
        ({"model_type": "qwen2", "num_hidden_layers": 2, "layer_types": ["full_attention"]}, "layer_types="),
        ({"model_type": "qwen3", "num_hidden_layers": 1, "layer_types": ["sliding_attention"]}, "use_sliding_window=False"),
        ({"model_type": "llama", "rope_parameters": {"full_attention": {"rope_type": "default"}}}, "by type of layer"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear"}}, "rotary type 'linear' without its factor"),
        ({"model_type": "qwen2", "rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "rotary type 'mrope'"),
    ],
)
def test_what_is_not_built_is_refused_in_one_line(config, message):
    with pytest.raises(UserError, match=message) as error:
        language_part({"rope_theta": 1e4, **config})
    assert "\n" not in str(error.value)


def test_a_part_is_written_as_a_class_that_computes_it():
    sizes = {"vocab": 50, "width": 24, "layers": 2, "heads": 6, "kv_heads": 2, "ffn": 44}

    def config(model_type=None, **fields):
        part = {"family": "llama", **sizes, **fields}
        return language_config({"family": "llama", **config_dict(part_config("llm", part))}, model_type)

    assert config()["model_type"] == config(attention_bias=True, output_bias=True)["model_type"] == "llama"
    assert config(window=3)["model_type"] == "mistral"
    assert config(attention_bias=True)["model_type"] == config(attention_bias=True, window=3)["model_type"] == "qwen2"
    assert config(head_norm=True)["model_type"] == "qwen3"
    assert config(width=26)["model_type"] == "mistral"
    with pytest.raises(UserError, match="hidden_size=26 is not a multiple of num_attention_heads=6, which its class refuses"):
        config("llama", width=26, head_dim=4)
    with pytest.raises(UserError, match="llama has no place for head_norm=True, mlp_bias=True|mlp_bias=True, head_norm=True"):
        config(head_norm=True, mlp_bias=True)
    with pytest.raises(UserError, match="llama has no place for window=3"):
        config("llama", window=3)
    with pytest.raises(UserError, match="opt holds no language model of the family 'llama'"):
        config("opt")
