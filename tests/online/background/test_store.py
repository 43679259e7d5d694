"""Storage of files and background jobs: markers last, one writer per object, isolation of callers."""

from pathlib import Path

import pytest

from paliscribe.online.background.store import BackgroundJob, BackgroundStore, FileInfo, new_id
from paliscribe.storage import open_store


@pytest.fixture
def store(tmp_path: Path) -> BackgroundStore:
    return BackgroundStore(open_store(str(tmp_path / "store")))


def content(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "content"
    path.write_bytes(data)
    return path


def test_a_file_exists_once_its_marker_does(store: BackgroundStore, tmp_path: Path) -> None:
    info = FileInfo(new_id("file-"), "in.jsonl", "batch", 3, 17)
    store.objects.put_file(f"one/files/{info.id}/content", content(tmp_path, b"abc"))
    assert store.file("one", info.id) is None and store.files("one") == []
    store.add_file("one", info, content(tmp_path, b"abc"))
    assert store.file("one", info.id) == info and store.files("one") == [info.id]
    with store.open_file("one", info.id) as file:
        assert file.read() == b"abc"
    store.delete_file("one", info.id)
    assert store.file("one", info.id) is None and list(store.objects.list()) == []


def test_callers_are_isolated(store: BackgroundStore, tmp_path: Path) -> None:
    info = FileInfo(new_id("file-"), "in.jsonl", "batch", 3, 17)
    store.add_file("one", info, content(tmp_path, b"abc"))
    job = BackgroundJob(new_id("batch_"), "one", "batch", {}, 17)
    store.add_job(job)
    assert store.file("other", info.id) is None and store.files("other") == []
    assert store.job("other", job.id) is None and store.jobs("other", "batch") == []
    assert store.job("one", job.id) == job


@pytest.mark.parametrize("name", ["../one", "file-../../x", "", "file-", "file-ZZ", "batch_" + "a" * 60, "file-a\n"])
def test_malformed_ids_are_not_found(store: BackgroundStore, name: str) -> None:
    assert store.file("one", name) is None and store.job("one", name) is None


def test_open_jobs_are_the_unfinished_ones_oldest_first(store: BackgroundStore) -> None:
    jobs = [BackgroundJob(new_id("batch_"), f"caller-{number % 2}", "batch", {}, number) for number in range(4)]
    jobs.append(BackgroundJob(new_id("job_"), "caller-0", "job", {"tasks": ["ocr"]}, 9))
    for job in reversed(jobs):
        store.add_job(job)
    store.set_state(jobs[1], {"status": "completed"})
    store.set_state(jobs[2], {"status": "in_progress"})
    assert [job.created_at for job in store.open_jobs()] == [0, 2, 3, 9]
    assert sorted(store.jobs("caller-0", "batch")) == sorted([jobs[0].id, jobs[2].id])
    assert store.jobs("caller-0", "job") == [jobs[4].id]


def test_the_first_cancel_request_counts(store: BackgroundStore) -> None:
    job = BackgroundJob(new_id("job_"), "one", "job", {}, 17)
    store.add_job(job)
    assert store.cancelled_at(job) is None
    store.cancel(job)
    first = store.cancelled_at(job)
    store.objects.put(store.key(job, "cancel.json"), b'{"at": 5}')
    store.cancel(job)
    assert first is not None and store.cancelled_at(job) == 5


def test_ids_sort_by_time_and_are_unique() -> None:
    names = [new_id("file-") for _ in range(50)]
    assert len(set(names)) == 50 and [name[:17] for name in names] == sorted(name[:17] for name in names)
