"""Adapters go both ways between us and PEFT, which computes the same with them; nothing that was trained is lost."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file

import mmjax
from mmjax.interop import hf_forward
from mmjax.systems.parts import build_definition
from mmjax.types import Model, UserError
from tests.interop import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to:UserWarning"),
]

TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """name -> the directory of a tiny base model, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny.make(name, made[name])
        return made[name]

    return get


@torch.no_grad()
def trained(base, directory, dtype=torch.float32, **settings):
    """A PEFT model over a base with all its trainable values drawn, saved; and its logits."""
    config = json.loads((base / "config.json").read_text())
    model = getattr(transformers, config["architectures"][0]).from_pretrained(base, dtype=dtype)
    model = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "lora_dropout": 0.1} | settings)).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.25 + float(is_norm))
    model.save_pretrained(directory)
    return model


def logits(model, arrays):
    return tiny.outputs(model, arrays)["logits"]


def stored(directory, name="adapter_model"):
    with safe_open(directory / f"{name}.safetensors", "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


LANGUAGE = r"language_model\..*(q_proj|fc1|up_proj)"
SETTINGS = {
    "names": ("opt", {"target_modules": ["q_proj", "v_proj", "fc2"]}),
    "all-linear": ("llama", {"target_modules": "all-linear", "modules_to_save": ["model.norm"]}),
    "head": ("llama", {"target_modules": ["lm_head", "k_proj"], "modules_to_save": ["embed_tokens"]}),
    "expression": ("llama", {"target_modules": r".*(q_proj|gate_proj)", "exclude_modules": r".*\.0\..*gate_proj"}),
    "layers": ("llama_tied", {"target_modules": ["o_proj", "down_proj"], "layers_to_transform": [1]}),
    "patterns": (
        "opt",
        {
            "target_modules": ["q_proj", "k_proj"], "rank_pattern": {r"layers.1.self_attn.q_proj": 2, "k_proj": 3},
            "alpha_pattern": {"k_proj": 5}, "use_rslora": True,
        },
    ),
    "biases": ("opt", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "whole": (
        "blip2",
        {"target_modules": LANGUAGE, "modules_to_save": ["language_projection", "qformer"]},
    ),
    "fused": ("blip2", {"target_modules": ["qkv", "v_proj"]}),
    "asked": ("instructblip_llama", {"target_modules": LANGUAGE + r"|qformer\..*attention\.(query|value)"}),
}  # fmt: skip


HEAVY = {"fused": pytest.mark.heavy, "asked": pytest.mark.heavy}  # "whole" reads another whole model by default


@pytest.mark.parametrize(
    ("name", "settings"), [pytest.param(*case, id=id, marks=HEAVY.get(id, ())) for id, case in SETTINGS.items()]
)
def test_what_peft_writes_is_read_and_written_again(bases, tmp_path, name, settings):
    base, arrays = bases(name), tiny.inputs(name)
    expected = logits(trained(base, tmp_path / "theirs", **settings), arrays)
    model = mmjax.from_pretrained(tmp_path / "theirs")
    got, plain = hf_forward(model, arrays)["logits"], hf_forward(mmjax.from_pretrained(base), arrays)["logits"]
    read = arrays["attention_mask"] > 0
    assert np.abs(expected[read] - plain[read]).max() > 0.1
    np.testing.assert_allclose(got[read], expected[read], **TOLERANCE)
    mmjax.save_pretrained(model, tmp_path / "ours", base=base)
    before, after = stored(tmp_path / "theirs"), stored(tmp_path / "ours")
    if "rank_pattern" not in settings:  # layers of different scales share one: B is multiplied
        assert {key: value.tobytes() for key, value in before.items() if ".lora_" in key} == {
            key: value.tobytes() for key, value in after.items() if ".lora_" in key
        }
    assert_peft_computes(base, tmp_path / "ours", arrays, expected)


@torch.no_grad()
def assert_peft_computes(base, directory, arrays, expected):
    architecture = json.loads((base / "config.json").read_text())["architectures"][0]
    whole = getattr(transformers, architecture).from_pretrained(base)
    model = peft.PeftModel.from_pretrained(whole, directory).eval()
    read = arrays["attention_mask"] > 0
    np.testing.assert_allclose(logits(model, arrays)[read], expected[read], **TOLERANCE)


def adapted(base, rules, changed=()):
    """A model as a stage leaves it: adapters by rules, and these parameters trained too."""
    plain = mmjax.from_pretrained(base)
    definition = build_definition(plain.config["parts"], rules)
    parameters = definition.initialise(jax.random.key(0)) | dict(plain.parameters)
    for path in parameters:
        if path.endswith("lora_b") or path in changed:
            noise = jax.random.normal(jax.random.key(len(path)), parameters[path].shape)
            parameters[path] = parameters[path] + 0.25 * noise
    return Model(definition, parameters, None, plain.config)


RULES = (
    (r"llm\..*(query|value)\.kernel", 2),
    (r"llm\..*mlp\.up\.kernel", {"rank": 4, "alpha": 3.0, "rslora": True}),
    (r"encoders\.image\..*attention\.(query|value)\.kernel", 3),
)
TRAINED = (
    "connectors.image.queries",
    "connectors.image.output_projection.kernel",
    "llm.layers.attention.query.kernel",
    "llm.token_embedding.table",
    "encoders.image.position_embedding",
)


@pytest.mark.heavy
def test_a_projector_that_was_trained_with_lora_is_in_the_file(bases, tmp_path):
    base, arrays = bases("blip2"), tiny.inputs("blip2")
    paths = list(mmjax.from_pretrained(base).parameters)
    changed = [path for path in paths if path in TRAINED or path.startswith("connectors.image.")]
    model = adapted(base, RULES, changed)
    expected = hf_forward(model, arrays)["logits"]
    export = mmjax.save_pretrained(model, tmp_path / "adapter", base=base)
    assert not export.left_out
    assert_peft_computes(base, tmp_path / "adapter", arrays, expected)
    again = mmjax.from_pretrained(tmp_path / "adapter")
    np.testing.assert_allclose(hf_forward(again, arrays)["logits"], expected, **TOLERANCE)
    for path in changed:
        rows = slice(50) if path.endswith("embedding.table") else slice(None)  # the padding of a vocabulary is not stored
        np.testing.assert_array_equal(again.parameters[path][rows], model.parameters[path][rows], err_msg=path)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert "language_projection" in config["modules_to_save"]
    assert not any(".lora_" not in key and "vision_model.encoder" in key for key in stored(tmp_path / "adapter"))


def test_merged_or_apart_is_the_same_model(bases, tmp_path):
    model, arrays = adapted(bases("llama"), ((".*kernel", 2),)), tiny.inputs("llama")
    expected = hf_forward(model, arrays)["logits"]
    mmjax.save_pretrained(model, tmp_path / "merged")
    mmjax.save_pretrained(model, tmp_path / "apart", base=bases("llama"))
    assert not any("lora" in key for key in stored(tmp_path / "merged", "model"))
    for directory in ("merged", "apart"):
        got = hf_forward(mmjax.from_pretrained(tmp_path / directory), arrays)["logits"]
        np.testing.assert_allclose(got, expected, **TOLERANCE)


def test_an_adapter_in_float32_on_a_base_in_bfloat16(bases, tmp_path):
    mmjax.save_pretrained(mmjax.from_pretrained(bases("llama"), dtype=jnp.bfloat16), tmp_path / "base")
    trained(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"])
    model = mmjax.from_pretrained(tmp_path / "adapter")
    assert model.parameters["llm.layers.attention.query.kernel"].dtype == jnp.bfloat16
    assert model.parameters["llm.layers.attention.query.lora_a"].dtype == jnp.float32
    mmjax.save_pretrained(model, tmp_path / "merged")
    merged = mmjax.from_pretrained(tmp_path / "merged")
    w, a, b = (
        np.asarray(model.parameters[f"llm.layers.attention.query.{name}"], np.float32)
        for name in ("kernel", "lora_a", "lora_b")
    )
    expected = jnp.asarray(w + 1.5 * (a @ b)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(merged.parameters["llm.layers.attention.query.kernel"], expected)


def test_module_names_of_transformers_4_and_5(bases, tmp_path):
    base, arrays = bases("instructblip_llama"), tiny.inputs("instructblip_llama")
    expected = logits(trained(base, tmp_path, target_modules=LANGUAGE, modules_to_save=["language_projection"]), arrays)
    values = stored(tmp_path)
    assert any(key.startswith("base_model.model.language_model.model.layers.0.") for key in values)
    renamed = {key.replace("language_model.model.", "model.language_model."): value for key, value in values.items()}
    renamed = {key.replace(".language_projection", ".model.language_projection"): value for key, value in renamed.items()}
    assert renamed.keys() != values.keys()
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    got = hf_forward(mmjax.from_pretrained(tmp_path), arrays)["logits"]
    read = arrays["attention_mask"] > 0
    np.testing.assert_allclose(got[read], expected[read], **TOLERANCE)


@pytest.fixture
def adapter(bases, tmp_path):
    """An adapter of OPT that a test may spoil."""
    trained(bases("opt"), tmp_path, target_modules=["q_proj"])
    return tmp_path


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA' is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ({"target_parameters": ["x"]}, r"target_parameters=\['x'\] is not supported"),
        ({"base_model_name_or_path": None}, "names no base model; give its directory"),
        ({"base_model_name_or_path": "/nowhere/base"}, "is for /nowhere/base, which is not here; give its directory"),
        (
            {"base_model_name_or_path": "owner/base"},
            "owner/base is no directory here, and cannot be had from the Hugging Face hub",
        ),
        ({"r": 8}, r"4 of another shape: .*q_proj.lora_A.weight \(expected \(8, 20\), got \(4, 20\)\)"),
        ({"target_modules": ["q_proj", "fc1"]}, r"4 missing: base_model.model.model.decoder.layers.\*.fc1.lora_A.weight \[2\]"),
    ],
)
def test_an_adapter_that_does_not_fit_is_told_in_one_line(adapter, setting, message):
    config = json.loads((adapter / "adapter_config.json").read_text()) | setting
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as error:
        mmjax.from_pretrained(adapter)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layers.0.self_attn.q_proj.lora_A", "layers.0.self_attn.q_prj.lora_A", "1 missing: .* 1 unexpected: .*q_prj"),
        ("layers.0.self_attn.q_proj", "embed_tokens", "embed_tokens is no linear layer"),
        ("lora_A.weight", "lora_embedding_A", "unexpected"),
    ],
)
def test_keys_that_do_not_fit_are_told_together(adapter, old, new, message):
    values = {key.replace(old, new): value for key, value in stored(adapter).items()}
    save_file(values, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=message):
        mmjax.from_pretrained(adapter)


def test_a_base_may_be_given_and_must_be_of_the_class(bases, adapter, tmp_path):
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "moved/away"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    model = mmjax.from_pretrained(adapter, base=bases("opt"))
    with pytest.raises(UserError, match="is of the class LlamaForCausalLM, the model of OPTForCausalLM"):
        mmjax.save_pretrained(model, tmp_path / "x", base=bases("llama"))
    with pytest.raises(UserError, match="has no LoRA adapters"):
        mmjax.save_pretrained(mmjax.from_pretrained(bases("opt")), tmp_path / "x", base=bases("opt"))
    with pytest.raises(UserError, match="adapts nothing"):
        mmjax.from_pretrained(bases("opt"), base=bases("opt"))
