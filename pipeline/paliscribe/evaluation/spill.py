"""Rows in temporary files by a hash of a column: those with equal values are read together, in little memory."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FLUSH, FILE_FLUSH = 2**20, 2**13  # bytes that are written together, at least; for each file
MOST_BUCKETS = 1000
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class Spill:
    """Rows of a schema, in so many files of a folder: those with equal values in the column `key` are in the same one.

    `key`: a column of texts, or of integers below 2**62 that are hashes already; these are in the order of the files.
    `rows`, `size`: how many there are so far, and their bytes in memory.
    """

    def __init__(self, folder: Path, schema: pa.Schema, key: str, buckets: int = 1) -> None:
        self._folder, self.schema, self._key, self.buckets = folder, schema, key, min(buckets, MOST_BUCKETS)
        self.rows = self.size = self._held = 0
        self._waiting: list[pa.RecordBatch] = []
        folder.mkdir(parents=True)

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows of the schema."""
        self._waiting.append(batch)
        self._held, self.rows, self.size = self._held + batch.nbytes, self.rows + len(batch), self.size + batch.nbytes
        if self._held >= max(FLUSH, FILE_FLUSH * self.buckets):
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting, self.schema).combine_chunks()
            self._waiting, self._held = [], 0
            for bucket, part in self._split(table):
                with (
                    self._path(bucket).open("ab") as file,
                    pa.ipc.new_stream(file, self.schema, options=_OPTIONS) as writer,
                ):
                    writer.write_table(part)

    def _split(self, table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        if self.buckets == 1:
            yield 0, table
            return
        of = self._places(table[self._key])
        order = np.argsort(of, kind="stable")
        ends = np.searchsorted(of[order], np.arange(self.buckets + 1))
        sorted_ = table.take(pa.array(order))
        for bucket in np.flatnonzero(np.diff(ends)).tolist():
            yield bucket, sorted_.slice(ends[bucket], ends[bucket + 1] - ends[bucket])

    def _places(self, column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """The file of each row, [n]."""
        if column.type == pa.int64():
            return (np.asarray(column) >> 32) * self.buckets >> 30
        hashes = (zlib.crc32(text.encode()) for text in column.to_pylist())
        return np.fromiter(hashes, np.int64, len(column)) % self.buckets

    def batches(self, bucket: int = 0) -> Iterator[pa.RecordBatch]:
        """The rows of one of the files, in the order in which they were added."""
        self._flush()
        if self._path(bucket).exists():
            with pa.OSFile(str(self._path(bucket))) as file:
                while file.tell() < file.size():
                    yield from pa.ipc.open_stream(file)

    def table(self, bucket: int = 0) -> pa.Table:
        """`batches` as one table."""
        return pa.Table.from_batches(self.batches(bucket), self.schema).combine_chunks()

    def split(self, buckets: int) -> "Spill":
        """The rows in so many files instead; itself if it has as many. Otherwise it is empty afterwards."""
        if buckets == self.buckets:
            return self
        other = Spill(self._folder / f"by-{buckets}", self.schema, self._key, buckets)
        for bucket in range(self.buckets):
            for batch in self.batches(bucket):
                other.add(batch)
            self._path(bucket).unlink(missing_ok=True)
        return other

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket}.arrows"
