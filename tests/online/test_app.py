"""Behaviour of all routes: API keys, limits, request ids, error bodies, OpenAPI document."""

import logging
import socket

import httpx
import pytest
from online.conftest import CONFIG, KEY, Endpoint, data_url, listen

from paliscribe.online import app
from paliscribe.online.service import Service

HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize("header", [None, "Bearer wrong", KEY, f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", "Bearer é"])
def test_requests_without_a_valid_key_are_rejected(endpoint: Endpoint, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode()}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/annotate"), ("POST", "/v1/chat/completions")):
        found = httpx.request(method, endpoint.address + path, headers=headers)  # type: ignore[arg-type]
        assert found.status_code == 401 and found.json()["error"]["type"] == "authentication_error"
        assert found.headers["www-authenticate"] == "Bearer"


def test_health_and_docs_need_no_key(endpoint: Endpoint) -> None:
    assert httpx.get(f"{endpoint.address}/health").json() == {"status": "ok"}
    assert httpx.head(f"{endpoint.address}/health").status_code == 200
    document = httpx.get(f"{endpoint.address}/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/annotate", "/v1/annotate/upload", "/v1/models"} <= set(document["paths"])
    assert httpx.get(f"{endpoint.address}/docs").status_code == 200


def test_examples_of_the_openapi_document_work(endpoint: Endpoint) -> None:
    schemas = httpx.get(f"{endpoint.address}/openapi.json").json()["components"]["schemas"]
    for path, name in (("/v1/chat/completions", "ChatRequest"), ("/v1/annotate", "AnnotateRequest")):
        example = schemas[name]["example"]
        found = httpx.post(endpoint.address + path, json=example, headers=HEADERS, timeout=60)
        assert found.status_code == 200, found.text


def test_every_reply_has_a_request_id(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "paliscribe.access"):
        own = httpx.get(f"{endpoint.address}/v1/models", headers=HEADERS | {"x-request-id": "my-call-1"})
        odd = httpx.get(f"{endpoint.address}/v1/models", headers=HEADERS | {"x-request-id": "a b\tc"})
        refused = httpx.get(f"{endpoint.address}/nowhere", headers=HEADERS)
    assert own.headers["x-request-id"] == "my-call-1"
    assert odd.headers["x-request-id"] == "a%20b%09c"
    assert len(refused.headers["x-request-id"]) == 32
    assert (
        refused.status_code == 404 and "this endpoint has /v1/chat/completions, " in refused.json()["error"]["message"]
    )
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("id=my-call-1 method=GET path=/v1/models status=200") for line in lines)
    assert not any(KEY in line for line in lines)


def test_body_size_is_limited_with_and_without_content_length(endpoint: Endpoint) -> None:
    large = b"x" * (CONFIG.max_body + 1)
    declared = httpx.post(f"{endpoint.address}/v1/annotate", content=large, headers=HEADERS)
    parts = (large[i : i + 65536] for i in range(0, len(large), 65536))
    chunked = httpx.post(f"{endpoint.address}/v1/annotate", content=parts, headers=HEADERS)
    for found in (declared, chunked):
        assert (found.status_code, found.json()["error"]["code"]) == (413, "too_large")
    forged = socket.create_connection(("127.0.0.1", int(endpoint.address.rpartition(":")[2])), timeout=10)
    head = ["POST /v1/annotate HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", "Content-Length: 99999999999"]
    forged.sendall("\r\n".join([*head, "", ""]).encode())
    assert b" 413 " in forged.recv(200)
    forged.close()


def test_slow_bodies_time_out(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_TIMEOUT", 0.2)
    slow = socket.create_connection(("127.0.0.1", int(endpoint.address.rpartition(":")[2])), timeout=10)
    head = ["POST /v1/annotate HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", "Content-Length: 100"]
    slow.sendall("\r\n".join([*head, "", "{"]).encode())
    assert b" 408 " in slow.recv(200)
    slow.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"images": 3}'])
def test_malformed_bodies_are_400(endpoint: Endpoint, content: bytes) -> None:
    for path in ("/v1/annotate", "/v1/chat/completions"):
        headers = HEADERS | {"content-type": "application/json"}
        found = httpx.post(endpoint.address + path, content=content, headers=headers)
        assert found.status_code == 400 and found.json()["error"]["message"]


def test_a_full_queue_is_429_with_retry_after(
    endpoint: Endpoint, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = endpoint.engine._scheduler
    monkeypatch.setattr(scheduler._queues[0], "limit", 2)
    body = {"images": [data_url(picture)] * 3, "tasks": ["ocr"]}
    found = httpx.post(f"{endpoint.address}/v1/annotate", json=body, headers=HEADERS, timeout=60)
    assert found.status_code == 429 and found.headers["retry-after"] == "1"
    assert found.json()["error"]["type"] == "rate_limit_error"


def test_a_timeout_is_504(endpoint: Endpoint, picture: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(CONFIG), "timeout", property(lambda _: 0.0), raising=False)
    body = {"images": [data_url(picture)], "tasks": ["ocr"]}
    found = httpx.post(f"{endpoint.address}/v1/annotate", json=body, headers=HEADERS, timeout=60)
    assert (found.status_code, found.json()["error"]["code"]) == (504, "expired")


def test_pages_of_other_origins_may_call_only_where_the_settings_say_so(endpoint: Endpoint) -> None:
    asked = {"origin": "https://chat.example.com", "access-control-request-method": "POST"}
    asked |= {"access-control-request-headers": "authorization,content-type"}
    refused = httpx.options(f"{endpoint.address}/v1/chat/completions", headers=asked)
    assert "access-control-allow-origin" not in refused.headers
    config = CONFIG.model_copy(update={"cors_origins": ("https://chat.example.com",)})
    server, thread = listen(Service(config, []), endpoint.keys)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        allowed = httpx.options(f"{address}/v1/chat/completions", headers=asked)
        other = httpx.options(f"{address}/v1/models", headers=asked | {"origin": "https://evil.example.com"})
        listed = httpx.get(f"{address}/v1/models", headers=HEADERS | {"origin": asked["origin"]})
        keyless = httpx.get(f"{address}/v1/models", headers={"origin": asked["origin"]})
    finally:
        server.should_exit = True
        thread.join(10)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == asked["origin"]
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-origin" not in other.headers
    for reply, status in ((listed, 200), (keyless, 401)):
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, asked["origin"])
        assert "x-request-id" in reply.headers["access-control-expose-headers"]
