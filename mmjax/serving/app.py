"""The HTTP application: POST /v1/chat/completions, GET /v1/models, GET /health."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from mmjax.data.templates import template
from mmjax.serving import replies
from mmjax.serving.dispatcher import Busy, Dispatcher, Progress, Row
from mmjax.serving.requests import MAX_BODY, ChatRequest, RequestError, read_chat, read_json
from mmjax.types import UserError
from mmjax.types.model import Model

GONE = 499  # the client has left: nobody reads this status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the operator chooses.

    Args:
      name: of the model, as requests call it.
      template: how messages become prompts: "chat", or an entry of TEMPLATES that asks single questions.
      max_tokens: the longest answer, and the length of one that does not say.
      batch_size: rows decoded at once.
      fetch_images: download pictures from http(s) addresses that clients send.
    """

    name: str
    template: str = "chat"
    max_tokens: int = 1024
    batch_size: int = 16
    fetch_images: bool = False


def make_app(model: Model, settings: Settings) -> FastAPI:
    """The application, whose dispatcher runs as long as it does.

    Raises:
      UserError: the model cannot be served with this template.
    """
    if model.processor is None:
        raise UserError("the model came without a tokenizer; put tokenizer.json into its directory")
    if settings.template == "chat" and not model.processor.llm.chat_template:
        raise UserError("the model's tokenizer has no chat template; name one that asks, --template=question_answer")
    if settings.template != "chat":
        template(settings.template)
    started = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        app.state.dispatcher = Dispatcher(model, settings.template, batch_size=settings.batch_size)
        yield
        await asyncio.to_thread(app.state.dispatcher.close)

    app = FastAPI(title="mmjax", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(UserError)
    async def refuse(_: Request, fault: UserError) -> Response:
        status, field = (fault.status, fault.field) if isinstance(fault, RequestError) else (400, None)
        return JSONResponse(replies.error(str(fault), status, field), status)

    @app.exception_handler(Busy)
    async def defer(_: Request, fault: Busy) -> Response:
        return JSONResponse(replies.error(str(fault), 503), 503, headers={"Retry-After": "1"})

    @app.exception_handler(HTTPException)
    async def miss(_: Request, fault: HTTPException) -> Response:
        return JSONResponse(replies.error(fault.detail, fault.status_code), fault.status_code)

    @app.get("/health")
    async def health() -> Any:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> Any:
        entry = {"id": settings.name, "object": "model", "created": started, "owned_by": "mmjax"}
        return {"object": "list", "data": [entry]}

    @app.post("/v1/chat/completions")
    async def chat(http: Request) -> Response:
        body = read_json(await _body(http))
        request = await asyncio.to_thread(
            read_chat, body, model, settings.name, settings.template,
            max_tokens=settings.max_tokens, fetch=settings.fetch_images,
        )  # fmt: skip
        answers = _submit(request, app.state.dispatcher)
        if request.stream:
            return StreamingResponse(_events(request, answers, settings.name), media_type="text/event-stream")
        finished = await _unless_gone(http, _last(request, answers))
        if finished is None:
            return Response(status_code=GONE)
        if any(answer.finish == "error" for answer in finished):
            return JSONResponse(replies.error("the model failed; the server's log says why", 500), 500)
        return JSONResponse(replies.whole(request, finished, model, settings.name))

    return app


async def _body(http: Request) -> bytes:
    """The body of a request, unless it is too large or comes from a web page that did not ask."""
    if http.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RequestError("the content type must be application/json", status=415)
    body = bytearray()
    async for piece in http.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise RequestError(f"the body has more than {MAX_BODY:,} bytes", status=413)
    return bytes(body)


Answers = AsyncIterator[tuple[int, Progress]]


def _submit(request: ChatRequest, dispatcher: Dispatcher) -> Answers:
    """Queues a row for each choice; gives (choice, progress) until all have finished, and frees the rows when closed early."""
    loop, news = asyncio.get_running_loop(), asyncio.Queue()

    def reporter(index: int):
        def report(progress: Progress) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waits
                loop.call_soon_threadsafe(news.put_nowait, (index, progress))

        return report

    rows = []
    for index in range(request.choices):
        options = dataclasses.replace(request.options, seed=request.options.seed + index)
        rows.append(Row(request.example, request.length, options, request.stop, reporter(index)))
    dispatcher.submit(rows)

    async def answers() -> Answers:
        try:
            open_rows = len(rows)
            while open_rows:
                index, progress = await news.get()
                open_rows -= progress.finish is not None
                yield index, progress
        finally:
            for row in rows:
                row.cancelled.set()

    return answers()


async def _last(request: ChatRequest, answers: Answers) -> list[Progress]:
    async with contextlib.aclosing(answers):
        latest = {index: progress async for index, progress in answers}
    return [latest[index] for index in range(request.choices)]


async def _unless_gone(http: Request, work: Any) -> Any:
    """The result of the work, or None when the client leaves before."""

    async def leaves() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(leaves())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _events(request: ChatRequest, answers: Answers, name: str) -> AsyncIterator[str]:
    """Server-sent events: the role, the text as it comes, why it ended, the usage where asked, and [DONE]."""
    common = replies.envelope("chat.completion.chunk", name) | ({"usage": None} if request.usage else {})
    latest = [Progress("")] * request.choices

    def chunk(index: int, delta: dict[str, str], finish: str | None = None) -> str:
        return replies.event({**common, "choices": [replies.choice(index, delta, finish)]})

    async with contextlib.aclosing(answers):
        for index in range(request.choices):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for index, progress in answers:
            if progress.finish == "error":
                yield replies.event(replies.error("the model failed; the server's log says why", 500))
                return
            if new := progress.text[len(latest[index].text) :]:
                yield chunk(index, {"content": new})
            if progress.finish is not None:
                yield chunk(index, {}, progress.finish)
            latest[index] = progress
    if request.usage:
        yield replies.event({**common, "choices": [], "usage": replies.usage(request, latest)})
    yield "data: [DONE]\n\n"
