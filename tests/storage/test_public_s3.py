"""Public buckets: read without credentials, and with credentials that are not allowed to read them."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from paliscribe.images.fetch import Fetcher
from paliscribe.storage import StorageError, open_store, s3_client

DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>no</Message></Error>"


class Public(http.server.BaseHTTPRequestHandler):
    """Answers unsigned requests for the bucket `open`, as S3 does when its policy allows everyone."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        allowed = self.path.startswith("/open/") and "Authorization" not in self.headers
        body = b"bytes" if allowed else DENIED
        self.send_response(200 if allowed else 403)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Public)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    s3_client._clients.clear()
    yield
    s3_client._clients.clear()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("credentials", [False, True])
def test_public_buckets(public: None, monkeypatch: pytest.MonkeyPatch, credentials: bool) -> None:
    if credentials:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    for _ in range(2):
        assert Fetcher(retries=0).fetch("s3://open/k.png") == b"bytes"
    assert open_store("s3://open").get("k.png") == b"bytes"
    with pytest.raises(StorageError) as caught:
        open_store("s3://closed").get("k.png")
    assert caught.value.kind == "forbidden"
    assert ("no AWS credentials" in caught.value.message) != credentials
