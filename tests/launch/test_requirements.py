from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def requirements(file: str) -> list[str]:
    lines = ((ROOT / file).read_text()).splitlines()
    return [line.split("#")[0].strip() for line in lines if re.match(r"\w", line)]


@pytest.mark.parametrize("extra", ["test", "tpu", "cuda"])
def test_an_extra_is_its_requirements_file(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"][extra] == requirements(f"requirements-{extra}.txt")


def test_torch_is_pinned():
    # Other versions of it pull gigabytes of CUDA libraries into an environment for CPU tests.
    assert "torch==2.13.0" in requirements("requirements-test.txt")


OURS = ("mmjax", "launch", "data_pipelines")
CARRIED = {"numpy", "ml-dtypes", "tokenizers"}  # by jax and transformers
SERVING = {"fastapi", "uvicorn", "pydantic", "starlette"}  # the extra `serve`, and what it brings


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;\s]", name)[0]).lower()


def test_what_is_imported_is_required():
    """A fresh environment holds what requirements.txt names; that this one holds more must hide nothing."""
    required = CARRIED | {canonical(line) for line in requirements("requirements.txt")}
    providers = packages_distributions()
    for file in (file for folder in OURS for file in (ROOT / folder).rglob("*.py")):
        allowed = required | (SERVING if "serving" in file.parts else set())
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for root in {name.split(".")[0] for name in names} - sys.stdlib_module_names - set(OURS):
                assert {canonical(name) for name in providers[root]} & allowed, f"{file} imports {root}"
