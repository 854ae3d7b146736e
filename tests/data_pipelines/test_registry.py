"""`prepare`: atomic, repeatable, and careful with what is already there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

import data_pipelines
from data_pipelines import registry, shapes
from mmjax.data.records import open_source
from mmjax.types import UserError


@pytest.fixture
def out(tmp_path):
    """A small complete data set."""
    path = tmp_path / "deep" / "shapes"
    assert data_pipelines.prepare("shapes", path, limit=30)
    return path


def visible(folder):
    return sorted(file.name for file in folder.iterdir() if not file.name.endswith(".lock"))


def test_makes_splits_and_tokenizer_and_leaves_nothing_else(out):
    assert [len(open_source(out, split)) for split in ("train", "test", "pairs")] == [30, 30, 30]
    assert open_source(out, "train")[7].id == "shapes/train/000007"
    assert (out / "tokenizer" / "tokenizer.json").is_file()
    assert visible(out.parent) == ["shapes"] and not list(out.glob("tfds-*"))


def test_complete_output_is_left_alone(out):
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert not data_pipelines.prepare("shapes", out, limit=30)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_damaged_output_is_made_again(out):
    shard = out / "shapes-train.array_record-00000-of-00001"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:70_000] + bytes([whole[70_000] ^ 1]) + whole[70_001:])
    assert data_pipelines.prepare("shapes", out, limit=30)
    assert shard.read_bytes() == whole and visible(out.parent) == ["shapes"]


def test_another_limit_makes_it_again(out):
    assert data_pipelines.prepare("shapes", out, limit=31)
    assert len(open_source(out, "pairs")) == 31


def test_a_failing_build_leaves_nothing(tmp_path, monkeypatch):
    def fail(out, **_):
        (out / "half").write_text("x")
        raise RuntimeError("no disk")

    monkeypatch.setitem(shapes.DATASETS, "shapes", fail)
    with pytest.raises(RuntimeError, match="no disk"):
        data_pipelines.prepare("shapes", tmp_path / "shapes")
    assert visible(tmp_path) == []


def test_a_killed_build_leaves_nothing_that_looks_finished(tmp_path):
    out = tmp_path / "shapes"
    command = [sys.executable, "-m", "launch.prepare", "--dataset=shapes", f"--out={out}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".shapes.partial-*/data/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, 9)
    assert list(tmp_path.glob(".shapes.partial-*")) and not out.exists()
    assert data_pipelines.prepare("shapes", out, limit=5)
    assert visible(tmp_path) == ["shapes"]


def test_what_is_not_ours_is_never_replaced(tmp_path, out):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no data set made by"):
        data_pipelines.prepare("shapes", tmp_path / "mine")
    with pytest.raises(UserError, match="holds the data set 'shapes', not 'easy_vqa'"):
        data_pipelines.prepare("easy_vqa", out)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work" and (out / "manifest.json").exists()


def test_an_empty_directory_is_filled(tmp_path):
    assert data_pipelines.prepare("shapes", tmp_path, limit=3) and len(open_source(tmp_path, "train")) == 3


def test_unknown_names_are_told_the_nearest(tmp_path):
    with pytest.raises(UserError, match="--dataset=shpes.*did you mean .shapes"):
        data_pipelines.prepare("shpes", tmp_path / "x")
    with pytest.raises(UserError, match="--runner=spark.*there is local"):
        data_pipelines.prepare("shapes", tmp_path / "x", runner="spark")
    with pytest.raises(UserError, match="--raw=.*nowhere"):
        data_pipelines.prepare("easy_vqa", tmp_path / "x", raw=tmp_path / "nowhere")
    assert visible(tmp_path) == []


def test_the_manifest_lists_every_file(out):
    manifest = json.loads((out / registry.MANIFEST).read_text())
    files = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert set(manifest["files"]) == files - {registry.MANIFEST}
