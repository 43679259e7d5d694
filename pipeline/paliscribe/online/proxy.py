"""What Serve's HTTP proxies do with a request before it reaches the endpoint. Serve imports it: see `pool.serving`.

The proxy reads some headers as instructions and some as text, which fails; it answers some errors and one path itself.
So callers' headers are cleaned first, and the proxy's own replies get the endpoint's shape.
"""

import json
import logging
import uuid
from typing import Any

import uvicorn.config
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from paliscribe.errors import RequestError
from paliscribe.online.shape import ID_HEADER, clean_id, error_body

MAX_HEAD = 2**16  # bytes of a request line and its headers
HEAD_SECONDS = 20.0  # for them to arrive
STEERING = {  # headers that Serve takes as instructions, with `_` for `-`
    "x_request_disconnect_disabled",
    "x_request_timeout_seconds",
    "x_session_id",
    "serve_multiplexed_model_id",
}
PROXY_ERRORS = (408, 429, 503)  # which Serve answers in plain text
ROUTES = "/-/routes"  # Serve answers it to everybody
UNAVAILABLE = RequestError(503, "unavailable", "the endpoint is starting, or its gateway was lost; retry")
TOO_LARGE = RequestError(431, "headers_too_large", f"request line and headers exceed {MAX_HEAD:,} bytes")
TOO_SLOW = RequestError(408, "too_slow", f"request line and headers did not arrive within {HEAD_SECONDS:g} seconds")
MALFORMED = RequestError(400, "invalid_request", "this is not an HTTP/1.1 request")
log = logging.getLogger("ray.serve")  # the log of the proxy


def middlewares() -> list[Middleware]:
    """Middleware for Serve's proxies. Replaces uvicorn's protocols, which have no setting there."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedProtocol.__name__}"
    uvicorn.config.WS_PROTOCOLS["auto"] = None  # an upgrade is a plain request: the endpoint has no WebSocket
    return [Middleware(Cleaned)]


class Cleaned:
    """ASGI middleware: cleans a request's headers, and gives the proxy's own error replies the endpoint's shape."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = clean_id([value for key, value in scope["headers"] if key == ID_HEADER.encode()])
        headers = [(key, value) for key, value in scope["headers"] if not _steers(key)]
        scope["headers"] = [*headers, (ID_HEADER.encode(), name.encode())]
        head = [scope["raw_path"], scope["query_string"], *(part for pair in headers for part in pair)]
        if sum(map(len, head)) > MAX_HEAD:  # it came in one piece
            await _reply(send, TOO_LARGE, name)
            return
        if not scope["path"].startswith("/"):  # `*`, or an authority
            await _reply(send, MALFORMED, name)
            return
        if scope["path"] == ROUTES:  # so that the endpoint answers: 401 without a key, 404 with one
            scope["path"], scope["raw_path"] = f"{ROUTES}/", f"{ROUTES}/".encode()
        started, own = False, False

        async def shaped(message: Message) -> None:
            nonlocal started, own
            if message["type"] == "http.response.start":
                started = True
                kind = dict(message["headers"]).get(b"content-type", b"")
                own = message["status"] in PROXY_ERRORS and kind.startswith(b"text/plain")
            if not own:
                await send(message)
            elif message["type"] == "http.response.start":
                await _reply(send, UNAVAILABLE, name)

        try:
            await self.app(scope, receive, shaped)
        except Exception:
            if started:
                raise
            log.exception("id=%s failed in the proxy", name)
        if not started:
            await _reply(send, UNAVAILABLE, name)


def _steers(key: bytes) -> bool:
    """Whether Serve would take this header as an instruction, or fail on its name."""
    return not key.isascii() or key == ID_HEADER.encode() or key.decode().lower().replace("-", "_") in STEERING


async def _reply(send: Send, error: RequestError, name: str) -> None:
    body = json.dumps(error_body(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(b"retry-after", b"1"), (ID_HEADER.encode(), name.encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with bounds on the head of a request, in bytes and in seconds: it has none."""

    _head, _timer = 0, None  # bytes of the head that is being read; its timer

    def connection_made(self, transport: Any) -> None:
        """A connection: its first head is awaited."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of a connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The end of a head."""
        self._stop_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Bytes of a connection."""
        super().data_received(data)
        if self._timer is not None:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._refuse(TOO_LARGE)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(MALFORMED)

    def _await_head(self) -> None:
        self._stop_timer()
        self._head, self._timer = 0, self.loop.call_later(HEAD_SECONDS, self._refuse, TOO_SLOW)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, error: RequestError) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        body = json.dumps(error_body(error)).encode()
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        head += f"{ID_HEADER}: {uuid.uuid4().hex}\r\n\r\n"
        self.transport.write(STATUS_LINE[error.status] + head.encode() + body)
        self.transport.close()
