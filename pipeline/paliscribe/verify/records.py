"""The records of one part, ticked off as its files are read: every row under every task once, as in the manifest."""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from paliscribe import results
from paliscribe.manifest import FrozenManifest, Shards
from paliscribe.results.schema import ModelFacts
from paliscribe.storage import Store
from paliscribe.storage.inline import START, shortened

OWN = ("id", "image")
CONSTANT = ("model", "revision", "precision")
READ = ("id", "image", "task", "status", "error_kind", "tokens", *CONSTANT, "shard", "row")


class Wrong(NamedTuple):
    """What is wrong with records. `is_certain`: with them, and not with the run file or with the rows of a retry."""

    what: str
    is_certain: bool = True


class Hasher:
    """Hashes of rows: of id, image, and carried columns, 64 bits; equal for equal values. Not thread-safe."""

    def __init__(self, carried: pa.Schema) -> None:
        self._kinds = {"id": pa.string(), "image": pa.string()} | {field.name: field.type for field in carried}
        names = ", ".join('"' + name.replace('"', '""') + '"' for name in self._kinds)
        self._query = f"SELECT hash({names}) AS h FROM given"
        self._connection = _database().cursor()

    def hashes(self, table: pa.Table) -> npt.NDArray[np.uint64]:
        """[rows]: the hash of each row of a table; columns that it lacks are null."""
        columns = []
        for name, kind in self._kinds.items():
            column = table[name].cast(kind, safe=False) if name in table.column_names else pa.nulls(len(table), kind)
            columns.append(_without_data(column) if name == "image" else column)
        self._connection.register("given", pa.table(columns, list(self._kinds)))
        found: npt.NDArray[np.uint64] = self._connection.sql(self._query).to_arrow_table()["h"].to_numpy()
        return found


@cache
def _database() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


def _without_data(images: pa.ChunkedArray) -> pa.ChunkedArray:
    """Images as records show them: data URLs without their data."""
    inline = pc.fill_null(pc.match_substring_regex(images, START, ignore_case=True), False)
    if not pc.any(inline).as_py():
        return images
    return pa.chunked_array([[None if each is None else shortened(each) for each in images.to_pylist()]], pa.string())


class PartRecords:
    """Ticks off the records of the rows of some shards. Its size is that of the part, whatever the run's."""

    def __init__(self, store: Store, frozen: FrozenManifest, tasks: tuple[str, ...], shards: range) -> None:
        """Raises StorageError, and Damaged for a file of the frozen manifest."""
        self._frozen, self._tasks = frozen, pa.array(tasks)
        self._first = frozen.first_row(shards.start)
        counts = [frozen.rows_of(shard) for shard in shards]
        self._shards = np.repeat(np.arange(shards.start, shards.stop, dtype=np.int32), counts)
        self._seen = np.zeros((len(self._shards), len(tasks)), np.uint16)
        self._hasher = Hasher(frozen.schema)
        self._store, self._updated = store, dict[tuple[int, int], npt.NDArray[np.uint64]]()
        reader = Shards(store)
        tables = (table for shard in shards for table in reader.tables(shard))
        self._hashes = np.concatenate([self._hasher.hashes(table) for table in tables])
        if len(self._hashes) != len(self._shards):
            raise results.Damaged(store.uri, "_run/manifest", "rows are missing in it")

    def add(self, table: pa.Table, generation: int, facts: ModelFacts) -> Wrong | None:
        """Tick off records that a generation has answered or failed; returns what is wrong with the first that is.

        `table`: of the columns `READ` and the carried ones.
        """
        places = table["row"].to_numpy() - self._first
        task = pc.index_in(table["task"], self._tasks)
        for wrong, words in (
            ((places < 0) | (places >= len(self._shards)), "is of another part"),
            (pc.is_null(task).to_numpy(), "has a task that the run does not have"),
        ):
            if wrong.any():
                return self._named(table, wrong, words)
        np.add.at(self._seen, (places, task.to_numpy()), 1)
        expected = self._hashes[places]
        if generation:
            self._update(expected, table["shard"], places, generation)
        for name, value in zip(CONSTANT, (facts.model, facts.revision, facts.precision), strict=True):
            if not pc.all(pc.equal(table[name], value)).as_py() or table[name].null_count:
                return Wrong(f"column {name!r} is not the run's in all records", is_certain=False)
        if (wrong := table["shard"].to_numpy() != self._shards[places]).any():
            return self._named(table, wrong, "has the number of another shard")
        if (wrong := self._hasher.hashes(table) != expected).any():
            words = "has another id, image or carried column than the manifest"
            return self._named(table, wrong, words, is_certain=not generation)
        return None

    def missing(self, committed: Iterable[int] | None = None) -> str | None:
        """What is wrong with the number of times that a record was seen. `committed`: shards that count; None: all."""
        wrong = self._seen != 1
        if committed is not None:
            wrong &= np.isin(self._shards, list(committed))[:, None]
        if not wrong.any():
            return None
        place, task = np.argwhere(wrong)[0].tolist()
        seen = int(self._seen[place, task])
        words = "is missing" if not seen else f"is there {seen} times"
        more = f", as {int(wrong.sum()) - 1:,} more are wrong" if wrong.sum() > 1 else ""
        return f"row {self._first + place} under task {self._tasks[task].as_py()!r:.60} {words}{more}"

    def _update(self, expected: npt.NDArray[np.uint64], shards: pa.Array, places: Any, generation: int) -> None:
        """Replace the hashes of those rows that a retry has read from the manifest again."""
        for shard in pc.unique(shards).to_pylist():
            if shard is None or not 0 <= shard < self._frozen.shards:
                continue
            rows = results.retry_rows(self._store, generation, shard)
            if not rows:
                continue
            numbers = np.array(list(rows), np.int64) - self._first
            values = [{"id": row.id, "image": row.image, **row.columns} for row in rows.values()]
            kinds = pa.schema([*((name, pa.string()) for name in OWN), *self._frozen.schema])
            hashes = self._hasher.hashes(pa.Table.from_pylist(values, schema=kinds))
            order = np.argsort(numbers)
            at = np.minimum(np.searchsorted(numbers[order], places), len(numbers) - 1)
            found = numbers[order][at] == places
            expected[found] = hashes[order][at[found]]

    def _named(self, table: pa.Table, wrong: npt.NDArray[np.bool_], words: str, *, is_certain: bool = True) -> Wrong:
        first = int(np.flatnonzero(wrong)[0])
        row, task = table["row"][first].as_py(), table["task"][first].as_py()
        more = f" ({int(wrong.sum()):,} records)" if wrong.sum() > 1 else ""
        return Wrong(f"row {row} under task {task!r:.60} {words}{more}", is_certain)


def count(table: pa.Table) -> tuple[Counter[str], Counter[str], int]:
    """Statuses, error kinds and generated tokens of records."""
    return _counts(table["status"]), _counts(table["error_kind"].drop_null()), pc.sum(table["tokens"]).as_py() or 0


def _counts(column: pa.ChunkedArray) -> Counter[str]:
    return Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()})
