"""The chat page in a real browser, headless Chromium, driven over the WebDriver protocol by ChromeDriver."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmjax
from mmjax.decoding.published import conversation_template
from tests.interop import test_blip2_generate

ROOT = Path(__file__).resolve().parents[2]
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # how WebDriver marks an element: https://www.w3.org/TR/webdriver2/#elements

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not (DRIVER and BROWSER), reason="Chromium and ChromeDriver are not installed"),
]


class Browser:
    """One window: `script` runs JavaScript, `type` types into an element, of a file's input the path."""

    def __init__(self, url: str, profile: Path):
        self.url = url
        options = {
            "binary": BROWSER,
            "args": ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *QUIET],
        }
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        self.url += f"/session/{self.post('/session', capabilities=capabilities)['sessionId']}"

    def post(self, path: str, **values: Any) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(values).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["value"]

    def script(self, text: str) -> Any:
        return self.post("/execute/sync", script=text, args=[])

    def type(self, selector: str, text: str) -> None:
        element = self.post("/element", using="css selector", value=selector)[ELEMENT]
        self.post(f"/element/{element}/value", text=text)

    def click(self, selector: str) -> None:
        element = self.post("/element", using="css selector", value=selector)[ELEMENT]
        self.post(f"/element/{element}/click")


def first_line(process: subprocess.Popen, word: str) -> str:
    for line in process.stdout:
        if word in line:
            return line
    raise AssertionError(f"{process.args} ended with {process.wait()}")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    test_blip2_generate.make(directory, "instructblip_llama")
    for file in ("config.json", "generation_config.json"):  # answers of random weights are long if little ends them
        text = (directory / file).read_text()
        (directory / file).write_text(re.sub(r'"eos_token_id": \[[^]]*\]', f'"eos_token_id": {test_blip2_generate.PAD}', text))
    return directory


@pytest.fixture
def page(model) -> Iterator[str]:
    """The address of a running `launch.chat`."""
    call = [sys.executable, "-m", "launch.chat", f"--model={model}", "--port=0", "--max_new_tokens=24"]
    with subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        yield first_line(process, "http://").split()[0]
        process.terminate()


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        port = first_line(process, "started successfully on port").rstrip(".\n").rpartition(" ")[2]
        window = Browser(f"http://127.0.0.1:{port}", tmp_path / "profile")
        yield window
        urllib.request.urlopen(urllib.request.Request(window.url, method="DELETE"), timeout=60).close()  # Chromium ends too
        process.terminate()


def wait(browser: Browser, condition: str) -> None:
    end = time.monotonic() + 120
    while not browser.script(f"return {condition}"):
        assert time.monotonic() < end, browser.script("return document.body.innerText")
        time.sleep(0.1)


def test_a_picture_is_asked_about_and_the_answer_streams_in(browser, page, model, tmp_path):
    picture, question = tmp_path / "picture.png", "how many red?"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(picture)
    browser.post("/url", url=page)
    browser.script(
        "window.seen = []; new MutationObserver(() => seen.push(document.querySelector('dl dd').textContent))"
        ".observe(document.querySelector('dl'), { childList: true, subtree: true, characterData: true })"
    )
    browser.type("input[type=file]", str(picture))
    wait(browser, "document.querySelector('form img').naturalWidth === 7")
    browser.type("input[type=text]", question)
    browser.click("button")
    wait(browser, "document.querySelector('dl dd') && document.forms[0].question.value === ''")

    loaded = mmjax.from_pretrained(model)
    template = conversation_template(loaded)
    asked = question if template else f"Question: {question} Answer:"
    (expected,) = mmjax.generate(loaded, [asked], images=[[picture]], template=template, max_new_tokens=24)
    assert browser.script("return document.querySelector('dl dd').textContent") == str(expected) != ""
    assert browser.script("return document.querySelector('dl dt').innerText").strip() == question
    assert browser.script("return document.querySelector('dl dt img').naturalWidth") == 7
    seen = browser.script("return seen")
    grown = [text for text in dict.fromkeys(seen) if text not in ("…", "")]
    assert len(grown) > 1 and all(str(expected).startswith(text) for text in grown), "piece by piece"

    browser.type("input[type=text]", "and blue?")
    browser.click("button")
    wait(browser, "document.querySelectorAll('dl dd').length === 2 && document.forms[0].question.value === ''")
    browser.click("button[type=reset]")
    assert browser.script("return document.querySelector('dl').children.length") == 0
