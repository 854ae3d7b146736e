"""Runs commands as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
from mmjax.types.config import parse_arg


def get_config(arg=""):
    arg = parse_arg(arg, width=8)
    data = {"mixture": {"shapes": {"path": "nowhere"}}, "rows": 8, "length": 16}
    stage = {"steps": 5, "objective": {"name": "language_modelling"}, "data": data, "optimizer": {"learning_rate": 1e-3}}
    parts = {"llm": {"family": "opt", "width": arg.width}, "encoders": {"image": {"family": "vit", "width": arg.width}}}
    return {"name": "n", "parts": parts, "tokenizers": {"llm": "t"}, "stages": {"vqa": stage}}
"""


@pytest.fixture(scope="session")
def repository(tmp_path_factory) -> dict[str, str]:
    """What tells git where the project's commit is: nothing in a checkout, or a repository made beside unpacked files."""
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode == 0:
        return {}
    variables = {"GIT_DIR": str(tmp_path_factory.mktemp("repository")), "GIT_WORK_TREE": str(ROOT)}
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=first"]):
        subprocess.run([*git, *command], cwd=ROOT, env={**os.environ, **variables}, check=True)
    return variables


@pytest.fixture
def checkout(repository, monkeypatch) -> Path:
    """The top of the project, which git knows."""
    for name, value in repository.items():
        monkeypatch.setenv(name, value)
    return ROOT


@pytest.fixture
def config_file(tmp_path) -> Path:
    """A config file that trains nothing."""
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def refusal():
    """Runs `python -m launch.VERB …`, checks that it is refused as a user's mistake, and gives its one line.

    JAX is made unimportable, and the time is short: a mistake has to be found before anything heavy starts.
    """

    def run(verb: str, *arguments: str) -> str:
        module = f"launch.{verb}"
        start = (
            f"import sys, runpy; sys.modules['jax'] = None; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
        )
        before = os.times()
        done = subprocess.run([sys.executable, "-c", start, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
        after = os.times()
        seconds = after.children_user + after.children_system - before.children_user - before.children_system
        assert done.returncode == 2, done.stderr
        assert not done.stdout
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert seconds < 3, f"{seconds:.1f} s of processor time"
        return done.stderr.removeprefix("error: ").rstrip("\n")

    return run
