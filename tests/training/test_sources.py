"""Where parts begin: a Q-Former from BERT, and parts from files of LAVIS."""

from __future__ import annotations

import dataclasses
import logging

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

import mmjax
from experiments.blip2.published import image_encoder as published_encoder
from mmjax.data.config import TokenizerConfig
from mmjax.interop.pretrained import from_pretrained
from mmjax.training.assembly import assemble, fill
from mmjax.training.stage import Experiment
from mmjax.types import UserError
from tests.interop import test_lavis, test_llava_original, test_minigpt4, tiny
from tests.training.tiny import tiny_stage

VISION = {"family": "vit", "width": 32, "layers": 3, "heads": 16, "ffn": 32, "patch_size": 14, "image_size": 28}
QFORMER = {
    "family": "qformer", "width": 24, "layers": 4, "heads": 12, "ffn": 48, "queries": 3, "encoder_width": 32,
    "vocab": 41, "max_positions": 32, "output_width": 0, "stage1": True, "projection": 7,
}  # fmt: skip


def without_media(stage):
    """A stage whose data, which nobody reads here, need not fit the parts."""
    return dataclasses.replace(stage, data=dataclasses.replace(stage.data, media=0))


def begin(image=None, connector=None, llm=None, tower=VISION, **fields):
    """The parameters before the first step; the first arguments are the sources of the parts."""
    parts = {
        "encoders.image": dict(tower) | ({"source": str(image)} if image else {}),
        "connectors.image": QFORMER | fields | ({"source": str(connector)} if connector else {}),
    }
    if llm:
        parts["llm"] = {"family": "opt", "vocab": 50, "width": 20, "layers": 2, "heads": 2, "ffn": 40, "max_positions": 32}
    stage = without_media(tiny_stage(trainable=((".*", True),)))
    experiment = Experiment(name="sources", parts=parts, tokenizers=TokenizerConfig(llm=""), stages={"tiny": stage})
    assembly = assemble(experiment, stage)
    return assembly.definition, fill(assembly, experiment, {}, list(assembly.definition.specs))


@pytest.mark.parametrize("first_names", [False, True])
def test_a_qformer_that_begins_as_bert_reads_texts_as_bert(tmp_path, first_names):
    sizes = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 48, "vocab_size": 40}
    config = transformers.BertConfig(**sizes, max_position_embeddings=32)
    reference = tiny.draw(transformers.BertForMaskedLM(config), tmp_path)
    if first_names:
        tensors = load_file(tmp_path / "model.safetensors")
        names = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
        for new, old in names:
            tensors = {key if key.startswith("cls") else key.replace(new, old): value for key, value in tensors.items()}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    definition, parameters = begin(connector=tmp_path)
    qformer = definition.bind(parameters).connectors["image"]
    tokens = np.random.default_rng(0).integers(0, 40, (2, 6))
    with torch.no_grad():
        reference.bert.embeddings.token_type_embeddings.weight.zero_()  # which a Q-Former has not
        expected = reference.bert(torch.tensor(tokens)).last_hidden_state
    got = qformer(None, None, jnp.asarray(tokens)[:, None], jnp.ones((2, 1, 6), bool)).text[:, 0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    prefix = "connectors.image.layers.layers.1"
    np.testing.assert_array_equal(parameters[f"{prefix}.query_mlp.up.kernel"], parameters[f"{prefix}.text_mlp.up.kernel"])
    assert parameters["connectors.image.word_embedding.table"].shape == (41, 24)


@pytest.mark.parametrize("name", ["Blip2VisionModel", "InstructBlipVisionModel", "InstructBlipVideoVisionModel"])
def test_a_tower_comes_from_a_directory_of_its_own(tmp_path, name):
    cls = getattr(transformers, name)
    sizes = {**tiny.VISION, "hidden_size": 32, "num_attention_heads": 16, "num_hidden_layers": 3}
    reference = tiny.draw(cls(cls.config_class(**sizes)), tmp_path)
    _, parameters = begin(image=tmp_path)
    theirs = reference.state_dict()
    np.testing.assert_array_equal(parameters["encoders.image.norm.scale"], theirs["post_layernorm.weight"])
    for layer in range(3):
        kernel = theirs[f"encoder.layers.{layer}.mlp.fc1.weight"].T
        np.testing.assert_array_equal(parameters["encoders.image.layers.mlp.up.kernel"][layer], kernel)


@pytest.mark.heavy
def test_blip2_s_tower_of_clip_comes_from_clip_s_directory(tmp_path, caplog):
    """All blocks but the last, whose features a new norm reads: CLIP's own is for the vector that it pools."""
    sizes = {**tiny.VISION, "hidden_size": 32, "num_attention_heads": 16, "num_hidden_layers": 4}
    reference = tiny.draw(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes)), tmp_path)
    published = published_encoder("clip_l", 28, source=str(tmp_path))
    small = {name: VISION[name] for name in ("width", "layers", "heads", "ffn", "patch_size")}
    with caplog.at_level(logging.WARNING):
        definition, parameters = begin(tower={**published, **small})
    assert "holds no norm behind the encoder; drawn anew: " in caplog.text
    assert (parameters["encoders.image.norm.scale"] == 1).all() and (parameters["encoders.image.norm.bias"] == 0).all()
    pixels = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)
    with torch.no_grad():
        states = reference(torch.tensor(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True).hidden_states
        expected = torch.nn.functional.layer_norm(states[3], (32,), eps=1e-5)
    got = definition.bind(parameters).encoders["image"](jnp.asarray(pixels))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


@pytest.mark.heavy
def test_parts_come_from_files_of_lavis(tmp_path, caplog):
    kind, text, prefix, _ = test_lavis.STAGE2["opt"]
    reference = test_lavis.make(tmp_path, kind, text)
    tensors = test_lavis.to_lavis(reference, language_model=f"{prefix}model", language_projection=f"{prefix}proj")
    trimmed = test_lavis.of(tensors, "query_tokens", "Qformer.", "ln_vision", f"{prefix}proj")
    torch.save({"model": trimmed}, tmp_path / "trimmed.pth")
    torch.save(tensors, tmp_path / "whole.pth")
    generative = {"llm": True, "output_width": 20, "stage1": False}
    with caplog.at_level(logging.WARNING):
        _, parameters = begin(tmp_path / "whole.pth", tmp_path / "trimmed.pth", **generative)
    np.testing.assert_array_equal(parameters["encoders.image.norm.scale"], tensors["ln_vision.weight"])
    np.testing.assert_array_equal(
        parameters["encoders.image.layers.attention.query.bias"][1], tensors["visual_encoder.blocks.1.attn.q_bias"]
    )
    np.testing.assert_array_equal(parameters["connectors.image.projection.kernel"].T, tensors["opt_proj.weight"])
    assert "trimmed.pth holds no text branch of the Q-Former; drawn anew: " in caplog.text
    assert "connectors.image.word_embedding.table" in caplog.text
    with pytest.raises(UserError, match=r"trimmed.pth lacks encoders.image.* it stores but some of the part"):
        begin(tmp_path / "trimmed.pth", **generative)
    with caplog.at_level(logging.WARNING):
        begin(None, tmp_path / "trimmed.pth", output_width=0)
    assert "trimmed.pth holds no heads of stage 1; drawn anew: " in caplog.text
    with pytest.raises(UserError, match=r"connectors.image.source=.*trimmed.pth lacks connectors.image.layers"):
        begin(None, tmp_path / "trimmed.pth", output_width=0, frequency=4)


PROJECTION = r"connectors\.image\.projection\..*"


def begin_minigpt4(encoder, connector, **fresh):
    """The parameters of a MiniGPT-4 before the first step; the arguments are the sources of its parts."""
    qformer = {**QFORMER, "vocab": 0, "output_width": 24, "stage1": False}
    sizes = {"vocab": 50, "width": 24, "layers": 2, "heads": 2, "kv_heads": 2, "ffn": 40, "max_positions": 32}
    parts = {
        "encoders.image": {**VISION, "image_size": 56, "source": encoder},
        "connectors.image": {**qformer, "source": connector, **fresh},
        "llm": {"family": "llama", **sizes},
    }
    stage = without_media(tiny_stage(trainable=((PROJECTION, True), (".*", False))))
    experiment = Experiment(name="minigpt4", parts=parts, tokenizers=TokenizerConfig(llm=""), stages={"tiny": stage})
    assembly = assemble(experiment, stage)
    return fill(assembly, experiment, {}, list(assembly.definition.specs))


@pytest.mark.heavy
def test_minigpt4_takes_the_encoder_and_the_qformer_of_blip2_and_no_projection(tmp_path):
    root, blip2, _ = test_minigpt4.release(tmp_path)
    projection, published = test_minigpt4.save_projection(root / "stage1.pth", 24), blip2.state_dict()
    directory, trimmed, tower = (str(root / name) for name in ("blip2", "blip2_pretrained_flant5xxl.pth", "eva_vit_g.pth"))
    values = begin_minigpt4(directory, directory, fresh=PROJECTION)
    np.testing.assert_array_equal(values["encoders.image.norm.scale"], published["vision_model.post_layernorm.weight"])
    np.testing.assert_array_equal(values["connectors.image.query_tokens"], published["query_tokens"][0])
    # The first of several sources prevails; of a trimmed file the norm is read, of the tower's own all else.
    resumed = begin_minigpt4([trimmed, tower], [str(root / "stage1.pth"), trimmed])
    np.testing.assert_array_equal(resumed["connectors.image.projection.kernel"].T, projection["llama_proj.weight"])
    np.testing.assert_array_equal(resumed["connectors.image.projection.bias"], projection["llama_proj.bias"])
    assert not np.array_equal(values["connectors.image.projection.kernel"], resumed["connectors.image.projection.kernel"])
    for path, value in values.items():
        if not path.startswith(("connectors.image.projection.", "llm.")):
            np.testing.assert_array_equal(resumed[path], value)
    with pytest.raises(UserError, match="stage1.pth lacks .* it stores but some of the part, or the sizes"):
        begin_minigpt4(directory, str(root / "stage1.pth"))


def test_a_tower_without_the_norm_behind_it_gets_a_new_one(tmp_path, caplog):
    root = test_minigpt4.release(tmp_path)[0]
    with caplog.at_level(logging.WARNING):
        values = begin_minigpt4(str(root / "eva_vit_g.pth"), str(root / "blip2"), fresh=PROJECTION)
    assert "eva_vit_g.pth holds no norm behind the encoder; drawn anew: " in caplog.text
    assert (values["encoders.image.norm.scale"] == 1).all() and (values["encoders.image.norm.bias"] == 0).all()


def test_of_a_source_only_the_part_is_read(tmp_path):
    tiny.make("blip2", tmp_path)
    model = from_pretrained(tmp_path, part="connectors.image")
    assert model.parameters and all(path.startswith("connectors.image.") for path in model.parameters)


def test_a_llava_begins_with_clip_a_language_model_and_a_connector_s_file(tmp_path):
    """The newline of LLaVA 1.6, which no file of a connector holds, is drawn."""
    reference, original = test_llava_original.make(tmp_path, "next")
    projector = {key: value for key, value in load_torch(original / "model.safetensors").items() if "mm_projector" in key}
    torch.save(projector, tmp_path / "mm_projector.bin")
    read = mmjax.from_pretrained(tmp_path / "hf")
    sources = {"encoders.image": tmp_path / "clip", "connectors.image": tmp_path / "mm_projector.bin", "llm": tmp_path / "hf"}
    parts = {name: {**part, "source": str(sources[name])} for name, part in read.config["parts"].items()}
    stage = without_media(tiny_stage(trainable=(("connectors.*", True), (".*", False))))
    experiment = Experiment(name="llava", parts=parts, tokenizers=TokenizerConfig(llm=""), stages={"tiny": stage})
    assembly = assemble(experiment, stage)
    values = fill(assembly, experiment, {}, list(assembly.definition.specs))
    for path, value in read.parameters.items():
        assert np.array_equal(values[path], value) == (path != "connectors.image.newline"), path
