"""A run on two nodes, one of which gets a spot notice and is then taken away."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from front.heads import Head, ray_head, ray_node
from metadata import Metadata, metadata
from whole import check_whole

from paliscribe.demo.collection import write_collection

pytestmark = [pytest.mark.cluster, pytest.mark.long]
ROWS, SHARD, SLOTS = 400, 8, 4
FIRST_BLOCK = ROWS // SHARD // 4  # shards of the first block of two stage processes
CALL = 2 * SLOTS  # rows
IN_HAND = 6 * CALL  # rows of a stage process: of the calls that it fetches, has fetched, sends, waits for and writes
NOTICE = 25.0  # seconds from the notice to the end of the node


@contextlib.contextmanager
def pictures(data: bytes, seconds: float) -> Iterator[tuple[str, Counter[str]]]:
    """The address of a web server that takes so long for each picture, and how often it was asked for each."""
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            time.sleep(seconds)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who asked has been killed
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@contextlib.contextmanager
def annotating(head: Head, job: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A driver on the cluster of a head."""
    environment = os.environ | head.environment | {"RAY_ADDRESS": head.gcs}
    with log.open("wb") as out:
        command = [sys.executable, "-m", "paliscribe", "annotate", str(job)]
        driver = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            yield driver
        finally:
            driver.kill()
            driver.wait(30)


def committed(output: Path) -> set[int]:
    """The shards that are committed."""
    return {int(marker.stem.removeprefix("shard-")) for marker in output.glob("_run/done/shard-*.json")}


def both_work(output: Path) -> bool:
    """Whether shards of the first block and of others are committed, each by a process of its own."""
    found = committed(output)
    return min(found, default=FIRST_BLOCK) < FIRST_BLOCK <= max(found, default=0)


def take_away(node: int) -> None:
    """Kill a node and all that runs on it."""
    lost = psutil.Process(node)
    for process in [lost, *lost.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_spot_notice_repeats_no_more_than_what_is_in_hand(tmp_path: Path) -> None:
    write_collection(tmp_path / "collection", 1, seed=0)
    data = (tmp_path / "collection/images/scene-00000.jpg").read_bytes()
    output, job, log = tmp_path / "output", tmp_path / "job.yaml", tmp_path / "driver.log"
    with (
        metadata() as cloud,
        pictures(data, 1.0) as (address, asked),
        ray_head(cpus=0) as head,
        ray_node(head, words=["--resources", json.dumps({"model": 1})]),
        ray_node(head, environment=spot(cloud)) as doomed,
    ):
        rows = [{"id": f"r{row}", "image": f"{address}/{row}.jpg"} for row in range(ROWS)]
        (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {"manifest": str(tmp_path / "manifest.jsonl"), "tasks": ["ocr"], "output": str(output)}
        pool = {"threads": 1, "slots": SLOTS, "resources": {"model": 1}}
        fetch = {"workers": 2, "cpus_per_worker": 1.5, "concurrency": 4}  # one a node; 50 seconds for all pictures
        job.write_text(json.dumps(settings | {"shard_rows": SHARD, "pool": pool, "fetch": fetch}))
        with annotating(head, job, log) as driver:
            until(lambda: both_work(output), driver, log)
            assert cloud.count("instance-action") > 0, "the node asks for notices"
            cloud.announce(NOTICE)
            time.sleep(NOTICE)
            assert driver.poll() is None and len(committed(output)) < ROWS // SHARD, "the run is not over yet"
            take_away(doomed)
            until(lambda: driver.poll() is not None, driver, log)
            assert driver.returncode == 0, log.read_text()
    check_whole(str(output), "finished")
    assert len(asked) == ROWS
    repeated = asked.total() - ROWS
    assert repeated <= IN_HAND, f"{repeated} rows were computed again"
    assert "given back by nodes that are drained" in log.read_text()


def spot(cloud: Metadata) -> dict[str, str]:
    """The environment of a spot node."""
    return {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": cloud.address}


def until(reached: object, driver: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until something is reached while a driver works."""
    end = time.monotonic() + 240
    while not reached():  # type: ignore[operator]
        assert driver.poll() is None or driver.returncode == 0, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
