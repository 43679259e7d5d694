"""A metadata service of a cloud, on loopback."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PLAIN, OPEN = "/latest/meta-data/", "/computeMetadata/v1/instance/"


@dataclass(slots=True)
class Metadata:
    """What it says. `texts`: by path; `seen`: method and path of each request; `tokens`: those of EC2 that hold."""

    address: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    token: tuple[int, str] = (200, "AQAEAB==")
    status: dict[str, int] = field(default_factory=dict)  # by path, instead of 200
    location: str = ""  # of a redirect
    flavor: str = "Google"
    pause: float = 0.0  # seconds before each answer

    def announce(self, seconds: float, action: str = "terminate") -> None:
        """Give EC2's notice."""
        end = datetime.now(UTC) + timedelta(seconds=seconds)
        self.texts[PLAIN + "spot/instance-action"] = f'{{"action": "{action}", "time": "{end:%Y-%m-%dT%H:%M:%SZ}"}}'

    def count(self, part: str) -> int:
        """Requests whose method and path contain this."""
        return sum(part in request for request in self.seen)


@contextlib.contextmanager
def metadata() -> Iterator[Metadata]:
    """A service that knows nothing yet."""
    said = Metadata()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            said.seen.append(f"PUT {self.path}")
            status, token = said.token
            if self.path != "/latest/api/token" or "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
                status, token = 400, ""
            said.tokens.add(token)
            self._answer(status, token)

        def do_GET(self) -> None:
            said.seen.append(f"GET {self.path}")
            is_ec2 = self.path.startswith("/latest")
            allowed = self.headers.get("X-aws-ec2-metadata-token") in said.tokens if is_ec2 else True
            status = said.status.get(self.path, 200 if self.path in said.texts else 404)
            self._answer(status if allowed else 401, said.texts.get(self.path, ""))

        def _answer(self, status: int, text: str) -> None:
            time.sleep(said.pause)
            with contextlib.suppress(OSError):  # it has not waited
                self.send_response(status)
                if said.flavor:
                    self.send_header("Metadata-Flavor", said.flavor)
                if said.location:
                    self.send_header("Location", said.location)
                self.end_headers()
                self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        said.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield said
        server.shutdown()
        thread.join()
