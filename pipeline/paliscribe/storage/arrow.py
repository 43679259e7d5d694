"""State files: Arrow tables as bytes."""

import io

import pyarrow as pa


def encode(table: pa.Table) -> bytes:
    """A table as an Arrow IPC file, zstd; equal tables give equal bytes."""
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def decode(body: bytes) -> pa.Table:
    """The table in an Arrow IPC file."""
    return pa.ipc.open_file(pa.BufferReader(body)).read_all()
