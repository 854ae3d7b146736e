from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch import command
from mmjax.training.stage import Experiment
from mmjax.types.config import from_config
from mmjax.types.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=1", "--config.sed: --config has no key 'sed'; did you mean 'seed'?"),
        (
            "stages.vqa.optimizer.lerning_rate=1",
            "--config.stages.vqa.optimizer.lerning_rate: --config.stages.vqa.optimizer has no key 'lerning_rate'; "
            "did you mean 'learning_rate'?",
        ),
        (
            "parts.encoders.image.wdth=1",
            "--config.parts.encoders.image.wdth: --config.parts.encoders.image has no key 'wdth'; did you mean 'width'?",
        ),
        ("seed.x=1", "--config.seed.x: --config.seed is a single value, it has no key 'x'"),
        ("seed=one", "--config.seed: expected a whole number, got 'one' (str)"),
        ("stages.vqa.steps=0", "--config.stages.vqa: steps must be 1 or more, got 0"),
        ("stages.vqa.trainable=[1]", "--config.stages.vqa.trainable[0]: expected a list, got 1 (int)"),
    ],
)
def test_a_mistaken_override_is_one_line(refusal, config_file, override, message):
    assert refusal("train", f"--config={config_file}", "--workdir=w", f"--config.{override}") == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config is missing"),
        (("--config=experiments/blip2/shaps.py",), "there is no file 'experiments/blip2/shaps.py'"),
        (("--config={config}:widht=3",), "the config's argument 'widht': no such argument; did you mean 'width'?"),
        (("--config={config}",), "workdir"),
        (("--config={config}", "--workdr=w"), "'workdr'. Did you mean: workdir"),
        (("--config={config}", "--workdir=w", "extra"), "unexpected argument 'extra'"),
        (("--config={config}", "--workdir=w", "--stage=vqu"), "--stage=vqu: the config has no such stage; did you mean 'vqa'?"),
    ],
)
def test_mistaken_flags_are_one_line(refusal, config_file, arguments, message):
    assert message in refusal("train", *(argument.format(config=config_file) for argument in arguments))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def get_config():\n    return nme\n", "line 2: NameError: name 'nme' is not defined"),
        ("def get_config(:\n", "SyntaxError"),
        ("x = 1\n", "defines no get_config"),
        ("def get_config():\n    return {'name': 'n'}\n", "parts: missing"),
    ],
)
def test_a_broken_config_file_is_one_line(tmp_path, source, message):
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(UserError, match=message) as caught:
        from_config(Experiment, command.load_config(str(path)), f"--config={path}")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("verb", ["generate", "chat"])
@pytest.mark.parametrize(("directory", "message"), [("nowhere", "no such directory"), (".", "neither a run nor a saved model")])
def test_a_directory_that_is_no_run_is_named(refusal, verb, directory, message):
    extra = ["--prompt=x"] if verb == "generate" else []
    assert message in refusal(verb, f"--model={directory}", *extra)


def test_evaluating_a_directory_that_is_no_run(refusal, config_file, tmp_path):
    assert "neither a run" in refusal("evaluate", f"--config={config_file}", f"--workdir={tmp_path}")


def test_converting_into_a_directory_that_is_not_empty(refusal, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "is not an empty directory" in refusal("convert", f"--source={tmp_path}", f"--target={tmp_path}")


@pytest.mark.parametrize("content", [b"no picture", b"", None])
def test_an_unreadable_picture_is_named(refusal, tmp_path, content):
    (tmp_path / "config.json").write_text("{}")
    picture = tmp_path / "picture.png"
    if content is not None:
        picture.write_bytes(content)
    assert str(picture) in refusal("generate", f"--model={tmp_path}", "--prompt=x", f"--image={picture}")


def test_a_template_that_is_none_is_named(refusal, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "template must be one of question_answer, " in refusal("chat", f"--model={tmp_path}", "--template=questions")


def test_a_port_in_use_is_named(refusal, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port={port}: Address already in use" in refusal("chat", f"--model={tmp_path}", f"--port={port}")


def run_main(main: str, *arguments: str, config: bool = False) -> subprocess.CompletedProcess:
    """Runs a command whose main function has the given body."""
    script = f"from launch import command\ndef main():\n    {main}\ncommand.run(main, config={config})"
    return subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        ("pass", 0, ""),
        ("from mmjax.types import UserError; raise UserError('one\\ntwo')", 2, "error: one two\n"),
        ("raise OSError(28, 'No space left on device', 'f')", 2, "error: the disk is full (f)"),
        ("raise KeyboardInterrupt", 130, ""),
        ("raise SystemExit(143)", 143, ""),
        ("raise RuntimeError('a fault of ours keeps its traceback')", 1, "Traceback"),
    ],
)
def test_exit_codes(body, code, error):
    done = run_main(body)
    assert done.returncode == code
    assert done.stderr.startswith(error) if error else not done.stderr


def test_overrides_reach_the_experiment(config_file):
    overrides = ["steps=1e3", "optimizer.b2=0.5", "trainable=[['llm.*', False]]", "objective.weights={'itc': 2}", "data.flip"]
    arguments = ["--config", f"{config_file}:width=16", *(f"--config.stages.vqa.{override}" for override in overrides)]
    main = "from mmjax.types.config import to_text; print(to_text(command.experiment()))"
    lines = run_main(main, *arguments, config=True).stdout.splitlines()
    for line in [
        "stages.vqa.steps = 1000",
        "stages.vqa.optimizer.b2 = 0.5",
        'stages.vqa.trainable = [["llm.*", false]]',
        "stages.vqa.objective.weights.itc = 2.0",
        "stages.vqa.data.flip = true",
        "parts.encoders.image.width = 16",
        'stages.vqa.name = "vqa"',
    ]:
        assert line in lines


def test_one_flag_sets_every_setting_that_refers_to_it():
    arguments = ["--config=experiments/llava/pretrain.py:tiny", "--config.data.path=mine.json", "--config.data.images=pictures"]
    main = "from mmjax.types.config import to_text; print(to_text(command.experiment()))"
    lines = run_main(main, *arguments, config=True).stdout.splitlines()
    for stage in ("lm", "pretrain"):
        for name, value in {"path": "mine.json", "images": "pictures"}.items():
            assert f'stages.{stage}.data.mixture.shapes.{name} = "{value}"' in lines


def test_a_file_that_is_not_there_is_no_data_set_to_prepare(tmp_path):
    config = command.load_config("experiments/llava/pretrain.py:tiny")
    config.data.path = str(tmp_path / "mine.json")
    for part in config.parts.values():
        if "builder" in part:
            part.builder = ""
    command.prepare_missing(from_config(Experiment, config))
    assert not list(tmp_path.iterdir())
