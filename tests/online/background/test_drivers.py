"""Drivers of background jobs that cannot continue: answered requests are kept, and nothing is done twice."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paliscribe import results
from paliscribe.config import ServeConfig
from paliscribe.errors import Stopped, TemporaryError
from paliscribe.online.background.drivers import MAX_CALLERS, MAX_RUNNING, drive, next_jobs
from paliscribe.online.background.store import BackgroundJob, BackgroundStore, FileInfo, new_id
from paliscribe.online.background.work import Work
from paliscribe.records import Record
from paliscribe.results import ModelFacts
from paliscribe.storage import open_store

ROWS = 5
NOW = 1_700_000_000


def record(row: int, failed: bool) -> Record:
    return Record(
        id=f"line-{row}",
        image="data:image/png;base64,...",
        task="{ask}",
        kind="free",
        prompt="ocr",
        status="error" if failed else "ok",
        text=None if failed else f"answer {row}",
        boxes=(),
        masks=(),
        score=None if failed else 0.5,
        prompt_tokens=None if failed else 68,
        tokens=None if failed else 2,
        finish_reason=None if failed else "stop",
        error_kind="missing" if failed else None,
        error_message="no such file" if failed else None,
        width=9,
        height=9,
        image_sha256="0",
        shard=0,
        row=row,
    )


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    return ServeConfig(files=str(tmp_path / "files"))


def started(
    config: ServeConfig, *, expires_at: int | None = None, status: str = "in_progress"
) -> tuple[BackgroundStore, BackgroundJob]:
    """A batch of five lines with one committed shard of three, the last of which is a dead letter."""
    store = BackgroundStore(open_store(str(config.files)))
    body = {"input_file_id": "file-1", "completion_window": "24h", "metadata": None}
    job = BackgroundJob(new_id("batch_"), "one", "batch", body, NOW, expires_at)
    store.add_job(job)
    rows = {name: [f"line-{row}" for row in range(ROWS)] for name in ("id", "image", "ask", "options")}
    path = Path(str(config.files)) / store.key(job, "lines.parquet")
    pq.write_table(pa.table(rows), path)
    run = open_store(f"{config.files}/{store.key(job, 'run')}")
    facts = ModelFacts("demo", "r1", "float32")
    records = [record(row, failed=row == 2) for row in range(3)]
    table = results.to_table(records, facts, results.schema(pa.schema([])))
    results.commit(run, results.write_shard(run, 0, "a", table))
    counts = {"total": ROWS, "completed": 0, "failed": 0}
    store.set_state(job, {"status": status, "counts": counts, "model": "gone"})
    return store, job


def read_file(store: BackgroundStore, name: str) -> list[dict[str, Any]]:
    with store.open_file("one", name) as file:
        return [json.loads(line) for line in file]


def test_a_failed_batch_keeps_its_answers(config: ServeConfig) -> None:
    store, job = started(config)
    drive(config, {}, "paliscribe", job)
    state = store.state(job)
    assert state["status"] == "failed" and state["counts"] == {"total": ROWS, "completed": 2, "failed": 1}
    assert [line["custom_id"] for line in read_file(store, state["output_file_id"])] == ["line-0", "line-1"]
    assert [line["custom_id"] for line in read_file(store, state["error_file_id"])] == ["line-2"]
    assert "gone" not in state["problems"][0]["message"], "internals are not exposed to callers"
    left = [found.key for found in store.objects.list(store.key(job, ""))]
    assert {key.rpartition("/")[2] for key in left} == {"order.json", "state.json"}
    assert store.open_jobs() == []


def test_an_interrupted_driver_leaves_no_file(config: ServeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt between the files and the state that names them: the next driver stores files of its own."""
    store, job = started(config)

    def interrupted(work: Work, *arguments: object, **values: object) -> None:
        assert store.files_of(job)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Work, "fail", interrupted)
        with pytest.raises(KeyboardInterrupt):
            drive(config, {}, "paliscribe", job)
    assert not store.files_of(job)
    drive(config, {}, "paliscribe", job)
    state = store.state(job)
    assert set(store.files_of(job)) == {state["output_file_id"], state["error_file_id"]}


def test_a_finished_job_is_not_changed(config: ServeConfig) -> None:
    store, job = started(config, status="completed")
    before = store.state(job)
    drive(config, {}, "paliscribe", job)
    assert store.state(job) == before


def test_an_expired_batch_lists_its_unanswered_lines(config: ServeConfig) -> None:
    store, job = started(config, expires_at=NOW + 1)
    drive(config, {}, "paliscribe", job)
    state = store.state(job)
    assert state["status"] == "expired" and state["counts"] == {"total": ROWS, "completed": 2, "failed": 3}
    failed = read_file(store, state["error_file_id"])
    assert [line["custom_id"] for line in failed] == ["line-2", "line-3", "line-4"]
    assert [line["error"] and line["error"]["code"] for line in failed] == [None, "batch_expired", "batch_expired"]


def test_a_cancel_request_before_the_expiry_counts(config: ServeConfig) -> None:
    store, job = started(config, expires_at=NOW + 100)
    store.objects.put(store.key(job, "cancel.json"), json.dumps({"at": NOW + 50}).encode())
    drive(config, {}, "paliscribe", job)
    state = store.state(job)
    assert state["status"] == "cancelled" and state["counts"] == {"total": ROWS, "completed": 2, "failed": 1}


def test_a_job_fails_if_its_model_is_no_longer_served(config: ServeConfig) -> None:
    store = BackgroundStore(open_store(str(config.files)))
    job = BackgroundJob(new_id("job_"), "one", "job", {"model": "gone"}, NOW)
    store.add_job(job)
    drive(config, {}, "paliscribe", job)
    state = store.state(job)
    assert state["status"] == "failed" and state["problems"][0]["message"] == "model gone is no longer served"


def test_stopped_is_not_an_exception() -> None:
    assert not issubclass(Stopped, Exception), "a library would wrap or retry it"


def test_a_job_under_another_lease_is_left_alone(config: ServeConfig) -> None:
    store, job = started(config)
    before = store.state(job)
    with results.hold(store.folder(job), ttl=0.4):
        assert not drive(config, {}, "paliscribe", job, give_up_at=0, lease=0.4)
    assert store.state(job) == before
    assert drive(config, {}, "paliscribe", job, lease=0.4) and store.state(job)["status"] == "failed"


def test_a_replaced_driver_writes_nothing(config: ServeConfig) -> None:
    store, job = started(config)
    first, second = (Work(config, {}, "paliscribe", store, job) for _ in range(2))
    assert first.claim() and second.claim()
    second.set_status("completed")
    before = store.state(job)
    with pytest.raises(TemporaryError, match="another driver has taken over"):
        first.set_status("in_progress")
    assert store.state(job) == before and not first.claim()


def test_files_of_lost_drivers_are_deleted(config: ServeConfig, tmp_path: Path) -> None:
    store, job = started(config, expires_at=NOW + 1)
    (tmp_path / "left").write_text("cut")
    lost = FileInfo(store.output_id(job, 0), "x", "batch_output", 3, NOW)
    store.add_file("one", lost, tmp_path / "left")
    drive(config, {}, "paliscribe", job)
    state = store.state(job)
    assert store.files("one") == sorted([state["output_file_id"], state["error_file_id"]])


def test_a_job_without_progress_is_given_up_and_keeps_its_answers(config: ServeConfig) -> None:
    store, job = started(config)
    drive(config, {}, "paliscribe", job, give_up_at=0)
    state = store.state(job)
    assert state["status"] == "failed" and state["counts"] == {"total": ROWS, "completed": 2, "failed": 1}


def test_callers_take_turns() -> None:
    def jobs(owner: str, number: int) -> list[BackgroundJob]:
        return [BackgroundJob(new_id("job_"), owner, "job", {}, NOW + at) for at in range(number)]

    many, one = jobs("many", MAX_RUNNING + 5), jobs("one", 2)
    assert next_jobs(many, many[:MAX_RUNNING], {}) == [], "a caller alone has so many at a time"
    assert next_jobs([*many, *one], many[:MAX_RUNNING], {}) == [one[0]], "one more of a caller who has none"
    assert next_jobs(one[1:], [*many[:MAX_RUNNING], one[0]], {}) == []
    callers = [job for number in range(MAX_CALLERS) for job in jobs(f"caller-{number}", 1)]
    assert next_jobs(one, callers, {}) == []
    assert next_jobs([*many, *one], [], {"many": 5.0, "one": 4.0}) == [one[0]], "served longer ago"
    assert next_jobs([*many, *one], [], {"many": 4.0, "one": 5.0}) == [many[0]]
