"""A web server that answers in every way that servers do."""

import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate

import pytest

from paliscribe.storage import retry


@dataclass
class Web:
    """Its address, and how often each path was asked for."""

    address: str = ""
    asked: Counter[str] = field(default_factory=Counter)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    state = Web()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].lstrip("/")
            state.asked[name] += 1
            first, _, then = name.partition("-then-")
            answer = then if then and state.asked[name] > 1 else first
            special = {"drip": self.drip, "cut": self.cut, "reset": self.reset, "slow": self.slow}
            special |= {"headers": self.told, "redirect": self.redirect}
            special.get(answer, self.plain)(answer)

        def told(self, answer: str) -> None:
            said = " ".join(str(self.headers[name]) for name in ("User-Agent", "X-Key", "Authorization")).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def redirect(self, answer: str) -> None:
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def plain(self, answer: str) -> None:
            status = int(answer) if answer.isdigit() else 200
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/moved")
            if status == 429:
                self.send_header(
                    "Retry-After", "0" if state.asked[answer] % 2 else formatdate(time.time(), usegmt=True)
                )
            if status == 206 and "?" in self.path:
                end = {"whole": "10/11", "part": "10/99"}[self.path.partition("?")[2]]
                self.send_header("Content-Range", f"bytes 0-{end}")
            body = {"empty": b"", "large": b"x" * 5000}.get(answer, b"body of " + answer.encode())
            self.send_header("Set-Cookie", "seen=1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body + (b" with a cookie" if "Cookie" in self.headers else b""))

        def cut(self, answer: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"only this")

        def reset(self, answer: str) -> None:
            self.connection.close()

        def slow(self, answer: str) -> None:
            time.sleep(0.6)

        def drip(self, answer: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _ in range(1000):
                try:
                    self.wfile.write(b".")
                except OSError:
                    return
                time.sleep(0.05)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # resets are on purpose
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()
