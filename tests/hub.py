"""A small model hub on loopback: it serves models, or refuses them as the real one does."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BRANCHES = {"bfloat16": "b" * 40, "float16": "f" * 40}  # with their commits, of repositories named google/paligemma-3b-
REFUSALS = {  # what the hub answers: status and its X-Error-Code
    "acme/gated": (403, "GatedRepo"),
    "acme/nothing": (401, "RepoNotFound"),
    "acme/no-config": (404, "EntryNotFound"),
}
DEMO = files("paliscribe.demo") / "checkpoint"


def content(repository: str, name: str) -> bytes | None:
    """A file of a repository, if it has it: those named *demo hold the demo checkpoint, others a configuration."""
    if repository.endswith("demo") or repository == "acme/pickled":
        if repository == "acme/pickled" and name.endswith(".safetensors"):
            return None
        file = DEMO / name
        return file.read_bytes() if file.is_file() else None
    kind = "bert" if repository == "acme/bert" else "paligemma"
    data = {"model_type": kind, "vision_config": {"image_size": 448}, "text_config": {"model_type": "gemma"}}
    return {"config.json": json.dumps(data).encode(), "model.safetensors": b"weights"}.get(name)


class Hub(BaseHTTPRequestHandler):
    """The part of a model hub that serves the files of repositories, or refuses them."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        repository, resolve, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        commits = {"main": COMMIT, COMMIT: COMMIT}
        if repository.startswith("google/paligemma-3b-"):
            commits |= BRANCHES | {commit: commit for commit in BRANCHES.values()}
        found = content(repository, name) if resolve else None
        status, code = (200, "") if found is not None else (404, "EntryNotFound")
        if resolve and revision not in commits:
            status, code = 404, "RevisionNotFound"
        if repository == "acme/cut":
            self.connection.close()
            return
        status, code = REFUSALS.get(repository, (status, code))
        sent = found if status == 200 and found is not None else b""
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", commits.get(revision, COMMIT))
        self.send_header("ETag", f'"{hashlib.sha256(sent).hexdigest()}"')
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        if body:
            self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
