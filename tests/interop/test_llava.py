"""LLaVA and LLaVA-NeXT compute what the Hugging Face classes compute, and go there and back without losing a bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mmjax
from mmjax.data.media.tiles import Tiling
from mmjax.interop import hf_forward, with_image_size
from mmjax.types import Medium, UserError, ask
from tests.interop import llava_models, tiny
from tests.interop.llava_models import IMAGE, PATCHES, inputs

TOLERANCE = {"rtol": 0, "atol": 1e-4}
ODD = [(30, 40), (17, 90), (91, 13)]
# Rows with one, no and three pictures, padded on the left.
ROWS = [[(55, 54)], [], ODD]


def compare(directory, reference, arrays):
    """Logits and soft tokens, where the mask lets something through."""
    expected, got = tiny.outputs(reference, arrays), hf_forward(mmjax.from_pretrained(directory), arrays)
    read = arrays["attention_mask"] > 0
    assert got["logits"].shape == expected["logits"].shape and expected["logits"][read].std() > 0.5
    np.testing.assert_allclose(got["logits"][read], expected["logits"][read], **TOLERANCE)
    assert ("image_hidden_states" in got) == ("pixel_values" in arrays)
    if "pixel_values" in arrays:
        np.testing.assert_allclose(got["image_hidden_states"], expected["image_hidden_states"], **TOLERANCE)
    return got


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("llama", {}),
        ("mistral", {"vision_feature_layer": -1}),
        ("qwen2", {"vision_feature_layer": 1, "projector_hidden_act": "relu"}),
        ("qwen3", {"vision_feature_select_strategy": "full", "image_seq_length": 5}),
        ("llama", {"multimodal_projector_bias": False, "vision_feature_layer": 2}),
        ("llama", {"vision": "siglip", "vision_feature_select_strategy": "full"}),
        ("llama", {"vision": "siglip", "vision_feature_layer": -1, "image_seq_length": 3}),
    ],
)
def test_logits_of_llava_are_those_of_transformers(tmp_path, text, settings):
    tokens = settings.get("image_seq_length", PATCHES**2)
    reference = llava_models.make(tmp_path, "llava", text, **settings)
    arrays = inputs(ROWS, tokens)
    compare(tmp_path, reference, arrays)
    _, report = type(reference).from_pretrained(written(tmp_path), output_loading_info=True)
    assert not any(report.values()), report
    assert stored(tmp_path) == stored(tmp_path / "again")


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("llama", {}),
        ("mistral", {"vision_feature_layer": -3}),
        ("qwen2", {"vision": "siglip", "vision_feature_select_strategy": "full"}),
    ],
)
def test_logits_of_llava_next_are_those_of_transformers(tmp_path, text, settings):
    reference = llava_models.make(tmp_path, "next", text, **settings)
    arrays = inputs(ROWS)
    whole = compare(tmp_path, reference, arrays)
    flat = np.concatenate(
        [
            tiles[: llava_models.TILING.count(*size)]
            for tiles, size in zip(arrays["pixel_values"], arrays["image_sizes"].tolist(), strict=True)
        ]
    )
    one_by_one = hf_forward(mmjax.from_pretrained(tmp_path), {**arrays, "pixel_values": flat})
    np.testing.assert_array_equal(whole["logits"], one_by_one["logits"])
    _, report = type(reference).from_pretrained(written(tmp_path), output_loading_info=True)
    assert not any(report.values()), report
    assert stored(tmp_path) == stored(tmp_path / "again")


@pytest.mark.parametrize("kind", ["llava", "next"])
def test_text_alone_and_every_depth(tmp_path, kind):
    reference = llava_models.make(tmp_path, kind)
    compare(tmp_path, reference, inputs([[], []]))
    arrays = {**inputs([[(30, 40)]], PATCHES**2 if kind == "llava" else None), "output_hidden_states": True}
    with torch.no_grad():
        expected = reference(**tiny.tensors(arrays)).hidden_states
    got = hf_forward(mmjax.from_pretrained(tmp_path), arrays)["hidden_states"]
    assert len(got) == len(expected) == 3
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **TOLERANCE)


@pytest.mark.heavy
def test_a_real_grid(tmp_path):
    """336 pixels in patches of 14: the published numbers of positions, with the classes' own grids."""
    vision = {**llava_models.VISION["clip"], "image_size": 336}
    reference = llava_models.make(tmp_path, "next", vision_config=vision, image_grid_pinpoints=None)
    tiling = Tiling(((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)), 336, 24)
    draw = np.random.default_rng(0)
    for (width, height), count in (((640, 480), 2340), ((500, 500), 2928), ((336, 336), 1176)):
        ids = np.array([[1, *[IMAGE] * count, 7, 9]])
        arrays = {
            "input_ids": ids, "attention_mask": np.ones_like(ids), "image_sizes": np.array([[height, width]]),
            "pixel_values": draw.normal(size=(1, tiling.count(height, width), 3, 336, 336)).astype(np.float32),
        }  # fmt: skip
        compare(tmp_path, reference, arrays)


def written(directory):
    """Reads a model and writes it again."""
    mmjax.save_pretrained(mmjax.from_pretrained(directory), directory / "again")
    return directory / "again"


def stored(directory):
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {key: (file.get_tensor(key).dtype, file.get_tensor(key).float().numpy().tobytes()) for key in file.keys()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["llava", "next"])
def test_there_and_back_is_equal_to_the_byte(tmp_path, kind, dtype, tied):
    how = {"tie_word_embeddings": tied, "text_config": {"tie_word_embeddings": tied}}
    reference = llava_models.make(tmp_path, kind, **how).to(getattr(torch, dtype))
    reference.save_pretrained(tmp_path)
    again, report = type(reference).from_pretrained(written(tmp_path), output_loading_info=True)
    assert stored(tmp_path) == stored(tmp_path / "again") and not any(report.values()), report
    assert again.dtype == reference.dtype
    assert ("language_model.lm_head.weight" in stored(tmp_path / "again")) != tied
    before, after = (json.loads((path / "config.json").read_text()) for path in (tmp_path, tmp_path / "again"))
    for name in ("vision_config", "text_config"):
        assert before[name].items() <= after.pop(name).items()
        del before[name]
    assert before.items() <= after.items()


def layouts(tensors):
    """The tensors under the names of transformers 4's files, and of transformers 5's memory."""
    four, five = {}, {}
    for key, value in tensors.items():
        four[key.replace("vision_tower.", "vision_tower.vision_model.")] = value
        inner = key.replace("language_model.lm_head", "lm_head").replace("language_model.model", "language_model")
        five[inner if inner.startswith("lm_head") else f"model.{inner}"] = value
    return four, five


@pytest.mark.parametrize("kind", ["llava", "next"])
def test_files_of_all_releases(tmp_path, kind):
    reference = llava_models.make(tmp_path, kind)
    arrays = inputs([[(30, 40)], []], PATCHES**2 if kind == "llava" else None)
    expected = compare(tmp_path, reference, arrays)["logits"]
    tensors = load_file(tmp_path / "model.safetensors")
    for number, renamed in enumerate(layouts(tensors)):
        other = tmp_path / str(number)
        other.mkdir()
        (other / "config.json").write_text((tmp_path / "config.json").read_text())
        save_file(renamed, other / "model.safetensors", metadata={"format": "pt"})
        np.testing.assert_array_equal(hf_forward(mmjax.from_pretrained(other), arrays)["logits"], expected)
    reference.save_pretrained(tmp_path / "memory", save_original_format=False)
    assert set(load_file(tmp_path / "memory/model.safetensors")) == set(layouts(tensors)[1])


def test_what_the_class_assumes_need_not_be_said(tmp_path):
    """As transformers 4 writes configs: what has its default is left out."""
    reference = llava_models.make(tmp_path, "llava", image_token_index=32000, text_config={"vocab_size": 32064})
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("image_token_index", "projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    arrays = inputs([[(30, 40)]], PATCHES**2)
    arrays["input_ids"][arrays["input_ids"] == IMAGE] = 32000
    compare(tmp_path, reference, arrays)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llava", {"vision_feature_layer": [-2, -3]}, r"vision_feature_layer=\[-2, -3\]; features of a single layer"),
        ("llava", {"vision_feature_layer": -9}, "depth=-9 lies outside the tower's 3 layers"),
        (
            "llava",
            {"vision_feature_select_strategy": "patch"},
            "vision_feature_select_strategy='patch'; there are default, full",
        ),
        ("llava", {"projector_hidden_act": "snake"}, "activation='snake' is unknown"),
        ("llava", {"vision_config": {"model_type": "pixtral"}}, "vision tower 'pixtral' is not supported"),
        ("llava", {"text_config": {**tiny.OPT, "model_type": "opt"}}, "LLaVA with the language model 'opt' is not supported"),
        ("next", {"vision_feature_select_strategy": "full"}, "'full' leaves 5 features of a tile, which has 2 x 2 patches"),
        ("next", {"image_grid_pinpoints": [[28, 30]]}, r"multiples of the tile's 28 pixels, got \(28, 30\)"),
    ],
)
def test_what_is_not_built_is_refused(tmp_path, kind, changes, message):
    llava_models.make(tmp_path, kind)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message) as error:
        mmjax.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_counts_that_differ_are_told(tmp_path):
    llava_models.make(tmp_path / "llava", "llava")
    llava_models.make(tmp_path / "next", "next")
    plain, tiles = inputs([[(30, 40)], []], PATCHES**2), inputs([[(30, 40)], [(17, 90)]])
    model, tiled = (mmjax.from_pretrained(tmp_path / kind) for kind in ("llava", "next"))
    with pytest.raises(UserError, match=r"hold 4 placeholders \(image_token_index=49\), but 2 pictures make 8 soft tokens"):
        hf_forward(model, {**plain, "pixel_values": np.concatenate([plain["pixel_values"]] * 2)})
    without = {key: value for key, value in plain.items() if key != "pixel_values"}
    with pytest.raises(UserError, match="hold 4 placeholders .* 0 pictures make 0 soft tokens"):
        hf_forward(model, without)
    with pytest.raises(UserError, match="inputs lack image_sizes"):
        hf_forward(tiled, {key: value for key, value in tiles.items() if key != "image_sizes"})
    with pytest.raises(UserError, match=r"the \[5\] tiles of 1 image_sizes, got 2 pictures of 5 tiles"):
        hf_forward(tiled, {**tiles, "image_sizes": tiles["image_sizes"][:1]})
    with pytest.raises(UserError, match=r"expected the 9 tiles of 2 image_sizes, got 5"):
        hf_forward(tiled, {**tiles, "pixel_values": tiles["pixel_values"][0, [0, 1, 0, 1, 2]]})
    with pytest.raises(UserError, match=r"expected \[b, 3, 28, 28\], got \[1, 3, 14, 14\]"):
        hf_forward(model, {**plain, "pixel_values": plain["pixel_values"][..., :14, :14]})


@pytest.mark.parametrize(("kind", "count"), [("llava", 9), ("next", 9 + 3 * 7)])
def test_pictures_of_another_size(tmp_path, kind, count):
    """Positions, soft tokens and tiles grow together."""
    llava_models.make(tmp_path, kind)
    llava_models.add_processor(tmp_path, kind)
    larger = with_image_size(mmjax.from_pretrained(tmp_path), 42)
    assert larger.parameters["encoders.image.position_embedding"].shape == (10, 16)
    medium = Medium("image", np.zeros((30, 60, 3), np.uint8))
    segment = larger.processor.tokenise(larger.processor.question(ask("a", medium)), [medium])
    assert larger.processor.soft_tokens == 9 and len(segment.features[segment.features != -1]) == count
    batch = larger.processor.prompts([ask("a", medium)])
    assert batch.media["image"].values.shape[2:4] == (42, 42)
