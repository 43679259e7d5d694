"""What only disks do: permissions, folders in the way, links, unfinished writes."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from paliscribe.storage import StorageError, local, open_store


def kind(store_folder: Path, key: str) -> str:
    with pytest.raises(StorageError) as caught:
        open_store(str(store_folder)).get(key)
    return caught.value.kind


def test_reading_tells_errors_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    assert kind(tmp_path, "no") == "missing"
    assert kind(tmp_path, "file/inside") == "missing"
    assert kind(tmp_path, "folder") == "bad_uri"
    assert kind(tmp_path, "pipe") == "bad_uri"  # and does not wait for a writer
    assert kind(tmp_path, "loop") == "bad_uri"
    assert kind(tmp_path, "n" * 300) == "bad_uri"
    assert kind(tmp_path, "nul\0") == "bad_uri"
    assert kind(tmp_path, "lone \ud800") == "bad_uri"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_permissions(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "secret").chmod(0)
    assert kind(tmp_path, "secret") == "forbidden"
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError) as caught:
        open_store(str(tmp_path)).put("k", b"x")
    assert caught.value.kind == "forbidden"


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for write in ("put", "put_if_absent"):
        with pytest.raises(StorageError) as caught:
            getattr(open_store(str(tmp_path)), write)("file/k", b"x")
        assert caught.value.kind in ("bad_uri", "missing")


def test_a_failed_write_leaves_the_old_object_and_nothing_else(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "s"))
    store.put("k", b"old")
    with pytest.raises(StorageError):
        store.put_file("k", tmp_path / "no such source")
    assert store.get("k") == b"old" and [p.name for p in (tmp_path / "s").iterdir()] == ["k"]


def test_unfinished_writes_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-123").write_bytes(b"half")
    (tmp_path / "k").write_bytes(b"whole")
    assert [found.key for found in open_store(str(tmp_path)).list()] == ["k"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1").write_bytes(b"x")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert [found.key for found in open_store(str(tmp_path)).list()] == ["linked/1", "real/1"]


def test_listing_is_in_the_order_of_whole_keys(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    names = ["a-b/c", "a.txt", "a/b", "a0", "b", "é"]
    for name in reversed(names):
        store.put(name, b"")
    assert [found.key for found in store.list()] == names == sorted(names)


def test_recent_by_the_clock_of_the_file_system() -> None:
    now = int(time.time())
    assert local.is_recent(now) and not local.is_recent(now - 3)
    assert local.is_recent(time.time() + 0.01) and not local.is_recent(now - 2 + 0.5)


def test_a_stopped_writer_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a driver is that gets SIGSTOP while it renews its lease."""
    store = open_store(str(tmp_path))
    etag = store.put("lease", b"one")
    monkeypatch.setattr(local, "LOCK_SECONDS", 0.2)
    with (tmp_path / ".tmp-lease.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="a process holds its lock and does not go on") as caught:
            store.put_if_match("lease", b"two", etag)
        assert caught.value.kind == "unreachable" and store.get("lease") == b"one"
    assert store.put_if_match("lease", b"two", etag) and store.get("lease") == b"two"
