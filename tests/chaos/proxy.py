"""A proxy in front of an S3 server that disturbs what passes it, by a seed or by a given share of the requests."""

import contextlib
import http.client
import os
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

FAULTS: Final = {  # kind -> what a client finds
    "503": "the store asks to slow down",
    "500": "the store fails before it has done anything",
    "lost answer": "the store has done it, and says 500",
    "silence": "no answer; half of these requests are done",
    "reset": "the connection is reset; half of these requests are done",
    "truncated": "the answer's body ends in its middle; where it has none, as the next",
    "truncated headers": "the answer ends in the middle of its headers",
}
EXPIRED: Final = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
END: Final = "/-/end-after-next-write/"  # and a pid: this process ends when the store has done its next write
SILENCE: Final = 3.0  # seconds, longer than the clients wait here


class Proxy(ThreadingHTTPServer):
    """Passes requests to an S3 server. `failing`: share of requests that are answered 503. `failed`: their number."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.failing, self.failed = urlsplit(target).netloc, 0.0, 0
        self.given: Counter[str] = Counter()  # faults, by kind
        self.last: float | None = None  # `time.monotonic()` of the last one
        self.expired = False  # whether credentials have ended
        self.expires_in = -1  # requests until they end; negative: they do not
        self.ending = 0  # pid that ends after the next write
        self._shares: Mapping[str, float] = {}
        self._random, self._lock, self._most = random.Random(), threading.Lock(), 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """Nothing: a client that has ended does not wait for its answer."""

    def disturb(self, seed: object, shares: Mapping[str, float], most: int) -> None:
        """Disturb requests from now on. `shares`: kind -> probability. `most`: faults, so that an end comes."""
        self._random, self._shares, self._most = random.Random(str(seed)), shares, most
        self.given.clear()
        self.last = None

    def fault(self) -> str | None:
        """What happens to the next request."""
        with self._lock:
            drawn = self._random.random()
            if self.expires_in == 0:
                self.expired = True
            self.expires_in -= self.expires_in > 0
            if self.expired:
                self._note("expired")
                return "expired"
            if drawn < self.failing:
                self.failed += 1
                return "503"
            for kind, share in self._shares.items() if self.given.total() < self._most else ():
                if drawn < share:
                    self._note(kind)
                    return kind
                drawn -= share
            return None

    def is_done(self) -> bool:
        """Whether a request whose answer is lost is done."""
        with self._lock:
            return self._random.random() < 0.5

    def _note(self, kind: str) -> None:
        self.given[kind] += 1
        self.last = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith(END):
            self.server.ending = int(self.path.removeprefix(END))
            return self._answer(200)
        fault = self.server.fault()
        if fault in ("503", "500"):
            return self._answer(int(fault))
        if fault == "expired":
            return self._answer(403, EXPIRED)
        if fault in ("silence", "reset") and not self.server.is_done():
            return self._drop(fault)
        try:
            answer, data = self._forward(body)
        except (OSError, http.client.HTTPException):  # the store is down
            return self._drop("reset")
        if fault == "lost answer":
            return self._answer(500)
        if fault in ("silence", "reset"):
            return self._drop(fault)
        return self._give(answer, data, cut=fault if fault in ("truncated", "truncated headers") else None)

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        with contextlib.closing(http.client.HTTPConnection(self.server.target, timeout=60)) as connection:
            connection.request(self.command, self.path, body, dict(self.headers.items()))  # signed for our own Host
            answer = connection.getresponse()
            data = answer.read()
        if self.server.ending and self.command in ("PUT", "POST", "DELETE"):
            pid, self.server.ending = self.server.ending, 0
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return answer, data

    def _give(self, answer: http.client.HTTPResponse, data: bytes, cut: str | None) -> None:
        self.send_response(answer.status)
        length = answer.headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", length)
        if cut == "truncated headers" or (cut and not data):
            lines: list[bytes] = getattr(self, "_headers_buffer")  # noqa: B009  # typeshed lacks it
            self.wfile.write(b"".join(lines[: len(lines) // 2]))
            return self._drop("end")
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        return self._drop("end") if cut else None

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def _drop(self, how: str) -> None:
        """End the connection without an answer: after a silence, or at once by a reset."""
        self.close_connection = True
        if how == "silence":
            time.sleep(SILENCE)
        if how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass


@contextlib.contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """A proxy that runs during the block."""
    with Proxy(target) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
