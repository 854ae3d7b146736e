"""Bodies of requests: read, checked and turned into what is decoded. They come from strangers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mmjax.data.batch import Item
from mmjax.data.media.image import decode_image
from mmjax.data.segments import Ids, Segment
from mmjax.data.templates import remembers
from mmjax.decoding.options import DecodingOptions
from mmjax.serving import settings as fields
from mmjax.serving.pictures import load_picture
from mmjax.serving.settings import RequestError, Settings
from mmjax.systems.parts import part_config
from mmjax.types import Example, Medium, Part, Turn, ask
from mmjax.types.model import Model

MAX_BODY = 32 * 2**20  # bytes
MAX_IMAGES = 64
MAX_ANSWERS = 128  # of all prompts of a request

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is answered, or only weighed.

    Args:
      item: its tokens and pictures.
      text: what `echo` repeats.
      options: of each answer but for the seed, which is that of the first; None = nothing is to be written.
    """

    item: Item
    text: str
    options: DecodingOptions | None

    @property
    def ids(self) -> tuple[int, ...]:
        """Its tokens, where soft tokens stand the pad token."""
        (segment,) = self.item.segments
        return tuple((segment.source if len(segment.source) else segment.tokens).tolist())


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that can be answered.

    Args:
      chat: whether messages came, or else a prompt.
      prompts: each with as many answers as `choices`.
      stop: strings before which an answer ends, the template's own among them.
      choices: answers wanted of each prompt.
      stream, usage: how the reply comes.
      top: how many of the likeliest tokens are told with each token's log-probability; None = no log-probabilities.
      echo: whether the reply repeats the prompt.
    """

    chat: bool
    prompts: tuple[Prompt, ...]
    stop: tuple[str, ...]
    choices: int
    stream: bool
    usage: bool
    top: int | None
    echo: bool = False


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


def read_chat(body: Mapping[str, Any], model: Model, settings: Settings) -> Request:
    """Checks the body of a chat completion.

    Args:
      body: of the request.
      model: that answers.
      settings: of the server.

    Raises:
      RequestError: naming the field.
    """
    asked = fields.read_settings(body, fields.CHAT, settings.name)
    if asked["top_logprobs"] and not asked["logprobs"]:
        raise RequestError("'top_logprobs' goes with 'logprobs': true", "top_logprobs")
    top = asked["top_logprobs"] if asked["logprobs"] else None
    example = _conversation(body.get("messages"), model, settings)
    _check_roles([turn.role for turn in example.turns], settings.template)
    item = model.processor.prompt(example, settings.template)
    tokens = asked["max_completion_tokens"] or asked["max_tokens"] or settings.max_tokens
    return _request(body, asked, [(item, "")], model, settings, chat=True, tokens=tokens, top=top)


def _check_roles(roles: list[str], name: str) -> None:
    """Refuses messages that a template would drop."""
    if name == "chat":
        return
    if not remembers(name) and len(roles) > 1:
        raise RequestError(f"this server asks single questions (--template={name}), got {len(roles)} messages", "messages")
    if any(role != ("user", "assistant")[number % 2] for number, role in enumerate(roles)):
        raise RequestError(f"--template={name} wants user and assistant in turn, got {', '.join(roles)}", "messages")


def read_completion(body: Mapping[str, Any], model: Model, settings: Settings) -> Request:
    """Checks the body of a text completion; arguments and errors as of `read_chat`."""
    asked = fields.read_settings(body, fields.TEXT, settings.name)
    if asked["echo"] and asked["logprobs"] is not None and model.processor.encoder_decoder:
        raise RequestError("an encoder–decoder reads its prompt, it gives it no log-probabilities", "echo")
    prompts = [_prompt(value, model) for value in _prompt_list(body.get("prompt"))]
    return _request(
        body, asked, prompts, model, settings,
        chat=False, tokens=asked["max_tokens"], top=asked["logprobs"], echo=asked["echo"],
    )  # fmt: skip


def _request(
    body: Mapping[str, Any],
    asked: Mapping[str, Any],
    prompts: list[tuple[Item, str]],
    model: Model,
    settings: Settings,
    *,
    tokens: int,
    **how: Any,
) -> Request:
    """What both kinds of request have in common."""
    if len(prompts) * asked["n"] > MAX_ANSWERS:
        raise RequestError(f"{len(prompts)} prompts x {asked['n']} answers are more than {MAX_ANSWERS}", "n")
    template = settings.template if how["chat"] else None
    longest = fields.read_options(asked, model, max(min(tokens, settings.max_tokens), 1), how["top"], template)

    def fitted(item: Item, text: str) -> Prompt:
        prompt = Prompt(item, text, None)
        room = _room(model, len(prompt.ids), answers=tokens > 0)
        options = dataclasses.replace(longest, max_new_tokens=min(longest.max_new_tokens, room)) if tokens else None
        return dataclasses.replace(prompt, options=options)

    return Request(
        prompts=tuple(fitted(item, text) for item, text in prompts),
        stop=(*fields.read_stop(body.get("stop")), *model.processor.end_strings(template)),
        choices=asked["n"],
        stream=asked["stream"],
        usage=fields.includes_usage(body.get("stream_options"), asked["stream"]),
        **how,
    )


def _room(model: Model, length: int, *, answers: bool) -> int:
    """Tokens that an answer may have after a prompt of `length`."""
    positions = getattr(part_config("llm", model.config["parts"]["llm"]), "max_positions", 0) or 1 << 30
    if length + answers > positions:
        wanted = "an answer" if answers else "it"
        raise RequestError(f"the prompt has {length} tokens, no room for {wanted}: this model reads {positions} tokens")
    return positions - length


def _prompt_list(value: Any) -> list[Any]:
    """The prompts of a `prompt`: a text, token ids, or a list of either."""
    several = isinstance(value, list) and bool(value) and all(isinstance(entry, str | list) for entry in value)
    prompts = value if several else [value]
    if len(prompts) > MAX_ANSWERS:
        raise RequestError(f"'prompt' holds {len(prompts)} prompts, more than {MAX_ANSWERS}", "prompt")
    return prompts


def _prompt(value: Any, model: Model) -> tuple[Item, str]:
    """A prompt and its text. A text is read as `mmjax.generate` reads it; of ids all is left to the client."""
    if isinstance(value, str) and value:
        return model.processor.prompt(ask(_sound(value, "prompt"), id="the request")), value
    if not isinstance(value, list) or not value or not all(type(token) is int for token in value):
        raise RequestError("'prompt' must be a text, a list of token ids, or a list of these, none of them empty", "prompt")
    if not 0 <= min(value) <= max(value) < model.processor.limit:
        raise RequestError(f"'prompt': token ids go from 0 to {model.processor.limit - 1}", "prompt")
    segment = model.processor.tokenise(Segment((Ids(tuple(value)),)))
    return Item("the request", (segment,)), model.processor.llm.decode(value, skip_special_tokens=True)


def _conversation(messages: Any, model: Model, settings: Settings) -> Example:
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
        parts = [_part(piece, f"{where}.content[{i}]", media, model, settings) for i, piece in enumerate(pieces)]
        turns.append(Turn(ROLES[message["role"]], tuple(parts)))
    if turns[-1].role != "user":
        raise RequestError("the last message must be the user's", "messages")
    return Example("the request", media=tuple(media), turns=tuple(turns))


def _part(piece: Any, where: str, media: list[Medium], model: Model, settings: Settings) -> Part:
    kind = piece.get("type") if isinstance(piece, dict) else None
    if kind == "text" and isinstance(piece.get("text"), str):
        return Part(_sound(piece["text"], where))
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
    picture = decode_image(load_picture(address, where, settings), name=where)
    if model.processor.tiling is None:  # resized at once: what waits is small
        (picture,) = model.processor.image(Medium("image", picture), where)
    media.append(Medium("image", picture))
    return Part(medium=len(media) - 1)


def _sound(text: str, where: str) -> str:
    """The text, unless it is none: JSON can hold half of a surrogate pair."""
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        raise RequestError(f"{where}: the text holds half of a surrogate pair", where)
    return text
