from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def requirements(file: str) -> list[str]:
    lines = ((ROOT / file).read_text()).splitlines()
    return [line.split("#")[0].strip() for line in lines if re.match(r"\w", line)]


def test_the_extra_for_tests_is_the_requirements_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["test"] == requirements("requirements-test.txt")


def test_torch_is_pinned():
    # Other versions of it pull gigabytes of CUDA libraries into an environment for CPU tests.
    assert "torch==2.13.0" in requirements("requirements-test.txt")
