"""An object store that fails in the middle of a run, and then for every fifth request: the run waits and ends well."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from chaos.proxy import Proxy, proxied
from front.conftest import TASKS, read_rows, task_flags, write_rows
from front.test_resume import wait_until_gone

from paliscribe.storage import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.full]
OUTAGE = 120  # seconds
SHARDS = 360
BEFORE = 15  # seconds of work before the outage


@pytest.fixture
def proxy(s3_server: Any) -> Iterator[Proxy]:
    with proxied(s3_server.endpoint) as server:
        yield server


@contextlib.contextmanager
def annotating(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A driver that runs; it and all of its processes have ended afterwards."""
    command = [sys.executable, "-m", "paliscribe", "annotate", *arguments, *task_flags(*TASKS)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | environment
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children: list[psutil.Process] = []
    try:
        yield driver
        children = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
    finally:
        driver.kill()
        wait_until_gone(children)


def wait_for(done: Callable[[], object], driver: subprocess.Popen[str], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert driver.poll() is None and time.monotonic() < until, driver.communicate()[1]
        time.sleep(0.1)


def test_a_run_outlasts_its_store(proxy: Proxy, s3_server: Any, bucket: str, collection: Path, tmp_path: Path) -> None:
    """Prints the rates before the outage and after it; S3's own times of the markers give them."""
    store = open_store(f"s3://{bucket}")
    for path in (collection.parent / "images").iterdir():
        store.put(f"in/images/{path.name}", path.read_bytes())
    rows = [row | {"id": f"{turn}-{row['id']}"} for turn in range(SHARDS * 4 // 24) for row in read_rows(collection)]
    store.put("in/m.jsonl", write_rows(tmp_path / "m.jsonl", rows).read_bytes())
    places = "--manifest", f"s3://{bucket}/in/m.jsonl", "--output", f"s3://{bucket}/out", "--shard-rows", "4"
    done = lambda: len(list(store.list("out/_run/done/")))  # noqa: E731
    environment = s3_server.environment() | {"AWS_ENDPOINT_URL": proxy.address}
    with annotating(*places, **environment) as driver:
        wait_for(done, driver)
        begun, first = time.monotonic(), done()
        time.sleep(BEFORE)
        before = (done() - first) / (time.monotonic() - begun)
        proxy.failing = 1.0
        time.sleep(OUTAGE)
        assert driver.poll() is None, driver.communicate()[1]
        assert proxy.failed > 10 and (left := SHARDS - done()) > 0, "it was meant to fall in the middle"
        proxy.failing, begun = 0.2, time.monotonic()
        wait_for(lambda: SHARDS - done() < left, driver)
        recovered, left, again = time.monotonic() - begun, SHARDS - done(), time.monotonic()
        wait_for(lambda: done() >= SHARDS, driver)
        after = left / (time.monotonic() - again)
        _, err = driver.communicate(timeout=300)
    print(
        f"shards/s: {before:.2f} before, {after:.2f} after, {recovered:.0f} s to the first; every fifth request failed"
    )
    assert driver.returncode == 0, err
    assert "retrying for" in err, "the wait is said"
    summary = json.loads(store.get("out/_summary.json"))
    assert (summary["records"], summary["ok"], summary["errors"]) == (len(rows) * 4, len(rows) * 4, 0)


def test_a_run_says_that_a_host_of_its_images_does_not_answer(collection: Path, tmp_path: Path) -> None:
    """Only a stage process reads from it."""
    images, failing, served = collection.parent / "images", threading.Event(), 0

    class Host(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Nothing."""

        def do_GET(self) -> None:
            nonlocal served
            data = b"" if failing.is_set() else (images / Path(self.path).name).read_bytes()
            self.send_response(503 if failing.is_set() else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            served += not failing.is_set()

    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        rows = [
            row | {"id": f"{turn}-{row['id']}", "image": f"{address}{turn}/{Path(row['image']).name}"}
            for turn in range(40)
            for row in read_rows(collection)
        ]
        manifest = write_rows(tmp_path / "m.jsonl", rows)
        with annotating("--manifest", str(manifest), "--output", str(tmp_path / "out"), "--shard-rows", "8") as driver:
            wait_for(lambda: any((tmp_path / "out/_run/done").glob("*")), driver)
            failing.set()
            time.sleep(45)
            assert driver.poll() is None, driver.communicate()[1]
            failing.clear()
            _, err = driver.communicate(timeout=300)
        server.shutdown()
    assert driver.returncode == 0, err
    assert "retrying for" in err and "503" in err, err
    summary = json.loads((tmp_path / "out/_summary.json").read_text())
    assert (summary["records"], summary["errors"]) == (len(rows) * 4, 0)
