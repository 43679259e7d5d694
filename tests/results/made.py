"""Helpers: synthetic records, shards and outputs, and stores with injected failures."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from paliscribe import results
from paliscribe.records import Box, Mask, Record
from paliscribe.results import Layout, ModelFacts
from paliscribe.storage import ObjectInfo, StorageError, Store, open_store

FACTS = ModelFacts("demo", "abc123", "float32")
TASKS = ("caption en", "answer en what's in a/b = 50%?")
Values = Sequence[dict[str, Any]]  # carried columns, one mapping per row
Failing = Callable[[int, str], bool]  # whether this row fails under this task


def record(row: int, task: str, *, shard: int = 0, failed: bool = False, **columns: Any) -> Record:
    """A deterministic record."""
    box = Box("cat", 1.5, 2.25, 30.0, 40.0, 0.5)
    answered = not failed
    return Record(
        id=f"id-{row}",
        image=f"/images/{row}.png" if row % 5 else None,
        task=task,
        kind=task.split()[0],
        prompt=task,
        status="error" if failed else ("invalid" if row % 3 == 2 else "ok"),
        text=f"text {row} é" if answered else None,
        boxes=(box,) * (row % 3) if answered else (),
        masks=(Mask("dog", box, tuple(range(16)), 480, 640, (3, 4, 5) if row % 2 else None),) if answered else (),
        score=0.25 if answered else None,
        prompt_tokens=70 if answered else None,
        tokens=row if answered else None,
        finish_reason="stop" if answered else None,
        error_kind="missing" if failed else None,
        error_message="no such file" if failed else None,
        width=640,
        height=480,
        image_sha256=hashlib.sha256(str(row).encode()).hexdigest(),
        shard=shard,
        row=row,
        columns=columns,
    )


class Job:
    """A run over synthetic records. `values`: carried columns, one mapping per row."""

    def __init__(
        self,
        values: Values,
        carried: pa.Schema | None = None,
        *,
        by: tuple[str, ...] = ("task",),
        tasks: tuple[str, ...] = TASKS,
        shard_rows: int = 3,
    ) -> None:
        self.values, self.tasks = values, tasks
        self.schema = results.schema(carried if carried is not None else pa.schema([]))
        self.layout = Layout(-(-len(values) // shard_rows), shard_rows, len(values), tasks, by)

    def records(self, failing: Failing = lambda row, task: False) -> list[Record]:
        """Every record of generation 0."""
        return [record for shard in range(self.layout.shards) for record in self.shard(shard, failing)]

    def shard(self, shard: int, failing: Failing) -> list[Record]:
        """The records of a shard."""
        rows = range(shard * self.layout.shard_rows, min((shard + 1) * self.layout.shard_rows, self.layout.rows))
        return [
            record(row, task, shard=shard, failed=failing(row, task), **self.values[row])
            for row in rows
            for task in self.tasks
        ]

    def table(self, records: Sequence[Record]) -> pa.Table:
        """Records as a table of the run's schema."""
        return results.to_table(records, FACTS, self.schema)

    def annotate(self, store: Store, failing: Failing = lambda row, task: False, attempt: str = "a") -> None:
        """Commit every shard of generation 0."""
        for shard in range(self.layout.shards):
            results.commit(store, results.write_shard(store, shard, attempt, self.table(self.shard(shard, failing))))

    def retry(self, store: Store, generation: int, failing: Failing, attempt: str = "a") -> None:
        """Commit a retry of the previous generation's dead letters."""
        base = results.generation_base(generation)
        for part in range(self.layout.parts):
            before = results.read_part(store, part, generation - 1)
            assert before is not None
            for shard in before.shards_with_errors:
                wanted = {(r["row"], r["task"]) for r in results.read_failed(store, shard, generation - 1)}
                records = [r for r in self.shard(shard, failing) if (r.row, r.task) in wanted]
                marker = results.write_shard(store, shard, attempt, self.table(records), base)
                results.commit(store, marker, base)

    def publish(self, store: Store, generation: int = 0) -> dict[str, Any]:
        """Publish every part and finish."""
        for part in range(self.layout.parts):
            results.publish_part(store, self.layout, part, generation)
        return results.finish(store, self.layout, {"model": "demo"}, generation)


def published(output: str) -> dict[str, bytes]:
    """The published objects of an output: key -> bytes."""
    store = open_store(output)
    return {found.key: store.get(found.key) for found in store.list() if not found.key.startswith("_run/")}


class Crash(Exception):
    """A simulated crash of the process."""


class Crashing:
    """A store that raises Crash before its n-th write; never with 0."""

    def __init__(self, store: Store, at: int = 0) -> None:
        self._store, self._at = store, at
        self.uri = store.uri
        self.writes = 0
        self.seen: Callable[[], None] = lambda: None  # called after each write

    def _write(self, action: Callable[[], Any]) -> Any:
        self.writes += 1
        if self.writes == self._at:
            raise Crash
        found = action()
        self.seen()
        return found

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        return self._store.get(key, max_bytes=max_bytes)

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        return self._store.get_with_etag(key)

    def open(self, key: str) -> BinaryIO:
        return self._store.open(key)

    def get_range(self, key: str, start: int, size: int, version: str | None = None) -> bytes:
        return self._store.get_range(key, start, size, version)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._store.list(prefix)

    def exists(self, key: str) -> bool:
        return self._store.exists(key)

    def version(self, key: str, *, settled: bool = True) -> str | None:
        return self._store.version(key)

    def put(self, key: str, data: bytes) -> str:
        return self._write(lambda: self._store.put(key, data))

    def put_file(self, key: str, path: Path) -> str:
        return self._write(lambda: self._store.put_file(key, path))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._write(lambda: self._store.put_if_absent(key, data))

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        return self._write(lambda: self._store.put_if_match(key, data, etag))

    def delete(self, key: str) -> None:
        self._write(lambda: self._store.delete(key))

    def delete_many(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.delete(key)


class Unreachable(Crashing):
    """A store whose writes fail while `down`. With `lost_response` the next write succeeds but raises an error."""

    down = False
    lost_response = False

    def _write(self, action: Callable[[], Any]) -> Any:
        if self.down:
            raise StorageError("unreachable", self.uri, "the network is down")
        found = action()
        if self.lost_response:
            self.lost_response = False
            raise StorageError("unreachable", self.uri, "the answer was lost")
        return found
