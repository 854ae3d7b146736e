"""Text completions, and log-probabilities of both kinds of completion, also while they stream."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmjax.decoding import generate, score
from tests.serving.conftest import asking, picture

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
WORDS = "what colour is there ?"


def ask(client, path=TEXT, **body) -> dict:
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def stream(client, path=TEXT, **body) -> list[dict]:
    with client.stream("POST", path, json={**body, "stream": True}) as reply:
        *lines, last = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert last == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_text_is_continued_as_generate_does(client, model):
    (expected,) = generate(model, [WORDS], max_new_tokens=9)
    reply = ask(client, prompt=WORDS, max_tokens=9, temperature=0, logprobs=0)
    (choice,) = reply["choices"]
    assert reply["object"] == "text_completion" and choice["text"] == f" {expected}", "the white space between is there"
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected.logprobs.tolist(), abs=1e-4)
    told = choice["logprobs"]
    special = set(model.processor.llm.all_special_tokens)
    assert "".join(token for token in told["tokens"] if token not in special) == choice["text"]
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert token in special or choice["text"][offset:].startswith(token)
    assert reply["usage"] == {"prompt_tokens": 6, "completion_tokens": 9, "total_tokens": 15}


def test_several_prompts_as_texts_and_as_ids(client, model):
    texts = [WORDS, "how many red ?", "is there a blue ?"]
    ids = [[2, *model.processor.encode(text)] for text in texts]
    greedy = dict(max_tokens=7, temperature=0)
    single = [ask(client, prompt=text, **greedy)["choices"][0]["text"] for text in texts]
    together = ask(client, prompt=texts, n=2, **greedy)
    assert [choice["text"] for choice in together["choices"]] == [text for text in single for _ in range(2)]
    assert [choice["index"] for choice in together["choices"]] == list(range(6))
    assert [choice["text"] for choice in ask(client, prompt=ids, **greedy)["choices"]] == single
    assert ask(client, prompt=ids[1], **greedy)["choices"][0]["text"] == single[1]


def test_a_prompt_is_weighed(client, model):
    """`echo` with log-probabilities: those of the prompt's own tokens, as `score` sums them."""
    ids = [2, *model.processor.encode("is there a red ? yes")]
    reply = ask(client, prompt=[ids, ids[:4]], max_tokens=0, echo=True, logprobs=3)
    choice, shorter = reply["choices"]
    told = choice["logprobs"]
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None and len(told["tokens"]) == len(ids)
    assert sum(told["token_logprobs"][6:]) == pytest.approx(
        float(score(model, ["is there a red ?"], ["yes"], end=False)[0]), abs=1e-4
    )
    assert shorter["logprobs"]["token_logprobs"][1:] == pytest.approx(told["token_logprobs"][1:4], abs=1e-4)
    for logprob, token, likeliest in zip(told["token_logprobs"][1:], told["tokens"][1:], told["top_logprobs"][1:], strict=True):
        assert 3 <= len(likeliest) <= 4 and likeliest[token] == logprob and max(likeliest.values()) >= logprob
    assert choice["finish_reason"] == "length" and choice["text"] == "is there a red ? yes"
    assert reply["usage"]["completion_tokens"] == 0


def weighed(choice: dict, context: int) -> tuple[float, bool]:
    """How lm-eval reads a reply: the continuation's log-probability, and whether each of its tokens is the likeliest."""
    logprobs = choice["logprobs"]["token_logprobs"][context:-1]
    top = choice["logprobs"]["top_logprobs"][context:-1]
    return sum(logprobs), all(mine == max(best.values()) for mine, best in zip(logprobs, top, strict=True))


def test_what_lm_eval_sends_for_log_likelihoods(client, model):
    """Its `local-completions` model: ids, one token more than asked for, and exact equality with the likeliest."""
    context = [2, *model.processor.encode(WORDS)]
    (answer,) = generate(model, [WORDS], max_new_tokens=3)
    other = [token for token in (21, 22, 23) if token != answer.tokens[0]][0]
    prompts = [context + list(answer.tokens), [*context, other, *answer.tokens[1:]]]
    body = dict(model="tiny", prompt=prompts, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)
    greedy, not_greedy = sorted(ask(client, **body)["choices"], key=lambda choice: choice["index"])
    assert weighed(greedy, len(context)) == (pytest.approx(float(np.sum(answer.logprobs)), abs=1e-3), True)
    total, likeliest = weighed(not_greedy, len(context))
    assert not likeliest and total < float(np.sum(answer.logprobs))
    assert len(greedy["logprobs"]["tokens"]) == len(prompts[0]) + 1, "the token that was written is there too"


def test_what_lm_eval_sends_for_answers(client):
    body = dict(prompt=[[2, 9, 10]], model="tiny", max_tokens=12, temperature=0, stop=["</s>", "\n\n", "Question:"], seed=1234)
    assert len(ask(client, **body)["choices"]) == 1


@pytest.mark.parametrize("echo", [False, True])
def test_streams_join_to_the_whole_text(client, echo):
    body = dict(prompt=[WORDS, "how many ?"], max_tokens=11, temperature=0, logprobs=2, echo=echo, n=2)
    whole = ask(client, **body)
    *chunks, last = stream(client, **body, stream_options={"include_usage": True})
    assert last["usage"] == whole["usage"] and {chunk["object"] for chunk in chunks} == {"text_completion"}
    for choice in whole["choices"]:
        pieces = [piece for chunk in chunks for piece in chunk["choices"] if piece["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
        for name, values in choice["logprobs"].items():
            joined = [value for piece in pieces if piece["logprobs"] for value in piece["logprobs"][name]]
            assert joined == values, name
        assert len(pieces) > 2, "it came in pieces"


def test_a_chat_tells_the_likeliest_tokens_too(client, model):
    body = asking(picture(1), "how many ?", logprobs=True, top_logprobs=4, n=2, seed=5, temperature=1.2)
    whole = ask(client, CHAT, **body)
    chunks = stream(client, CHAT, **body)
    for choice in whole["choices"]:
        told = choice["logprobs"]["content"]
        assert told and all(len(entry["top_logprobs"]) == 4 for entry in told)
        for entry in told:
            best = [other["logprob"] for other in entry["top_logprobs"]]
            assert best == sorted(best, reverse=True) and entry["logprob"] <= best[0]
            assert bytes(entry["bytes"]).decode() == entry["token"]
        pieces = [piece for chunk in chunks for piece in chunk["choices"] if piece["index"] == choice["index"]]
        joined = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
        assert joined == told
    plain = ask(client, CHAT, **{**body, "top_logprobs": None})["choices"][0]["logprobs"]["content"]
    assert plain and all(entry["top_logprobs"] == [] for entry in plain)


def test_log_probabilities_stop_where_the_text_does(client):
    """Tokens of a stop string are told neither at once nor in pieces."""
    body = dict(prompt=WORDS, max_tokens=14, temperature=0, logprobs=0)
    (free,) = ask(client, **body)["choices"]
    tokens, offsets = free["logprobs"]["tokens"], free["logprobs"]["text_offset"]
    stop = next(token for token, at in zip(tokens[3:], offsets[3:], strict=True) if free["text"].find(token) == at)
    (choice,) = ask(client, **body, stop=stop)["choices"]
    assert choice["logprobs"]["tokens"] == tokens[: tokens.index(stop)] and choice["finish_reason"] == "stop"
    pieces = [piece for chunk in stream(client, **body, stop=stop) for piece in chunk["choices"]]
    assert "".join(piece["text"] for piece in pieces) == choice["text"]
    assert [token for piece in pieces if piece["logprobs"] for token in piece["logprobs"]["tokens"]] == choice["logprobs"][
        "tokens"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "'prompt' must be"),
        ({"prompt": ""}, "none of them empty"),
        ({"prompt": []}, "none of them empty"),
        ({"prompt": [1, "a"]}, "'prompt' must be"),
        ({"prompt": [True]}, "'prompt' must be"),
        ({"prompt": [25]}, "token ids go from 0 to 24"),
        ({"prompt": [-1]}, "token ids go from 0"),
        ({"prompt": ["a"] * 129}, "more than 128"),
        ({"prompt": ["a"] * 20, "n": 7}, "more than 128"),
        ({"prompt": [3] * 200}, "no room for an answer"),
        ({"prompt": [3] * 201, "max_tokens": 0, "echo": True}, "no room for it"),
        ({"logprobs": 21}, "'logprobs' must be a int from 0 to 20"),
        ({"best_of": 3}, "'best_of' is not supported"),
        ({"suffix": "x"}, "'suffix' is not supported"),
        ({"messages": [], "max_completion_tokens": 3}, "'max_completion_tokens' is not supported"),
    ],
)
def test_bad_bodies_are_refused(client, change, message):
    reply = client.post(TEXT, json={"prompt": "red ?", **change})
    assert reply.status_code == 400 and message in reply.json()["error"]["message"]
