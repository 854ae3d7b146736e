"""What `launch.convert` reads and writes, its report, and every bad directory as one line and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from absl import flags
from absl.testing import flagsaver
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import mmjax
from launch import convert as command
from mmjax.interop import hf_forward
from mmjax.types import UserError
from tests.interop import test_lavis, test_llava_original, test_minigpt4, tiny
from tests.interop.test_adapters import adapted

ROOT = Path(__file__).resolve().parents[2]


def convert(*arguments):
    """The command in this process; `test_command` proves that a UserError is one line and exit code 2."""
    with flagsaver.flagsaver():
        flags.FLAGS(["convert", *map(str, arguments)])
        command.main()


@pytest.fixture
def llama(tmp_path):
    """A tiny LLaMA in a directory of its own."""
    tiny.make("llama", tmp_path / "llama")
    return tmp_path / "llama"


def test_pickled_weights_on_request(llama, tmp_path, capsys):
    values = load_file(llama / "model.safetensors")
    values["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(5, np.float32)
    torch.save({key: torch.from_numpy(value) for key, value in values.items()}, llama / "pytorch_model.bin")
    (llama / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"python -m launch.convert --pickle --source={llama} --target="):
        convert(f"--source={llama}", f"--target={tmp_path}/x")
    convert(f"--source={llama}", f"--target={tmp_path}/new", "--pickle")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "LlamaForCausalLM, the whole model"
    size = (tmp_path / "new/model.safetensors").stat().st_size
    assert f"{size:>16,} bytes  {tmp_path}/new/model.safetensors" in lines
    assert lines[-1].startswith("not read") and lines[-1].endswith("inv_freq")
    after = load_file(tmp_path / "new/model.safetensors")
    assert all(after[key].tobytes() == value.tobytes() for key, value in values.items() if "rotary" not in key)


def test_an_adapter_is_merged_and_written_again(llama, tmp_path, capsys):
    model = adapted(llama, ((r"llm\..*query\.kernel", 2),), ("llm.norm.scale",))
    expected = hf_forward(model, tiny.inputs("llama"))["logits"]
    mmjax.save_pretrained(model, tmp_path / "adapter", base=llama)
    for arguments, target, first in (
        ((), "merged", "LlamaForCausalLM, the whole model"),
        (("--to=peft",), "again", f"LlamaForCausalLM, an adapter of {llama}"),
    ):
        convert(f"--source={tmp_path}/adapter", f"--target={tmp_path}/{target}", *arguments)
        assert capsys.readouterr().out.splitlines()[0] == first
        got = hf_forward(mmjax.from_pretrained(tmp_path / target), tiny.inputs("llama"))["logits"]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert {key: value.tobytes() for key, value in before.items()} == {key: value.tobytes() for key, value in after.items()}


def unknown_class(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))


def missing_shard(directory):
    weight_map = dict.fromkeys(load_file(directory / "model.safetensors"), "model-00001-of-00002.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "model.safetensors").unlink()


def truncated(directory):
    data = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(data[:-100])


def large_tokenizer(directory):
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(directory)


def no_json(directory):
    (directory / "config.json").write_text("{not json")


def emptied(directory):
    for file in directory.iterdir():
        file.unlink()


def moved_keys(directory):
    values = load_file(directory / "model.safetensors")
    values["model.nrm.weight"] = values.pop("model.norm.weight")
    values["model.embed_tokens.weight"] = values["model.embed_tokens.weight"][:, 1:].copy()
    save_file(values, directory / "model.safetensors")


BAD = {
    unknown_class: "'MambaForCausalLM', which is not supported",
    missing_shard: "model-00001-of-00002.safetensors does not exist",
    truncated: "model.safetensors is truncated",
    large_tokenizer: "has ids up to 59, the embedding table has 50 rows",
    no_json: "config.json is damaged",
    emptied: "has no config.json",
    moved_keys: "1 missing: model.norm.weight (nearest: model.nrm.weight); 1 unexpected: model.nrm.weight (nearest: "
    "model.norm.weight); 1 of another shape: model.embed_tokens.weight (expected (50, 24), got (50, 23))",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_directory_is_one_line(llama, tmp_path, spoil):
    spoil(llama)
    with pytest.raises(UserError) as error:
        convert(f"--source={llama}", f"--target={tmp_path}/new")
    assert BAD[spoil] in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("arguments", [("convert", "--source={}", "--target=x"), ("generate", "--model={}", "--prompt=x")])
@pytest.mark.parametrize("damaged", [True, False])
def test_the_commands_end_with_code_2(llama, arguments, damaged):
    truncated(llama)
    verb, *flags = [argument.format(llama if damaged else "owner/model") for argument in arguments]
    run = [sys.executable, "-m", f"launch.{verb}", *flags]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert ("is truncated" if damaged else "cannot be had from the Hugging Face hub") in done.stderr


def test_a_nan_is_told_and_the_rest_is_done(llama, tmp_path, caplog):
    values = load_file(llama / "model.safetensors")
    values["model.layers.1.mlp.up_proj.weight"][3, 2] = np.nan
    save_file(values, llama / "model.safetensors")
    convert(f"--source={llama}", f"--target={tmp_path}/new")
    assert "1 with NaN: model.layers.1.mlp.up_proj.weight" in caplog.text
    assert (tmp_path / "new/model.safetensors").is_file()


def test_a_trimmed_file_of_lavis_with_its_parts(tmp_path, capsys):
    kind, text, prefix, _ = test_lavis.STAGE2["opt"]
    reference = test_lavis.make(tmp_path / "whole", kind, text)
    tensors = test_lavis.to_lavis(reference, language_model=f"{prefix}model", language_projection=f"{prefix}proj")
    reference.language_model.save_pretrained(tmp_path / "llm")
    trimmed = test_lavis.of(tensors, "query_tokens", "Qformer.", "ln_vision", f"{prefix}proj")
    torch.save({"model": trimmed}, tmp_path / "trimmed.pth")
    command_line = (f"--source={tmp_path}/trimmed.pth", f"--target={tmp_path}/new")
    with pytest.raises(UserError, match="is a pickled file, which is read on request: add --pickle"):
        convert(*command_line)
    with pytest.raises(UserError, match="holds no llm; say where it is: --part=llm=PATH"):
        convert(*command_line, "--pickle", f"--part=encoders.image={tmp_path}/whole")
    with pytest.raises(UserError, match="--part=llm: expected NAME=PATH"):
        convert(*command_line, "--pickle", "--part=llm")
    convert(*command_line, "--pickle", f"--part=encoders.image={tmp_path}/whole", f"--part=llm={tmp_path}/llm")
    assert capsys.readouterr().out.splitlines()[0] == "Blip2ForConditionalGeneration, the whole model"
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "new"))
    assert {key: value.tobytes() for key, value in before.items()} == {key: value.tobytes() for key, value in after.items()}


def test_a_file_that_lavis_loads(tmp_path, capsys):
    _, reference, tensors = test_lavis.make_stage1(tmp_path, 40)
    file, new = tmp_path / "blip2_pretrained.pth", tmp_path / "new.pth"
    with pytest.raises(UserError, match="--heads=llm: expected PART=N"):
        convert(f"--source={file}", f"--target={new}", "--pickle", "--to=lavis", "--heads=llm")
    convert(f"--source={file}", f"--target={new}", "--pickle", "--to=lavis", "--heads=connectors.image=12")
    assert capsys.readouterr().out.splitlines()[0] == "LAVIS, the whole model"
    test_lavis.same_file(new, tensors)
    with pytest.raises(UserError, match=f"--target={new}: exists"):
        convert(f"--source={file}", f"--target={new}", "--pickle", "--to=lavis")


def test_a_checkpoint_of_minigpt4_with_its_parts(tmp_path, capsys):
    root, blip2, vicuna = test_minigpt4.release(tmp_path)
    tensors = test_minigpt4.save_projection(root / "pretrained_minigpt4.pth", 24)
    pieces = (f"--part=llm={root}/vicuna", f"--part=connectors.image={root}/blip2")
    source = (f"--source={root}/pretrained_minigpt4.pth", "--pickle", *pieces)
    convert(*source, f"--target={root}/new.pth", "--to=minigpt4")
    assert capsys.readouterr().out.splitlines()[0] == "MiniGPT-4, the whole model"
    test_minigpt4.same_file(root / "new.pth", tensors)
    convert(*source, f"--target={root}/hf")
    before = test_minigpt4.oracle(blip2, vicuna, tensors).state_dict()
    after = load_file(root / "hf/model.safetensors")
    assert all(after[key].tobytes() == value.numpy().tobytes() for key, value in before.items())


def test_a_directory_of_llava_s_authors_with_its_tower(tmp_path, capsys):
    test_llava_original.make(tmp_path, "next", tower=False, mm_vision_tower="nowhere/clip")
    command_line = (f"--source={tmp_path}/original", f"--target={tmp_path}/new")
    with pytest.raises(
        UserError, match="takes its vision tower from 'nowhere/clip'; say where it is: --part=encoders.image=DIR"
    ):
        convert(*command_line)
    convert(*command_line, f"--part=encoders.image={tmp_path}/clip")
    assert capsys.readouterr().out.splitlines()[0] == "LlavaNextForConditionalGeneration, the whole model"
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "new"))
    assert {key: value.tobytes() for key, value in before.items()} == {key: value.tobytes() for key, value in after.items()}
    convert(f"--source={tmp_path}/new", f"--target={tmp_path}/back", "--to=llava")
    assert capsys.readouterr().out.splitlines()[0] == "LlavaLlamaForCausalLM, the whole model"
    tower = "model.vision_tower.vision_tower.vision_model."
    original, back = (load_file(tmp_path / name / "model.safetensors") for name in ("original", "back"))
    assert original.keys() == {key for key in back if not key.startswith(tower)}
