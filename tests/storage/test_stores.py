"""One contract, two stores: a folder of this disk, and a prefix of a real S3 server."""

import io
import pickle
import random
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from paliscribe.storage import StorageError, Store, check_writable, local, open_store, retry, s3_client

T = TypeVar("T")


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty store of each sort."""
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.02)
    if request.param == "disk":
        yield open_store(str(tmp_path / "store"))
    else:
        yield open_store(f"s3://{request.getfixturevalue('bucket')}/some/prefix/")


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Run calls together, from the same moment."""
    gate = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T:
        gate.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def keys(store: Store, prefix: str = "") -> list[str]:
    return [found.key for found in store.list(prefix)]


def kind(call: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return caught.value.kind


def test_what_is_put_is_there(store: Store) -> None:
    etag = store.put("a/b é.bin", b"one")
    assert store.get("a/b é.bin") == b"one" and store.exists("a/b é.bin")
    assert store.get_with_etag("a/b é.bin") == (b"one", etag)
    assert store.put("a/b é.bin", b"two") != etag
    assert store.get("a/b é.bin") == b"two"
    store.delete("a/b é.bin")
    store.delete("a/b é.bin")
    assert not store.exists("a/b é.bin") and not keys(store)


def test_missing_is_told(store: Store) -> None:
    assert kind(lambda: store.get("no")) == "missing"
    assert kind(lambda: store.open("no").read()) == "missing"
    assert store.put_if_match("no", b"x", "tag") is None
    assert not store.exists("no")


def test_too_large_is_told(store: Store) -> None:
    store.put("k", b"12345")
    assert store.get("k", max_bytes=5) == b"12345"
    assert kind(lambda: store.get("k", max_bytes=4)) == "too_large"


def test_listing_is_recursive_by_key_and_by_any_prefix(store: Store) -> None:
    names = ["a/b/c", "a/c", "b.txt", "img/1", "img2", "é"]
    for name in random.sample(names, len(names)):
        store.put(name, name.encode())
    assert keys(store) == sorted(names)
    assert keys(store, "img") == ["img/1", "img2"]
    assert keys(store, "img/") == ["img/1"]
    assert keys(store, "no/such") == []
    sizes = {found.key: found.size for found in store.list()}
    assert sizes == {name: len(name.encode()) for name in names}
    store.delete_many(names[:3])
    assert keys(store) == sorted(names[3:])


def test_many_are_deleted_at_once(store: Store) -> None:
    names = [f"gone/{n:04d} é&<" for n in range(2003)]  # of most there is no object
    for name in (names[0], names[999], names[1000], names[2002], "kept"):
        store.put(name, b"")
    store.delete_many(iter(names))
    assert keys(store) == ["kept"]
    store.delete_many([])


def test_listing_passes_pages(store: Store) -> None:
    """The S3 server is asked for pages of ten keys; by default they have a thousand."""
    if store.uri.startswith("s3://"):
        events = s3_client.client().meta.events
        events.register("before-parameter-build.s3.ListObjectsV2", lambda params, **_: params.update(MaxKeys=10))
    for n in range(25):
        store.put(f"many/{n:04d}", b"")
    assert keys(store, "many/") == [f"many/{n:04d}" for n in range(25)]


def test_one_of_many_creates(store: Store) -> None:
    for key in ("marker-1", "marker-2"):
        calls = [partial(store.put_if_absent, key, b"%d" % n) for n in range(5)]
        created = at_once(calls)
        assert created.count(True) == 1
        assert store.get(key) == b"%d" % created.index(True)


def test_a_second_creation_is_refused_even_with_equal_content(store: Store) -> None:
    assert store.put_if_absent("k", b"same")
    assert not store.put_if_absent("k", b"same")


def test_one_of_many_swaps(store: Store) -> None:
    etag = store.put("lease", b"start")
    tags = at_once([partial(store.put_if_match, "lease", b"%d" % n, etag) for n in range(5)])
    (won,) = [tag for tag in tags if tag is not None]
    assert store.get_with_etag("lease") == (b"%d" % tags.index(won), won)
    assert store.put_if_match("lease", b"late", etag) is None
    assert store.put_if_match("lease", b"next", won) is not None
    assert keys(store) == ["lease"]  # no lock shows


def test_large_files_travel_in_constant_memory(store: Store, tmp_path: Path) -> None:
    block = random.Random(0).randbytes(1 << 20)
    path = tmp_path / "large"
    with path.open("wb") as file:
        for n in range(40):
            file.write(n.to_bytes(4, "big") + block[4:])
    store.put_file("large.bin", path)
    tracemalloc.start()
    with store.open("large.bin") as source:
        for n in range(40):
            assert source.read(1 << 20)[:5] == n.to_bytes(4, "big") + block[4:5]
        assert source.read(1) == b""
        source.seek(-(1 << 20), io.SEEK_END)
        assert source.read(4) == (39).to_bytes(4, "big") and source.tell() == (39 << 20) + 4
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 << 20


def test_stores_travel_to_other_processes(store: Store) -> None:
    store.put("k", b"v")
    assert pickle.loads(pickle.dumps(store)).get("k") == b"v"


def test_writable(store: Store) -> None:
    check_writable(store)
    assert not keys(store)


def test_errors_travel_to_other_processes() -> None:
    error = StorageError("throttled", "http://me:secret@host/k?sig=1", "slow down", 3.0)
    again = pickle.loads(pickle.dumps(error))
    assert (again.kind, again.uri, again.message, again.retry_after) == (
        "throttled",
        "http://host/k?...",
        "slow down",
        3.0,
    )
    assert "secret" not in repr(error) and "sig" not in repr(error)


def test_versions_tell_changes_without_reading(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "is_recent", lambda modified: False)
    store.put("k", b"one")
    first = store.version("k")
    assert first is not None and store.version("k") == first
    store.put("k", b"two")
    assert store.version("k") != first
    assert kind(lambda: store.version("nothing")) == "missing"


def test_ranges_are_of_one_version(store: Store) -> None:
    store.put("a #1", b"0123456789")
    version = store.version("a #1", settled=False)
    assert [store.get_range("a #1", *place, version) for place in ((0, 3), (8, 9), (10, 4))] == [b"012", b"89", b""]
    store.put("a #1", b"another, which is longer")
    assert kind(lambda: store.get_range("a #1", 0, 3, version)) == "changed"
    assert store.get_range("a #1", 0, 3) == b"ano"
    assert kind(lambda: store.get_range("none", 0, 3)) == "missing"
