"""`launch.generate` with files of all sorts, through the command."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmjax
from tests.data.media.test_video import encode
from tests.interop import test_blip2_generate, test_minigpt4

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "question: how many red? answer:"


@pytest.fixture(scope="module", params=["video_llama", pytest.param("instructblip_t5", marks=pytest.mark.heavy)])
def directory(request, tmp_path_factory):
    """An InstructBLIP for videos, and one for pictures."""
    directory = tmp_path_factory.mktemp(request.param)
    test_blip2_generate.make(directory, request.param)
    return directory


def run(directory, *flags, without=""):
    """The command, in an environment that may lack a package."""
    start = f"import sys, runpy; sys.modules.update(dict.fromkeys({without.split()})); "
    start += "runpy.run_module('launch.generate', run_name='__main__', alter_sys=True)"
    arguments = [f"--model={directory}", f"--prompt={PROMPT}", "--max_new_tokens=5", *flags]
    return subprocess.run([sys.executable, "-c", start, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.heavy
def test_videos(directory, tmp_path):
    clip, picture = tmp_path / "clip.mp4", tmp_path / "picture.png"
    clip.write_bytes(encode(11))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(picture)
    done = run(directory, f"--image={picture}", f"--video={clip}")
    assert done.returncode == 0, done.stderr
    model = mmjax.from_pretrained(directory)
    (expected,) = mmjax.generate(model, [PROMPT], images=[[picture]], videos=[[clip]], max_new_tokens=5)
    assert done.stdout.rstrip("\n") == str(expected)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("size", "without", "message"),
    [(300, "", "bytes that are no video, or a damaged one"), (-1, "av", 'which is not installed: pip install "av>=15"')],
)
def test_videos_that_cannot_be_read(directory, tmp_path, size, without, message):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode(11)[:size])
    done = run(directory, f"--video={clip}", without=without)
    assert done.returncode == 2 and not done.stdout and message in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr


@pytest.mark.heavy
def test_a_checkpoint_of_minigpt4_answers_with_its_parts(tmp_path):
    root, picture = test_minigpt4.release(tmp_path)[0], tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(picture)
    test_minigpt4.save_projection(root / "a.pth", 24)
    sources = {"llm": str(root / "vicuna"), "connectors.image": str(root / "blip2")}
    parts = [f"--part={name}={source}" for name, source in sources.items()]
    done = run(root / "a.pth", f"--image={picture}", *parts)
    model = mmjax.from_pretrained(root / "a.pth", parts=sources)
    (expected,) = mmjax.generate(model, [PROMPT], images=[[picture]], max_new_tokens=5)
    assert done.returncode == 0 and done.stdout.rstrip("\n") == str(expected) != "", done.stderr
    done = run(root / "a.pth", f"--image={picture}", parts[0])
    assert done.returncode == 2 and "holds no encoders.image; say where it is: --part=encoders.image=PATH" in done.stderr


def test_bad_pictures_are_told_before_anything_heavy(refusal, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(file, "JPEG")
    bad = {"empty": b"", "cut": file.getvalue()[:700], "text": b"hello"}
    messages = {
        "empty": "0 bytes that are none of PNG",
        "cut": "damaged or truncated image",
        "text": "5 bytes that are none of",
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        line = refusal("generate", f"--model={tmp_path}", "--prompt=x", f"--image={tmp_path / name}")
        assert messages[name] in line and name in line


def test_a_template_that_is_none_is_told_before_anything_heavy(refusal, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "got 'vicuna'" in refusal("generate", f"--model={tmp_path}", "--prompt=x", "--template=vicuna")
