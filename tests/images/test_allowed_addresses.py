"""SSRF protection: only allowed addresses and public hosts, also after DNS resolution and redirects."""

import asyncio
import http.server
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from paliscribe.config import ImagesConfig
from paliscribe.errors import RequestError, UsageError
from paliscribe.images.allowed import AllowedAddresses, is_public
from paliscribe.images.untrusted import UntrustedImages
from paliscribe.storage import open_store


@pytest.fixture(scope="module")
def web() -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].rpartition("/")[2]
            if name == "slow":
                time.sleep(1.5)
            statuses = {"gone": 404} | dict.fromkeys(("away", "inside", "loop", "odd", "astray"), 302)
            status = statuses.get(name, 200)
            self.send_response(status)
            if status == 302:
                ours = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
                targets = {
                    "away": "http://localhost:1/x",
                    "inside": "/open/picture",
                    "astray": "/open/..%2fshut/a",
                    "loop": f"{ours}/open/loop",
                }
                self.send_header("Location", targets.get(name, "http://[bad"))
            body = b"x" * 5000 if name == "large" else f"{name} for {self.headers['Host']}".encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def read(address: str, *allowed: str, **options: Any) -> bytes:
    config = ImagesConfig(addresses=allowed, max_bytes=1000, **{"timeout": 20.0} | options)
    return asyncio.run(UntrustedImages(config).read(address))


def rejection(address: str, *allowed: str, **options: Any) -> tuple[int, str]:
    with pytest.raises(RequestError) as refused:
        read(address, *allowed, **options)
    return refused.value.status, refused.value.code


def test_allowed_addresses_are_read(web: int) -> None:
    entry = f"http://127.0.0.1:{web}/open"
    assert read(f"http://127.0.0.1:{web}/open/a.png?b=c", entry, private=True) == f"a.png for 127.0.0.1:{web}".encode()
    assert read(f"http://127.0.0.1:{web}/open/inside", entry, private=True).startswith(b"picture")
    assert read(f"http://localhost:{web}/a", f"http://*host:{web}/", private=True) == f"a for localhost:{web}".encode()


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("open/gone", 400, "missing"),
        ("open/large", 413, "too_large"),
        ("open/slow", 504, "unreachable"),
        ("open/away", 403, "not_allowed"),
        ("open/loop", 400, "unreachable"),
        ("open/odd", 400, "bad_uri"),
        ("shut/a.png", 403, "not_allowed"),
        ("opened/a.png", 403, "not_allowed"),
        ("open/../shut/a.png", 403, "not_allowed"),
        ("open/%2e%2e/shut/a.png", 403, "not_allowed"),
        ("open/..%2fshut/a.png", 403, "not_allowed"),
        ("open/..%5cshut/a.png", 403, "not_allowed"),
        ("open/x%2f..%2f..%2fshut/a.png", 403, "not_allowed"),
        ("open/x%2F%2E%2e%2fa.png", 403, "not_allowed"),
        ("open/%252e%252e/shut/a.png", 403, "not_allowed"),
        ("open/..%c0%afshut/a.png", 403, "not_allowed"),
        ("open/..%e0%80%afshut/a.png", 403, "not_allowed"),
        ("open/%f0%80%80%ae./shut/a.png", 403, "not_allowed"),
        ("open/..%25c0%25afshut/a.png", 403, "not_allowed"),
        ("open/..%00/shut/a.png", 403, "not_allowed"),
        ("open/\uff0e\uff0e/shut/a.png", 403, "not_allowed"),
        ("open/..%ef%bc%8fshut/a.png", 403, "not_allowed"),
        ("open/%25252525252e%25252525252e/a.png", 403, "not_allowed"),
        ("open/..;/shut/a.png", 403, "not_allowed"),
        ("open/..%3bx/shut/a.png", 403, "not_allowed"),
        ("open/./a.png", 403, "not_allowed"),
        ("open/astray", 403, "not_allowed"),
    ],
)
def test_errors_have_a_status(web: int, path: str, status: int, code: str) -> None:
    timeout = 0.8 if path == "open/slow" else 20.0
    address = f"http://127.0.0.1:{web}"
    found = rejection(f"{address}/{path}", f"{address}/open/", private=True, timeout=timeout)
    assert found == (status, code)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "169.254.169.254",
    ],
)
def test_private_hosts_are_rejected_in_any_spelling(web: int, host: str) -> None:
    address = f"http://{host}:{web}/open/a.png"
    assert rejection(address, f"http://{host}:{web}/") in [(403, "not_allowed"), (400, "unreachable")]


@pytest.mark.parametrize(
    "address",
    [
        "http://user@127.0.0.1/a",
        "http://allowed.example\\@127.0.0.1/a",
        "http://127.0.0.1:99999/a",
        "http://[::1/a",
        "http:///a",
        "http://a b/c",
        "http://a\n/c",
    ],
)
def test_malformed_addresses_are_rejected(address: str) -> None:
    assert rejection(address, "http://127.0.0.1/", "http://allowed.example/", private=True) == (400, "bad_uri")


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/a", "/etc/passwd", "gopher://x/", "a.png"])
def test_other_schemes_are_rejected(address: str) -> None:
    assert rejection(address, "http://127.0.0.1/", private=True) == (400, "bad_uri")


def test_nothing_is_allowed_by_default(web: int) -> None:
    assert rejection(f"http://127.0.0.1:{web}/a") == rejection("s3://bucket/a") == (403, "not_allowed")
    assert rejection("https://127.0.0.1/a", "http://127.0.0.1/", private=True) == (403, "not_allowed"), "another scheme"


def test_unreachable_hosts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert rejection(f"http://127.0.0.1:{port}/a", f"http://127.0.0.1:{port}/", private=True) == (502, "unreachable")
    assert rejection("http://no-such-host.invalid/a", "http://no-such-host.invalid/") == (400, "unreachable")


def test_an_allowed_bucket(bucket: str) -> None:
    open_store(f"s3://{bucket}/open").put("a.png", b"picture")
    assert read(f"s3://{bucket}/open/a.png", f"s3://{bucket}/open/") == b"picture"
    assert rejection(f"s3://{bucket}/open/none.png", f"s3://{bucket}/open/") == (400, "missing")
    assert rejection(f"s3://{bucket}/shut/a.png", f"s3://{bucket}/open/") == (403, "not_allowed")
    assert rejection(f"s3://{bucket}-other/open/a.png", f"s3://{bucket}/open/") == (403, "not_allowed")


def test_the_key_that_is_checked_is_the_key_that_is_read(bucket: str) -> None:
    store, entry = open_store(f"s3://{bucket}"), f"s3://{bucket}/open/"
    for key in ("open/a?b=c#d.png", "open/100%25.png", "open/a%2fb.png", "open/#", "open/?x", "open/a b"):
        store.put(key, key.encode())
        if " " not in key:
            assert read(f"s3://{bucket}/{key}", entry) == key.encode()
            assert read(f"S3A://{bucket}/{key}", entry) == key.encode()
    for key in ("open/x?/../../shut/a", "open/../shut/a", "open/x#/../../shut/a", "open/%2e%2e/shut/a"):
        assert rejection(f"s3://{bucket}/{key}", entry) == (403, "not_allowed")
    for other in (f"{bucket}.", f"{bucket}:80", f"user@{bucket}", f"{bucket}%2f..", ""):
        assert rejection(f"s3://{other}/open/a.png", entry) == (400, "bad_uri")


@pytest.mark.parametrize("entry", ["host", "ftp://host/", "https://user@host/", "https://host/?a", ""])
def test_invalid_entries_are_rejected(entry: str) -> None:
    with pytest.raises(UsageError, match=r"images\.addresses"):
        AllowedAddresses(ImagesConfig(addresses=(entry,)))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
        ("fd00::1", False),
        ("fe80::1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) == public
