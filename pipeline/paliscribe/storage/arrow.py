"""Arrow on storage: tables as Arrow IPC bytes or by parts, Parquet by batches, the pyarrow filesystem of an address."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from paliscribe.storage.base import StorageError, is_local, scheme
from paliscribe.storage.local import local_path
from paliscribe.storage.s3_client import client

PROBE_ROWS = 16
WIDTHS = {"INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8}  # bytes of a value by Parquet's type
Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


def encode(table: pa.Table, batch_rows: int | None = None) -> bytes:
    """Serialise a table as an Arrow IPC file with zstd, in batches of so many rows. Equal tables give equal bytes."""
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks(), batch_rows)
    return sink.getvalue()


def decode(body: bytes) -> pa.Table:
    """Read the table of an Arrow IPC file."""
    return pa.ipc.open_file(pa.BufferReader(body)).read_all()


@contextlib.contextmanager
def frugal() -> Iterator[None]:
    """Has Arrow allocate by the system, since other allocators keep much of what is freed."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem of a folder or prefix, and the path in it. S3 uses the same AWS settings as boto3.

    Raises StorageError `bad_uri` for other schemes, and as `s3_client.client`.
    """
    if is_local(uri):
        return fs.LocalFileSystem(), str(local_path(uri).expanduser().absolute())
    if scheme(uri) not in ("s3", "s3a"):
        raise StorageError("bad_uri", uri, "results are read from a folder or from s3://")
    import boto3

    meta, found = client().meta, boto3.session.Session().get_credentials()
    keys = found.get_frozen_credentials() if found is not None else None
    made = fs.S3FileSystem(
        access_key=keys.access_key if keys else None,
        secret_key=keys.secret_key if keys else None,
        session_token=keys.token if keys else None,
        anonymous=keys is None,
        endpoint_override=meta.endpoint_url,
        region=meta.region_name,
    )
    return made, uri.partition("://")[2].rstrip("/")


def parts(rows: Rows, size: int, most: int = sys.maxsize) -> Iterator[Rows]:
    """The rows in slices of at most so many bytes and rows; a row with more bytes is alone in one."""
    if len(rows) > 1 and (len(rows) > most or rows.nbytes > size):
        half = len(rows) // 2
        yield from parts(rows.slice(0, half), size, most)
        yield from parts(rows.slice(half), size, most)
    elif len(rows):
        yield rows


def sized_batches(
    file: pq.ParquetFile,
    size: int,
    most: int,
    columns: Callable[[int], list[str] | None],
    groups: Iterable[int] | None = None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of a Parquet file with the numbers of their row groups, some `size` bytes at a time, as far as the rows
    before tell their size.

    `most`: rows of a batch. `columns`: of a row group; None: all. `groups`: that are read; None: all.
    """
    found = 1.0  # bytes of a decoded row, which dictionaries make smaller in the file
    for at, number in enumerate(range(file.num_row_groups) if groups is None else groups):
        read = columns(number)
        if at == 0:
            probe = next(file.iter_batches(batch_size=PROBE_ROWS, columns=read, row_groups=[number]), None)
            found = max(found, probe.nbytes / len(probe)) if probe else found
        rows = max(1, min(most, int(size / max(found, row_bytes(file.metadata.row_group(number), read)))))
        for batch in file.iter_batches(batch_size=rows, columns=read, row_groups=[number]):
            yield number, batch
            found = max(1.0, batch.nbytes / len(batch))


def row_bytes(group: pq.RowGroupMetaData, columns: list[str] | None = None) -> float:
    """Bytes of a decoded row of a row group, of those columns and leaves that are read, as far as the footer tells.

    Texts that repeat may have more: dictionaries make them small in the file.
    """
    chunks = [group.column(number) for number in range(group.num_columns)]
    if columns is not None:
        wanted = frozenset(columns)
        chunks = [each for each in chunks if {each.path_in_schema, each.path_in_schema.partition(".")[0]} & wanted]
    sizes = (max(each.total_uncompressed_size, each.num_values * WIDTHS.get(each.physical_type, 0)) for each in chunks)
    return float(sum(sizes) / max(1, group.num_rows))
