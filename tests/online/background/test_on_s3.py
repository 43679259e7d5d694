"""Batches whose files are on a real S3 server: created, driven, cancelled, fought over, expired."""

import itertools
import json
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from online.background.order_trial import MODELS, ROWS, scripted_run

from paliscribe import results
from paliscribe.config import ServeConfig
from paliscribe.online.background import drive_batch, work
from paliscribe.online.background.drivers import drive
from paliscribe.online.background.expiring import Janitor
from paliscribe.online.background.store import BackgroundJob, BackgroundStore, FileInfo, new_id
from paliscribe.storage import open_store

pytestmark = pytest.mark.long
DAY = 86_400


@pytest.fixture
def config(bucket: str, monkeypatch: pytest.MonkeyPatch) -> ServeConfig:
    monkeypatch.setitem(vars(drive_batch), "run_batch", scripted_run)
    monkeypatch.setattr(work, "REPORT_EVERY", 0.0)
    return ServeConfig(files=f"s3://{bucket}/endpoint")


def created(config: ServeConfig, folder: Path, lines: int = 0) -> tuple[BackgroundStore, BackgroundJob]:
    """A batch as a caller creates it, with an input of so many lines; without, as its driver has validated it."""
    store, content = BackgroundStore(open_store(str(config.files))), folder / "content"
    body = {"model": "demo", "messages": [{"role": "user", "content": [
        {"type": "text", "text": "ocr"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}
    ]}]}  # fmt: skip
    made = (
        {"custom_id": f"id-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(lines)
    )
    content.write_text("".join(json.dumps(line) + "\n" for line in made))
    info = FileInfo(new_id("file-"), "in.jsonl", "batch", content.stat().st_size, int(time.time()))
    store.add_file("tenant-acme", info, content)
    asked = {"input_file_id": info.id, "completion_window": "24h", "metadata": None}
    job = BackgroundJob(new_id("batch_"), "tenant-acme", "batch", asked, int(time.time()))
    store.add_job(job)
    if not lines:
        table = {name: [f"id-{row}" for row in range(ROWS)] for name in ("id", "image", "ask", "options")}
        pq.write_table(pa.table(table), content)
        store.objects.put_file(store.key(job, "lines.parquet"), content)
        counts = {"total": ROWS, "completed": 0, "failed": 0}
        store.set_state(job, {"status": "in_progress", "counts": counts, "model": "demo"})
    return store, job


def answers(store: BackgroundStore, name: str) -> list[str]:
    with store.open_file("tenant-acme", name) as file:
        return sorted(json.loads(line)["custom_id"] for line in file)


def test_a_batch_from_its_creation_to_its_expiry(config: ServeConfig, tmp_path: Path) -> None:
    store, job = created(config, tmp_path, ROWS)
    assert [one.id for one in store.open_jobs()] == [job.id]
    assert drive(config, MODELS, "none", job)
    state = store.state(job)
    assert state["status"] == "completed" and state["counts"] == {"total": ROWS, "completed": ROWS - 1, "failed": 1}
    assert answers(store, state["output_file_id"]) == sorted(f"id-{row}" for row in range(ROWS) if row != 7)
    assert answers(store, state["error_file_id"]) == ["id-7"]
    assert store.files_of(job) == sorted([state["output_file_id"], state["error_file_id"]])
    assert not store.open_jobs()
    left = {found.key.rpartition("/")[2] for found in store.objects.list(store.key(job, ""))}
    assert left == {"order.json", "state.json"}, "the run and the lease are gone"
    Janitor(store, DAY).sweep()
    assert len(store.files("tenant-acme")) == 3 and store.job("tenant-acme", job.id)
    Janitor(store, DAY).sweep(time.time() + 2 * DAY)
    assert [found.key for found in store.objects.list()] == []


def test_a_batch_that_is_cancelled_while_it_runs(config: ServeConfig, tmp_path: Path) -> None:
    store, job = created(config, tmp_path)

    def cancel() -> None:
        run = open_store(f"{config.files}/{store.key(job, 'run')}")
        until = time.monotonic() + 60
        while len(list(results.committed(run))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        store.cancel(job)

    caller = threading.Thread(target=cancel)
    caller.start()
    for attempt in itertools.count():  # the first is interrupted, the next one finalizes
        assert attempt < 5
        drive(config, MODELS, "none", job)
        if (state := store.state(job))["status"] == "cancelled":
            break
    caller.join()
    kept = answers(store, state["output_file_id"])
    assert 2 <= len(kept) < ROWS - 1 and state["counts"]["completed"] == len(kept)
    Janitor(store, DAY).sweep(time.time() + 2 * DAY)
    assert [found.key for found in store.objects.list()] == []


def test_a_batch_under_another_lease_is_left_alone(config: ServeConfig, tmp_path: Path) -> None:
    store, job = created(config, tmp_path)
    before = store.state(job)
    with results.hold(store.folder(job), ttl=1.0):
        assert not drive(config, MODELS, "none", job, lease=1.0)
        Janitor(store, DAY).sweep(time.time() + 2 * DAY)
        assert store.state(job) == before and store.file("tenant-acme", job.asked["input_file_id"])
    assert drive(config, MODELS, "none", job) and store.state(job)["status"] == "completed"


def test_a_tenant_adopts_a_folder(config: ServeConfig, tmp_path: Path) -> None:
    store, job = created(config, tmp_path)
    store.adopt("tenant-beta", "tenant-acme")
    store.adopt("tenant-gamma", "tenant-acme")
    assert store.jobs("tenant-beta", "batch") == [job.id] and store.jobs("tenant-gamma", "batch") == []
    assert len(store.files("tenant-beta")) == 1 and store.job("tenant-beta", job.id) == job
