"""The HTTP routes, and what they share: API keys, limits, request ids and error bodies."""

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paliscribe import __version__
from paliscribe.config import ServeConfig
from paliscribe.errors import RequestError
from paliscribe.online import chat, native, page
from paliscribe.online.background import batches, files
from paliscribe.online.background.batches import Launcher
from paliscribe.online.background.store import BackgroundStore
from paliscribe.online.browsers import check_names
from paliscribe.online.chat import ChatRequest
from paliscribe.online.keys import Keys
from paliscribe.online.native import AnnotateRequest, NamedImage
from paliscribe.online.reference import HEADERS as REFERENCE_HEADERS
from paliscribe.online.reference import reference
from paliscribe.online.service import Service
from paliscribe.online.shape import ID_HEADER, clean_id, error_body, replace_surrogates
from paliscribe.storage import StorageError

HEALTH = "/health"
EXAMPLES = "/examples/"  # pictures of the page
OPEN_PATHS = {"/", HEALTH, "/docs", "/openapi.json"} | {
    EXAMPLES + name for name in page.EXAMPLES
}  # no API key required
PATHS = ("/v1/chat/completions", "/v1/annotate", "/v1/models")  # named to a client that asks for another
RETRY_AFTER = 1  # seconds; the default of Retry-After, after which a full queue has drained a little
MAX_LOGGED = 200  # characters of a caller's method and path in the log
STREAMED = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # a proxy must not wait for the end of a stream
FAILED = RequestError(500, "internal_error", "internal error in the gateway")
BODY_TIMEOUT = 60.0  # seconds in which a request body must arrive
FILES_PATH, FILE_TIMEOUT = "/v1/files", 600.0  # uploads get more time
FORM_OVERHEAD = 2**16  # bytes of the multipart form around a file
MAX_VALUES = 100_000  # in a JSON body: parsing and checking them blocks all other calls
MAX_BODIES, MAX_FILES = 16, 4  # buffered at a time, in bodies and files of the largest size; beyond that: 429
Observe = Callable[[str, int, float], None]  # route, status (0: the client disconnected), seconds
ObserveScope = Callable[[Scope, int, float], None]  # the same for an ASGI scope
log = logging.getLogger("paliscribe.access")
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Invalid request; `error.param` names the field."},
    401: {"description": "Missing or invalid API key."},
    404: {"description": "No such model, file, batch or job."},
    413: {"description": "The body, an image or the number of requests is too large."},
    429: {"description": "Queue full or rate limit reached; retry after `Retry-After` seconds."},
    503: {"description": "No replica is available."},
    504: {"description": "Timeout."},
}


def create_app(  # long: the handlers of one application
    service: Service,
    keys: Keys,
    observe: Observe = lambda path, status, seconds: None,
    *,
    label: bool = True,
    store: BackgroundStore | None = None,
    launcher: Launcher | None = None,
) -> FastAPI:
    """The ASGI application of the endpoint.

    `observe` is called after every HTTP request. `label`: whether to add the request id to replies; False behind a
    proxy that adds it. `store`: where files and background jobs are kept; without it their routes answer 404.
    `launcher` runs the background jobs.
    """
    about: dict[str, Any] = {"title": "Paliscribe", "version": __version__, "description": "PaliGemma, online."}
    app = FastAPI(**about, docs_url=None, redoc_url=None, redirect_slashes=False)

    _handle_errors(app)

    @app.get("/", include_in_schema=False)
    async def front() -> HTMLResponse:
        return HTMLResponse(page.HTML, headers=page.headers(service.config.images.addresses))

    @app.get(f"{EXAMPLES}{{name}}", include_in_schema=False)
    async def example(name: str) -> Response:
        if name not in page.EXAMPLES:
            raise HTTPException(404)
        return Response(page.EXAMPLES[name], media_type="image/jpeg", headers=page.restricted({}))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(reference(app.openapi()), headers=REFERENCE_HEADERS)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Health check of the gateway")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models", summary="List the served models")
    async def models() -> dict[str, Any]:
        listed = [chat.about_model(served) for served in service.models.values()]
        return {"object": "list", "data": listed, "image_addresses": service.config.images.addresses}

    @app.get("/v1/models/{name:path}", summary="A served model", responses=ERRORS)
    async def model(name: str) -> dict[str, Any]:
        return chat.about_model(service.model(name))

    @app.post("/v1/chat/completions", summary="OpenAI-compatible chat completion", responses=ERRORS)
    async def completions(call: ChatRequest) -> Any:
        served = service.model(call.model)
        image, prompt = call.check(last_picture=service.config.last_picture)
        checked = service.check(await service.load(served, image), prompt, **call.options())
        if not call.stream:
            return await chat.complete(service, served, call, checked)
        return await _streamed(chat.stream(service, served, call, checked))

    @app.post("/v1/annotate", summary="Annotate images: one record for each image and task", responses=ERRORS)
    async def annotate(call: AnnotateRequest) -> Any:
        if call.stream:
            return await _streamed(native.stream(service, call))
        images: list[NamedImage] = [(f"{number}", image) for number, image in enumerate(call.images)]
        return await native.annotate(service, images, call.tasks, call.model, call.max_tokens)

    @app.post("/v1/annotate/upload", summary="The same, with images uploaded as a multipart form", responses=ERRORS)
    async def upload(
        image: Annotated[list[UploadFile], File(description="One or more images.")],
        task: Annotated[list[str], Form(description="One or more prompts.")],
        model: Annotated[str | None, Form()] = None,
        max_tokens: Annotated[int | None, Form(ge=1)] = None,
    ) -> dict[str, Any]:
        images: list[NamedImage] = [(replace_surrogates(each.filename or ""), await each.read()) for each in image]
        return await native.annotate(service, images, task, model, max_tokens)

    app.include_router(files.routes(store, service.config.expire_after), responses=ERRORS)
    app.include_router(batches.routes(service.config, list(service.models), store, launcher), responses=ERRORS)

    routes = {route.path for route in app.routes if isinstance(route, Route)}

    def observe_scope(scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in routes else getattr(scope.get("route"), "path", "other")
        observe(path, status, seconds)

    app.add_middleware(Guard, keys=keys, config=service.config, observe=observe_scope, label=label)
    if origins := service.config.cors_origins:  # added last: a preflight has no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[ID_HEADER],
        )
    return app


def _handle_errors(app: FastAPI) -> None:
    """Answer every error with the same JSON shape."""

    @app.exception_handler(RequestError)
    async def rejected(_: Request, error: RequestError) -> JSONResponse:
        return _error_reply(error)

    @app.exception_handler(StorageError)
    async def storage_failed(_: Request, error: StorageError) -> JSONResponse:
        log.error("storage failed at %s", error)
        words = "the storage of files and background jobs does not respond; retry"
        return _error_reply(RequestError(503, "storage", words))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _error_reply(chat.invalid(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> JSONResponse:
        words = str(error.detail)
        if error.status_code == 404:
            words = f"no such path; this endpoint has {', '.join(PATHS)}, and the others that /docs lists"
        reply = _error_reply(RequestError(error.status_code, "invalid_request", words))
        reply.headers.update(error.headers or {})  # `Allow` of a 405
        return reply


class Guard:
    """ASGI middleware around every request: authentication, body limits, request id, access log, unexpected errors."""

    def __init__(self, app: ASGIApp, keys: Keys, config: ServeConfig, observe: ObserveScope, label: bool) -> None:
        self.app, self.keys, self.config, self.observe, self.label = app, keys, config, observe, label
        self._buffered = 0  # bytes of the bodies of requests in flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, body = time.perf_counter(), 0, bytearray()
        name = clean_id([value for key, value in scope["headers"] if key == ID_HEADER.encode()])

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.label:
                    message["headers"] = [*message["headers"], (ID_HEADER.encode(), name.encode())]
            await send(message)

        try:
            if not self.keys.are_required and scope["path"] != HEALTH:
                check_names(self.config, scope["method"], _header(scope, "host"), _header(scope, "origin"))
            if scope["path"] not in OPEN_PATHS:
                scope.setdefault("state", {})["owner"] = await self.keys.admit(_header(scope, "authorization"))
            await self.app(scope, await self._read(body, scope, receive), labelled)
        except Exception as error:
            if not isinstance(error, RequestError):
                log.exception("id=%s failed", name)
            if status:  # the response has started: too late for an error body
                raise
            await _error_reply(error if isinstance(error, RequestError) else FAILED)(scope, receive, labelled)
        finally:
            self._buffered -= len(body)
            taken = time.perf_counter() - begun
            self.observe(scope, status, taken)
            method, path = (quote(scope[part], errors="replace")[:MAX_LOGGED] for part in ("method", "path"))
            log.info("id=%s method=%s path=%s status=%d ms=%.1f", name, method, path, status, taken * 1e3)

    async def _read(self, body: bytearray, scope: Scope, receive: Receive) -> Receive:
        """Buffer the whole body; returns a `receive` that replays it.

        Raises RequestError: 408 (too slow), 413 (too large), 429 (too many bytes buffered).
        """
        length, most, seconds = _header(scope, "content-length"), self.config.max_body, BODY_TIMEOUT
        if scope["path"] == FILES_PATH and self.config.files is not None:
            most, seconds = self.config.max_file + FORM_OVERHEAD, FILE_TIMEOUT
        if length is not None and re.fullmatch("[0-9]{1,18}", length) and int(length) > most:
            raise _too_large(most)
        files = MAX_FILES * self.config.max_file if self.config.files is not None else 0
        last: Message = {}
        try:
            async with asyncio.timeout(seconds):
                while not last or (last["type"] == "http.request" and last.get("more_body", False)):
                    last = await receive()
                    part = last.get("body", b"")
                    body += part
                    self._buffered += len(part)
                    if len(body) > most:
                        raise _too_large(most)
                    if self._buffered > max(MAX_BODIES * self.config.max_body, files):
                        raise RequestError(429, "overloaded", "too many large request bodies in flight")
        except TimeoutError:
            words = f"the request body did not arrive within {seconds:g} seconds"
            raise RequestError(408, "too_slow", words) from None
        if (
            not (_header(scope, "content-type") or "").lower().startswith("multipart/")
            and body.count(b",") > MAX_VALUES
        ):
            raise RequestError(413, "too_large", f"the request body has more than {MAX_VALUES:,} values")
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        if last["type"] != "http.request":
            whole = [last]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return replay


def _header(scope: Scope, name: str) -> str | None:
    """A header of the request, or None. Duplicates count as absent: a proxy may have read the other one."""
    found = [value.decode("latin-1") for key, value in scope["headers"] if key == name.encode()]
    return found[0] if len(found) == 1 else None


def _too_large(most: int) -> RequestError:
    return RequestError(413, "too_large", f"the request body exceeds the limit of {most:,} bytes")


def _error_reply(error: RequestError) -> JSONResponse:
    seconds = str(math.ceil(error.retry_after or RETRY_AFTER))
    headers = {"retry-after": seconds} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(error), error.status, headers)


async def _streamed(events: AsyncIterator[str]) -> StreamingResponse:
    """Server-sent events as a response. An error before the first event is raised, so it gets its own status."""
    return StreamingResponse(_events(await anext(events), events), media_type="text/event-stream", headers=STREAMED)


async def _events(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    """Events of a started stream. An error becomes its last event."""
    yield first
    try:
        async for event in rest:
            yield event
    except RequestError as error:
        yield chat.error_event(error)
    except Exception:
        log.exception("a stream failed")
        yield chat.error_event(FAILED)
