"""MiniGPT-4 put together from its published files computes what transformers computes, and its map is written back whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import mmjax
from mmjax.interop import describe, hf_forward, save_minigpt4
from mmjax.interop.minigpt4 import from_file
from mmjax.types import Example, Medium, Part, Turn, UserError
from tests.interop import test_lavis, tiny

TOLERANCE = {"rtol": 0, "atol": 1e-4}
WORDS = "<unk> <s> </s> what is this ? see . Human Assistant Img : < > # / $".split()
WORDS += [f"word{number}" for number in range(len(WORDS), tiny.PLACEHOLDER)]
WIDTH = tiny.LLAMA["hidden_size"]


def save_projection(path, width, seed=0):
    """A checkpoint as it was published: the map, and beside it the state of a training run."""
    torch.manual_seed(seed)
    tensors = {"llama_proj.weight": torch.randn(WIDTH, width) * 0.3, "llama_proj.bias": torch.randn(WIDTH) * 0.3}
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}
    state = {
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
        "scaler": {"scale": 65536.0},
    }
    torch.save({"model": tensors, **state, "config": {"run": {"seed": 42, "amp": True}}, "epoch": 3}, path)
    return tensors


@pytest.fixture
def released(tmp_path):
    return release(tmp_path)


def release(tmp_path):
    """What a user downloads: BLIP-2 with a T5 as a directory and as LAVIS's two files, Vicuna, and MiniGPT-4's map."""
    blip2 = test_lavis.make(tmp_path / "blip2", "Blip2ForConditionalGeneration", test_lavis.T5, vision={"image_size": 56})
    tensors = test_lavis.to_lavis(blip2, language_model="t5_model", language_projection="t5_proj")
    trimmed = test_lavis.of(tensors, "query_tokens", "Qformer.", "ln_vision", "t5_proj")
    torch.save({"model": trimmed}, tmp_path / "blip2_pretrained_flant5xxl.pth")
    tower = {key.removeprefix("visual_encoder."): value for key, value in test_lavis.of(tensors, "visual_encoder.").items()}
    last = {key.replace("blocks.2.", "blocks.3."): value + 1 for key, value in tower.items() if "blocks.2." in key}
    torch.save({**tower, **last}, tmp_path / "eva_vit_g.pth")
    vicuna = tiny.make("llama", tmp_path / "vicuna")
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(tmp_path / "vicuna")
    return tmp_path, blip2, vicuna


@torch.no_grad()
def oracle(blip2, vicuna, projection):
    """The same model as transformers has it: BLIP-2 with a LLaMA. The norm's eps is LAVIS's."""
    parts = {"vision_config": blip2.config.vision_config, "qformer_config": blip2.config.qformer_config}
    config = transformers.Blip2Config(
        **parts, text_config={"model_type": "llama", **tiny.LLAMA}, num_query_tokens=tiny.QUERIES,
        image_token_index=tiny.PLACEHOLDER,
    )  # fmt: skip
    reference = transformers.Blip2ForConditionalGeneration(config).eval()
    kept = {key: value for key, value in blip2.state_dict().items() if not key.startswith("language_")}
    kept |= {f"language_model.{key}": value for key, value in vicuna.state_dict().items()}
    kept |= {key.replace("llama_proj", "language_projection"): value for key, value in projection.items()}
    reference.load_state_dict(kept)
    reference.vision_model.post_layernorm.eps = 1e-5
    return reference


def shown(images, seed=0):
    """Two rows, each with text in front of, between and behind its images."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(3, len(WORDS), (2, 5 + 4 * images))
    rows = [tokens[:, :2]]
    for number in range(images):
        rows += [np.full((2, tiny.QUERIES), tiny.PLACEHOLDER), tokens[:, 2 + 4 * number : 6 + 4 * number]]
    rows = np.concatenate([np.full((2, 1), 1), *rows], axis=1)
    pixels = draw.normal(size=(2, images, 3, 56, 56)).astype(np.float32)
    return rows, pixels


@pytest.mark.parametrize("layout", ["directory", pytest.param("files", marks=pytest.mark.heavy)])
def test_the_released_pieces_give_the_logits_of_transformers(released, layout):
    root, blip2, vicuna = released
    projection = save_projection(root / "pretrained_minigpt4.pth", 24)
    sources = {"llm": str(root / "vicuna"), "connectors.image": str(root / "blip2")}
    if layout == "files":
        sources |= {
            "connectors.image": str(root / "blip2_pretrained_flant5xxl.pth"),
            "encoders.image": str(root / "eva_vit_g.pth"),
        }
    model = mmjax.from_pretrained(root / "pretrained_minigpt4.pth", parts=sources)
    reference = oracle(blip2, vicuna, projection)
    for images in (1, 2):
        tokens, pixels = shown(images)
        mask = np.ones_like(tokens)
        arrays = {"input_ids": tokens, "attention_mask": mask, "pixel_values": pixels.reshape(-1, 3, 56, 56)}
        expected = tiny.outputs(reference, arrays)
        arrays["input_ids"] = np.where(tokens == tiny.PLACEHOLDER, describe(model)[1]["image_token_index"], tokens)
        got = hf_forward(model, {**arrays, "pixel_values": pixels})
        assert 0.3 < np.abs(expected["logits"]).mean() < 30
        np.testing.assert_allclose(got["logits"], expected["logits"], **TOLERANCE)


@torch.no_grad()
def test_the_demo_talks_as_transformers_would(released):
    """Its prompt, with text in front of, between and behind two pictures: logits, and the tokens of a greedy answer."""
    root, blip2, vicuna = released
    reference = oracle(blip2, vicuna, save_projection(root / "a.pth", 24))
    model = from_file(root / "a.pth", {"llm": str(root / "vicuna"), "connectors.image": str(root / "blip2")})
    pictures = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8)
    media = tuple(Medium("image", picture) for picture in pictures)
    parts = (Part(text="what is"), Part(medium=0), Part(text="this ?"), Part(medium=1), Part(text="see ."))
    example = Example("x", "test", media, (Turn("user", parts),))
    batch = model.processor.prompts([example], "minigpt4_chat")
    system, real = model.definition.bind(model.parameters), batch.text.segments[0] > 0
    got = np.asarray(system.llm.logits(system.hidden(jax.tree.map(jnp.asarray, batch))))[0][real]
    tokens = np.where(batch.feature_index[0] >= 0, tiny.PLACEHOLDER, batch.text.tokens[0])[real].tolist()
    assert tokens[0] == 1 and tokens.count(tiny.PLACEHOLDER) == 2 * tiny.QUERIES
    arrays = {"pixel_values": normalised(pictures).numpy()}

    def logits():
        return tiny.outputs(reference, {**arrays, "input_ids": np.array([tokens])})["logits"][0]

    np.testing.assert_allclose(got[:, :50], logits(), **TOLERANCE)
    (answer,) = mmjax.generate(model, [example], template="minigpt4_chat", max_new_tokens=6)
    for token in answer.tokens:
        assert token == logits()[-1][: tiny.PLACEHOLDER].argmax()
        tokens.append(token)
    assert answer.tokens


def normalised(pictures):
    """Pixels as CLIP reads them, [n 3 height width]."""
    mean, std = (np.array(values) for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    return torch.tensor(((pictures / 255 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)


def asked(images, text):
    media = tuple(Medium("image", image) for image in images)
    parts = (*(Part(medium=number) for number in range(len(images))), Part(text))
    return Example("x", "test", media, (Turn("user", parts),))


@torch.no_grad()
@pytest.mark.parametrize("tower", ["blip2", "eva_vit_g.pth"])
def test_four_features_become_a_soft_token_behind_a_norm_that_was_never_trained(released, tower):
    root, blip2, vicuna = released
    projection = save_projection(root / "pretrained_minigpt4_llama2_7b.pth", 4 * 32)
    sources = {"llm": str(root / "vicuna"), "encoders.image": str(root / tower)}
    model = mmjax.from_pretrained(root / "pretrained_minigpt4_llama2_7b.pth", parts=sources)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8)
    batch = model.processor.prompts([asked(pictures, "what is this ?")])
    system = model.definition.bind(model.parameters)
    got = np.asarray(system.llm.logits(system.hidden(jax.tree.map(jnp.asarray, batch))))[0]

    hidden = blip2.vision_model(normalised(pictures), output_hidden_states=True).hidden_states[-1]
    plain = torch.nn.functional.layer_norm(hidden, (32,), eps=1e-5)
    strips = torch.stack([torch.cat([plain[:, 1 + 4 * i + j] for j in range(4)], dim=-1) for i in range(4)], dim=1)
    soft = strips @ projection["llama_proj.weight"].T + projection["llama_proj.bias"]
    index, tokens = batch.feature_index[0], batch.text.tokens[0]
    assert sorted(index[index >= 0]) == list(range(8))
    real = batch.text.segments[0] > 0
    embedded = vicuna.model.embed_tokens(torch.tensor(np.maximum(tokens, 0)))
    embedded[index >= 0] = soft.reshape(8, WIDTH)[index[index >= 0]]
    expected = vicuna(inputs_embeds=embedded[real][None]).logits[0]
    np.testing.assert_allclose(got[real][:, :50], expected, **TOLERANCE)


def same_file(path, expected):
    got = torch.load(path, weights_only=True)
    assert got.keys() == {"model"} and got["model"].keys() == expected.keys()
    for key, value in expected.items():
        assert got["model"][key].dtype == value.dtype and torch.equal(got["model"][key], value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("width", "source"), [(24, "connectors.image"), (128, "encoders.image")])
def test_the_map_goes_into_a_file_and_back(released, dtype, width, source):
    root = released[0]
    tensors = {key: value.to(dtype) for key, value in save_projection(root / "a.pth", width).items()}
    torch.save({"model": tensors}, root / "a.pth")
    model = mmjax.from_pretrained(root / "a.pth", parts={"llm": str(root / "vicuna"), source: str(root / "blip2")})
    export = save_minigpt4(model, root / "b.pth")
    assert export.architecture == "MiniGPT-4" and "llm" in export.left_out and "encoders.image" in export.left_out
    same_file(root / "b.pth", tensors)
    if source == "encoders.image":
        with pytest.raises(UserError, match="no Hugging Face class makes a soft token of several features; .* --to=minigpt4"):
            mmjax.save_pretrained(model, root / "hf")


def test_behind_a_qformer_it_is_a_blip2_of_transformers(released):
    root, blip2, vicuna = released
    projection = save_projection(root / "a.pth", 24)
    parts = {"llm": str(root / "vicuna"), "connectors.image": str(root / "blip2")}
    model = mmjax.from_pretrained(root / "a.pth", parts=parts)
    assert mmjax.save_pretrained(model, root / "hf").architecture == "Blip2ForConditionalGeneration"
    again, report = transformers.Blip2ForConditionalGeneration.from_pretrained(root / "hf", output_loading_info=True)
    assert not any(report.values()), report
    expected = oracle(blip2, vicuna, projection).state_dict()
    assert all(torch.equal(again.state_dict()[key], value) for key, value in expected.items())


def test_what_does_not_fit_is_one_line(released):
    root, blip2, _ = released
    save_projection(root / "a.pth", 24)
    vicuna, qformer = {"llm": str(root / "vicuna")}, {"connectors.image": str(root / "blip2")}
    for parts, message in (
        (qformer, r"a.pth holds no llm; say where it is: --part=llm=PATH"),
        (vicuna, r"a.pth holds no encoders.image; say where it is: --part=encoders.image=PATH"),
        (vicuna | {"encoders.image": str(root / "blip2")}, r"maps vectors of 24, but 4 features of its tower, since no"),
        (qformer | {"llm": str(root / "blip2")}, r"maps to vectors of 24: .*blip2 is no language model of that width"),
        (vicuna | {"connectors.image": str(root / "vicuna")}, r"vicuna holds no encoders.image; it holds llm"),
    ):
        with pytest.raises(UserError, match=message) as error:
            from_file(root / "a.pth", parts)
        assert "\n" not in str(error.value)
    save_projection(root / "wide.pth", 25)
    with pytest.raises(UserError, match="maps vectors of 25, but its Q-Former's features are 24 wide"):
        from_file(root / "wide.pth", vicuna | qformer)
    factors = {"llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 24)}
    torch.save({"model": {**save_projection(root / "v2.pth", 24), **factors}}, root / "v2.pth")
    with pytest.raises(UserError, match="v2.pth holds 1 LoRA factors of a language model: it is a checkpoint of MiniGPT-v2"):
        from_file(root / "v2.pth", vicuna | qformer)


def test_a_qformer_that_reads_text_is_refused(released):
    root = released[0]
    test_lavis.make(root / "instructblip", "InstructBlipForConditionalGeneration", test_lavis.T5, vision={"image_size": 56})
    save_projection(root / "a.pth", 24)
    parts = {"llm": str(root / "vicuna"), "connectors.image": str(root / "instructblip")}
    with pytest.raises(UserError, match="instructblip reads text .* MiniGPT-4's is that of BLIP-2's second stage"):
        from_file(root / "a.pth", parts)


def test_a_model_with_another_connector_has_no_such_file(released):
    root = released[0]
    with pytest.raises(UserError, match="MiniGPT-4's files hold one linear map"):
        save_minigpt4(mmjax.from_pretrained(root / "vicuna"), root / "b.pth")
    assert not (root / "b.pth").exists()


def test_pickled_language_models_are_read(released):
    """Vicuna v0 was published as .bin files."""
    root = released[0]
    tensors = load_file(root / "vicuna/model.safetensors")
    (root / "vicuna/model.safetensors").unlink()
    torch.save(tensors, root / "vicuna/pytorch_model.bin")
    save_projection(root / "a.pth", 24)
    model = from_file(root / "a.pth", {"llm": str(root / "vicuna"), "connectors.image": str(root / "blip2")})
    np.testing.assert_array_equal(model.parameters["llm.norm.scale"], tensors["model.norm.weight"])
