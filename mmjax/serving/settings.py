"""What the operator chooses, and what a request may set. Requests come from strangers: every value is checked."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Mapping
from typing import Any

from mmjax.decoding.generate import make_options
from mmjax.decoding.options import DecodingOptions
from mmjax.types import UserError
from mmjax.types.model import Model

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_TOP = 20  # likeliest tokens told with each token

Kind = tuple[type, Any, Any, Any]

# Settings that are read: name -> (type, lowest, highest, default).
DRAWING: dict[str, Kind] = {
    "temperature": (float, 0, 2, 1.0),
    "top_p": (float, 0, 1, 1.0),
    "top_k": (int, -1, math.inf, 0),
    "n": (int, 1, MAX_CHOICES, 1),
    "seed": (int, -(2**63), 2**63 - 1, None),
    "stream": (bool, 0, 1, False),
}
CHAT: dict[str, Kind] = {
    **DRAWING,
    "max_tokens": (int, 1, math.inf, None),
    "max_completion_tokens": (int, 1, math.inf, None),
    "logprobs": (bool, 0, 1, False),
    "top_logprobs": (int, 0, MAX_TOP, 0),
}
TEXT: dict[str, Kind] = {
    **DRAWING,
    "max_tokens": (int, 0, math.inf, 16),
    "logprobs": (int, 0, MAX_TOP, None),
    "echo": (bool, 0, 1, False),
}
# Read by themselves.
OTHERS = {"model", "messages", "prompt", "stop", "stream_options"}
# What changes no answer, whatever it is set to.
HARMLESS = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
    "reasoning_effort",
}  # fmt: skip
# What is not built: these values ask for nothing; any other is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the operator chooses.

    Args:
      name: of the model, as requests call it.
      template: how messages become prompts: "chat", or an entry of TEMPLATES: most ask single questions, "dialogue" remembers.
      max_tokens: the longest answer, and the length of a chat's answer that does not say.
      batch_size: rows decoded at once.
      fetch_images: download pictures from http(s) addresses that clients send.
      fetch_hosts: of these hosts even if they are on a private network.
    """

    name: str
    template: str = "chat"
    max_tokens: int = 1024
    batch_size: int = 16
    fetch_images: bool = False
    fetch_hosts: tuple[str, ...] = ()


class RequestError(UserError):
    """A request that is refused, with its HTTP status and the field that is to blame."""

    def __init__(self, message: str, field: str | None = None, status: int = 400):
        super().__init__(message)
        self.field, self.status = field, status


def read_settings(body: Mapping[str, Any], kinds: Mapping[str, Kind], name: str) -> dict[str, Any]:
    """The settings of a request, with the defaults of those that it leaves out.

    Args:
      body: of the request.
      kinds: CHAT or TEXT.
      name: what requests call the model.

    Raises:
      RequestError: another model, a field that is not supported, or a value that does not fit.
    """
    if body.get("model") not in (None, "", name):
        raise RequestError(f"the model {body['model']!r} does not exist; this server has {name!r}", "model", 404)
    for field, value in body.items():
        neutral = value is None or value in ([], {}) or value in NEUTRAL.get(field, ())
        if field not in OTHERS | HARMLESS | kinds.keys() and not neutral:
            raise RequestError(f"{field!r} is not supported", field)
    return {field: _setting(body.get(field), field, *kind) for field, kind in kinds.items()}


def _setting(value: Any, field: str, kind: type, low: Any, high: Any, default: Any) -> Any:
    if value is None:
        return default
    fits = isinstance(value, bool) if kind is bool else isinstance(value, int | kind) and not isinstance(value, bool)
    if not fits or not low <= value <= high:
        limits = "" if kind is bool else f" from {low}" + ("" if high == math.inf else f" to {high}")
        raise RequestError(f"{field!r} must be a {kind.__name__}{limits}, got {value!r:.100}", field)
    return value


def read_options(
    settings: Mapping[str, Any], model: Model, longest: int, top: int | None, template: str | None
) -> DecodingOptions:
    """How answers are decoded.

    Args:
      settings: see `read_settings`.
      longest: tokens that an answer may have.
      top: likeliest tokens to tell with each token.
      template: of the prompts; one may have an end token of its own.
    """
    draws = settings["temperature"] > 0 and settings["top_p"] > 0
    drawing = {"temperature": settings["temperature"], "top_p": settings["top_p"], "top_k": max(settings["top_k"], 0)}
    seed = secrets.randbits(31) if settings["seed"] is None else settings["seed"]
    plain = {"max_new_tokens": longest, "do_sample": draws, "seed": seed, "top_logprobs": top or 0}
    return make_options(model, plain | (drawing if draws else {}), template)


def read_stop(value: Any) -> tuple[str, ...]:
    """The stop strings of a request.

    Raises:
      RequestError: they are none, or too many.
    """
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops) or len(stops) > MAX_STOPS:
        raise RequestError(f"'stop' must be a text or a list of at most {MAX_STOPS} texts", "stop")
    return tuple(stops)


def includes_usage(value: Any, stream: bool) -> bool:
    """Whether `stream_options` asks for the usage at the end of a stream.

    Raises:
      RequestError: it is no object.
    """
    if value is not None and not isinstance(value, dict):
        raise RequestError("'stream_options' must be an object", "stream_options")
    return stream and bool((value or {}).get("include_usage"))
