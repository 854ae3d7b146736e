"""Conversations with an InstructBLIP behind the endpoint: what was said stands before the question, pictures before it all."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

import mmjax
from mmjax.serving.app import make_app
from mmjax.serving.settings import Settings
from tests.decoding.world import pixels
from tests.interop import test_blip2_generate
from tests.serving.conftest import picture

CHAT = "/v1/chat/completions"
PROMPT = "Dialog history: how many red? yes\n Question: is there blue? Short answer:"


@pytest.fixture(scope="module", params=["instructblip_llama", pytest.param("instructblip_t5", marks=pytest.mark.heavy)])
def served(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    test_blip2_generate.make(directory, request.param)
    model = mmjax.from_pretrained(directory)
    with TestClient(
        make_app(model, Settings(name="tiny", template="dialogue", max_tokens=6)), base_url="http://127.0.0.1"
    ) as client:
        yield model, client


def messages(first, second):
    """Two turns, which show the pictures of these numbers."""

    def user(numbers, text):
        return {"role": "user", "content": [*map(picture, numbers), {"type": "text", "text": text}]}

    return [user(first, "how many red?"), {"role": "assistant", "content": "yes"}, user(second, "is there blue?")]


def test_what_was_said_is_history_and_pictures_come_first(served):
    model, client = served
    answers = []
    for first, second in (((3,), ()), ((), (3,)), ((4,), (3,)), ((4,), ())):
        body = {"messages": messages(first, second), "temperature": 0, "logprobs": True}
        (choice,) = client.post(CHAT, json=body).json()["choices"]
        images = [[pixels(number) for number in (*first, *second)]]
        (expected,) = mmjax.generate(model, [PROMPT], images=images, max_new_tokens=6)
        assert choice["message"]["content"] == expected
        found = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        assert found == pytest.approx(expected.logprobs.tolist(), abs=1e-4)
        answers.append(found)
    assert answers[0] == answers[1], "in whichever turn it is shown"
    assert answers[0] != answers[2] != answers[3] != answers[0]


@pytest.mark.parametrize("roles", ["system user", "user user", "assistant user"])
def test_what_would_be_dropped_is_refused(served, roles):
    body = {"messages": [{"role": role, "content": "red?"} for role in roles.split()]}
    reply = served[1].post(CHAT, json=body)
    assert reply.status_code == 400
    assert "--template=dialogue wants user and assistant in turn" in reply.json()["error"]["message"]


def test_the_question_that_the_connector_reads_keeps_its_end(served):
    model, _ = served
    text = "red " * 200 + "is there blue?"
    (row,) = model.processor.prompts([mmjax.types.ask(text, mmjax.types.Medium("image", pixels(0)))]).queries["image"].tokens
    whole = model.processor.encode_query(text)
    assert row[0].tolist() == [whole[0], *whole[1 - model.processor.query_length :]]
