"""Expiry of files, batches and jobs: what is finished goes, what is needed stays, a crash leaves nothing behind."""

import json
import os
import time
from pathlib import Path

import pytest
from results.made import Crash, Crashing

from paliscribe import results
from paliscribe.errors import TemporaryError
from paliscribe.online.background.expiring import GRACE, JANITOR, UNMARKED, Janitor
from paliscribe.online.background.store import BackgroundJob, BackgroundStore, FileInfo, made_at, new_id
from paliscribe.storage import open_store

DAY = 86_400
AFTER = 7 * DAY


class Stored:
    """A store with files and jobs of a given age in days."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, BackgroundStore(open_store(str(folder / "files")))
        self.now = time.time()

    def name(self, prefix: str, age: float) -> str:
        made = f"{int((self.now - age * DAY) * 1000):012x}"
        return prefix + made + new_id("file-")[17:]

    def aged(self, age: float) -> None:
        """Make all that was written in this moment so old."""
        for path in (self.folder / "files").rglob("*"):
            if path.is_file() and path.stat().st_mtime > self.now - 1:
                os.utime(path, (self.now - age * DAY,) * 2)

    def file(self, age: float, owner: str = "one", expires: float | None = None) -> str:
        path, made = self.folder / "content", int(self.now - age * DAY)
        path.write_bytes(b"abc")
        until = None if expires is None else made + int(expires * DAY)
        info = FileInfo(self.name("file-", age), "in.jsonl", "batch", 3, made, until)
        self.store.add_file(owner, info, path)
        self.aged(age)
        return info.id

    def job(
        self, age: float, ended: float | None, status: str = "completed", owner: str = "one", file: str = ""
    ) -> str:
        job = BackgroundJob(
            self.name("batch_", age), owner, "batch", {"input_file_id": file}, int(self.now - age * DAY)
        )
        self.store.add_job(job)
        self.store.objects.put(self.store.key(job, "_run/lease.json"), b"{}")
        if ended is not None:
            self.store.cancel(job)
            self.store.set_state(job, {"status": status, f"{status}_at": int(self.now - ended * DAY)})
        self.aged(age)
        return job.id

    def names(self) -> set[str]:
        return {found.key.split("/")[2] for found in self.store.objects.list() if not found.key.startswith(JANITOR)}


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path)


def test_finished_jobs_and_files_that_no_unfinished_one_needs(stored: Stored) -> None:
    needed, old, young = stored.file(9), stored.file(9, "tenant-acme"), stored.file(6)
    unfinished = stored.job(9, None, file=needed)
    stays = {needed, young, unfinished, stored.job(9, 6), stored.job(1, 0)}
    for status in ("completed", "failed", "expired", "cancelled"):
        stored.job(9, 8, status)
    Janitor(stored.store, AFTER).sweep()
    assert stored.names() == stays and stored.store.file("tenant-acme", old) is None
    assert [job.id for job in stored.store.open_jobs()] == [unfinished]
    assert not results.read_lease(open_store(f"{stored.store.objects.uri}/{JANITOR}"))


def test_nothing_expires_by_default_but_what_its_caller_wants(stored: Stored) -> None:
    stays = {stored.file(900), stored.job(900, 899), stored.file(2, expires=3)}
    stored.file(4, expires=3)
    Janitor(stored.store, None).sweep()
    assert stored.names() == stays


def test_the_earlier_of_two_ends_counts(stored: Stored) -> None:
    stored.file(4, expires=3)
    stored.file(9, expires=20)
    stays = {stored.file(4, expires=20)}
    info = stored.store.file("one", *stays)
    assert info and info.until(AFTER) == info.created_at + AFTER and info.until(None) == info.created_at + 20 * DAY
    Janitor(stored.store, AFTER).sweep()
    assert stored.names() == stays


def test_a_file_has_some_grace(stored: Stored) -> None:
    name = stored.file(7)
    Janitor(stored.store, AFTER).sweep(stored.now + GRACE / 2)
    assert stored.names() == {name}
    Janitor(stored.store, AFTER).sweep(stored.now + GRACE + 2)
    assert stored.names() == set()


@pytest.mark.parametrize("at", range(1, 20))
def test_what_a_crash_leaves_is_deleted_by_the_next_sweep(stored: Stored, at: int) -> None:
    stored.file(9, expires=8)
    stored.job(9, 8, owner="tenant-acme")
    crashing = BackgroundStore(Crashing(stored.store.objects, at))
    try:
        Janitor(crashing, AFTER).sweep()
    except Crash:
        for name in stored.names():  # no half of one is seen
            if stored.store.file("one", name):
                assert stored.store.open_file("one", name).read() == b"abc"
    else:
        assert at > 8, "a deletion less than there are objects"
    Janitor(stored.store, AFTER).sweep()
    assert stored.names() == set()


def test_an_upload_that_was_cut_off_is_deleted_and_one_in_progress_is_not(stored: Stored) -> None:
    names = [stored.name("file-", 0) for _ in range(2)]
    for name, age in zip(names, (UNMARKED + 60, UNMARKED - 60), strict=True):
        stored.store.objects.put(f"one/files/{name}/content", b"abc")
        stored.aged(age / DAY)
    stored.store.objects.put("open/one/batch_" + "0" * 30, b"")
    stored.aged(1)
    stored.store.objects.put("one/files/of another program", b"")
    stored.aged(100)
    Janitor(stored.store, None).sweep()
    assert stored.names() == {names[1], "of another program"}


def test_one_janitor_at_a_time(stored: Stored) -> None:
    stored.file(9)
    with (
        results.hold(open_store(f"{stored.store.objects.uri}/{JANITOR}"), ttl=0.4),
        pytest.raises(TemporaryError, match="another driver holds the lease"),
    ):
        Janitor(stored.store, AFTER).sweep(lease=0.4)
    assert len(stored.names()) == 1


def test_ids_say_when_they_were_made() -> None:
    assert all(abs(made_at(new_id(prefix)) - time.time()) < 60 for prefix in ("file-", "batch_", "job_"))


def test_meta_without_an_expiry_is_readable_by_older_versions(stored: Stored) -> None:
    name, other = stored.file(1), stored.file(1, expires=2)
    body = json.loads(stored.store.objects.get(f"one/files/{name}/meta.json"))
    assert "expires_at" not in body and stored.store.objects.exists(f"one/files/{other}/expires")
