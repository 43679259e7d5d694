"""An endpoint without keys answers neither pages that rebind a name to it nor writes of other origins."""

from typing import Any

import httpx
import pytest
from online.conftest import CONFIG
from online.scripted import Scripted, scripted

from paliscribe.config import ServeConfig
from paliscribe.errors import RequestError
from paliscribe.online.browsers import check_names

CALL = {"model": "scripted", "messages": []}


def refusal(method: str = "GET", host: str | None = "127.0.0.1:8000", origin: str | None = None, **set_to: Any) -> str:
    config = ServeConfig(**set_to)
    try:
        check_names(config, method, host, origin)
    except RequestError as error:
        assert error.status == 403
        return error.code
    return ""


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]:8000", "127.1.2.3", "a.localhost:1", "localhost."]
)
def test_names_of_this_machine(host: str) -> None:
    assert refusal(host=host) == ""


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.com",
        "127.0.0.1.evil.example.com:8000",
        "localhost.evil.com",
        "10.0.0.1",
        "0.0.0.0",
        "",
        "[bad",
        None,
        "127.0.0.1@evil.com",
        "evil.com#127.0.0.1",
        "xlocalhost",
    ],
)
def test_other_names_are_refused(host: str | None) -> None:
    assert refusal(host=host) == "invalid_host"


def test_names_in_the_settings() -> None:
    assert refusal(host="labels.example.com:443", hosts=("Labels.example.com",)) == ""
    assert refusal(host="anything", open=True) == ""


@pytest.mark.parametrize("origin", ["https://evil.example.com", "null", "http://127.0.0.1:9000", "file://", "", "x"])
def test_writes_of_other_origins_are_refused(origin: str) -> None:
    assert refusal("POST", origin=origin) == "invalid_origin"
    assert refusal("POST", origin=origin, open=True) == "invalid_origin"
    assert refusal("GET", origin=origin) == ""


def test_writes_of_this_page_and_of_listed_origins() -> None:
    assert refusal("POST", origin="http://127.0.0.1:8000") == ""
    assert refusal("POST", origin=None) == ""
    assert refusal("POST", origin="https://chat.example.com", cors_origins=("https://chat.example.com",)) == ""
    assert refusal("POST", origin="https://any.example.com", cors_origins=("*",)) == ""


def test_the_endpoint_checks_both() -> None:
    assert not CONFIG.open
    with scripted(Scripted([])) as address:
        for path in ("/", "/docs", "/v1/models"):
            rebound = httpx.get(address + path, headers={"Host": "evil.example.com"})
            assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "invalid_host")
        assert httpx.get(f"{address}/health", headers={"Host": "evil.example.com"}).status_code == 200
        for path in ("/v1/chat/completions", "/v1/annotate", "/v1/annotate/upload", "/v1/files", "/v1/jobs"):
            headers = {"Origin": "https://evil.example.com", "Content-Type": "text/plain"}
            crossed = httpx.post(address + path, content=b"{}", headers=headers)
            assert (crossed.status_code, crossed.json()["error"]["code"]) == (403, "invalid_origin")
        own = httpx.post(f"{address}/v1/chat/completions", json=CALL, headers={"Origin": address})
        assert own.json()["error"]["code"] == "invalid_request", "checked further"
