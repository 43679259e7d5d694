"""Images inside Parquet files: the addresses of their rows, and a reader for rows in order.

`parquet+s3://bucket/train.parquet#image/123/0123456789abcdef` is column `image` in row 123 of that version of the file.
No store knows the scheme of such an address, so that only `Rows` reads it.
"""

import bisect
import hashlib
import itertools
import re
import threading
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paliscribe.errors import RowError
from paliscribe.storage import StorageError, is_local, open_store, scheme, split

PREFIX: Final = "parquet+"  # of the file's own scheme
ADDRESS: Final = re.compile(r"parquet\+(.+)#([^#/]+)/([0-9]{1,18})/([0-9a-f]{16})", re.DOTALL)
BYTES, PATH = "bytes", "path"  # fields of a struct, as Hugging Face's datasets name them
BATCH_ROWS, BATCH_BYTES = 16, 4 << 20  # decoded at once: few rows, since a dictionary makes equal ones small
BUFFER = 1 << 20  # bytes of a column that are read at once
OPEN_FILES = 4  # in a process


def is_row(address: str) -> bool:
    """Whether an address is that of a row of a Parquet file, well-formed or not."""
    return address.startswith(PREFIX) and scheme(address).startswith(PREFIX)


def file_of(address: str) -> str | None:
    """The file of a row's address, in the form of `absolute`; None for another address."""
    found = ADDRESS.fullmatch(address) if is_row(address) else None
    return found[1] if found is not None else None


def absolute(uri: str) -> str:
    """The address of a file as those of its rows hold it: with a scheme, and text whatever the bytes of its name."""
    return f"file://{quote('/'.join(split(uri)), errors='surrogateescape')}" if is_local(uri) else uri


def addresses(uri: str, column: str, version: str, rows: pa.Array) -> pa.Array:
    """The addresses of rows. `uri`: see `absolute`. `version`: see `file_version`."""
    start = f"{PREFIX}{uri}#{quote(column, safe='')}/"
    return pc.binary_join_element_wise(start, rows.cast(pa.string()), f"/{version}", "")


def file_version(uri: str) -> str | None:
    """16 hexadecimal digits that change whenever a file does; None if nothing tells. Raises StorageError."""
    folder, name = split(uri)
    found = open_store(folder).version(name, settled=False)
    if found is None:
        return None
    if is_local(uri):
        found = found.partition("-")[2]  # machines that mount a folder may differ in inodes
    return hashlib.sha256(found.encode()).hexdigest()[:16]


def image_leaf(column: str, kind: pa.DataType) -> str | None:
    """The path of the bytes in a column of images: binary or `struct<bytes, path>`; None for another type."""
    if pa.types.is_struct(kind):
        fields = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
        held = BYTES in fields and (_is_binary(fields[BYTES]) or pa.types.is_null(fields[BYTES]))
        return f"{column}.{BYTES}" if held and _is_text(fields.get(PATH, pa.null())) else None
    return column if _is_binary(kind) else None


def image_bytes(column: pa.Array) -> pa.Array:
    """The bytes of a column of images."""
    return pc.struct_field(column, BYTES) if pa.types.is_struct(column.type) else column


def leaf_number(file: pq.ParquetFile, leaf: str) -> int:
    """The place of a leaf among the column chunks of a row group."""
    return next(number for number in range(len(file.schema)) if file.schema.column(number).path == leaf)


class Rows:
    """Reads images by the addresses of their rows. Thread-safe.

    It keeps few files open, each with a batch of few rows: rows that are asked for in order are read once.
    """

    def __init__(self) -> None:
        self._files: dict[tuple[str, str, str], _File] = {}
        self._lock = threading.Lock()

    def read(self, address: str, max_bytes: int) -> bytes:
        """The bytes of an image. Raises StorageError, `changed` for another version of the file, and RowError."""
        found = ADDRESS.fullmatch(address)
        if found is None:
            raise RowError("bad_uri", "not an address of a row of a Parquet file")
        file = self._file(found[1], unquote(found[2]), found[4])
        with file.lock:
            return file.read(int(found[3]), max_bytes)

    def _file(self, uri: str, column: str, version: str) -> "_File":
        with self._lock:
            key = uri, column, version
            file = self._files.pop(key, None) or _File(*key)
            self._files[key] = file  # the last one used is the last one closed
            closed = self._files.pop(next(iter(self._files))) if len(self._files) > OPEN_FILES else None
        if closed is not None:
            with closed.lock:
                closed.close()
        return file


class _File:
    """A column of images in a version of a file, with the batch of rows that was read last. `lock`: of its methods."""

    def __init__(self, uri: str, column: str, version: str) -> None:
        self.lock = threading.Lock()
        self._uri, self._column, self._version = uri, column, version
        self._parquet: pq.ParquetFile | None = None
        self._ends: list[int] = []  # numbers of the rows after each row group
        self._leaf = 0
        self._path = ""
        self.close()

    def close(self) -> None:
        """Close the file; it is opened again when it is read."""
        if self._parquet is not None:
            self._parquet.close(force=True)
        self._parquet = None
        self._group, self._start = -1, 0  # row group; number of the batch's first row
        self._batch: pa.Array = pa.nulls(0)
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def read(self, row: int, max_bytes: int) -> bytes:
        """The bytes in a row. Raises StorageError and RowError."""
        try:
            if not self._start <= row < self._start + len(self._batch):
                self._go_to(row, self._parquet or self._open())
        except (StorageError, RowError):
            self.close()
            self._check_version()  # it may be the cause
            raise
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            self.close()
            self._check_version()
            words = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise RowError("corrupt", f"the Parquet file cannot be read: {words}") from None
        value = self._batch[row - self._start]
        if not value.is_valid:
            raise RowError("no_image", "the row of the Parquet file holds no image")
        if (size := value.as_buffer().size) > max_bytes:
            raise StorageError("too_large", self._uri, f"{size:,} bytes; the limit is {max_bytes:,}")
        data: bytes = value.as_py()
        return data

    def _open(self) -> pq.ParquetFile:
        self._check_version()
        folder, name = split(self._uri)
        file = open_store(folder).open(name)
        try:
            self._check_version()
            parquet = pq.ParquetFile(pa.PythonFile(file, mode="r"), buffer_size=BUFFER, pre_buffer=False)
            names = parquet.schema_arrow.names
            kind = parquet.schema_arrow.field(self._column).type if names.count(self._column) == 1 else pa.null()
            if (path := image_leaf(self._column, kind)) is None:
                raise RowError("no_image", "the Parquet file has no such column of images")
            self._path, self._leaf = path, leaf_number(parquet, path)
        except BaseException:
            file.close()
            raise
        groups = (parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups))
        self._parquet, self._ends = parquet, list(itertools.accumulate(groups))
        return parquet

    def _go_to(self, row: int, parquet: pq.ParquetFile) -> None:
        """Read on to the batch with this row, from the start of its row group if it is in another one, or before."""
        if (number := bisect.bisect_right(self._ends, row)) == len(self._ends):
            raise RowError("missing", "the Parquet file has no such row")
        if number != self._group or row < self._start:
            group = parquet.metadata.row_group(number)
            size = group.column(self._leaf).total_uncompressed_size / group.num_rows
            rows = max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(1, size))))
            self._group, self._start, self._batch = number, self._ends[number] - group.num_rows, pa.nulls(0)
            self._batches = parquet.iter_batches(rows, [number], [self._path], use_threads=False)
        while row >= self._start + len(self._batch):
            self._start, self._batch = self._start + len(self._batch), pa.nulls(0)  # one batch in memory
            if (found := next(self._batches, None)) is None:
                raise RowError("corrupt", "the Parquet file ends within a row group")
            self._batch = image_bytes(found.column(self._column))
        if is_local(self._uri):  # S3 is read by ranges of one version
            self._check_version()

    def _check_version(self) -> None:
        """Raise StorageError if the file is not the version that the addresses name."""
        if file_version(self._uri) != self._version:
            words = "the Parquet file has changed since the manifest was read; retry the run to read it as it is now"
            raise StorageError("changed", self._uri, words)


def _is_binary(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary))


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_null, pa.types.is_string, pa.types.is_large_string))
