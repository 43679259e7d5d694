"""Published files: every row under every task exactly once, even after crashes at any write."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from results.made import TASKS, Crash, Crashing, Failing, Job, published

from paliscribe import results
from paliscribe.errors import RunError
from paliscribe.records import ManifestRow
from paliscribe.results import Layout
from paliscribe.results.publish import FOLDER_BYTES
from paliscribe.storage import open_store

Rows = list[dict[str, Any]]
ODD = ["007", "a/b c%20=é", None, "", "..", ".", "true", "null", "__HIVE_DEFAULT_PARTITION__", "2024-01-01", "x" * 300]
ODD += ["[*]?'\"\\", "new\nline", " ", "-", "7"]
CARRIED: dict[str, tuple[pa.DataType, list[Any]]] = {
    "s": (pa.string(), ODD),
    "n": (pa.int64(), [1, 2, -3, None, 7, 2**40, 2**62, 1]),
    "digits": (pa.string(), ["007", "7", "8", "1e5"]),
    "b": (pa.bool_(), [True, False, None, True]),
    "f": (pa.float64(), [1.0, 2.5, None, 1e300]),
    "_hidden": (pa.string(), ["a", None, "b"]),
    "k" * 300: (pa.string(), ["a", None, "b"]),
}


def odd(row: int, task: str) -> bool:
    return row % 2 == 1


def never(row: int, task: str) -> bool:
    return False


def duck(output: str, options: str = "") -> pa.Table:
    query = f"select * from read_parquet('{output}/**/*.parquet'{options})"
    with duckdb.connect() as connection:
        return connection.sql(query).to_arrow_table()


READERS: dict[str, Callable[[str], pa.Table]] = {
    "pyarrow.dataset": lambda output: ds.dataset(output, format="parquet").to_table(),
    "pyarrow.dataset, hive": lambda output: ds.dataset(output, format="parquet", partitioning="hive").to_table(),
    "pyarrow.parquet": pq.read_table,
    "duckdb": duck,
    "duckdb, hive": lambda output: duck(output, ", hive_partitioning=true"),
    "duckdb, no hive": lambda output: duck(output, ", hive_partitioning=false"),
    "polars": lambda output: pl.scan_parquet(f"{output}/**/*.parquet").collect().to_arrow(),
    "polars, hive": lambda output: (
        pl.scan_parquet(f"{output}/**/*.parquet", hive_partitioning=True).collect().to_arrow()
    ),
}


def in_order(table: pa.Table) -> Rows:
    return sorted(table.to_pylist(), key=lambda record: (record["row"], record["task"]))


def check(output: str, job: Job, failing: Failing, readers: dict[str, Callable[[str], pa.Table]]) -> None:
    expected = in_order(job.table(job.records(failing)))
    assert len(expected) == job.layout.rows * len(job.tasks)
    for name, reader in readers.items():
        table = reader(output)
        assert set(table.schema.names) == set(job.schema.names), name
        assert in_order(table) == expected, name


def snapshot(output: str) -> Rows:
    """The records that a reader sees now. Empty if nothing is published yet."""
    tables = [pq.ParquetFile(path).read() for path in sorted(Path(output).rglob("*.parquet"))]
    return [record for table in tables for record in table.to_pylist()]


def check_no_duplicates(output: str) -> None:
    keys = [(record["id"], record["task"]) for record in snapshot(output)]
    assert len(keys) == len(set(keys)), "duplicate record"


@pytest.mark.parametrize("name", [name[:8] for name in CARRIED])
@pytest.mark.parametrize("more", [(), ("task",)], ids=["alone", "and task"])
def test_every_reader_sees_every_record_once(name: str, more: tuple[str, ...], tmp_path: Path) -> None:
    name = next(full for full in CARRIED if full[:8] == name)
    kind, values = CARRIED[name]
    job = Job([{name: value} for value in values], pa.schema([(name, kind)]), by=(name, *more))
    store = open_store(str(tmp_path / "out"))
    job.annotate(store, odd)
    job.publish(store)
    check(store.uri, job, odd, READERS)


@pytest.mark.long
def test_hugging_faces_datasets(tmp_path: Path) -> None:
    code = "import datasets, sys; datasets.disable_progress_bars(); "
    code += "print(sorted(datasets.load_dataset(*sys.argv[1:2], **eval(sys.argv[2]), split='train')['id']))"
    job = Job([{"s": value} for value in ODD], pa.schema([("s", pa.string())]), by=("task", "s"))
    job.annotate(store := open_store(str(tmp_path / "out")), odd)
    job.publish(store)
    ids = sorted(record.id for record in job.records(odd) if record.status != "error")
    offline = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    for named, options in (
        (f"{tmp_path}/out/annotations", {}),
        ("parquet", {"data_files": f"{tmp_path}/out/annotations/**/*.parquet"}),
    ):
        command = [sys.executable, "-c", code, named, repr(options)]
        told = subprocess.run(command, env=offline, capture_output=True, text=True, check=True).stdout
        assert ast.literal_eval(told) == ids


@pytest.mark.parametrize("by", [(), ("task",), ("kind",), ("kind", "task")])
def test_folders_by_partition_columns(by: tuple[str, ...], tmp_path: Path) -> None:
    job = Job([{}] * 8, by=by)
    store = open_store(str(tmp_path / "out"))
    job.annotate(store, odd)
    job.publish(store)
    check(store.uri, job, odd, READERS)
    folders = {
        (): [""],
        ("task",): ["task-answer en what%27s in a%2Fb %3D 50%25%3F/", "task-caption en/"],
        ("kind",): ["kind-answer/", "kind-caption/"],
        ("kind", "task"): [
            "kind-answer/task-answer en what%27s in a%2Fb %3D 50%25%3F/",
            "kind-caption/task-caption en/",
        ],
    }[by]
    expected = [f"{half}/{folder}part-00000.parquet" for half in ("annotations", "errors") for folder in folders]
    assert sorted(published(store.uri)) == sorted([*expected, "_SUCCESS", "_summary.json"])


def test_files_have_the_documented_schema_and_size(tmp_path: Path) -> None:
    job = Job([{"n": row} for row in range(50)], pa.schema([("n", pa.int64())]), shard_rows=7)
    store = open_store(str(tmp_path))
    job.annotate(store)
    job.publish(store)
    for path in tmp_path.rglob("*.parquet"):
        file = pq.ParquetFile(path)
        assert file.schema_arrow.equals(job.schema, check_metadata=True)
        assert file.num_row_groups == 1, "shards are merged into large row groups"
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
        rows = file.read(["row"])["row"].to_pylist()
        assert rows == sorted(rows), "rows keep the manifest's order"


def test_long_names_are_shortened_and_stay_distinct(tmp_path: Path) -> None:
    tasks = tuple(f"detect {' ; '.join(['наушники'] * 60)} ; {last}" for last in ("a", "b"))
    job = Job([{}] * 3, tasks=tasks)
    store = open_store(str(tmp_path))
    job.annotate(store)
    job.publish(store)
    folders = [path.name for path in (tmp_path / "annotations").iterdir()]
    assert len(folders) == 2 and all(len(name.encode()) <= 5 + FOLDER_BYTES for name in folders)
    check(store.uri, job, never, READERS)


def test_values_that_differ_by_case_alone_have_folders_that_do_not(tmp_path: Path) -> None:
    values = ["cat", "Cat", "CAT", "cAT", "cat~1", "Cat~1", "Ä", "ä", "b", "B"]
    job = Job([{"label": value} for value in values], pa.schema([("label", pa.string())]), by=("label",))
    job.annotate(store := open_store(str(tmp_path)))
    job.publish(store)
    folders = [path.name for path in (tmp_path / "annotations").iterdir()]
    assert len({name.casefold() for name in folders}) == len(values)
    assert {"label-cat", "label-Cat~1", "label-CAT~7"} <= set(folders)
    check(store.uri, job, never, READERS)


def test_keys_of_many_long_values_fit_into_a_store(tmp_path: Path) -> None:
    names = [f"{chr(97 + n)}{'n' * 150}" for n in range(16)]
    rows = [{name: f"{number}{name}" * 3 for name in names} for number in range(3)]
    job = Job(rows, pa.schema([(name, pa.string()) for name in names]), by=tuple(names))
    job.annotate(store := open_store(str(tmp_path)))
    keys = job.publish(store)["files"]
    assert len(keys) == 3 and all(len(key.encode()) < 800 for key in keys)
    check(store.uri, job, never, READERS)


@pytest.mark.long
def test_many_folders(tmp_path: Path) -> None:
    job = Job([{"n": row} for row in range(1010)], pa.schema([("n", pa.int64())]), by=("n",), shard_rows=500)
    job.annotate(store := open_store(str(tmp_path)))
    assert len(job.publish(store)["files"]) == 1010
    check(store.uri, job, never, {"pyarrow.dataset": READERS["pyarrow.dataset"]})


def test_large_parts_have_many_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.publish, "ROW_GROUP", 10)
    job = Job([{}] * 25, shard_rows=4)
    job.annotate(store := open_store(str(tmp_path)))
    job.publish(store)
    for path in (tmp_path / "annotations").rglob("*.parquet"):
        metadata = pq.ParquetFile(path).metadata
        assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [10, 10, 5]
    check(store.uri, job, never, READERS)


@pytest.mark.parametrize(("limit", "by"), [("GROUP_BYTES", ()), ("HELD_BYTES", ("n",))])
def test_large_records_are_written_early(
    limit: str, by: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job([{"n": row % 3} for row in range(24)], pa.schema([("n", pa.int64())]), by=by, shard_rows=4)
    job.annotate(store := open_store(str(tmp_path)))
    monkeypatch.setattr(results.publish, limit, 2000)
    job.publish(store)
    files = [pq.ParquetFile(path).metadata for path in (tmp_path / "annotations").rglob("*.parquet")]
    assert all(file.num_row_groups > 1 for file in files)
    check(store.uri, job, never, READERS)


def test_assignment_of_shards_to_parts() -> None:
    for layout in (
        Layout(10, 100_000, 950_000, TASKS, ()),
        Layout(7, 256, 1700, TASKS, ()),
        Layout(1, 1, 1, TASKS, ()),
        Layout(20, 100_000, 1_950_000, TASKS, (), ((7, 0), (8, 2), (17, 2))),
    ):
        found = [shard for part in range(layout.parts) for shard in layout.shards_of(part)]
        assert found == list(range(layout.shards))
        assert all(layout.part_of(shard) == part for part in range(layout.parts) for shard in layout.shards_of(part))
        assert layout.part_shards * layout.shard_rows * len(TASKS) <= 1_000_000
    assert Layout(10, 100_000, 950_000, TASKS, ()).parts == 2
    appended = Layout(20, 100_000, 1_950_000, TASKS, (), ((7, 0), (8, 2), (17, 2)))
    shards = [range(5), range(5, 7), range(7, 8), range(8, 13), range(13, 17), range(17, 20)]
    assert [appended.shards_of(part) for part in range(appended.parts)] == shards, "an append begins a part"
    assert [appended.parts_in(generation) for generation in range(5)] == [6, 3, 3, 6, 6]
    assert [appended.retried_generation(2, generation) for generation in (1, 2, 3)] == [0, 1, 2]
    assert [appended.retried_generation(3, generation) for generation in (3, 4)] == [0, 3]


def test_other_attempts_publish_equal_bytes(tmp_path: Path) -> None:
    job = Job([{}] * 10)
    for name, order in (("one", range(4)), ("two", reversed(range(4)))):
        store = open_store(str(tmp_path / name))
        for shard in order:
            marker = results.write_shard(store, shard, f"{name}-lost", job.table([]))  # never committed
            marker = results.write_shard(store, shard, name, job.table(job.shard(shard, odd)))
            results.commit(store, marker)
        job.publish(store)
    assert published(str(tmp_path / "one")) == published(str(tmp_path / "two"))


def test_publishing_is_idempotent(tmp_path: Path) -> None:
    job = Job([{}] * 5)
    job.annotate(store := open_store(str(tmp_path)), odd)
    summary = job.publish(store)
    before = published(store.uri)
    crashing = Crashing(store)
    assert job.publish(crashing) == summary == results.read_summary(store)
    assert crashing.writes == 2, "only the summary and _SUCCESS are written again"
    assert published(store.uri) == before


def test_the_summary_is_consistent(tmp_path: Path) -> None:
    job = Job([{}] * 10)
    job.annotate(store := open_store(str(tmp_path)), odd)
    assert results.read_summary(store) is None
    summary = job.publish(store)
    records = snapshot(store.uri)
    assert summary["rows"] == 10 and summary["records"] == len(records) == 20 and summary["retries"] == 0
    for name, status in (("ok", "ok"), ("invalid", "invalid"), ("errors", "error")):
        assert summary[name] == sum(record["status"] == status for record in records)
    assert summary["error_kinds"] == {"missing": 10}
    assert summary["tokens"] == sum(record["tokens"] or 0 for record in records)
    assert sorted(summary["files"]) == sorted(key for key in published(store.uri) if key.endswith(".parquet"))
    assert sum(facts["records"] for facts in summary["files"].values()) == 20
    assert json.loads(store.get("_summary.json")) == summary


def test_a_wrong_number_of_records_is_rejected(tmp_path: Path) -> None:
    job = Job([{}] * 6)
    store = open_store(str(tmp_path))
    for shard in range(2):
        rows = job.shard(shard, never)
        results.commit(store, results.write_shard(store, shard, "a", job.table(rows[: 6 - shard])))
    with pytest.raises(RunError, match="11 records, expected 12"):
        job.publish(store)
    assert not store.exists(results.SUCCESS) and results.read_summary(store) is None


def crash_everywhere(
    prepare: Callable[[str], Any], action: Callable[[Crashing], Any], output: Callable[[str], str], every: int = 1
) -> None:
    """Crash `action` before each of its writes, repeat it, and compare with an undisturbed one.

    `every`: the first write and each of so many that follow, but for `make test-full`.
    """
    clean = output("clean")
    prepare(clean)
    undisturbed = Crashing(open_store(clean))
    undisturbed.seen = lambda: check_no_duplicates(clean)
    action(undisturbed)
    expected = published(clean)
    assert undisturbed.writes > 5
    for at in range(1, undisturbed.writes + 1, 1 if os.environ.get("FULL") else every):
        folder = output(str(at))
        prepare(folder)
        with pytest.raises(Crash):
            action(Crashing(open_store(folder), at))
        again = Crashing(open_store(folder))
        again.seen = partial(check_no_duplicates, folder)
        action(again)
        assert published(folder) == expected, f"crash at write {at}"
        shutil.rmtree(folder)


def test_a_crash_at_any_write_leaves_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.layout, "PART_RECORDS", 12)
    job = Job([{}] * 10)
    assert job.layout.parts == 2

    def action(store: Crashing) -> None:
        job.annotate(store, odd, attempt=f"{id(store)}")
        job.publish(store)

    crash_everywhere(lambda folder: None, action, lambda name: str(tmp_path / name))


def moving(retry: bool) -> Job:
    """A job whose retry finds corrected values in the failed rows, which move them to other folders."""
    values = [{"n": (row + 2 * retry) % 4 if row % 2 else 9} for row in range(10)]
    return Job(values, pa.schema([("n", pa.int64())]), by=("n",))


def still(row: int, task: str) -> bool:
    return row in (1, 3, 9) and task == TASKS[0]


def last(row: int, task: str) -> bool:
    return row == 9 and task == TASKS[0]


def test_a_retry_resumes_after_a_crash_at_any_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.layout, "PART_RECORDS", 12)

    def prepare(folder: str) -> None:
        store = open_store(folder)
        moving(False).annotate(store, odd)
        moving(False).publish(store)

    def action(store: Crashing) -> None:
        results.begin_retry(store, 1, [], lambda row: row // 3)
        moving(True).retry(store, 1, still, attempt=f"{id(store)}")
        moving(True).publish(store, 1)

    crash_everywhere(prepare, action, lambda name: str(tmp_path / name), every=8)
    found = {(r["row"], r["task"]): (r["status"], r["n"]) for r in snapshot(str(tmp_path / "clean"))}
    then, now = moving(False).records(odd), moving(True).records(still)
    expected = {(r.row, r.task): (r.status, r.columns["n"]) for r in then}
    expected |= {(r.row, r.task): (r.status, r.columns["n"]) for r in now if odd(r.row, r.task)}
    assert found == expected


def test_a_driver_that_wakes_up_late_leaves_later_retries_alone(tmp_path: Path) -> None:
    job, store = Job([{}] * 10), open_store(str(tmp_path))
    job.annotate(store, odd)
    job.publish(store)
    results.begin_retry(store, 1, [], lambda row: row // 3)
    job.retry(store, 1, still)

    class Stopped(Crashing):
        """Another driver publishes this retry and the next while the first read is under way."""

        def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
            if not key.endswith(".json") and not later:
                later.append(None)
                job.publish(store, 1)
                results.begin_retry(store, 2, [], lambda row: row // 3)
                job.retry(store, 2, last)
                later.append(job.publish(store, 2))
            return super().get(key, max_bytes=max_bytes)

    later: list[Any] = []
    stopped = Stopped(store)
    results.publish_part(stopped, job.layout, 0, 1)
    assert later[1]["errors"] == 1 and not stopped.writes
    assert later[1] == results.read_summary(store) == results.summarise(store, job.layout, {"model": "demo"}, 2)
    check_no_duplicates(str(tmp_path))
    assert len(snapshot(str(tmp_path))) == 10 * len(TASKS)


def test_retries_redo_dead_letters_only_until_none_is_left(tmp_path: Path) -> None:
    job = Job([{}] * 10)
    store = open_store(str(tmp_path))
    job.annotate(store, odd)
    summaries = [job.publish(store)]
    first = {key: body for key, body in published(store.uri).items() if key.startswith("annotations/")}
    for generation, failing in enumerate((still, last, never), start=1):
        assert not results.retry_begun(store, generation)
        corrected = [ManifestRow(9, "id-9", "/elsewhere.png", {"n": 3})]
        results.begin_retry(store, generation, corrected, lambda row: row // 3)
        results.begin_retry(store, generation, [], lambda row: row // 3)
        assert results.retry_rows(store, generation, 3) == {9: corrected[0]}, "repeated calls do not replace the rows"
        assert results.retry_rows(store, generation, 2) == {}
        assert results.retry_begun(store, generation) and not store.exists(results.SUCCESS)
        job.retry(store, generation, failing)
        summaries.append(job.publish(store, generation))
        check(store.uri, job, failing, READERS)
        now = published(store.uri)
        assert all(now[key] == body for key, body in first.items()), "answered records are unchanged"
        assert sorted(summaries[-1]["files"]) == sorted(key for key in now if key.endswith(".parquet"))
        assert store.exists(results.SUCCESS)
    assert [summary["errors"] for summary in summaries] == [10, 3, 1, 0]
    assert [summary["retries"] for summary in summaries] == [0, 1, 2, 3]
    assert all(summary["ok"] + summary["invalid"] + summary["errors"] == 20 for summary in summaries)
    assert summaries[-1]["tokens"] == sum(record["tokens"] for record in snapshot(store.uri))
    assert not [key for key in published(store.uri) if key.startswith("errors/")]
    names = {Path(key).name for key in published(store.uri) if key.startswith("annotations/")}
    assert names == {"part-00000.parquet", *(f"part-00000.retry-00{n}.parquet" for n in (1, 2, 3))}


def test_a_retry_with_a_missing_record_is_rejected(tmp_path: Path) -> None:
    job = Job([{}] * 4, shard_rows=4)
    store = open_store(str(tmp_path))
    job.annotate(store, odd)
    job.publish(store)
    results.begin_retry(store, 1, [], lambda row: row // 3)
    base = results.generation_base(1)
    some = [record for record in job.records(never) if odd(record.row, record.task)][1:]
    results.commit(store, results.write_shard(store, 0, "a", job.table(some), base), base)
    with pytest.raises(RunError, match="3 records, expected 4"):
        job.publish(store, 1)
    assert not store.exists(results.SUCCESS)


def test_the_sweep_keeps_what_is_needed(tmp_path: Path) -> None:
    job = Job([{}] * 9)
    store = open_store(str(tmp_path))
    for attempt in ("lost", "won", "late"):
        for shard in range(3):
            table = job.table(job.shard(shard, lambda row, task: row == 4))
            marker = results.write_shard(store, shard, attempt, table)
            if attempt != "lost":
                results.commit(store, marker)
    job.publish(store)
    before = published(store.uri)
    assert results.sweep(store, job.layout.shards) == 8
    assert [found.key for found in store.list("_run/shards/")] == ["_run/shards/shard-00001.won.arrow"]
    assert results.sweep(store, job.layout.shards) == 0
    assert published(store.uri) == before
    assert [record["row"] for record in results.read_failed(store, 1, 0)] == [4, 4]
    job.retry(store, 1, never)
    job.publish(store, 1)
    assert results.sweep(store, job.layout.shards) == 0
    results.write_shard(store, 3, "appended", job.table(job.shard(0, never)))
    assert results.sweep(store, job.layout.shards) == 0, "of an append that another driver has begun"
    assert results.sweep(store, job.layout.shards + 1) == 1, "of one that was committed under another name"
    check(store.uri, job, never, READERS)


def test_an_output_on_s3(bucket: str) -> None:
    job = Job([{"s": value} for value in ODD], pa.schema([("s", pa.string())]), by=("task", "s"))
    store = open_store(f"s3://{bucket}/some/output")
    job.annotate(store, lambda row, task: row < 2)
    job.publish(store)
    results.begin_retry(store, 1, [], lambda row: row // 3)
    job.retry(store, 1, never)
    job.publish(store, 1)
    assert results.sweep(store, job.layout.shards) == job.layout.shards - 1
    found = published(store.uri)
    tables = [pq.read_table(pa.BufferReader(body)) for key, body in found.items() if key.endswith(".parquet")]
    assert in_order(pa.concat_tables(tables)) == in_order(job.table(job.records(never)))
    assert not [key for key in found if key.startswith("errors/")]


def test_run_names_are_distinct() -> None:
    assert results.run_name("s3://a/b") == results.run_name("s3://a/b") != results.run_name("s3://a/c")
