"""Commit of shards: exactly one of concurrent attempts wins."""

import threading
from pathlib import Path

import pyarrow as pa
import pytest
from results.made import FACTS, TASKS, Job, record

from paliscribe import results
from paliscribe.errors import RunError
from paliscribe.results.commit import Marker, marker_key
from paliscribe.storage import Store, open_store
from paliscribe.storage.arrow import decode, encode


def table(attempt: int = 0) -> pa.Table:
    rows = [record(row, task, failed=row == 1, n=attempt) for row in range(4) for task in TASKS]
    return results.to_table(rows, FACTS, results.schema(pa.schema([("n", pa.int64())])))


def race(store: Store, attempts: int) -> tuple[list[Marker], list[Marker]]:
    """Commit one shard from many threads at once; returns the markers written and the markers returned."""
    written = [results.write_shard(store, 7, f"attempt{n}", table(n)) for n in range(attempts)]
    returned: list[Marker | None] = [None] * attempts
    ready = threading.Barrier(attempts)

    def attempt(number: int) -> None:
        ready.wait()
        returned[number] = results.commit(store, written[number])

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(attempts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return written, [marker for marker in returned if marker is not None]


def check_race(store: Store) -> None:
    written, returned = race(store, 8)
    assert len(returned) == 8 and len({marker.file for marker in returned}) == 1
    assert returned[0] in written
    assert results.read_marker(store, 7) == returned[0]
    assert set(results.committed(store)) == {7}
    winner = written.index(returned[0])
    assert results.read_committed(store, returned[0]).equals(table(winner))
    assert sum(1 for _ in store.list("_run/shards/")) == 8, "no attempt deletes another's file"


def test_one_of_many_attempts_wins(tmp_path: Path) -> None:
    for turn in range(10):
        check_race(open_store(str(tmp_path / str(turn))))


def test_one_of_many_attempts_wins_on_s3(bucket: str) -> None:
    check_race(open_store(f"s3://{bucket}/output"))


def test_a_marker_counts_its_records(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    marker = results.write_shard(store, 3, "a", table())
    assert not list(results.committed(store)), "nothing counts until it is committed"
    assert marker.rows == 4 and marker.records == 8
    assert marker.statuses == {"error": 2, "invalid": 2, "ok": 4}
    assert marker.error_kinds == {"missing": 2}
    assert marker.tokens == 2 * (0 + 2 + 3)
    assert marker.size == (tmp_path / marker.file).stat().st_size
    assert Marker.from_json(marker.as_json()) == marker
    assert results.commit(store, marker) == marker
    assert results.commit(store, marker) == marker, "commit is idempotent"
    assert (tmp_path / marker_key(3)).is_file()


def test_generations_are_separate(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    base = results.generation_base(1)
    results.commit(store, results.write_shard(store, 0, "a", table()))
    results.commit(store, results.write_shard(store, 123_456, "a", table(), base), base)
    assert set(results.committed(store)) == {0}
    assert results.done(store, 3).tolist() == [True, False, False]
    assert set(results.committed(store, base)) == {123_456}


def test_a_modified_file_is_rejected(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    marker = results.commit(store, results.write_shard(store, 0, "a", table()))
    store.put(marker.file, encode(table(1)))
    with pytest.raises(RunError, match=r"shard-00000\.a\.arrow does not match its marker"):
        results.read_committed(store, marker)


def test_equal_tables_give_equal_bytes() -> None:
    halves = pa.concat_tables([table().slice(0, 3), table().slice(3)])
    assert encode(halves) == encode(table())
    assert decode(encode(table())).equals(table(), check_metadata=True)


def test_state_files_are_not_parquet(tmp_path: Path) -> None:
    job = Job([{}] * 4)
    job.annotate(open_store(str(tmp_path)))
    assert list(tmp_path.rglob("*.arrow")) and not list(tmp_path.rglob("*.parquet"))
