"""After the warm-up the first requests compile nothing at all."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import pytest
from starlette.testclient import TestClient

from mmjax.serving.app import make_app
from mmjax.serving.dispatcher import rooms, take_shape
from mmjax.serving.settings import Settings
from mmjax.serving.warmup import _sizes, warm_up
from tests.serving.conftest import asking, picture

SETTINGS = Settings(name="tiny", max_tokens=16, batch_size=2)


@contextlib.contextmanager
def compilations():
    """Every program that XLA is given inside, whoever asked for it."""
    names: list[str] = []

    def listen(name: str, *_, **__) -> None:
        if "backend_compile" in name:
            names.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.heavy
def test_the_first_requests_compile_nothing(model):
    cold = dataclasses.replace(model, cache={})
    with compilations() as while_warming:
        progress = list(warm_up(cold, SETTINGS, 128))
    assert progress == [(number + 1, 8) for number in range(8)] and len(while_warming) >= 12
    with TestClient(make_app(cold, SETTINGS), base_url="http://127.0.0.1") as client, compilations() as afterwards:
        for body in (
            asking("how many ?"),
            asking(picture(1), "what colour ?"),
            asking("what colour is " * 30, max_tokens=16),
            asking("is there a red ?", temperature=0.7, top_p=0.9, seed=3, n=2, stop="blue", stream=True),
        ):
            reply = client.post("/v1/chat/completions", json=body)
            assert reply.status_code == 200 and "error" not in reply.text
        assert afterwards == []
        client.post("/v1/chat/completions", json=asking("how many ?", logprobs=True, top_logprobs=1))
        assert afterwards, "what is not warmed up compiles, and the listener hears it"


def test_nothing_is_compiled_when_not_asked(model):
    assert list(warm_up(model, SETTINGS, 0)) == []


def test_a_shape_that_is_there_is_taken(model):
    cold = dataclasses.replace(model, cache={})
    assert take_shape(cold, "a", (4, 128)) == (4, 128)
    assert take_shape(cold, "a", (1, 32)) == (4, 128), "four times as large is not too large"
    assert take_shape(cold, "a", (8, 64)) == (8, 64) and take_shape(cold, "b", (1, 32)) == (1, 32)
    assert take_shape(cold, "a", (1, 16)) == (1, 16)


@pytest.mark.parametrize(
    ("smallest", "largest", "sizes"), [(1, 16, [1, 4, 16]), (1, 10, [1, 4, 10]), (128, 512, [128, 512]), (128, 64, [64])]
)
def test_sizes_of_the_warm_up(smallest, largest, sizes):
    assert _sizes(smallest, largest) == sizes


def test_rooms_of_answers():
    assert rooms(16) == [16] and rooms(17) == [16, 128] and rooms(1000) == [16, 128, 1024]
