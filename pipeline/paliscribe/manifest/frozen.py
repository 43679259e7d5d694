"""The frozen manifest of a run: its files, its index, and the shards that are read from them."""

import bisect
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paliscribe.manifest.kinds import TYPES
from paliscribe.manifest.reading import as_rows
from paliscribe.records import ManifestRow
from paliscribe.storage import StorageError, Store, redacted
from paliscribe.storage.arrow import decode

FOLDER = "_run/manifest"
INDEX = f"{FOLDER}/manifest.json"
BATCH_ROWS = b"batch_rows"  # in the metadata of a file: rows of each of its batches but the last


@dataclass(frozen=True, slots=True)
class FrozenManifest:
    """The manifest of a run, in files; a shard is a range of rows.

    `shard_rows`: rows per shard. `digest`: see `Scan`. `schema`: the carried columns. `identity`: see
    `freezing.identity`. `files`: rows before the end of each file; empty for a run of an older version, which has a
    file for each shard. `nested`: carried columns with lists or structs, which are JSON text.
    """

    source: str | tuple[str, ...]
    rows: int
    shards: int
    shard_rows: int
    digest: str
    schema: pa.Schema
    identity: str | None = None
    files: tuple[int, ...] = ()
    nested: tuple[str, ...] = ()

    def rows_of(self, shard: int) -> int:
        """Number of rows of a shard; the last one may have fewer."""
        return min(self.shard_rows, self.rows - shard * self.shard_rows)

    def rows_in(self, shards: npt.NDArray[np.bool_]) -> int:
        """Number of rows of those shards for which the array [shards] is true."""
        return sum(self.rows_of(shard) for shard in np.flatnonzero(shards).tolist())


def load(store: Store) -> FrozenManifest | None:
    """The frozen manifest of a run; None if there is none, or if freezing was interrupted. Raises StorageError."""
    try:
        index = json.loads(store.get(INDEX))
    except StorageError as error:
        if error.kind == "missing":
            return None
        raise
    source = index["source"] if isinstance(index["source"], str) else tuple(index["source"])
    by_name = {str(kind): kind for kind in TYPES.values()}
    schema = pa.schema([pa.field(name, by_name[kind]) for name, kind in index.pop("columns").items()])
    tuples = {name: tuple(index.get(name, ())) for name in ("files", "nested")}
    return FrozenManifest(**index | tuples | {"source": source}, schema=schema)


def as_index(frozen: FrozenManifest) -> bytes:
    """The index of a frozen manifest, as `load` reads it."""
    values = asdict(replace(frozen, schema=pa.schema([])))
    del values["schema"]
    source = redacted(frozen.source) if isinstance(frozen.source, str) else list(map(redacted, frozen.source))
    columns = {field.name: str(field.type) for field in frozen.schema}
    return json.dumps(values | {"source": source, "columns": columns}, indent=2).encode()


def file_key(number: int) -> str:
    """Key of a file of the frozen manifest."""
    return f"{FOLDER}/rows-{number:07d}.arrow"


class Shards:
    """Reads the shards of a run's frozen manifest. It keeps the batch of rows that it read last: not thread-safe."""

    def __init__(self, store: Store) -> None:
        """Raises StorageError."""
        frozen = load(store)
        if frozen is None:
            raise StorageError("missing", f"{store.uri}/{INDEX}", "the manifest is not frozen")
        self._store, self._frozen = store, frozen
        self._file: tuple[int, pa.ipc.RecordBatchFileReader] | None = None
        self._batch: tuple[tuple[int, int], pa.RecordBatch] | None = None

    def read(self, shard: int) -> list[ManifestRow]:
        """The rows of a shard. Raises StorageError."""
        start = shard * self._frozen.shard_rows
        if self._frozen.files:
            tables = self._tables(start, start + self._frozen.rows_of(shard))
        else:
            tables = iter([decode(self._store.get(f"{FOLDER}/shard-{shard:05d}.arrow")).drop_columns("row")])
        rows: list[ManifestRow] = []
        for table in tables:
            rows += as_rows(table, start + len(rows))
        return rows

    def _tables(self, start: int, end: int) -> Iterator[pa.Table]:
        """The rows from `start` to `end`, which may be in several files and batches."""
        while start < end:
            file = bisect.bisect_right(self._frozen.files, start)
            first = self._frozen.files[file - 1] if file else 0
            size, batch = self._read_batch(file, start - first)
            offset = (start - first) % size
            found = pa.Table.from_batches([batch.slice(offset, end - start)])
            start += found.num_rows
            types = [
                self._frozen.schema.field(f).type if f in self._frozen.schema.names else pa.string()
                for f in found.column_names
            ]
            yield found.cast(pa.schema(zip(found.column_names, types, strict=True)), safe=False)

    def _read_batch(self, file: int, row: int) -> tuple[int, pa.RecordBatch]:
        """The batch with this row of a file, and the size of the file's batches, of which the last may have less."""
        if self._file is None or self._file[0] != file:
            self._file = file, pa.ipc.open_file(pa.PythonFile(self._store.open(file_key(file)), "r"))
        reader = self._file[1]
        size = int(reader.schema.metadata[BATCH_ROWS])
        at = file, row // size
        if self._batch is None or self._batch[0] != at:
            self._batch = at, reader.get_batch(row // size)
        return size, self._batch[1]
