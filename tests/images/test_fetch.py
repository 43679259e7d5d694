"""Fetching by address: what is repeated, how often, and the kind of what stops it."""

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from paliscribe.errors import RowError
from paliscribe.images.fetch import Fetcher
from paliscribe.storage import StorageError, http, open_store, s3_client, split
from paliscribe.storage.http import Headers


def kind(fetcher: Fetcher, uri: str) -> str:
    with pytest.raises(RowError) as caught:
        fetcher.fetch(uri)
    assert len(str(caught.value).splitlines()) == 1 and "secret" not in repr(caught.value)
    return caught.value.kind


@pytest.mark.parametrize(
    ("path", "expected", "asked"),
    [
        ("404", "missing", 1),
        ("410", "missing", 1),
        ("401", "forbidden", 1),
        ("403", "forbidden", 1),
        ("418", "forbidden", 1),
        ("400", "bad_uri", 1),
        ("429", "throttled", 3),
        ("503", "throttled", 3),
        ("500", "unreachable", 3),
        ("reset", "unreachable", 3),
        ("cut", "unreachable", 3),
        ("slow", "unreachable", 3),
        ("empty", "empty", 1),
        ("large", "too_large", 1),
    ],
)
def test_kinds_and_repeats(web: Any, path: str, expected: str, asked: int) -> None:
    fetcher = Fetcher(concurrency=2, retries=2, timeout=0.3 if path == "slow" else 10.0, max_bytes=4999)
    assert kind(fetcher, f"{web.address}/{path}?sig=secret") == expected
    assert web.asked[path] == asked


@pytest.mark.parametrize("first", ["429", "503", "500", "reset", "cut"])
def test_what_passes_is_waited_for(web: Any, first: str) -> None:
    assert Fetcher(retries=2).fetch(f"{web.address}/{first}-then-fine") == b"body of fine"


def test_redirects_are_followed_and_cookies_are_not_kept(web: Any) -> None:
    fetcher = Fetcher()
    assert fetcher.fetch(f"{web.address}/302") == b"body of moved"
    assert fetcher.fetch(f"{web.address}/again") == b"body of again"


def test_a_server_that_drips_is_given_up(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_TIMEOUTS", 1)
    began = time.monotonic()
    assert kind(Fetcher(retries=0, timeout=0.4), f"{web.address}/drip") == "unreachable"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "uri",
    ["gs://b/k", "ftp://h/k", "http://", "http://[::1", "s3:///k", "file://other/k", "", "a\0b"],
)
def test_addresses_that_cannot_be(uri: str) -> None:
    assert kind(Fetcher(retries=0), uri) == "bad_uri"


def test_no_server() -> None:
    assert kind(Fetcher(retries=0), "http://127.0.0.1:9/k") == "unreachable"


def test_answers_that_hold_the_whole_object(web: Any) -> None:
    fetcher = Fetcher(retries=0)
    assert fetcher.fetch(f"{web.address}/203") == b"body of 203"
    assert fetcher.fetch(f"{web.address}/206?whole") == b"body of 206"
    assert kind(fetcher, f"{web.address}/206?part") == kind(fetcher, f"{web.address}/206") == "unreachable"
    assert kind(fetcher, f"{web.address}/204") == "forbidden"


def test_headers_by_host(web: Any) -> None:
    other = web.address.replace("127.0.0.1", "localhost")
    fetcher = Fetcher(headers=Headers.of("me/1 (a@b.example)", {"127.0.0.*": {"X-Key": "1", "Authorization": "k"}}))
    assert fetcher.fetch(f"{web.address}/headers") == b"me/1 (a@b.example) 1 k"
    assert fetcher.fetch(f"{other}/headers") == b"me/1 (a@b.example) None None"
    assert fetcher.fetch(f"{web.address}/redirect?{other}/headers") == b"me/1 (a@b.example) None None"
    assert fetcher.fetch(f"{other}/redirect?{web.address}/headers") == b"me/1 (a@b.example) 1 k"
    assert Fetcher().fetch(f"{web.address}/headers") == b"paliscribe None None"


def test_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"12345")
    (tmp_path / "empty").write_bytes(b"")
    fetcher = Fetcher(max_bytes=5)
    assert fetcher.fetch(str(tmp_path / "a b")) == fetcher.fetch(f"file://{tmp_path}/a%20b") == b"12345"
    assert fetcher.fetch(f"file:{tmp_path}/a%20b") == b"12345"
    assert kind(fetcher, str(tmp_path / "no")) == "missing"
    assert kind(fetcher, str(tmp_path / "empty")) == "empty"
    assert kind(fetcher, str(tmp_path)) == "bad_uri"
    assert kind(Fetcher(max_bytes=4), str(tmp_path / "a b")) == "too_large"


def test_s3(bucket: str) -> None:
    store = open_store(f"s3://{bucket}/p")
    store.put("a?b#c %20é", b"12345")
    fetcher = Fetcher(max_bytes=5)
    assert fetcher.fetch(f"s3://{bucket}/p/a?b#c %20é") == b"12345"
    assert kind(fetcher, f"s3://{bucket}/p/no") == "missing"
    assert kind(Fetcher(max_bytes=4), f"s3://{bucket}/p/a?b#c %20é") == "too_large"


@pytest.mark.parametrize("key", ["/a.png", "//a.png", "p//a.png", "p/a//b.png", "/p/a.png"])
def test_s3_keys_with_empty_parts(bucket: str, key: str) -> None:
    asked = []
    client = s3_client.client()
    client.meta.events.register("before-call.s3.GetObject", lambda params, **_: asked.append(params["url_path"]))
    for scheme in ("s3", "s3a", "s3n"):
        with contextlib.suppress(RowError):  # SeaweedFS joins the slashes
            Fetcher(retries=0).fetch(f"{scheme}://{bucket}/{key}")
        folder, name = split(f"{scheme}://{bucket}/{key}")
        with contextlib.suppress(StorageError):
            open_store(folder).get(name)
    assert asked == [f"/{key}"] * 6


def test_many_come_back_in_order_and_together(web: Any, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    uris = [f"{web.address}/{n}" if n < 6 else f"{web.address}/n{n}" for n in range(6, 60)]
    uris[7], uris[20] = f"{web.address}/404", str(tmp_path / "x")
    found = Fetcher(concurrency=8).fetch_many(uris)
    assert len(found) == len(uris)
    for n, (uri, one) in enumerate(zip(uris, found, strict=True)):
        if n == 7:
            assert isinstance(one, RowError) and one.kind == "missing"
        else:
            assert one == (b"x" if n == 20 else b"body of " + uri.rpartition("/")[2].encode())


def test_a_web_folder_is_read_only(web: Any, tmp_path: Path) -> None:
    store = open_store(f"{web.address}/")
    assert store.get("a") == b"body of a" and store.exists("a") and not store.exists("404")
    with store.open("cut-then-b") as source:
        assert source.read() == b"body of b" and source.seek(5) == 5 and source.read() == b"of b"
    for call in (lambda: store.put("k", b""), lambda: store.put_if_absent("k", b""), lambda: store.delete("k")):
        with pytest.raises(StorageError) as caught:
            call()
        assert caught.value.kind == "forbidden"
    with pytest.raises(StorageError):
        list(store.list())
