"""A small model hub on loopback: it serves config.json, or refuses it as the real one does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {  # what the hub answers: status and its X-Error-Code
    "acme/gated": (403, "GatedRepo"),
    "acme/nothing": (401, "RepoNotFound"),
    "acme/no-config": (404, "EntryNotFound"),
}


class Hub(BaseHTTPRequestHandler):
    """The part of a model hub that serves config.json, or refuses it."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        repository = "/".join(self.path.split("/")[1:3])
        revision = self.path.split("/")[4]
        status, code = REFUSALS.get(repository, (200, ""))
        if revision == "no-such-branch":
            status, code = 404, "RevisionNotFound"
        kind = "bert" if repository == "acme/bert" else "paligemma"
        data = {"model_type": kind, "vision_config": {"image_size": 448}, "text_config": {"model_type": "gemma"}}
        content = json.dumps(data).encode() if status == 200 else b""
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"abc"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
