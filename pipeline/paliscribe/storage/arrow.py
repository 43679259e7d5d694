"""Arrow on storage: tables as Arrow IPC bytes, and the pyarrow filesystem of an address."""

import io
from typing import Any

import pyarrow as pa
from pyarrow import fs

from paliscribe.storage.base import StorageError, is_local, scheme
from paliscribe.storage.local import local_path
from paliscribe.storage.s3_client import client


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
