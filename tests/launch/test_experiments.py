"""Every shipped experiment resolves to the text kept in golden/; UPDATE_GOLDEN=1 writes it again."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from launch.command import load_config
from mmjax.training.stage import Experiment
from mmjax.types.config import from_config, to_text

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden")
FILES = [
    path.relative_to(ROOT)
    for path in sorted((ROOT / "experiments").rglob("*.py"))
    if re.search(r"^def get_config\(", path.read_text(), re.MULTILINE)
]
# Arguments that change what is built, besides the defaults of every file.
ARGUMENTS = {"experiments/blip2/shapes.py": ("long", "stage1=false,scale=1.3", "llm=smollm2")}
SPECS = [f"{path}{':' if argument else ''}{argument}" for path in FILES for argument in ("", *ARGUMENTS.get(str(path), ()))]


@pytest.mark.parametrize("spec", SPECS)
def test_resolved_config_is_the_golden_text(monkeypatch, spec):
    monkeypatch.chdir(ROOT)
    text = to_text(from_config(Experiment, load_config(spec), spec))
    golden = GOLDEN / (re.sub(r"[^\w.=-]+", "-", spec.removeprefix("experiments/").replace(".py", "")) + ".txt")
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text.splitlines() == golden.read_text().splitlines()


def test_there_is_no_golden_text_without_its_experiment():
    assert len(list(GOLDEN.glob("*.txt"))) == len(SPECS)


@pytest.mark.parametrize("spec", SPECS)
def test_every_part_is_one_that_exists(monkeypatch, spec):
    from mmjax.systems.parts import build

    monkeypatch.chdir(ROOT)
    build(from_config(Experiment, load_config(spec), spec).parts)
