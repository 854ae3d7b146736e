"""Replies in the form that OpenAI's clients read."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.serving.dispatcher import Progress
from mmjax.serving.requests import ChatRequest
from mmjax.types.model import Model

ERROR_TYPES = {404: "not_found_error", 500: "server_error", 503: "server_error"}


def error(message: str, status: int, field: str | None = None) -> dict[str, Any]:
    """The body of a refusal."""
    kind = ERROR_TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": field, "code": None}}


def usage(request: ChatRequest, answers: Sequence[Progress]) -> dict[str, int]:
    """Tokens read and written."""
    written = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": request.length, "completion_tokens": written, "total_tokens": request.length + written}


def envelope(kind: str, name: str) -> dict[str, Any]:
    """What whole replies and chunks have in common."""
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": name}


def whole(request: ChatRequest, answers: Sequence[Progress], model: Model, name: str) -> dict[str, Any]:
    """The reply to a request that does not stream."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": _logprobs(answer, model) if request.logprobs else None,
            "finish_reason": answer.finish,
        }
        for index, answer in enumerate(answers)
    ]
    return {**envelope("chat.completion", name), "choices": choices, "usage": usage(request, answers)}


def _logprobs(answer: Progress, model: Model) -> dict[str, Any]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = model.processor.llm.decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}

    return {"content": [entry(*pair) for pair in zip(answer.tokens, answer.logprobs, strict=True)], "refusal": None}


def choice(index: int, delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
    """The choice of a chunk."""
    return {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": finish}


def event(value: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
