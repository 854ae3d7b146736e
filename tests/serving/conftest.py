"""A tiny BLIP-2 behind the endpoint."""

from __future__ import annotations

import base64
import dataclasses

import pytest
from starlette.testclient import TestClient

from mmjax.decoding.generate import searcher_of
from mmjax.serving.app import make_app
from mmjax.serving.settings import Settings
from tests.decoding.world import PARTS, make_model, make_tokenizer, png

TEMPLATE = (
    "{% for message in messages %}{{ '[DEC] ' + message['role'] + ' ' + message['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[DEC] answer :' }}{% endif %}"
)


@pytest.fixture(scope="session")
def model():
    """A tiny BLIP-2 with a chat template; it reads 200 tokens and never ends an answer by itself."""
    plain = make_model()
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    parts = {**PARTS, "llm": {**PARTS["llm"], "max_positions": 200}}
    return dataclasses.replace(
        plain, processor=dataclasses.replace(plain.processor, llm=tokenizer), config={"parts": parts}, cache={}
    )


@pytest.fixture(scope="session")
def app(model):
    return make_app(model, Settings(name="tiny", max_tokens=100, batch_size=8))


@pytest.fixture(scope="session")
def client(app):
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def compilations(model):
    """Counts the programs compiled so far."""
    return lambda: searcher_of(model).compilations


def picture(number: int) -> dict:
    """The part of a message that shows a picture."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png(number)).decode()}"}}


def asking(*content, **settings) -> dict:
    """The body of a request with one message, greedy and short unless told."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 12, **settings}
