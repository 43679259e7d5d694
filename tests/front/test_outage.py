"""An object store that fails in the middle of a run, and then for every fifth request: the run waits and ends well."""

import contextlib
import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from front.conftest import TASKS, read_rows, task_flags, write_rows
from front.test_resume import wait_until_gone

from paliscribe.storage import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.full]
OUTAGE = 120  # seconds
SHARDS = 120


class Proxy(ThreadingHTTPServer):
    """Passes requests to an S3 server, and answers 503 instead to a share of them."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.failing, self.failed = urlsplit(target).netloc, 0.0, 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if random.random() < self.server.failing:
            self.server.failed += 1
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with contextlib.closing(http.client.HTTPConnection(self.server.target, timeout=60)) as connection:
            connection.request(self.command, self.path, body, dict(self.headers.items()))  # signed for our own Host
            answer = connection.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            length = answer.headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            if answer.status != 204:
                self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass


@pytest.fixture
def proxy(s3_server: Any) -> Iterator[Proxy]:
    server = Proxy(s3_server.endpoint)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_run_outlasts_its_store(proxy: Proxy, s3_server: Any, bucket: str, collection: Path, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}")
    for path in (collection.parent / "images").iterdir():
        store.put(f"in/images/{path.name}", path.read_bytes())
    rows = [row | {"id": f"{turn}-{row['id']}"} for turn in range(SHARDS * 4 // 24) for row in read_rows(collection)]
    store.put("in/m.jsonl", write_rows(tmp_path / "m.jsonl", rows).read_bytes())
    command = [sys.executable, "-m", "paliscribe", "annotate", "--manifest", f"s3://{bucket}/in/m.jsonl"]
    command += ["--output", f"s3://{bucket}/out", "--shard-rows", "4", *task_flags(*TASKS)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= s3_server.environment() | {"AWS_ENDPOINT_URL": proxy.address}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children: list[psutil.Process] = []
    try:
        until = time.monotonic() + 120
        while not any(store.list("out/_run/done/")):
            assert driver.poll() is None and time.monotonic() < until, driver.communicate()[1]
            time.sleep(0.1)
        children = psutil.Process(driver.pid).children(recursive=True)
        proxy.failing = 1.0
        time.sleep(OUTAGE)
        assert driver.poll() is None, driver.communicate()[1]
        assert proxy.failed > 10 and len(list(store.list("out/_run/done/"))) < SHARDS, (
            "it was meant to fall in the middle"
        )
        proxy.failing = 0.2
        _, err = driver.communicate(timeout=300)
    finally:
        driver.kill()
        wait_until_gone(children)
    assert driver.returncode == 0, err
    assert "retrying for" in err, "the wait is said"
    summary = json.loads(store.get("out/_summary.json"))
    assert (summary["records"], summary["ok"], summary["errors"]) == (len(rows) * 4, len(rows) * 4, 0)
