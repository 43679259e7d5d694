"""The records of a published run, read in small batches.

DuckDB reads 2,048 rows at a time, which is much where each has masks.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paliscribe.published.tables import ANNOTATIONS, Tables
from paliscribe.storage.arrow import filesystem, sized_batches
from paliscribe.storage.parquet import leaf_number

BATCH_BYTES, BATCH_ROWS = 2**18, 1024  # of a batch, about and at most
BUFFER = 2**16  # bytes of a column that are read at once
FIRST_WINDOW, MOST_WINDOW, WINDOW_BYTES = 16, 2048, 2**21  # rows of the manifest; of records in it, about
OPEN_FILES = 16  # that are read side by side; others are opened for each window
_PART = re.compile(r"/part-(\d+)")


def records(tables: Tables, task: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """These columns of a task's records, dead letters included. Raises OSError and ArrowException."""
    base, folder = filesystem(tables.store.uri)
    wanted = [*dict.fromkeys(["task", *columns])]
    for key in tables.keys:
        with _File(base, f"{folder}/{key}") as file:
            for batch in file.batches("task", task, task, wanted):
                yield batch.filter(pc.equal(batch["task"], task)).select(columns)


def windows(tables: Tables) -> Iterator[pa.Table]:
    """The answered records by windows of rows of the manifest, in their order. Raises as `records`."""
    base, folder = filesystem(tables.store.uri)
    parts: dict[int, list[str]] = {}  # each has a range of rows of its own
    for key in (key for key in tables.keys if key.startswith(f"{ANNOTATIONS}/")):
        found = _PART.search(key)
        parts.setdefault(int(found[1]) if found else 0, []).append(f"{folder}/{key}")
    for part in sorted(parts):
        yield from _windows([_Cursor(base, path) for path in parts[part]])


def _windows(files: "Sequence[_Cursor]") -> Iterator[pa.Table]:
    rows = FIRST_WINDOW
    start, last = min(file.first for file in files), max(file.last for file in files)
    while start <= last:
        found: list[pa.RecordBatch] = []
        for at, file in enumerate(files):
            found += file.until(start + rows)
            if at >= OPEN_FILES:
                file.close()
        start += rows
        if found:
            table = pa.Table.from_batches(found)
            yield table
            rows = max(1, min(2 * rows, MOST_WINDOW, rows * WINDOW_BYTES // max(1, table.nbytes)))


class _File:
    """An open Parquet file of a run."""

    def __init__(self, base: Any, path: str) -> None:
        self._opened = base.open_input_file(path)
        self._file = pq.ParquetFile(self._opened, buffer_size=BUFFER, pre_buffer=False)

    def limits(self, column: str) -> tuple[Any, Any] | None:
        """The least and the greatest value of a column, by the footer; None if it does not tell."""
        found = [self._limits(column, number) for number in range(self._file.num_row_groups)]
        known = [each for each in found if each is not None]
        return (min(low for low, _ in known), max(high for _, high in known)) if known else None

    def _limits(self, column: str, number: int) -> tuple[Any, Any] | None:
        found = self._file.metadata.row_group(number).column(leaf_number(self._file, column)).statistics
        return (found.min, found.max) if found is not None and found.has_min_max else None

    def batches(self, column: str, low: Any, high: Any, wanted: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of the row groups that may have values of a column in this range. `wanted`: columns; None: all."""
        groups = []
        for number in range(self._file.num_row_groups):
            limits = self._limits(column, number)
            if limits is None or (limits[0] <= high and limits[1] >= low):
                groups.append(number)
        for _, batch in sized_batches(self._file, BATCH_BYTES, BATCH_ROWS, lambda _: wanted, groups):
            yield batch

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


class _Cursor:
    """A file whose records are read on in the order of their rows. `first`, `last`: of its rows."""

    def __init__(self, base: Any, path: str) -> None:
        self._base, self._path = base, path
        self._file: _File | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None
        self.first, self.last = 0, -1
        with _File(base, path) as file:
            if (limits := file.limits("row")) is not None:
                self.first, self.last = limits
        self._next = self.first

    def until(self, end: int) -> Iterator[pa.RecordBatch]:
        """The records from where the last call ended to those of rows before `end`."""
        if self._next > self.last or end <= self.first:
            return
        if self._file is None:
            self._file = _File(self._base, self._path)
            self._batches = self._file.batches("row", self._next, self.last)
        start, self._next = self._next, end
        while (batch := self._rest if self._rest is not None else next(self._batches, None)) is not None:
            low, high = batch["row"].to_numpy().searchsorted([start, end]).tolist()
            if high > low:
                yield batch.slice(low, high - low)
            self._rest = batch.slice(high) if high < len(batch) else None
            if self._rest is not None:
                return
        self.close()

    def close(self) -> None:
        """Close the file; `until` opens it again."""
        if self._file is not None:
            self._file.__exit__()
        self._file, self._rest = None, None
