"""Directories of LLaVA's authors compute what the Hugging Face classes compute from the same tensors."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mmjax
from mmjax.interop import hf_forward, llava_original
from mmjax.interop.llava_writer import save_llava
from mmjax.types import UserError
from tests.interop import llava_models, tiny
from tests.interop.llava_models import PATCHES, SIDE, inputs

NAMES = [
    ("language_model.", ""),
    ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("multi_modal_projector.linear_1", "model.mm_projector.0"),
    ("multi_modal_projector.linear_2", "model.mm_projector.2"),
    ("image_newline", "model.image_newline"),
]
SETTINGS = {
    "llava": {"image_aspect_ratio": "pad", "model_type": "llava"},
    "next": {
        "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad", "model_type": "llava_llama",
        "image_grid_pinpoints": [[width, height] for height, width in llava_models.GRIDS],
    },
}  # fmt: skip


def renamed(key):
    for theirs, original in NAMES:
        if key.startswith(theirs):
            return original + key.removeprefix(theirs)
    raise KeyError(key)


def make(directory, kind, *, tower=True, pickled=False, tokenizer=True, **changes):
    """A Hugging Face model, and beside it the same in the authors' layout and the CLIP that it names."""
    reference = llava_models.make(directory / "hf", kind, **changes.pop("settings", {}))
    original, clip = directory / "original", directory / "clip"
    original.mkdir()
    tensors = {renamed(key): value for key, value in load_file(directory / "hf/model.safetensors").items()}
    vision = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=llava_models.VISION["clip"], projection_dim=8,
            text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
        )
    )  # fmt: skip
    vision.vision_model.load_state_dict(reference.model.vision_tower.state_dict())
    vision.save_pretrained(clip)
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    (clip / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor", **size}))
    kept = {key: value for key, value in tensors.items() if tower or "vision_tower" not in key}
    if pickled:
        torch.save(kept, original / "pytorch_model.bin")
    else:
        save_file(kept, original / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((directory / "hf/config.json").read_text())["text_config"]
    config = {
        **text, "architectures": ["LlavaLlamaForCausalLM"], "mm_hidden_size": 16, "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "mm_vision_tower": str(clip),
        "mm_use_im_start_end": False, "use_mm_proj": True, **SETTINGS[kind], **changes,
    }  # fmt: skip
    (original / "config.json").write_text(json.dumps(config))
    if tokenizer:
        llava_models.make_tokenizer().save_pretrained(original)
    return reference, original


@pytest.mark.parametrize("kind", ["llava", "next"])
@pytest.mark.parametrize(("tower", "pickled"), [(True, False), (False, True)])
def test_logits_are_those_of_transformers(tmp_path, kind, tower, pickled):
    reference, original = make(tmp_path, kind, tower=tower, pickled=pickled)
    arrays = inputs([[(30, 40)], [], [(17, 90), (91, 13)]], PATCHES**2 if kind == "llava" else None)
    model = mmjax.from_pretrained(original, pickle=pickled)
    expected, read = tiny.outputs(reference, arrays)["logits"], arrays["attention_mask"] > 0
    np.testing.assert_allclose(hf_forward(model, arrays)["logits"][read], expected[read], atol=1e-4, rtol=0)
    assert not model.config["unread"] and not model.config["absent"]
    export = mmjax.save_pretrained(model, tmp_path / "again")
    assert export.architecture == type(reference).__name__ and not export.left_out
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    _, report = type(reference).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(report.values()), report
    again = mmjax.from_pretrained(tmp_path / "again")
    assert again.processor.transform == model.processor.transform and again.processor.tiling == model.processor.tiling
    if kind == "llava":
        assert model.processor.transform.pad == (122, 116, 104)
    else:
        assert model.processor.tiling.grids == llava_models.GRIDS


@pytest.mark.parametrize("kind", ["llava", "next"])
def test_there_and_back_is_equal_to_the_byte(tmp_path, kind):
    _, original = make(tmp_path, kind)
    clip = {"encoders.image": str(tmp_path / "clip")}
    export = save_llava(mmjax.from_pretrained(original), tmp_path / "again")
    assert export.architecture == "LlavaLlamaForCausalLM" and not export.left_out
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("original", "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    old, new = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("original", "again"))
    told = [key for key in old if key.startswith(("mm_", "image_")) and key != "mm_vision_tower"]
    assert {key: new[key] for key in told} == {key: old[key] for key in told} and new["vocab_size"] == old["vocab_size"]
    first, again = (mmjax.from_pretrained(directory, parts=clip) for directory in (original, tmp_path / "again"))
    assert again.config["parts"] == first.config["parts"]
    assert (again.processor.transform, again.processor.tiling) == (first.processor.transform, first.processor.tiling)


def test_the_tower_of_the_directory_comes_before_clip_s(tmp_path):
    """LLaVA 1.6 has trained it."""
    reference, original = make(tmp_path, "llava")
    clip = load_file(tmp_path / "clip/model.safetensors")
    save_file({key: torch.zeros_like(value) for key, value in clip.items()}, tmp_path / "clip/model.safetensors")
    arrays = inputs([[(30, 40)]], PATCHES**2)
    got = hf_forward(mmjax.from_pretrained(original), arrays)["logits"]
    np.testing.assert_allclose(got, tiny.outputs(reference, arrays)["logits"], atol=1e-4, rtol=0)


def test_the_first_llava_has_one_map(tmp_path):
    _, original = make(tmp_path, "llava", mm_projector_type=None, image_aspect_ratio=None, mm_vision_tower="nowhere/clip")
    tensors = load_file(original / "model.safetensors")
    tensors = {key.replace("mm_projector.0", "mm_projector"): v for key, v in tensors.items() if "mm_projector.2" not in key}
    save_file(tensors, original / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match="takes its vision tower from 'nowhere/clip'; say where it is: --part=encoders.image=DIR"
    ):
        mmjax.from_pretrained(original)
    model = mmjax.from_pretrained(original, parts={"encoders.image": str(tmp_path / "clip")})
    assert model.config["parts"]["connectors.image"]["layers"] == 1 and model.processor.transform.pad is None
    np.testing.assert_array_equal(
        model.parameters["connectors.image.maps.0.kernel"], tensors["model.mm_projector.weight"].numpy().T
    )
    with pytest.raises(UserError, match="a part with layers=1 cannot be written as llava, which has 2"):
        mmjax.save_pretrained(model, tmp_path / "again")
    save_llava(model, tmp_path / "again")
    after = load_file(tmp_path / "again/model.safetensors")
    assert after.keys() == tensors.keys() and all(torch.equal(after[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "resampler"}, "mm_projector_type='resampler'; 'linear' and 'mlp…x_gelu' are supported"),
        ({"mm_vision_select_feature": "mean"}, "mm_vision_select_feature='mean'; there are patch, cls_patch"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end=True; only False is supported"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio='anyres' with mm_patch_merge_type='flat'; supported are"),
    ],
)
def test_what_is_not_built_is_refused(tmp_path, changes, message):
    _, original = make(tmp_path, "llava", **changes)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        mmjax.from_pretrained(original)
    assert "\n" not in str(error.value)


def test_a_connector_in_a_file_of_its_own(tmp_path):
    draw = np.random.default_rng(0)
    weights = {
        "model.mm_projector.0.weight": draw.normal(size=(24, 16)), "model.mm_projector.0.bias": draw.normal(size=24),
        "model.mm_projector.2.weight": draw.normal(size=(24, 24)), "model.mm_projector.2.bias": draw.normal(size=24),
    }  # fmt: skip
    torch.save(
        {key: torch.tensor(value, dtype=torch.bfloat16) for key, value in weights.items()}, tmp_path / "mm_projector.bin"
    )
    part = {"family": "linear", "encoder_width": 16, "output_width": 24, "layers": 2}
    got = llava_original.read_connector(tmp_path / "mm_projector.bin", {**part, "newline": True})
    assert got.keys() == {f"connectors.image.maps.{n}.{name}" for n in range(2) for name in ("kernel", "bias")}
    kernel = np.asarray(got["connectors.image.maps.1.kernel"], np.float32)
    np.testing.assert_allclose(kernel, weights["model.mm_projector.2.weight"].T, rtol=0.01)
    with pytest.raises(UserError, match="2 missing: model.mm_projector.weight"):
        llava_original.read_connector(tmp_path / "mm_projector.bin", {**part, "layers": 1})
