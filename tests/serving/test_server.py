"""Over a real socket: OpenAI's own client, clients that hang up, the command and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import openai
import pytest

import mmjax
from mmjax.layers.parameters import define
from mmjax.serving.server import listen, make_server
from mmjax.systems.parts import build
from mmjax.types import Example, Medium, Part, Turn, UserError
from mmjax.types.model import Model
from tests.decoding.world import draw, make_tokenizer, png
from tests.serving.conftest import TEMPLATE, asking, picture


@pytest.fixture(scope="module")
def served(model):
    """The application behind uvicorn: (port, its dispatcher)."""
    from mmjax.serving.app import make_app
    from mmjax.serving.settings import Settings

    app = make_app(model, Settings(name="tiny", max_tokens=180, batch_size=8))
    with listen("127.0.0.1", 0) as listener:
        server = make_server(app, listener)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()[1], app.state.dispatcher
        server.should_exit = True
        thread.join()


def test_openais_client(served):
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{served[0]}/v1", api_key="none", timeout=300)
    assert [model.id for model in client.models.list()] == ["tiny"]
    asked = dict(model="tiny", **asking(picture(1), "how many ?"))
    answer = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
    assert answer.usage.completion_tokens == 12
    with pytest.raises(openai.BadRequestError, match="no_such_field"):
        client.chat.completions.create(**asked, extra_body={"no_such_field": 1})


def test_openais_client_and_texts(served):
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{served[0]}/v1", api_key="none", timeout=300)
    asked = dict(model="tiny", prompt="how many ?", max_tokens=6, temperature=0, logprobs=2, echo=True)
    (choice,) = client.completions.create(**asked).choices
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.text for chunk in chunks for piece in chunk.choices) == choice.text
    assert choice.logprobs.token_logprobs[0] is None and len(choice.logprobs.tokens) == chunks[-1].usage.total_tokens


def lmms_eval_payload(pictures, question, **limits):
    """As lmms-eval's `openai_compatible` models build it: the task's text and pictures as parts, data: addresses of PNGs."""
    content = [{"type": "text", "text": question}, *map(picture, pictures)]
    return {"messages": [{"role": "user", "content": content}], "model": "tiny", **limits}


def test_what_lmms_eval_sends(served, model):
    """Many at once by the asynchronous client; then as for reasoning models."""
    asked = [((1,), "what colour ?"), ((2, 3), "how many ?"), ((), "is there a red ?"), ((4,), "how many blue ?")]
    answers = mmjax.generate(
        model,
        [
            Example("x", media=tuple(Medium("image", png(n)) for n in pictures), turns=(
                Turn("user", (Part(question), *(Part(medium=number) for number in range(len(pictures))))),
            ))
            for pictures, question in asked
        ],
        template="chat",
        max_new_tokens=16,
    )  # fmt: skip

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{served[0]}/v1", api_key="none", timeout=600) as client:
            payloads = [lmms_eval_payload(*each, max_tokens=16, temperature=0) for each in asked]
            return await asyncio.gather(*(client.chat.completions.create(**payload) for payload in payloads))

    replies = asyncio.run(ask_all())
    assert [reply.choices[0].message.content for reply in replies] == answers
    assert all(reply.usage.completion_tokens == len(answer.tokens) for reply, answer in zip(replies, answers, strict=True))
    reasoning = dict(reasoning_effort="medium", response_format={"type": "text"}, max_completion_tokens=16)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{served[0]}/v1", api_key="none", timeout=300) as client:
        assert (
            client.chat.completions.create(**lmms_eval_payload(*asked[0], **reasoning)).choices[0].message.content is not None
        )


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_row(served, stream):
    port, dispatcher = served
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps(asking("how many ?", max_tokens=180, stream=stream))
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    while not dispatcher.live:
        time.sleep(0.001)
    with connection.getresponse() if stream else contextlib.nullcontext() as reply:
        if reply is not None:
            reply.read(10)
        connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    deadline = time.monotonic() + 60
    while dispatcher.live and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not dispatcher.live


def test_foreign_names_are_refused(served):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", served[0], timeout=60)) as connection:
        connection.request("GET", "/v1/models", headers={"Host": "evil.example"})
        with connection.getresponse() as reply:
            assert reply.status == 400


def test_a_port_in_use_is_one_line():
    with listen("127.0.0.1", 0) as first:
        with pytest.raises(UserError, match=f"--port={first.getsockname()[1]}: Address already in use; choose another"):
            listen("127.0.0.1", first.getsockname()[1])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny LLaMA in Hugging Face layout, with a chat template."""
    import numpy as np

    parts = {"llm": {"family": "llama", "vocab": 25, "width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 32}}
    definition, generator = define(build(parts)), np.random.default_rng(0)
    parameters = {path: draw(path, definition.specs[path].shape, generator) for path in sorted(definition.specs)}
    from mmjax.data.processor import Processor

    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    path = tmp_path_factory.mktemp("models") / "toy"
    mmjax.save_pretrained(Model(definition, parameters, Processor(tokenizer), {"parts": parts}), path)
    return path


def test_the_command(directory):
    """It serves, a second one on its port is refused at once, and SIGTERM ends it."""
    command = [
        sys.executable,
        "-m",
        "launch.serve",
        f"--model={directory}",
        "--warm_up=32",
        "--batch_size=1",
        "--max_tokens=16",
    ]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        line = server.stdout.readline()
        assert "serves 'toy'" in line, server.stderr.read()
        port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=300)
        answer = client.chat.completions.create(model="toy", messages=[{"role": "user", "content": "red ?"}], max_tokens=4)
        assert answer.usage.completion_tokens <= 4
        second = subprocess.run([*command, f"--port={port}"], capture_output=True, text=True, timeout=300)
        assert second.returncode == 2 and second.stderr.startswith(f"error: --host=127.0.0.1 --port={port}: Address already")
        assert second.stderr.count("\n") == 1
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) in (-signal.SIGTERM, 128 + signal.SIGTERM)
        log = server.stderr.read()
        assert "compiling: 2 of 2 shapes" in log and "Traceback" not in log
