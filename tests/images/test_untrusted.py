"""Images of a background job are fetched like those of a run, within the limits for strangers."""

import base64
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images.conftest import Web

from paliscribe.config import ImagesConfig
from paliscribe.errors import RowError
from paliscribe.images.untrusted import GuardedFetcher
from paliscribe.manifest import read
from paliscribe.storage import open_store, retry


def fetcher(address: str, retries: int = 4, **settings: object) -> GuardedFetcher:
    values = {"addresses": [address], "private": True, "max_bytes": 3000} | settings
    return GuardedFetcher(ImagesConfig.model_validate(values), concurrency=16, retries=retries)


def kind(found: bytes | RowError) -> str:
    assert isinstance(found, RowError), found
    return found.kind


@pytest.mark.parametrize("answer", ["503-then-ok", "429-then-ok", "500-then-ok", "cut-then-ok", "reset-then-ok"])
def test_temporary_failures_are_retried(answer: str, web: Web) -> None:
    assert fetcher(web.address).fetch(f"{web.address}/{answer}").startswith(b"body of ok")
    assert web.asked[answer] == 2


@pytest.mark.parametrize(
    ("answer", "expected", "asked"),
    [
        ("404", "missing", 1),
        ("403", "missing", 1),
        ("503", "throttled", 3),
        ("500", "unreachable", 3),
        ("large", "too_large", 1),
        ("empty", "empty", 1),
    ],
)
def test_failures_have_their_kind(answer: str, expected: str, asked: int, web: Web) -> None:
    [found] = fetcher(web.address, 2).fetch_many([f"{web.address}/{answer}"])
    assert kind(found) == expected and web.asked[answer] == asked


def test_only_what_is_allowed_is_asked_for(web: Web) -> None:
    some = fetcher(f"{web.address}/open/")
    found = some.fetch_many(
        [f"{web.address}/secret", "/etc/passwd", "file:///etc/passwd", "data:image/png;base64,QUJD"]
    )
    assert [kind(each) for each in found[:3]] == ["forbidden", "bad_uri", "bad_uri"] and found[3] == b"ABC"
    assert not web.asked
    large = base64.b64encode(bytes(3001)).decode()
    assert kind(some.fetch_many([f"data:image/png;base64,{large}"])[0]) == "too_large"


def test_images_inside_parquet_files_of_allowed_addresses(web: Web, bucket: str, tmp_path: Path) -> None:
    table = pa.table({"image": [b"one", b"x" * 4000]})
    pq.write_table(table, tmp_path / "m.parquet")
    for key in ("open/m.parquet", "secret/m.parquet"):
        open_store(f"s3://{bucket}").put(key, (tmp_path / "m.parquet").read_bytes())
    some = fetcher(f"s3://{bucket}/open/")
    rows = [str(row.image) for row in read(f"s3://{bucket}/open/m.parquet")]
    one, large = some.fetch_many(rows)
    assert one == b"one" and kind(large) == "too_large"
    [address, _] = [str(row.image) for row in read(f"s3://{bucket}/secret/m.parquet")]
    local = [str(row.image) for row in read(str(tmp_path / "m.parquet"))]
    others = [address, rows[0].replace("/open/", "/open/../secret/"), local[0], f"parquet+{web.address}/m#image/0/0"]
    kinds = [kind(each) for each in some.fetch_many(others)]
    assert kinds[0] == "forbidden" and kinds[1] in ("forbidden", "bad_uri") and kinds[2:] == ["bad_uri"] * 2
    assert not web.asked


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that asks to slow down if more than three requests come at a time."""
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.02)
    running, lock = 0, threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            nonlocal running
            with lock:
                running += 1
                status = 200 if running <= 3 else 503
            time.sleep(0.02)
            with lock:
                running -= 1
            self.send_response(status)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"image")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_fetches_from_a_busy_host_slow_down_together(busy: str) -> None:
    some = fetcher(busy, 8)
    found = some.fetch_many([f"{busy}/{number}" for number in range(120)])
    assert found == [b"image"] * 120
    assert some._gates.of(busy).limit < 16
