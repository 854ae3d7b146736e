"""Hub ids are found in the local cache, and what cannot be had is told in one line."""

from __future__ import annotations

import huggingface_hub
import numpy as np
import pytest

import mmjax
from mmjax.interop import hf_forward
from mmjax.interop.hub import is_hub_id, local_directory
from mmjax.types import UserError
from tests.interop import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, as its client lays it out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_hub_id_in_the_cache_is_a_model(cache):
    folder = cache / "models--owner--tiny-opt"
    reference = tiny.make("opt", folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMIT)
    model = mmjax.from_pretrained("owner/tiny-opt")
    assert model.config["source"] == "owner/tiny-opt"
    arrays = tiny.inputs("opt")
    read = arrays["attention_mask"] > 0
    expected = tiny.outputs(reference, arrays)["logits"]
    np.testing.assert_allclose(hf_forward(model, arrays)["logits"][read], expected[read], rtol=0, atol=1e-4)


def test_what_the_cache_lacks_is_told(cache):
    with pytest.raises(
        UserError, match="owner/model is no directory here, and cannot be had from the Hugging Face hub"
    ) as error:
        mmjax.from_pretrained("owner/model")
    assert "\n" not in str(error.value)


def test_only_what_is_needed_is_asked_for(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: asked.append((name, how)) or str(tmp_path))
    assert local_directory("owner/model") == tmp_path == local_directory("owner/model", pickle=True)
    (name, plain), (_, pickled) = asked
    assert name == "owner/model" and "model*.safetensors" in plain["allow_patterns"]
    assert not any(pattern.endswith(".bin") for pattern in plain["allow_patterns"])
    assert "pytorch_model*.bin" in pickled["allow_patterns"]


def test_what_has_the_form_of_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/shapes").mkdir(parents=True)
    names = {"facebook/opt-125m": True, "runs/shapes": False, "./opt/x": False, "/a/b": False, "opt": False, "a/b/c": False}
    assert {name: is_hub_id(name) for name in names} == names
    assert local_directory("runs/shapes").is_dir()
