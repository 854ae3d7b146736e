"""The endpoint: its answers are those of `generate`, alone and amid neighbours, whole and in pieces."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmjax.decoding import generate
from mmjax.serving.app import make_app
from mmjax.serving.requests import MAX_BODY
from mmjax.serving.settings import Settings
from mmjax.types import Example, Medium, Part, Turn, UserError
from tests.decoding.world import png
from tests.serving.conftest import asking, picture

CHAT = "/v1/chat/completions"


def answer(client, body) -> dict:
    reply = client.post(CHAT, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def content(client, body) -> str:
    return answer(client, body)["choices"][0]["message"]["content"]


def test_answers_are_those_of_generate(client, model):
    """Several turns and pictures, interleaved with text."""
    messages = [
        {"role": "system", "content": "how many"},
        {"role": "user", "content": [picture(1), {"type": "text", "text": "what colour is"}, picture(2)]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "is there a blue </s> ?"},
    ]
    turns = (
        Turn("system", (Part("how many"),)),
        Turn("user", (Part(medium=0), Part("what colour is"), Part(medium=1))),
        Turn("assistant", (Part("red"),)),
        Turn("user", (Part("is there a blue </s> ?"),)),
    )
    example = Example("x", media=(Medium("image", png(1)), Medium("image", png(2))), turns=turns)
    (expected,) = generate(model, [example], template="chat", max_new_tokens=12)
    reply = answer(client, {"messages": messages, "temperature": 0, "max_tokens": 12, "logprobs": True})
    (choice,) = reply["choices"]
    assert choice["message"]["content"] == expected and choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == ("stop" if expected.tokens[-1] == 2 else "length")
    logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    assert logprobs == pytest.approx(expected.logprobs.tolist(), abs=1e-4)
    length = int((model.processor.prompts([example], "chat").text.segments > 0).sum())
    written = len(expected.tokens)
    assert reply["usage"] == {"prompt_tokens": length, "completion_tokens": written, "total_tokens": length + written}
    other = {"messages": [*messages[:1], {"role": "user", "content": [picture(5), *messages[1]["content"][1:]]}, *messages[2:]]}
    different = answer(client, {**other, "temperature": 0, "max_tokens": 12, "logprobs": True})["choices"][0]["logprobs"]
    assert [entry["logprob"] for entry in different["content"]] != logprobs, "the picture is looked at"


def test_alone_and_amid_neighbours(client):
    """Clients at once, of unlike prompts, pictures and lengths; those that draw with the same seeds too."""
    bodies = [
        asking(picture(1), "what colour ?"),
        asking("how many red ?", max_tokens=9),
        asking(picture(2), "is there a blue ?", max_tokens=16),
        asking("is there a blue ?", temperature=1, seed=3),
        asking("is there a blue ?", temperature=1, seed=4),
    ]
    alone = [content(client, body) for body in bodies]
    assert len(set(alone)) > 3
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(lambda body: content(client, body), bodies)) == alone


def test_requests_at_once_share_a_batch(client, app, monkeypatch):
    """Two clients, unlike prompts: one batch, and each gets what it gets alone."""
    bodies = [asking(picture(1), "what colour ?"), asking("is there a blue ?", max_tokens=9)]
    alone = [content(client, body) for body in bodies]
    dispatcher, batches = app.state.dispatcher, []
    decode = dispatcher._decode
    monkeypatch.setattr(dispatcher, "_window", 1.0)  # long enough for both to come
    monkeypatch.setattr(dispatcher, "_decode", lambda rows, kind: batches.append(len(rows)) or decode(rows, kind))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda body: content(client, body), bodies)) == alone
    assert batches == [2] and alone[0] != alone[1]


def test_the_same_shapes_compile_once(client, compilations):
    content(client, asking("what colour ?"))
    before = compilations()
    for words, tokens in (("how many ?", 9), ("is there a red ?", 16), ("no", 10)):
        content(client, asking(words, max_tokens=tokens))
    assert compilations() == before


def stream(client, body) -> tuple[list[dict], str]:
    """Chunks of a stream and its last line."""
    with client.stream("POST", CHAT, json={**body, "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        *lines, last = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    return [json.loads(line) for line in lines], last


def test_streams_join_to_the_whole(client):
    body = asking(picture(1), "how many ?", max_tokens=16)
    chunks, last = stream(client, {**body, "stream_options": {"include_usage": True}})
    assert last == "[DONE]" and {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0] for chunk in chunks[:-1]]
    whole = answer(client, body)
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert len([delta for delta in deltas if delta["delta"].get("content")]) > 1, "it came in pieces"
    assert [delta["finish_reason"] for delta in deltas] == [None] * (len(deltas) - 1) + [whole["choices"][0]["finish_reason"]]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_stop_strings(client):
    body = asking(picture(1), "how many ?", max_tokens=16)
    words = content(client, body).split()
    stop = next(word for word in words[2:] if word not in words[:2])
    expected = " ".join(words).partition(stop)[0].strip()
    reply = answer(client, {**body, "stop": [stop, "never said"]})
    assert reply["choices"][0]["message"]["content"] == expected and reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] < 16
    chunks, _ = stream(client, {**body, "stop": stop})
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected


def test_choices_and_seeds(client):
    body = asking("what colour is there ?", temperature=1.5, seed=7)
    three = [choice["message"]["content"] for choice in answer(client, {**body, "n": 3})["choices"]]
    assert len(set(three)) > 1 and three == [content(client, {**body, "seed": 7 + index}) for index in range(3)]
    chunks, _ = stream(client, {**body, "n": 3})
    for index in range(3):
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert "".join(delta.get("content", "") for delta in deltas) == three[index]
    free = {content(client, {**body, "seed": None}) for _ in range(3)}
    assert len(free) > 1, "without a seed every answer is drawn anew"


def test_models_and_health(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["tiny"]


TOO_LONG = "red " * 300


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "gpt-4"}, 404, "'gpt-4' does not exist"),
        ({"messages": []}, 400, "'messages'"),
        ({"messages": "hello"}, 400, "'messages'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0] must have a role"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, 400, "last message"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, 400, "tool_calls"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
        ({"messages": [{"role": "user", "content": TOO_LONG}]}, 400, "no room"),
        ({"max_tokens": 0}, 400, "'max_tokens' must be a int from 1"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"temperature": 3}, 400, "temperature"),
        ({"temperature": float("nan")}, 400, "temperature"),
        ({"n": 100}, 400, "'n'"),
        ({"stop": [""]}, 400, "'stop'"),
        ({"stop": ["a"] * 17}, 400, "at most 16"),
        ({"stream": "yes"}, 400, "'stream'"),
        ({"top_logprobs": 2}, 400, "goes with 'logprobs'"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "'top_logprobs' must be a int from 0 to 20"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"no_such_field": 1}, 400, "'no_such_field' is not supported"),
    ],
)
def test_bad_requests_are_refused(client, change, status, message):
    reply = client.post(CHAT, content=json.dumps({**asking("red ?"), **change}), headers={"content-type": "application/json"})
    fault = reply.json()["error"]
    assert reply.status_code == status and message in fault["message"] and "\n" not in fault["message"]
    assert fault["type"] and "param" in fault and "code" in fault


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:9/picture.png", "downloads no pictures"),
        ("file:///etc/passwd", "must begin with data:"),
        ("/etc/passwd", "must begin with data:"),
        ("data:image/png,abc", "must be base64"),
        ("data:image/png;base64,@@", "no base64"),
        ("data:image/png;base64,AAAA", "none of PNG"),
        (7, "an object with a url"),
    ],
)
def test_bad_pictures_are_refused(client, address, message):
    reply = client.post(CHAT, json=asking({"type": "image_url", "image_url": {"url": address}}, "red ?"))
    assert reply.status_code == 400 and message in reply.json()["error"]["message"]


def test_harmless_fields_pass(client):
    neutral = {"presence_penalty": 0, "tools": [], "response_format": {"type": "text"}, "user": "x", "logit_bias": None}
    assert content(client, asking("red ?", model="tiny", **neutral)) == content(client, asking("red ?"))


def test_an_answer_ends_where_the_model_does(client):
    """A model that reads 200 tokens gets a prompt of about 190."""
    reply = answer(client, asking("red " * 180, max_tokens=1000))
    assert reply["usage"]["total_tokens"] <= 200


def test_bodies_are_json_and_not_too_large(client):
    assert client.post(CHAT, content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert client.post(CHAT, content=b"[1]", headers={"content-type": "application/json"}).status_code == 400
    assert client.post(CHAT, content=json.dumps(asking("red ?")), headers={"content-type": "text/plain"}).status_code == 415
    large = client.post(CHAT, content=b" " * (MAX_BODY + 1), headers={"content-type": "application/json"})
    assert large.status_code == 413 and "bytes" in large.json()["error"]["message"]
    assert client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert client.get(CHAT).status_code == 405


def test_a_template_that_asks_single_questions(model):
    from starlette.testclient import TestClient

    app = make_app(model, Settings(name="tiny", template="question_answer"))
    example = Example("x", media=(Medium("image", png(1)),), turns=(Turn("user", (Part(medium=0), Part("how many ?"))),))
    (expected,) = generate(model, [example], template="question_answer", max_new_tokens=12)
    with TestClient(app) as client:
        assert content(client, asking(picture(1), "how many ?")) == expected
        several = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        reply = client.post(CHAT, json={"messages": several})
        assert reply.status_code == 400 and "single questions" in reply.json()["error"]["message"]


def test_models_that_cannot_be_served(model):
    import dataclasses

    from tests.decoding.world import make_tokenizer

    silent = dataclasses.replace(model, processor=dataclasses.replace(model.processor, llm=make_tokenizer()))
    with pytest.raises(UserError, match="--template=question_answer"):
        make_app(silent, Settings(name="x"))
    with pytest.raises(UserError, match="template must be one of"):
        make_app(model, Settings(name="x", template="nothing"))
