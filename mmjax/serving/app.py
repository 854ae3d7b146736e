"""The HTTP application: POST /v1/chat/completions and /v1/completions, GET /v1/models and /health."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from mmjax.data.templates import template
from mmjax.decoding.writer import writer_of
from mmjax.serving import replies, requests
from mmjax.serving.dispatcher import Busy, Dispatcher, Progress, Reading, Row
from mmjax.serving.replies import Said
from mmjax.serving.settings import RequestError, Settings
from mmjax.types import UserError
from mmjax.types.model import Model

GONE = 499  # the client has left: nobody reads this status
FAILED = "the model failed; the server's log says why"
NOTHING = Progress("")
AFTER = 8  # tokens of a prompt that tell how its continuation is spelled

Reader = Callable[[Mapping[str, Any], Model, Settings], Any]


def make_app(model: Model, settings: Settings) -> FastAPI:
    """The application, whose dispatcher runs as long as it does.

    Raises:
      UserError: the model cannot be served with this template.
    """
    model = writer_of(model)
    if settings.template == "chat" and not model.processor.llm.chat_template:
        raise UserError("the model's tokenizer has no chat template; name one that asks, --template=question_answer")
    if settings.template != "chat":
        template(settings.template)
    started = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        app.state.dispatcher = Dispatcher(model, batch_size=settings.batch_size)
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
        return await complete(http, requests.read_chat)

    @app.post("/v1/completions")
    async def text(http: Request) -> Response:
        return await complete(http, requests.read_completion)

    async def complete(http: Request, read: Reader) -> Response:
        body = requests.read_json(await _body(http))
        request = await asyncio.to_thread(read, body, model, settings)
        dispatcher = app.state.dispatcher
        readings = await _unless_gone(http, _last(_submit(_readings(request), dispatcher)))
        if readings is None:
            return Response(status_code=GONE)
        if any(reading.finish == "error" for reading in readings):
            return JSONResponse(replies.error(FAILED, 500), 500)
        heads, answers = _heads(request, readings), _submit(_rows(request), dispatcher)
        if request.stream:
            return StreamingResponse(_events(request, heads, answers, model, settings.name), media_type="text/event-stream")
        finished = await _unless_gone(http, _last(answers))
        if finished is None:
            return Response(status_code=GONE)
        if any(answer.finish == "error" for answer in finished):
            return JSONResponse(replies.error(FAILED, 500), 500)
        return JSONResponse(_whole(request, heads, finished, model, settings.name))

    return app


async def _body(http: Request) -> bytes:
    """The body of a request, unless it is too large or comes from a web page that did not ask."""
    if http.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RequestError("the content type must be application/json", status=415)
    body = bytearray()
    async for piece in http.stream():
        body += piece
        if len(body) > requests.MAX_BODY:
            raise RequestError(f"the body has more than {requests.MAX_BODY:,} bytes", status=413)
    return bytes(body)


Answers = AsyncIterator[tuple[int, Progress]]
Job = Callable[..., Row | Reading]  # all but its `report` is given


def _readings(request: requests.Request) -> list[Job]:
    """A reading of each prompt, where the reply tells the log-probabilities of its tokens."""
    if not request.echo or request.top is None:
        return []
    return [functools.partial(Reading, prompt.item, request.top) for prompt in request.prompts]


def _rows(request: requests.Request) -> list[Job]:
    """A row for each answer: the choices of the first prompt, then those of the next."""
    return [
        functools.partial(
            Row,
            prompt.item,
            dataclasses.replace(prompt.options, seed=prompt.options.seed + number),
            request.stop,
            before=None if request.chat else prompt.ids[-AFTER:],
        )
        for prompt in request.prompts
        if prompt.options is not None
        for number in range(request.choices)
    ]


def _heads(request: requests.Request, readings: Sequence[Progress]) -> list[Said]:
    """What each choice begins with: its prompt where that is echoed, with the tokens where they were read."""
    heads = []
    for number, prompt in enumerate(request.prompts):
        tokens = readings[number].tokens if readings else ()
        finish = "length" if prompt.options is None else None
        heads += [Said(prompt.text if request.echo else "", tokens, finish=finish)] * request.choices
    return heads


def _since(request: requests.Request, index: int, head: Said, earlier: Progress, progress: Progress) -> Said:
    """What a choice has said since an earlier look at it."""
    prompt = () if request.chat else request.prompts[index // request.choices].ids[-AFTER:]
    return Said(
        progress.text[len(earlier.text) :],
        progress.tokens[len(earlier.tokens) :],
        (*prompt, *(token.id for token in earlier.tokens))[-AFTER:],
        len(head.text) + len(earlier.text),
        progress.finish,
    )


def _submit(jobs: Sequence[Job], dispatcher: Dispatcher) -> Answers:
    """Queues jobs; gives (number, progress) until all have finished, and frees their rows when closed early."""
    loop, news = asyncio.get_running_loop(), asyncio.Queue()

    def reporter(index: int):
        def report(progress: Progress) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waits
                loop.call_soon_threadsafe(news.put_nowait, (index, progress))

        return report

    rows = [job(report=reporter(index)) for index, job in enumerate(jobs)]
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


async def _last(answers: Answers) -> list[Progress]:
    async with contextlib.aclosing(answers):
        latest = {index: progress async for index, progress in answers}
    return [latest[index] for index in sorted(latest)]


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


def _whole(
    request: requests.Request, heads: Sequence[Said], answers: Sequence[Progress], model: Model, name: str
) -> dict[str, Any]:
    """The reply to a request that does not stream."""
    said = list(heads)
    for index, answer in enumerate(answers):
        said[index] = heads[index].then(_since(request, index, heads[index], NOTHING, answer))
    choices = [replies.choice(request, index, whole, model) for index, whole in enumerate(said)]
    return {**replies.envelope(request, name), "choices": choices, "usage": replies.usage(request, answers)}


async def _events(
    request: requests.Request, heads: Sequence[Said], answers: Answers, model: Model, name: str
) -> AsyncIterator[str]:
    """Server-sent events: how each choice begins, its text as it comes, why it ended, the usage where asked, and [DONE]."""
    common = replies.envelope(request, name, chunk=True) | ({"usage": None} if request.usage else {})
    latest = [NOTHING] * len(heads)

    def chunk(choice: dict[str, Any]) -> str:
        return replies.event({**common, "choices": [choice]})

    async with contextlib.aclosing(answers):
        for index, head in enumerate(heads):
            if request.chat:
                yield chunk(replies.role(index))
            elif head.text or head.finish:
                yield chunk(replies.delta(request, index, head, model))
        async for index, progress in answers:
            if progress.finish == "error":
                yield replies.event(replies.error(FAILED, 500))
                return
            said = _since(request, index, heads[index], latest[index], progress)
            if said.text or said.tokens:
                yield chunk(replies.delta(request, index, said._replace(finish=None), model))
            if said.finish is not None:
                yield chunk(replies.delta(request, index, Said("", (), finish=said.finish), model))
            latest[index] = progress
    if request.usage:
        yield replies.event({**common, "choices": [], "usage": replies.usage(request, latest)})
    yield "data: [DONE]\n\n"
