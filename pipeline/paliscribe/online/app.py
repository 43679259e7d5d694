"""The routes, and what all of them share: keys, limits, request ids and the shape of errors."""

import asyncio
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paliscribe import __version__
from paliscribe.config import ServeConfig
from paliscribe.errors import RequestError
from paliscribe.online import chat, native, page
from paliscribe.online.background import batches, files
from paliscribe.online.background.batches import Launcher
from paliscribe.online.background.store import Orders
from paliscribe.online.chat import ChatRequest
from paliscribe.online.keys import Keys
from paliscribe.online.native import AnnotateRequest, Named
from paliscribe.online.service import Service
from paliscribe.storage import StorageError

OPEN_PATHS = {"/", "/health", "/docs", "/openapi.json"}  # answered without a key
RETRY_AFTER = 1  # seconds: a queue that is full has moved on by then
ID_HEADER = "x-request-id"
LONGEST, LONGEST_ID = 200, 64  # characters of what a caller writes into the log
FAILED = RequestError(500, "internal_error", "the gateway failed on this call")
BODY_SECONDS = 60.0  # within which a body must have come
FILES, FILE_SECONDS, FORM = "/v1/files", 600.0, 2**16  # files come slower; bytes of the form around one
FILE_BODIES = 4  # files of the largest size, likewise
BODIES = 16  # bodies of the largest size that are held at a time; what is beyond them is refused
Observe = Callable[[str, int, float], None]  # route, status (0: the client went away), seconds
Over = Callable[[Scope, int, float], None]  # the same of a call
log = logging.getLogger("paliscribe.access")
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The call is wrong; `error.param` names the field."},
    401: {"description": "No valid API key."},
    404: {"description": "No such model, file, batch or job."},
    413: {"description": "The body, an image or the call is too large."},
    429: {"description": "Too much is waiting, or this key calls too often; `Retry-After` says when."},
    503: {"description": "No replica is up."},
    504: {"description": "No answer within the time limit."},
}


def create_app(  # long: the handlers of one application
    service: Service,
    keys: Keys,
    observe: Observe = lambda path, status, seconds: None,
    *,
    label: bool = True,
    orders: Orders | None = None,
    launcher: Launcher | None = None,
) -> FastAPI:
    """The endpoint over a service. `observe` is told of every call that is over.

    `orders`: where files, batches and jobs are kept, if they are; `launcher` works on them.

    `label`: whether replies carry the call's id; False where a proxy before this adds the id that it found or made.
    """
    about: dict[str, Any] = {"title": "Paliscribe", "version": __version__, "description": "PaliGemma, online."}
    app = FastAPI(**about, redoc_url=None, redirect_slashes=False)

    _handle_errors(app)

    @app.get("/", include_in_schema=False)
    async def front() -> HTMLResponse:
        return HTMLResponse(page.HTML, headers=page.HEADERS)

    @app.get("/health", summary="Whether the gateway is up")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models", summary="The models that are served")
    async def models() -> dict[str, Any]:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "paliscribe"} for name in service.models]
        return {"object": "list", "data": data}

    @app.post("/v1/chat/completions", summary="One answer, as OpenAI's clients ask for it", responses=ERRORS)
    async def completions(call: ChatRequest) -> Any:
        served = service.model(call.model)
        picture, prompt = call.check()
        asked = service.ask(await service.look(served, picture), prompt, **call.options())
        if not call.stream:
            return await chat.complete(service, served, call, asked)
        return await _streamed(chat.stream(service, served, call, asked))

    @app.post("/v1/annotate", summary="Records of images under tasks", responses=ERRORS)
    async def annotate(call: AnnotateRequest) -> Any:
        if call.stream:
            return await _streamed(native.stream(service, call))
        pictures: list[Named] = [(f"{number}", image) for number, image in enumerate(call.images)]
        return await native.annotate(service, pictures, call.tasks, call.model, call.max_tokens)

    @app.post("/v1/annotate/upload", summary="The same, with images as files of a form", responses=ERRORS)
    async def upload(
        image: Annotated[list[UploadFile], File(description="One image or several.")],
        task: Annotated[list[str], Form(description="One prompt or several.")],
        model: Annotated[str | None, Form()] = None,
        max_tokens: Annotated[int | None, Form(ge=1)] = None,
    ) -> dict[str, Any]:
        pictures: list[Named] = [(chat.whole(file.filename or ""), await file.read()) for file in image]
        return await native.annotate(service, pictures, task, model, max_tokens)

    app.include_router(files.routes(orders), responses=ERRORS)
    app.include_router(batches.routes(service.config, list(service.models), orders, launcher), responses=ERRORS)

    routes = {route.path for route in app.routes if isinstance(route, Route)}

    def over(scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in routes else getattr(scope.get("route"), "path", "other")
        observe(path, status, seconds)

    app.add_middleware(Guard, keys=keys, config=service.config, over=over, label=label)
    return app


def _handle_errors(app: FastAPI) -> None:
    """Give every error the one shape."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return _refusal(error)

    @app.exception_handler(StorageError)
    async def no_store(_: Request, error: StorageError) -> JSONResponse:
        log.error("storage failed at %s", error)
        return _refusal(RequestError(503, "storage", "the store of files and orders does not answer; try again"))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or None
        return _refusal(RequestError(400, "invalid_request", f"{place or 'the body'}: {first['msg'].lower()}", place))

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> JSONResponse:
        reply = _refusal(RequestError(error.status_code, "invalid_request", str(error.detail)))
        reply.headers.update(error.headers or {})  # of a 405: the methods that there are
        return reply


class Guard:
    """Around every call: its key, the size of its body, its id, its line in the log, and what nobody has caught."""

    def __init__(self, app: ASGIApp, keys: Keys, config: ServeConfig, over: Over, label: bool) -> None:
        self.app, self.keys, self.config, self.over, self.label = app, keys, config, over, label
        self._held = 0  # bytes of the bodies of calls under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, body = time.perf_counter(), 0, bytearray()
        name = quote(_header(scope, ID_HEADER) or "", safe="")[:LONGEST_ID] or uuid.uuid4().hex

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.label:
                    message["headers"] = [*message["headers"], (ID_HEADER.encode(), name.encode())]
            await send(message)

        try:
            if scope["path"] not in OPEN_PATHS:
                scope.setdefault("state", {})["owner"] = self.keys.admit(_header(scope, "authorization"))
            await self.app(scope, await self._read(body, scope, receive), labelled)
        except Exception as error:
            if not isinstance(error, RequestError):
                log.exception("id=%s failed", name)
            if status:  # too late for words
                raise
            await _refusal(error if isinstance(error, RequestError) else FAILED)(scope, receive, labelled)
        finally:
            self._held -= len(body)
            taken = time.perf_counter() - begun
            self.over(scope, status, taken)
            method, path = (quote(scope[part], errors="replace")[:LONGEST] for part in ("method", "path"))
            log.info("id=%s method=%s path=%s status=%d ms=%.1f", name, method, path, status, taken * 1e3)

    async def _read(self, body: bytearray, scope: Scope, receive: Receive) -> Receive:
        """Take in the whole body, and give it again to who asks. Raises RequestError: too large, too slow, too many."""
        length, most, seconds = _header(scope, "content-length"), self.config.max_body, BODY_SECONDS
        if scope["path"] == FILES and self.config.files is not None:
            most, seconds = self.config.max_file + FORM, FILE_SECONDS
        if length is not None and re.fullmatch("[0-9]{1,18}", length) and int(length) > most:
            raise _too_large(most)
        files = FILE_BODIES * self.config.max_file if self.config.files is not None else 0
        last: Message = {}
        try:
            async with asyncio.timeout(seconds):
                while not last or (last["type"] == "http.request" and last.get("more_body", False)):
                    last = await receive()
                    part = last.get("body", b"")
                    body += part
                    self._held += len(part)
                    if len(body) > most:
                        raise _too_large(most)
                    if self._held > max(BODIES * self.config.max_body, files):
                        raise RequestError(429, "overloaded", "too many large bodies are under way")
        except TimeoutError:
            raise RequestError(408, "too_slow", f"the body did not come within {seconds:g} seconds") from None
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        if last["type"] != "http.request":
            whole = [last]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again


def _header(scope: Scope, name: str) -> str | None:
    """A header of the call. One that comes twice is none: who stands before us may read the other one."""
    found = [value.decode("latin-1") for key, value in scope["headers"] if key == name.encode()]
    return found[0] if len(found) == 1 else None


def _too_large(most: int) -> RequestError:
    return RequestError(413, "too_large", f"the body has more than the {most:,} bytes that are taken")


def _refusal(error: RequestError) -> JSONResponse:
    seconds = str(math.ceil(error.retry_after or RETRY_AFTER))
    headers = {"retry-after": seconds} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(chat.error_body(error), error.status, headers)


async def _streamed(events: AsyncIterator[str]) -> StreamingResponse:
    """Events as a reply. An error before the first of them is raised here, and has a status of its own."""
    return StreamingResponse(_events(await anext(events), events), media_type="text/event-stream")


async def _events(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    """A stream under way: an error ends it in words."""
    yield first
    try:
        async for event in rest:
            yield event
    except RequestError as error:
        yield chat.error_event(error)
    except Exception:
        log.exception("a stream failed")
        yield chat.error_event(FAILED)
