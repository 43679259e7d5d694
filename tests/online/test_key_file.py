"""The file of API keys while an endpoint runs: what is written, replaced, broken or lost meanwhile."""

import asyncio
import hashlib
import logging
import threading
import time
from pathlib import Path

import pytest

from paliscribe.errors import RequestError
from paliscribe.online.background.store import BackgroundJob, BackgroundStore, FileInfo, new_id
from paliscribe.online.key_file import KeyFile
from paliscribe.online.keys import Keys, own_id, read_keys
from paliscribe.storage import StorageError, open_store

ONE, TWO = "the-first-key-of-two", "the-second-key-of-two"


class Watched:
    """A file of keys, and an endpoint's keys that follow it."""

    def __init__(self, folder: Path, text: str, store: BackgroundStore | None = None) -> None:
        self.path = folder / "keys"
        self.path.write_text(text)
        source = read_keys(str(self.path))
        self.keys = Keys(source.found)
        self.file = KeyFile(source, self.keys, store)
        self.look()

    def look(self) -> None:
        for _ in range(2):
            self.file.look()

    def caller(self, key: str) -> str | None:
        try:
            return asyncio.run(self.keys.admit(f"Bearer {key}"))
        except RequestError as error:
            assert error.status == 401
            return None


def own(key: str) -> str:
    return own_id(hashlib.sha256(key.encode()).hexdigest())


def test_keys_come_and_go_with_the_file(tmp_path: Path) -> None:
    watched = Watched(tmp_path, f"{ONE}\n")
    watched.path.write_text(f"acme:{TWO}\n")
    watched.file.look()
    assert watched.caller(ONE) and not watched.caller(TWO), "it may still be written"
    watched.file.look()
    assert watched.caller(ONE) is None and watched.caller(TWO) == "tenant-acme"
    watched.path.write_text(f"acme:{TWO}\nacme:{ONE}\n")
    watched.look()
    assert watched.caller(ONE) == watched.caller(TWO) == "tenant-acme"


@pytest.mark.parametrize("content", [None, b"", b"# none\n", b"\xff\xfe", b"short\n", f"a:{ONE}\nb:{ONE}".encode()])
def test_a_file_that_cannot_be_used_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    watched = Watched(tmp_path, f"{ONE}\n")
    if content is None:
        watched.path.unlink()
    else:
        watched.path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            watched.look()
    assert watched.caller(ONE) and watched.keys.are_required and not watched.file.usable
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"the keys stay as they were: keys {watched.path}: ") and ONE not in said
    watched.path.write_text(f"{ONE}\n")
    watched.look()
    assert watched.caller(ONE) and watched.file.usable


def test_a_secret_of_kubernetes_is_a_link_that_is_swapped(tmp_path: Path) -> None:
    for version, key in (("1", ONE), ("2", TWO)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(f"{key}\n")
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "mounted").symlink_to("..data/keys")
    source = read_keys(str(tmp_path / "mounted"))
    keys = Keys(source.found)
    file = KeyFile(source, keys)
    file.look()
    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").rename(tmp_path / "..data")
    file.look()
    file.look()
    assert asyncio.run(keys.admit(f"Bearer {TWO}")) == own(TWO)


def test_keys_of_the_environment_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALISCRIBE_API_KEYS", TWO)
    watched = Watched(tmp_path, f"{ONE}\n")
    monkeypatch.delenv("PALISCRIBE_API_KEYS")  # a gateway has another environment than whoever deploys it
    watched.path.write_text(f"acme:{ONE}\n")
    watched.look()
    assert watched.caller(ONE) == "tenant-acme" and watched.caller(TWO) == own(TWO)


def test_a_thread_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paliscribe.online.key_file.LOOK_EVERY", 0.01)
    watched, told = Watched(tmp_path, f"{ONE}\n"), threading.Event()
    watched.file.watch(lambda usable: None if usable else told.set())
    watched.path.write_text("")
    assert told.wait(10)
    watched.path.write_text(f"{TWO}\n")
    until = time.monotonic() + 10
    while watched.caller(TWO) is None:
        assert time.monotonic() < until
        time.sleep(0.01)


def stored(store: BackgroundStore, owner: str, folder: Path) -> tuple[str, str]:
    """A file and a batch of a caller."""
    (folder / "content").write_bytes(b"abc")
    info = FileInfo(new_id("file-"), "in.jsonl", "batch", 3, 17)
    store.add_file(owner, info, folder / "content")
    job = BackgroundJob(new_id("batch_"), owner, "batch", {}, 17)
    store.add_job(job)
    return info.id, job.id


def test_a_key_that_gets_a_tenant_brings_its_files_and_batches(tmp_path: Path) -> None:
    store = BackgroundStore(open_store(str(tmp_path / "files")))
    name, job = stored(store, own(ONE), tmp_path)
    watched = Watched(tmp_path, f"{ONE}\n{TWO}\n", store)
    assert store.file("tenant-acme", name) is None
    watched.path.write_text(f"acme:{ONE}\n{TWO}\n")
    watched.look()
    later = stored(store, "tenant-acme", tmp_path)
    watched.path.write_text(f"acme:{TWO}\n")  # the old key is gone, its files are not
    watched.look()
    again = BackgroundStore(open_store(str(tmp_path / "files")))
    assert again.files("tenant-acme") == [name, later[0]] and again.jobs("tenant-acme", "batch") == [job, later[1]]
    assert again.job("tenant-acme", job) and {one.id for one in again.open_jobs()} == {job, later[1]}
    with again.open_file("tenant-acme", name) as file:
        assert file.read() == b"abc"
    again.delete_file("tenant-acme", name)
    assert again.files("tenant-acme") == [later[0]]
    watched.path.write_text(f"beta:{ONE}\nacme:{TWO}\n")
    watched.look()
    assert again.files("tenant-beta") == [] and again.job("tenant-beta", job) is None, "the first tenant keeps them"


class Lost(BackgroundStore):
    """A store that cannot be reached while `lost`."""

    lost = True

    def adopt(self, tenant: str, folder: str) -> None:
        if self.lost:
            raise StorageError("unreachable", "s3://bucket", "no")
        super().adopt(tenant, folder)


def test_a_store_that_does_not_answer_keeps_no_key_alive(tmp_path: Path) -> None:
    store = Lost(open_store(str(tmp_path / "files")))
    name, _ = stored(store, own(TWO), tmp_path)
    watched = Watched(tmp_path, f"{ONE}\n{TWO}\n", store)
    watched.path.write_text(f"acme:{TWO}\n")
    watched.look()
    assert watched.caller(ONE) is None and watched.caller(TWO) == "tenant-acme" and not store.file("tenant-acme", name)
    store.lost = False
    watched.file.look()
    assert store.file("tenant-acme", name)
