"""Malicious requests: each is rejected in OpenAI's shape or answered, leaks nothing, and affects no other request."""

import hashlib
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from online.attacks import (
    AROUND_THE_KEY,
    CHANGES,
    CHUNKS,
    LENGTHS,
    OTHER_CONTENT_TYPES,
    OTHER_METHODS,
    PROMPTS,
    forged,
)
from online.conftest import CONFIG, KEY, Endpoint, data_url

from paliscribe.online import app

HEADERS = {"Authorization": f"Bearer {KEY}"}
CHAT, ANNOTATE, UPLOAD = "/v1/chat/completions", "/v1/annotate", "/v1/annotate/upload"
SECRET = re.compile(
    rf"{KEY}|{hashlib.sha256(KEY.encode()).hexdigest()}|{Path(__file__).parents[2]}|Traceback|0x[0-9a-f]"
)


@pytest.fixture(autouse=True)
def valid_requests_still_work(endpoint: Endpoint, picture: bytes) -> Iterator[None]:
    yield
    assert send(endpoint, CHAT, chat_body(picture)).status_code == 200


def chat_body(picture: bytes, prompt: str = "caption en", **options: Any) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": data_url(picture)}}
    content = [image, {"type": "text", "text": prompt}]
    return {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 4, **options}


def send(endpoint: Endpoint, path: str, body: Any, **headers: str) -> httpx.Response:
    """Send a body: bytes as they are, other values as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **HEADERS} | {k.replace("_", "-"): v for k, v in headers.items()}
    return httpx.post(endpoint.address + path, content=content, headers=headers, timeout=60)


def rejected(reply: httpx.Response, *codes: str) -> str:
    """Check that a reply is a well-formed 4xx error; returns its code."""
    assert 400 <= reply.status_code < 500, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and reply.headers["x-request-id"]
    assert len(reply.content) < 5000 and not SECRET.search(reply.text), reply.text
    assert not codes or error["code"] in codes, error
    return str(error["code"])


def raw(endpoint: Endpoint, *pieces: bytes) -> bytes:
    """Send raw bytes; returns the first 64 KiB of the response."""
    with socket.create_connection(("127.0.0.1", int(endpoint.address.rpartition(":")[2])), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return connection.recv(65536)


def form(*parts: tuple[str, bytes], charset: str = "utf-8") -> tuple[bytes, str]:
    """A multipart form. `parts`: parameters of `Content-Disposition`, and content."""
    body = b"".join(b"--B\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
                    for head, content in parts)  # fmt: skip
    return body + b"--B--\r\n", f"multipart/form-data; boundary=B; charset={charset}"


# Keys.


@pytest.mark.parametrize("header", forged(KEY))
def test_forged_keys(endpoint: Endpoint, header: str) -> None:
    reply = httpx.get(f"{endpoint.address}/v1/models", headers={b"Authorization": header.encode()})
    assert reply.status_code == 401 and rejected(reply) == "invalid_api_key"


def test_keys_are_read_from_one_header_only(endpoint: Endpoint) -> None:
    twice = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer another")]
    for headers in (twice, twice[::-1], [("X-Api-Key", KEY)], [("Cookie", f"key={KEY}; api_key={KEY}")]):
        assert rejected(httpx.get(f"{endpoint.address}/v1/models", headers=headers)) == "invalid_api_key"
    for query in (f"key={KEY}", f"api_key={KEY}", f"Authorization=Bearer%20{KEY}"):
        assert rejected(httpx.get(f"{endpoint.address}/v1/models?{query}")) == "invalid_api_key"


@pytest.mark.parametrize("path", AROUND_THE_KEY)
def test_no_path_bypasses_authentication(endpoint: Endpoint, path: str) -> None:
    found = raw(endpoint, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert found.startswith(b"HTTP/1.1 401 "), found


def test_methods_and_upgrades(endpoint: Endpoint) -> None:
    for method in OTHER_METHODS:
        reply = httpx.request(method, f"{endpoint.address}/v1/models", headers=HEADERS)
        assert rejected(reply) == "invalid_request" and reply.headers["allow"] == "GET"
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
    found = raw(endpoint, f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n".encode())
    assert re.match(rb"HTTP/1.1 4\d\d ", found), found


def test_a_trailing_slash_does_not_redirect(endpoint: Endpoint) -> None:
    reply = httpx.get(f"{endpoint.address}/v1/models/", headers=HEADERS | {"Host": "evil.example"})
    assert reply.status_code == 404 and rejected(reply)


# The log.


def test_log_injection(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "paliscribe.access"):
        paths = ["/%0Aid=forged%20status=200", "/%1b[2J", "/%E2%80%A8x", "/" + "a" * 20_000, "/%00", "/%ff", "/a b"]
        for path in paths:
            assert raw(endpoint, f"GET {path.replace(' ', '%20')} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        for own in ("a\tb", "x" * 65, "---", "é", "a=b"):
            reply = httpx.get(f"{endpoint.address}/health", headers={b"x-request-id": own.encode("latin-1")})
            assert re.fullmatch("[A-Za-z0-9%-]{1,64}", reply.headers["x-request-id"])
        httpx.get(f"{endpoint.address}/v1/models?key={KEY}", headers=HEADERS)
    lines = [record.getMessage() for record in caplog.records if record.name == "paliscribe.access"]
    assert len(lines) >= len(paths) + 6
    for line in lines:
        assert line.isascii() and line.isprintable() and len(line) < 400 and not SECRET.search(line)
        assert re.fullmatch(r"id=[\w%.~-]+ method=\S+ path=\S+ status=\d+ ms=[\d.]+", line), line


def test_header_injection(endpoint: Endpoint) -> None:
    found = raw(endpoint, b"GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\rX-Evil: b\r\n\r\n")
    assert b"X-Evil" not in found and b"x-evil" not in found


# Internal errors.


def test_internal_errors_expose_nothing_and_have_a_request_id(
    endpoint: Endpoint, picture: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> Any:
        raise RuntimeError(f"at {Path(__file__)} on 10.0.0.7")

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "paliscribe.access"):
        patch.setattr(type(endpoint.engine), "submit", fails)
        for options in ({}, {"stream": True}):
            reply = send(endpoint, CHAT, chat_body(picture, "caption en", **options), x_request_id="broken-1")
            assert reply.status_code == 500 and reply.headers["x-request-id"] == "broken-1"
            assert reply.json()["error"]["code"] == "internal_error" and "10.0.0.7" not in reply.text
    assert (
        "id=broken-1 failed" in caplog.text
        and "id=broken-1 method=POST path=/v1/chat/completions status=500" in caplog.text
    )


def test_model_failures_expose_no_internals(
    endpoint: Endpoint, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Any:
        raise RuntimeError(f"at {Path(__file__)} on 10.0.0.7")

    with monkeypatch.context() as patch:
        patch.setattr(endpoint.engine, "_embed", fails)
        replies = [send(endpoint, CHAT, chat_body(picture, stream=stream)) for stream in (False, True)]
        replies.append(send(endpoint, ANNOTATE, {"images": [data_url(picture)], "tasks": ["ocr", "caption en"]}))
    for reply in replies:
        assert "the model failed on this request" in reply.text and "10.0.0.7" not in reply.text


# JSON.


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: re.sub(r"[^ -~]", "?", str(change))[:40])
def test_values_out_of_range(endpoint: Endpoint, picture: bytes, change: dict[str, Any]) -> None:
    rejected(send(endpoint, CHAT, chat_body(picture) | change))


def test_malformed_json(endpoint: Endpoint, picture: bytes) -> None:
    body = json.dumps(chat_body(picture))[:-1]
    bad = [
        "[" * 100_000,
        '{"a":' * 100_000,
        body + ', "seed": ' + "9" * 5000 + "}",
        body + ', "temperature": 1e999}',
        body + ', "x": ' + "[" * 500 + "]" * 500 + "}",
        body + ', "model": "other"}',  # of duplicate keys the last one counts, as in Python's parsers
        body,
        body + "}}",
        '"' + "x" * 1000,
        "nul",
        "9" * 5000,
    ]
    for text in bad:
        rejected(send(endpoint, CHAT, text.encode()))
    for content in (
        body.encode()[:-1] + b'"\xff\xfe"}',
        b'{"model": "\xed\xa0\x80"}',
        b"\x00" * 1000,
        b"\x1f\x8b\x08\x00",
    ):
        rejected(send(endpoint, CHAT, content))
    rejected(send(endpoint, ANNOTATE, b'{"images": ["data:,"], "tasks": ["ocr"], "' + b"k" * 1_000_000 + b'": 1}'))
    for count, code in ((50_000, "too_many_requests"), (200_000, "too_large")):
        rejected(send(endpoint, ANNOTATE, {"images": ["data:,"], "tasks": ["ocr"] * count}), code)


@pytest.mark.parametrize("kind", OTHER_CONTENT_TYPES)
def test_other_content_types(endpoint: Endpoint, picture: bytes, kind: str) -> None:
    for path in (CHAT, ANNOTATE, UPLOAD):
        rejected(send(endpoint, path, chat_body(picture), Content_Type=kind), "invalid_request")


def test_compressed_bodies_are_not_decompressed(endpoint: Endpoint) -> None:
    import gzip

    rejected(send(endpoint, ANNOTATE, gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"), "invalid_request")


# Prompts.


@pytest.mark.parametrize(("prompt", "status"), PROMPTS, ids=lambda value: ascii(value)[:40])
def test_prompt_injection_of_special_tokens_and_templates(
    endpoint: Endpoint, picture: bytes, prompt: str, status: int
) -> None:
    plain = send(endpoint, CHAT, chat_body(picture, "ocr")).json()["usage"]["prompt_tokens"]
    reply = send(endpoint, CHAT, chat_body(picture, prompt))
    assert reply.status_code == status, reply.text
    if status == 400:
        rejected(reply, "prompt", "prompt_too_long")
        return
    model = endpoint.engine.model
    words = model.tokenize(" ".join(prompt.split()))
    assert reply.json()["usage"]["prompt_tokens"] == model.image_tokens + len(words)
    assert plain == model.image_tokens + len(model.tokenize("ocr"))
    assert model.tokenizer.convert_tokens_to_ids("<image>") not in words


# Forms.


@pytest.mark.parametrize(
    "charset", ["utf-7", "unicode_escape", "raw_unicode_escape", "utf-16", "idna", "hex", "undefined"]
)
def test_charsets_of_forms(endpoint: Endpoint, picture: bytes, charset: str) -> None:
    for name in ("+2AA-", r"\ud800", "a"):
        body, kind = form((f'name="image"; filename="{name}"', picture), ('name="task"', b"ocr"), charset=charset)
        reply = send(endpoint, UPLOAD, body, Content_Type=kind)
        if reply.status_code != 200:
            rejected(reply)
        body, kind = form(('name="image"; filename="a"', picture), ('name="task"', name.encode()), charset=charset)
        reply = send(endpoint, UPLOAD, body, Content_Type=kind)
        if reply.status_code != 200:
            rejected(reply)


def test_file_names_are_never_used_as_paths(endpoint: Endpoint, picture: bytes) -> None:
    for name in ("../../etc/passwd", "a\0b", "a\x1b[2J", "\u202egnp.exe", "x" * 4000, "s3://bucket/a", "a; b=c"):
        body, kind = form((f'name="image"; filename="{name}"', picture), ('name="task"', b"ocr"))
        reply = send(endpoint, UPLOAD, body, Content_Type=kind)
        assert reply.status_code == 200, reply.text
        assert reply.json()["annotations"][0]["id"] == name


def test_malformed_forms(endpoint: Endpoint, picture: bytes) -> None:
    image, task = ('name="image"; filename="a"', picture), ('name="task"', b"ocr")
    whole, kind = form(image, task)
    bad = [
        (whole, "multipart/form-data"),
        (whole, 'multipart/form-data; boundary=""'),
        (whole, "multipart/form-data; boundary=" + "b" * 5000),
        (whole[:-200], kind),
        (b"", kind),
        (b"--B\r\n" * 10_000, kind),
        form(image, *[task] * 5000),
        form(*[('name="image"; filename="a"', b"x")] * 5000, task),
        form(('name="image"', picture), task),
        form(image, ('name="task"', b"x" * 2_000_000)),
        form(image, ('name="task"; filename="t"', b"ocr")),
        form(image, task, ('name="max_tokens"', b"-1")),
        form(image, task, ('name="max_tokens"', b"9" * 5000)),
        form(('name="image"; filename="' + "a" * 100_000 + '"', picture), task),
        form(('name="image"; filename="a"\r\n' + "X-A: b\r\n" * 5000 + "X-B: c", picture), task),
    ]
    for body, content_type in bad:
        rejected(send(endpoint, UPLOAD, body, Content_Type=content_type))


# Bodies and connections.


def test_wrong_content_lengths_and_request_smuggling(endpoint: Endpoint) -> None:
    head = f"POST {ANNOTATE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    for length in LENGTHS:
        found = raw(endpoint, f"{head}Content-Length: {length}\r\n\r\n{{}}".encode())
        assert re.match(rb"HTTP/1.1 4\d\d ", found), found
    second = "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    both = f"{head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}"
    assert not re.search(rb"HTTP/1.1 2\d\d ", raw(endpoint, both.encode())), "request smuggling"
    chunk = f"{head}Transfer-Encoding: chunked\r\n\r\n"
    for size in CHUNKS[:3]:  # the others are the beginning of a body that may go on
        assert re.match(rb"HTTP/1.1 4\d\d ", raw(endpoint, (chunk + f"{size}\r\nx").encode()))


def test_header_size_is_limited(endpoint: Endpoint) -> None:
    try:
        found = raw(endpoint, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n", b"X-A: " + b"y" * 5_000_000 + b"\r\n\r\n")
    except (ConnectionResetError, BrokenPipeError):
        return
    assert re.match(rb"HTTP/1.1 4\d\d |$", found)


def test_the_total_size_of_buffered_bodies_is_limited(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_BODIES", 2)
    head = f"POST {ANNOTATE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Length: {CONFIG.max_body}\r\n\r\n"
    address = ("127.0.0.1", int(endpoint.address.rpartition(":")[2]))
    with ExitStack() as stack:
        for _ in range(2):
            waiting = stack.enter_context(socket.create_connection(address, timeout=10))
            waiting.sendall(head.encode() + b"x" * (CONFIG.max_body - 1))
        until = time.monotonic() + 10
        while (found := send(endpoint, ANNOTATE, b"x" * 100_000)).status_code != 429 and time.monotonic() < until:
            time.sleep(0.05)
        assert rejected(found, "overloaded") and found.headers["retry-after"] == "1"
    until = time.monotonic() + 10
    while send(endpoint, ANNOTATE, b"x" * 100_000).status_code == 429 and time.monotonic() < until:
        time.sleep(0.05)
    assert rejected(send(endpoint, ANNOTATE, b"x" * 100_000), "invalid_request")


def test_slow_connections_do_not_block_others(endpoint: Endpoint, picture: bytes) -> None:
    address = ("127.0.0.1", int(endpoint.address.rpartition(":")[2]))
    head = f"POST {ANNOTATE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 100\r\n"
    with ExitStack() as stack:
        for number in range(200):
            slow = stack.enter_context(socket.create_connection(address, timeout=10))
            slow.sendall(head.encode() + (b"\r\n{" if number % 2 else b"X-A: "))
        assert send(endpoint, CHAT, chat_body(picture)).status_code == 200


@pytest.mark.parametrize("count", [90_000, 110_000, 500_000])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (ANNOTATE, '{"images": [%s], "tasks": ["ocr"]}'),
        (ANNOTATE, '{"images": ["data:,"], "tasks": [%s]}'),
        (CHAT, '{"model": "demo", "messages": [%s]}'),
        (CHAT, '{"model": "demo", "messages": [{"role": "user", "content": [%s]}]}'),
        (CHAT, '{"model": "demo", "messages": [], "stop": [%s]}'),
        (CHAT, '{"model": "demo", "messages": [], "anything": [%s]}'),
    ],
)
def test_small_bodies_of_many_values_cost_little(endpoint: Endpoint, path: str, body: str, count: int) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    reply = send(endpoint, path, (body % ("0," * (count - 1) + "0")).encode())
    assert reply.status_code == (400 if count == 90_000 else 413), reply.text
    rejected(reply)
    assert process.memory_info().rss - before < 100 * 2**20
