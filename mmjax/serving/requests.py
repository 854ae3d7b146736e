"""Bodies of chat requests: read, checked and turned into what is decoded. They come from strangers."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import math
import secrets
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.data.media.image import decode_image
from mmjax.decoding.generate import make_options
from mmjax.decoding.options import DecodingOptions
from mmjax.systems.parts import part_config
from mmjax.types import Example, Medium, Part, Turn, UserError
from mmjax.types.model import Model

MAX_BODY = 32 * 2**20  # bytes
MAX_IMAGES = 16
MAX_CHOICES = 16
MAX_STOPS = 4
FETCH_SECONDS = 10

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Settings that are read: name -> (type, lowest, highest, default).
SETTINGS: dict[str, tuple[type, float, float, Any]] = {
    "max_tokens": (int, 1, math.inf, None),
    "max_completion_tokens": (int, 1, math.inf, None),
    "temperature": (float, 0, 2, 1.0),
    "top_p": (float, 0, 1, 1.0),
    "top_k": (int, -1, math.inf, 0),
    "n": (int, 1, MAX_CHOICES, 1),
    "seed": (int, -(2**63), 2**63 - 1, None),
    "stream": (bool, 0, 1, False),
    "logprobs": (bool, 0, 1, False),
}
READ = {*SETTINGS, "model", "messages", "stop", "stream_options"}
# What changes no answer, whatever it is set to.
HARMLESS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
# What is not built: these values ask for nothing; any other is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "top_logprobs": (0,),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class RequestError(UserError):
    """A request that is refused, with its HTTP status and the field that is to blame."""

    def __init__(self, message: str, field: str | None = None, status: int = 400):
        super().__init__(message)
        self.field, self.status = field, status


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A request that can be answered.

    Args:
      example: the conversation.
      length: tokens of its prompt, soft tokens included.
      options: of each choice but for the seed, which is that of the first.
      stop: strings before which an answer ends.
      choices: answers wanted.
      stream, usage, logprobs: what the reply holds.
    """

    example: Example
    length: int
    options: DecodingOptions
    stop: tuple[str, ...]
    choices: int
    stream: bool
    usage: bool
    logprobs: bool


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
      RequestError: it is none.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(f"the body must be a JSON object, got {type(value).__name__}")
    return value


def read_chat(
    body: Mapping[str, Any], model: Model, name: str, template: str, *, max_tokens: int, fetch: bool = False
) -> ChatRequest:
    """Checks a chat request.

    Args:
      body: of the request.
      model: that answers.
      name: what requests call it.
      template: see `Processor.question`.
      max_tokens: the longest answer, which is also what a request gets that does not say.
      fetch: download pictures from http(s) addresses.

    Raises:
      RequestError: naming the field.
    """
    if body.get("model") not in (None, "", name):
        raise RequestError(f"the model {body['model']!r} does not exist; this server has {name!r}", "model", 404)
    for field, value in body.items():
        neutral = value is None or value in ([], {}) or value in NEUTRAL.get(field, ())
        if field not in READ | HARMLESS and not neutral:
            raise RequestError(f"{field!r} is not supported", field)
    settings = {field: _setting(body, field) for field in SETTINGS}
    if settings["logprobs"] and settings["stream"]:
        raise RequestError("logprobs are not supported with stream", "logprobs")
    example = _conversation(body.get("messages"), model, fetch)
    length = _prompt_length(example, model, template)
    return ChatRequest(
        example=example,
        length=length,
        options=_options(settings, model, min(max_tokens, _room(model, length))),
        stop=_stop(body.get("stop")),
        choices=settings["n"],
        stream=settings["stream"],
        usage=_includes_usage(body.get("stream_options"), settings["stream"]),
        logprobs=settings["logprobs"],
    )


def _setting(body: Mapping[str, Any], field: str) -> Any:
    kind, low, high, default = SETTINGS[field]
    value = body.get(field)
    if value is None:
        return default
    fits = isinstance(value, bool) if kind is bool else isinstance(value, int | kind) and not isinstance(value, bool)
    if not fits or not low <= value <= high:
        limits = "" if kind is bool else f" from {low}" + ("" if high == math.inf else f" to {high}")
        raise RequestError(f"{field!r} must be a {kind.__name__}{limits}, got {value!r:.100}", field)
    return value


def _options(settings: Mapping[str, Any], model: Model, longest: int) -> DecodingOptions:
    asked = settings["max_completion_tokens"] or settings["max_tokens"] or longest
    draws = settings["temperature"] > 0 and settings["top_p"] > 0
    drawing = {"temperature": settings["temperature"], "top_p": settings["top_p"], "top_k": max(settings["top_k"], 0)}
    seed = secrets.randbits(31) if settings["seed"] is None else settings["seed"]
    return make_options(
        model, {"max_new_tokens": min(asked, longest), "do_sample": draws, "seed": seed, **(drawing if draws else {})}
    )


def _stop(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops) or len(stops) > MAX_STOPS:
        raise RequestError(f"'stop' must be a text or a list of at most {MAX_STOPS} texts", "stop")
    return tuple(stops)


def _includes_usage(value: Any, stream: bool) -> bool:
    if value is not None and not isinstance(value, dict):
        raise RequestError("'stream_options' must be an object", "stream_options")
    return stream and bool((value or {}).get("include_usage"))


def _conversation(messages: Any, model: Model, fetch: bool) -> Example:
    """The messages as an Example, with the pictures decoded."""
    if not isinstance(messages, list) or not messages:
        raise RequestError("'messages' must be a list of messages", "messages")
    turns: list[Turn] = []
    media: list[Medium] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise RequestError(f"{where} must have a role of {', '.join(ROLES)}", where)
        strange = [key for key, value in message.items() if key not in ("role", "content", "name") and value]
        if strange:
            raise RequestError(f"{where}: {strange[0]!r} is not supported", f"{where}.{strange[0]}")
        content = message.get("content")
        pieces = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(pieces, list) or not pieces:
            raise RequestError(f"{where}.content must be a text or a list of parts", f"{where}.content")
        parts = [_part(piece, f"{where}.content[{i}]", media, model, fetch) for i, piece in enumerate(pieces)]
        turns.append(Turn(ROLES[message["role"]], tuple(parts)))
    if turns[-1].role != "user":
        raise RequestError("the last message must be the user's", "messages")
    return Example("the request", media=tuple(media), turns=tuple(turns))


def _part(piece: Any, where: str, media: list[Medium], model: Model, fetch: bool) -> Part:
    kind = piece.get("type") if isinstance(piece, dict) else None
    if kind == "text" and isinstance(piece.get("text"), str):
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in piece["text"]):
            raise RequestError(f"{where}: the text holds half of a surrogate pair", where)
        return Part(piece["text"])
    if kind != "image_url":
        raise RequestError(f"{where} must be a text or an image_url", where)
    if "encoders.image" not in model.config["parts"]:
        raise RequestError("this model reads no pictures", where)
    if len(media) == MAX_IMAGES:
        raise RequestError(f"more than {MAX_IMAGES} pictures", where)
    address = piece.get("image_url")
    address = address.get("url") if isinstance(address, dict) else address
    if not isinstance(address, str):
        raise RequestError(f"{where}.image_url must be an object with a url", where)
    # Resized at once: what waits is small.
    pixels = model.processor.image(Medium("image", decode_image(_load(address, where, fetch), name=where)), where)
    media.append(Medium("image", np.asarray(pixels)))
    return Part(medium=len(media) - 1)


def _load(address: str, where: str, fetch: bool) -> bytes:
    """The bytes of a picture's address."""
    scheme, _, rest = address.partition(":")
    if scheme == "data":
        form, _, data = rest.partition(",")
        if not form.endswith(";base64"):
            raise RequestError(f"{where}: a data: address must be base64, data:image/png;base64,…", where)
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"{where}: no base64 ({error})", where) from None
    if scheme not in ("http", "https"):
        raise RequestError(f"{where}: a picture's address must begin with data:", where)
    if not fetch:
        raise RequestError(
            f"{where}: this server downloads no pictures; send a data:image/…;base64,… address (or start it with "
            "--fetch_images, where every client may be trusted)", where
        )  # fmt: skip
    try:
        with urllib.request.urlopen(address, timeout=FETCH_SECONDS) as reply:
            data = reply.read(MAX_BODY + 1)
    except (OSError, ValueError) as error:
        raise RequestError(f"{where}: {error}", where) from None
    if len(data) > MAX_BODY:
        raise RequestError(f"{where}: larger than {MAX_BODY:,} bytes", where)
    return data


def _prompt_length(example: Example, model: Model, template: str) -> int:
    """Tokens of the prompt, which is rendered once here, so that whatever is wrong with it is the fault of this request."""
    if template != "chat" and len(example.turns) > 1:
        raise RequestError(f"this server asks single questions (--template={template}), got {len(example.turns)} messages")
    batch = model.processor.prompts([example], template)
    return sum(int((rows.segments > 0).sum()) for rows in (batch.text, batch.source) if rows is not None)


def _room(model: Model, length: int) -> int:
    """Tokens that an answer may have after a prompt of `length`."""
    positions = getattr(part_config("llm", model.config["parts"]["llm"]), "max_positions", 0)
    if positions and length >= positions:
        raise RequestError(
            f"the prompt has {length} tokens, no room for an answer: this model reads {positions} tokens",
            "messages",
        )
    return positions - length if positions else 1 << 30
