"""Replies in the form that OpenAI's clients read: chat completions, and the older text completions."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmjax.serving.dispatcher import Progress, Token
from mmjax.serving.requests import Request
from mmjax.types.model import Model

ERROR_TYPES = {404: "not_found_error", 500: "server_error", 503: "server_error"}
NEVER = -9999.0  # the protocol's log-probability of what cannot be; JSON has no infinity


class Said(NamedTuple):
    """A stretch of a choice.

    Args:
      text: of it.
      tokens: that it is made of.
      before: ids of some tokens before it.
      offset: characters of the choice before it.
      finish: why the choice ended there; None = it goes on.
    """

    text: str
    tokens: Sequence[Token]
    before: Sequence[int] = ()
    offset: int = 0
    finish: str | None = None

    def then(self, other: Said) -> Said:
        """Both stretches as one."""
        first = self if self.tokens else other
        return Said(self.text + other.text, (*self.tokens, *other.tokens), first.before, first.offset, other.finish)


def error(message: str, status: int, field: str | None = None) -> dict[str, Any]:
    """The body of a refusal."""
    kind = ERROR_TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": field, "code": None}}


def usage(request: Request, answers: Sequence[Progress]) -> dict[str, int]:
    """Tokens read and written."""
    read, written = sum(len(prompt.ids) for prompt in request.prompts), sum(answer.count for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def envelope(request: Request, name: str, *, chunk: bool = False) -> dict[str, Any]:
    """What whole replies and chunks have in common."""
    prefix, kind = ("chatcmpl", "chat.completion") if request.chat else ("cmpl", "text_completion")
    whole = {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": name}
    return {**whole, "object": f"{kind}.chunk"} if chunk and request.chat else whole


def choice(request: Request, index: int, said: Said, model: Model) -> dict[str, Any]:
    """A choice of a whole reply."""
    if not request.chat:
        return {"text": said.text, **_common(request, index, said, model)}
    message = {"role": "assistant", "content": said.text, "refusal": None}
    return {"message": message, **_common(request, index, said, model)}


def delta(request: Request, index: int, said: Said, model: Model) -> dict[str, Any]:
    """A choice of a chunk."""
    if not request.chat:
        return {"text": said.text, **_common(request, index, said, model)}
    return {"delta": {"content": said.text} if said.text else {}, **_common(request, index, said, model)}


def role(index: int) -> dict[str, Any]:
    """The choice of a chunk with which a chat's answer begins."""
    return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}


def event(value: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _common(request: Request, index: int, said: Said, model: Model) -> dict[str, Any]:
    logprobs = None
    if request.top is not None and said.tokens:
        logprobs = (_chat_logprobs if request.chat else _text_logprobs)(said, request.top, model)
    return {"index": index, "logprobs": logprobs, "finish_reason": said.finish}


def _chat_logprobs(said: Said, top: int, model: Model) -> dict[str, Any]:
    def entry(text: str, logprob: float | None) -> dict[str, Any]:
        whole = "\ufffd" not in text  # a token may hold part of a character only
        return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode()) if whole else None}

    content = [
        entry(text, token.logprob) | {"top_logprobs": [entry(*pair) for pair in likeliest][:top]}
        for token, text, _, likeliest in _spelled(said, model)
    ]
    return {"content": content, "refusal": None}


def _text_logprobs(said: Said, top: int, model: Model) -> dict[str, Any]:
    reply: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    offset = said.offset
    for token, text, shown, likeliest in _spelled(said, model):
        best: dict[str, float | None] | None = None
        if token.logprob is not None:
            best = {}
            for spelling, logprob in (*likeliest[:top], (text, token.logprob)):
                best.setdefault(spelling, _finite(logprob))  # of tokens that read alike, the likeliest
        for name, value in zip(reply, (text, _finite(token.logprob), best, offset), strict=True):
            reply[name].append(value)
        offset += shown
    return reply


def _spelled(said: Said, model: Model) -> Iterator[tuple[Token, str, int, list[tuple[str, float]]]]:
    """Each token, its text, how many characters of the answer it made, and the likeliest ones in its place with their texts."""

    def visible(*ids: int) -> str:
        return model.processor.llm.decode(ids, skip_special_tokens=True)

    def spell(token: int) -> tuple[str, int]:
        # Behind its neighbour a token keeps the white space that it begins with.
        new = visible(*before, token)[len(visible(*before)) :]
        return new or model.processor.llm.decode([token]), len(new)

    before = [token for token in said.before if visible(token)][-1:]
    for token in said.tokens:
        text, shown = spell(token.id)
        yield token, text, shown, [(spell(other)[0], logprob) for other, logprob in token.likeliest.items()]
        before = [token.id] if shown else before


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, NEVER)
