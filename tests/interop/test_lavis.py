"""Files of LAVIS compute what the Hugging Face classes compute from the same tensors, and nothing in them is lost."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import mmjax
from mmjax.interop import hf_forward, save_lavis
from mmjax.interop.pretrained import resolved_parts
from mmjax.systems.parts import build_definition
from mmjax.types import Model, UserError
from tests.interop import tiny

TOLERANCE = {"rtol": 0, "atol": 1e-4}
# No tensor tells the number of heads: these have as many as the released models, 16 and 12.
VISION = {**tiny.VISION, "hidden_size": 32, "num_attention_heads": 16}
QFORMER = {**tiny.QFORMER, "num_attention_heads": 12, "encoder_hidden_size": 32}
NAMES = [
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
    ("vision_model.encoder.layers", "visual_encoder.blocks"),
    ("vision_model.post_layernorm", "ln_vision"),
    ("self_attn.projection", "attn.proj"),
    ("self_attn.qkv", "attn.qkv"),
    ("layer_norm", "norm"),
    ("qformer.embeddings.layernorm", "Qformer.bert.embeddings.LayerNorm"),
    ("qformer.embeddings", "Qformer.bert.embeddings"),
    ("qformer.layernorm", "Qformer.bert.embeddings.LayerNorm"),
    ("qformer.encoder", "Qformer.bert.encoder"),
    ("attention.attention", "attention.self"),
    ("vision_projection", "vision_proj"),
    ("text_projection", "text_proj"),
]


def to_lavis(reference, **prefixes):
    """The tensors under LAVIS's names; `prefixes`: of language model and projection."""
    tensors = {}
    for key, value in reference.state_dict().items():
        is_text = key.startswith("language_")
        for theirs, lavis in prefixes.items() if is_text else NAMES:
            key = key.replace(theirs, lavis)
        if key.startswith("embeddings."):
            key = f"Qformer.bert.{key}"
        if key.endswith("attn.qkv.bias") and not is_text:
            query, _, tensors[key.replace("qkv.bias", "v_bias")] = value.chunk(3)
            tensors[key.replace("qkv.bias", "q_bias")] = query
        else:
            tensors[key] = value.clone()
    return tensors


def of(tensors, *prefixes):
    return {key: value for key, value in tensors.items() if key.startswith(prefixes)}


def make(directory, kind, text, **more):
    """A Hugging Face model whose norm after the tower has LAVIS's eps."""
    prefix = "Blip2" if kind.startswith("Blip2") else "InstructBlip"
    qformer, vision = {**QFORMER, **more.pop("qformer", {})}, {**VISION, **more.pop("vision", {})}
    parts = {"vision_config": vision, "qformer_config": qformer, "text_config": text, "num_query_tokens": tiny.QUERIES}
    config = getattr(transformers, f"{prefix}Config")(**parts, image_token_index=tiny.PLACEHOLDER, **more)
    reference = tiny.draw(getattr(transformers, kind)(config), directory)
    reference.vision_model.post_layernorm.eps = 1e-5
    return reference


OPT, LLAMA, T5 = ({"model_type": name, **sizes} for name, sizes in (("opt", tiny.OPT), ("llama", tiny.LLAMA), ("t5", tiny.T5)))


def make_stage1(directory, vocab, *, vision=None, qformer=None):
    """A retrieval model, and its tensors with what only LAVIS keeps, in a training run's file."""
    more = {"use_qformer_text_input": True, "vocab_size": vocab, **(qformer or {})}
    kind = "Blip2ForImageTextRetrieval"
    reference = make(directory, kind, OPT, qformer=more, vision=vision or {}, image_text_hidden_size=7)
    width, head = QFORMER["hidden_size"], "Qformer.cls.predictions"
    bias = torch.randn(vocab)
    tensors = to_lavis(reference) | {
        "temp": torch.tensor(0.043), f"{head}.bias": bias, f"{head}.decoder.bias": bias,
        f"{head}.transform.dense.weight": torch.randn(width, width), f"{head}.transform.dense.bias": torch.randn(width),
        f"{head}.transform.LayerNorm.weight": torch.randn(width), f"{head}.transform.LayerNorm.bias": torch.randn(width),
        f"{head}.decoder.weight": reference.embeddings.word_embeddings.weight.detach().clone(),
        "Qformer.bert.embeddings.position_ids": torch.arange(32)[None],
    }  # fmt: skip
    torch.save({"model": tensors, "epoch": 3, "config": {"run": {"seed": 42}}}, directory / "blip2_pretrained.pth")
    return directory / "blip2_pretrained.pth", reference, tensors


@pytest.fixture(params=[40, pytest.param(41, marks=pytest.mark.heavy)])
def stage1(request, tmp_path):
    return make_stage1(tmp_path, request.param)


def test_stage_one_is_read_whole(stage1, tmp_path, caplog):
    path, reference, tensors = stage1
    model = mmjax.from_pretrained(path)
    assert model.config["absent"] == () and len(model.config["unread"]) == 1
    for matching in (False, True):
        arrays = {**tiny.inputs("retrieval"), "use_image_text_matching_head": matching}
        expected = tiny.outputs(reference, arrays)["logits_per_image"]
        arrays |= {key: arrays[key][:, tiny.QUERIES :] for key in ("input_ids", "attention_mask")}  # no placeholders
        np.testing.assert_allclose(hf_forward(model, arrays)["logits_per_image"], expected, **TOLERANCE)
    qformer = model.definition.bind(model.parameters).connectors["image"]
    assert float(qformer.heads.temperature[...]) == np.float32(0.043)
    hidden, head = torch.randn(5, 24), "Qformer.cls.predictions"
    names = ("dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias")
    weight, bias, scale, shift = (tensors[f"{head}.transform.{name}"] for name in names)
    dense = torch.nn.functional.gelu(hidden @ weight.T + bias)
    normed = torch.nn.functional.layer_norm(dense, (24,), scale, shift, 1e-12)
    logits = normed @ tensors[f"{head}.decoder.weight"].T + tensors[f"{head}.bias"]
    np.testing.assert_allclose(qformer.caption_logits(jnp.asarray(hidden.numpy())), logits, **TOLERANCE)

    with caplog.at_level(logging.WARNING):
        export = mmjax.save_pretrained(model, tmp_path / "hf")
    assert "1e-06 is written; the norm after the vision tower had 1e-05" in caplog.text
    lost = {"temperature", "bias", "transform.kernel", "transform.bias", "transform_norm.scale", "transform_norm.bias"}
    assert {name.removeprefix("connectors.image.heads.") for name in export.left_out} == lost
    again, report = type(reference).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values()), report
    assert all(torch.equal(again.state_dict()[key], value) for key, value in reference.state_dict().items())


def same_file(path, expected):
    """Whether LAVIS would find in a file these tensors, all of them and equal to the byte."""
    got = torch.load(path, weights_only=True)["model"]
    assert got.keys() == expected.keys(), got.keys() ^ expected.keys()
    assert all(got[key].dtype == value.dtype and torch.equal(got[key], value) for key, value in expected.items())


def test_stage_one_is_written_whole(stage1, tmp_path):
    path, _, tensors = stage1
    model = mmjax.from_pretrained(path)
    export = save_lavis(model, tmp_path / "again.pth")
    assert export.left_out == () and export.architecture == "LAVIS"
    same_file(tmp_path / "again.pth", tensors)
    again = mmjax.from_pretrained(tmp_path / "again.pth")
    assert all(np.array_equal(again.parameters[name], value) for name, value in model.parameters.items())


STAGE2 = {
    "opt": ("Blip2ForConditionalGeneration", OPT, "opt_", "blip2"),
    "t5": ("Blip2ForConditionalGeneration", T5, "t5_", "blip2_t5"),
    "vicuna": ("InstructBlipForConditionalGeneration", LLAMA, "llm_", "instructblip_llama"),
    "instruct_t5": ("InstructBlipForConditionalGeneration", T5, "t5_", "instructblip_t5"),
}


@pytest.mark.parametrize("variant", ["opt", *(pytest.param(name, marks=pytest.mark.heavy) for name in STAGE2 if name != "opt")])
def test_whole_and_trimmed_files_give_the_logits_of_transformers(tmp_path, variant):
    kind, text, prefix, inputs = STAGE2[variant]
    reference = make(tmp_path / "whole", kind, text)
    arrays = tiny.inputs(inputs)
    expected = tiny.outputs(reference, arrays)["logits"]
    read = arrays.get("decoder_attention_mask", arrays["attention_mask"]) > 0
    tensors = to_lavis(reference, language_model=f"{prefix}model", language_projection=f"{prefix}proj")
    reference.language_model.save_pretrained(tmp_path / "llm")
    torch.save(tensors, tmp_path / "whole.pth")
    trimmed = of(tensors, "query_tokens", "Qformer.", "ln_vision", f"{prefix}proj")
    torch.save({"model": trimmed}, tmp_path / "trimmed.pth")
    tower = {key.removeprefix("visual_encoder."): value for key, value in of(tensors, "visual_encoder.").items()}
    extra = {key.replace("blocks.2.", "blocks.3."): value + 1 for key, value in tower.items() if "blocks.2." in key}
    torch.save({**tower, **extra, "norm.weight": torch.ones(32), "head.bias": torch.ones(3)}, tmp_path / "eva_vit_g.pth")

    sources = {"llm": str(tmp_path / "llm"), "encoders.image": str(tmp_path / "eva_vit_g.pth")}
    for file, parts in (("whole.pth", {"llm": sources["llm"]}), ("trimmed.pth", sources)):
        model = mmjax.from_pretrained(tmp_path / file, parts=parts)
        assert model.config["absent"] == ()
        got = hf_forward(model, {**arrays, "input_ids": np.where(arrays["input_ids"] == 49, -1, arrays["input_ids"])})
        np.testing.assert_allclose(got["logits"][read], expected[read], **TOLERANCE)
    export = save_lavis(model, tmp_path / "again.pth")
    assert export.left_out == ("llm",)
    buffers = {"Qformer.bert.embeddings.position_ids": torch.arange(32 if "instruct" in inputs else 512)[None]}
    same_file(tmp_path / "again.pth", buffers | {k: v for k, v in tensors.items() if not k.startswith(f"{prefix}model.")})
    export = mmjax.save_pretrained(model, tmp_path / "hf")
    assert export.architecture == kind and export.left_out == ()
    again, report = type(reference).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values()), report
    assert all(torch.equal(again.state_dict()[key], value) for key, value in reference.state_dict().items())
    with pytest.raises(UserError, match=r"trimmed.pth holds no encoders.image; say where it is: --part=encoders.image=PATH"):
        mmjax.from_pretrained(tmp_path / "trimmed.pth", parts={"llm": sources["llm"]})


def test_heads_are_told_where_no_tensor_tells_them(tmp_path):
    """Vision 2, Q-Former 4 heads: another number computes something else."""
    path, reference, tensors = make_stage1(tmp_path, 40, vision={"num_attention_heads": 2}, qformer={"num_attention_heads": 4})
    arrays = {**tiny.inputs("retrieval"), "use_image_text_matching_head": True}
    expected = tiny.outputs(reference, arrays)["logits_per_image"]
    arrays |= {key: arrays[key][:, tiny.QUERIES :] for key in ("input_ids", "attention_mask")}
    told = mmjax.from_pretrained(path, heads={"encoders.image": 2, "connectors.image": 4})
    np.testing.assert_allclose(hf_forward(told, arrays)["logits_per_image"], expected, **TOLERANCE)
    assert np.abs(hf_forward(mmjax.from_pretrained(path), arrays)["logits_per_image"] - expected).max() > 0.01
    with pytest.raises(UserError, match="heads are told of encoders.image and connectors.image, not of llm"):
        mmjax.from_pretrained(path, heads={"llm": 4})


def test_a_clip_tower_goes_into_a_file_and_back(tmp_path):
    tower = {"width": 32, "layers": 2, "heads": 4, "ffn": 40, "patch_size": 7, "image_size": 28, "activation": "quick_gelu"}
    tower |= {"key_bias": True, "patch_bias": False, "pre_norm": True, "eps": 1e-5, "final_eps": 1e-5}
    qformer = {"width": 24, "layers": 2, "heads": 2, "ffn": 48, "queries": 3, "encoder_width": 32, "output_width": 0}
    qformer |= {"vocab": 40, "max_positions": 16, "stage1": True, "projection": 7}
    parts = {"encoders.image": {"family": "vit", **tower}, "connectors.image": {"family": "qformer", **qformer}}
    definition = build_definition(parts)
    model = Model(definition, definition.initialise(jax.random.key(0)), None, {"parts": parts})
    assert save_lavis(model, tmp_path / "x.pth").left_out == ()
    names = {"visual_encoder.transformer.resblocks.1.attn.in_proj_bias", "visual_encoder.ln_pre.bias", "ln_vision.bias"}
    assert names <= set(torch.load(tmp_path / "x.pth", weights_only=True)["model"])
    again = mmjax.from_pretrained(tmp_path / "x.pth", heads={"encoders.image": 4, "connectors.image": 2})
    assert again.config["absent"] == () and resolved_parts(again) == resolved_parts(model)
    assert all(np.array_equal(again.parameters[name], value) for name, value in model.parameters.items())


def test_what_lavis_has_not_is_not_written_as_its_file(tmp_path):
    tiny.make("opt", tmp_path)
    with pytest.raises(UserError, match="LAVIS's files hold a Q-Former, which this model has not"):
        save_lavis(mmjax.from_pretrained(tmp_path), tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_the_tower_of_clip_loses_its_last_block(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 16, "image_size": 28}
    config = transformers.CLIPVisionConfig(**sizes, patch_size=7)
    reference = tiny.draw(transformers.CLIPVisionModel(config), tmp_path)
    names = [
        ("vision_model.", ""), ("embeddings.class_embedding", "class_embedding"), ("embeddings.patch_embedding", "conv1"),
        ("embeddings.position_embedding.weight", "positional_embedding"), ("pre_layrnorm", "ln_pre"),
        ("encoder.layers", "transformer.resblocks"), ("self_attn.out_proj", "attn.out_proj"), ("layer_norm", "ln_"),
        ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("post_layernorm", "ln_post"),
    ]  # fmt: skip
    tensors = {}
    for key, value in reference.state_dict().items():
        for theirs, openai in names:
            key = key.replace(theirs, openai)
        tensors[key] = value
    for layer in range(3):
        block = f"transformer.resblocks.{layer}"
        for name in ("weight", "bias"):
            fused = [tensors.pop(f"{block}.self_attn.{which}_proj.{name}") for which in "qkv"]
            tensors[f"{block}.attn.in_proj_{name}"] = torch.cat(fused)
    torch.save({**tensors, "proj": torch.ones(32, 5)}, tmp_path / "clip_vit_L.pth")
    model = mmjax.from_pretrained(tmp_path / "clip_vit_L.pth")
    assert set(model.config["absent"]) == {"encoders.image.norm.scale", "encoders.image.norm.bias"}
    pixels = np.random.default_rng(0).normal(size=(2, 3, 28, 28)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(pixels), output_hidden_states=True).hidden_states[-2]
    got = model.definition.bind(model.parameters).encoders["image"].encode(jnp.asarray(pixels.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(got, expected, **TOLERANCE)


def test_what_is_no_file_of_lavis_is_told_in_one_line(tmp_path, stage1):
    torch.save({"model": {"something": torch.ones(2)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds neither a Q-Former"):
        mmjax.from_pretrained(tmp_path / "other.pth")
    tensors = {**stage1[2]}
    del tensors["temp"]
    torch.save(tensors, tmp_path / "cut.pth")
    with pytest.raises(UserError, match="1 missing: temp") as error:
        mmjax.from_pretrained(tmp_path / "cut.pth")
    assert "\n" not in str(error.value)
