"""Freezes a manifest into shards: one pass validates it, a second one writes, both in constant memory."""

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from paliscribe.errors import UsageError
from paliscribe.manifest import formats
from paliscribe.manifest.reading import read
from paliscribe.records import ManifestRow
from paliscribe.storage import StorageError, Store, open_store, redacted, split
from paliscribe.storage.arrow import decode, encode

FOLDER = "_run/manifest"
INDEX = f"{FOLDER}/manifest.json"
BUCKETS = 64  # temporary files of id hashes
LEAST_ROWS, MOST_ROWS, SHARDS = 256, 8192, 4096  # rows per shard, and shards, of automatic sizes
MAX_NAMED = 5  # duplicate ids named in an error message
TYPES: dict[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


@dataclass(frozen=True, slots=True)
class FrozenManifest:
    """The manifest of a run, split into shards.

    `shard_rows`: rows per shard. `digest`: see `Scan`. `schema`: the carried columns. `identity`: see `identity`.
    """

    source: str
    rows: int
    shards: int
    shard_rows: int
    digest: str
    schema: pa.Schema
    identity: str | None = None

    def rows_of(self, shard: int) -> int:
        """Number of rows of a shard; the last one may have fewer."""
        return min(self.shard_rows, self.rows - shard * self.shard_rows)


@dataclass(frozen=True, slots=True)
class Scan:
    """The result of validating a manifest: its size, its content hash and its carried columns."""

    rows: int
    digest: str  # sha256 over the canonical rows, in order
    schema: pa.Schema


def scan(
    source: str,
    *,
    image_column: str = "image",
    id_column: str = "id",
    progress: Callable[[int], None] = lambda rows: None,
) -> Scan:
    """Validate a whole manifest in one pass. Raises UsageError, also for duplicate ids. `progress` gets the row count.

    Memory is constant: 16-byte hashes of the ids go to `BUCKETS` temporary files (1.6 GB of disk for 100 million rows),
    which are sorted one at a time (25 MB each then). The probability of a hash collision among 100 million ids is about
    1e-23.
    """
    whole = hashlib.sha256()
    types: dict[str, type] = {}
    rows = 0
    with tempfile.TemporaryDirectory(prefix="paliscribe-") as folder:
        ids = _Ids(Path(folder))
        for row in read(source, image_column=image_column, id_column=id_column):
            whole.update(_canonical(row))
            ids.add(row.id)
            for name, value in row.columns.items():
                _add_type(types, name, type(value), row.row, source)
            rows += 1
            if rows % 10_000 == 0:
                progress(rows)
        duplicates = ids.duplicates()
    progress(rows)
    if duplicates:
        _raise_duplicates(source, duplicates, image_column, id_column)
    fields = [pa.field(name, TYPES[kind]) for name, kind in sorted(types.items())]
    return Scan(rows, whole.hexdigest(), pa.schema(fields))


def automatic_shard_rows(rows: int) -> int:
    """Rows per shard for a manifest of so many: a power of two, few enough that a lost shard costs little.

    From a million rows on it grows, so that there are about `SHARDS` of them, until a shard has `MOST_ROWS`.
    """
    return min(MOST_ROWS, max(LEAST_ROWS, 1 << math.ceil(math.log2(max(1, rows / SHARDS)))))


def identity(source: str) -> str | None:
    """Text that changes whenever the file of a manifest does, found without reading it.

    None if nothing tells: for a folder or prefix, on a web server, or for a file that was written a moment ago.
    """
    if not formats.is_file(source):
        return None
    folder, name = split(source)
    try:
        version = open_store(folder).version(name)
    except StorageError:
        return None
    return version and f"{redacted(_absolute(source))} {version}"


def freeze(
    source: str,
    store: Store,
    *,
    shard_rows: int | None,
    image_column: str = "image",
    id_column: str = "id",
    progress: Callable[[int], None] = lambda rows: None,
) -> FrozenManifest:
    """Validate a manifest and write it into the run as shards, then its index. Equal manifests give equal bytes.

    `shard_rows`: None: by the number of rows, see `automatic_shard_rows`.

    Raises UsageError as `scan`, and if the manifest changes meanwhile; StorageError if the store cannot be written.
    """
    names = {"image_column": image_column, "id_column": id_column}
    before = identity(source)
    found = scan(source, progress=progress, **names)
    shard_rows = shard_rows or automatic_shard_rows(found.rows)
    schema = _shard_schema(found.schema)
    types = {field.name: field.type for field in found.schema}
    changed = UsageError(f"manifest {redacted(source)} changed while it was read; run the command again")
    pending: list[dict[str, Any]] = []
    shard = 0
    whole = hashlib.sha256()
    for row in read(source, **names):
        whole.update(_canonical(row))
        columns = {name: _widened(value, types.get(name)) for name, value in row.columns.items()}
        if any(TYPES[type(value)] != types.get(name) for name, value in columns.items()):
            raise changed
        pending.append({"row": row.row, "id": row.id, "image": row.image, **columns})
        if len(pending) == shard_rows:
            _write(store, shard, pending, schema)
            shard, pending = shard + 1, []
    if pending:
        _write(store, shard, pending, schema)
        shard += 1
    if whole.hexdigest() != found.digest:
        raise changed
    known = before if before == identity(source) else None
    frozen = FrozenManifest(_absolute(source), found.rows, shard, shard_rows, found.digest, found.schema, known)
    index = {
        "source": redacted(frozen.source),  # run files hold no secrets
        "rows": found.rows,
        "shards": shard,
        "shard_rows": shard_rows,
        "digest": found.digest,
        "columns": {field.name: str(field.type) for field in found.schema},
        "identity": known,
    }
    store.put(INDEX, json.dumps(index, indent=2).encode())
    return frozen


def load(store: Store) -> FrozenManifest | None:
    """The frozen manifest of a run; None if there is none, or if freezing was interrupted. Raises StorageError."""
    try:
        index = json.loads(store.get(INDEX))
    except StorageError as error:
        if error.kind == "missing":
            return None
        raise
    by_name = {str(kind): kind for kind in TYPES.values()}
    schema = pa.schema([pa.field(name, by_name[kind]) for name, kind in index.pop("columns").items()])
    return FrozenManifest(**index, schema=schema)


def read_shard(store: Store, shard: int) -> list[ManifestRow]:
    """The rows of a shard. Raises StorageError."""
    table = decode(store.get(_key(shard)))
    return [
        ManifestRow(
            values.pop("row"),
            values.pop("id"),
            values.pop("image"),
            {name: value for name, value in values.items() if value is not None},
        )
        for values in table.to_pylist()
    ]


def read_updated(
    frozen: FrozenManifest, failed: Mapping[str, int], *, image_column: str, id_column: str
) -> list[ManifestRow]:
    """Re-read the failed rows from the current manifest, for a retry.

    `failed`: id -> row number in the run. Columns that the run does not carry are dropped. Raises UsageError if the
    manifest is no longer readable, or if the type of a carried column has changed.
    """
    types = {field.name: field.type for field in frozen.schema}
    updated = []
    for row in read(frozen.source, image_column=image_column, id_column=id_column):
        if row.id in failed:
            columns = {name: _widened(v, types[name]) for name, v in row.columns.items() if name in types}
            for name, value in columns.items():
                if TYPES[type(value)] != types[name]:
                    raise UsageError(
                        f"manifest {frozen.source}: column {name!r} in row {row.row + 1} is {type(value).__name__} "
                        f"now; the run carries it as {types[name]}"
                    )
            updated.append(replace(row, row=failed[row.id], columns=columns))
    return updated


class _Ids:
    """Hashes of ids, partitioned into files by their first byte: duplicates are in the same file."""

    def __init__(self, folder: Path) -> None:
        self._files = [(folder / f"{number:02d}").open("w+b") for number in range(BUCKETS)]

    def add(self, name: str) -> None:
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        self._files[digest[0] % BUCKETS].write(digest)

    def duplicates(self) -> set[bytes]:
        """Hashes that occur more than once. Closes the files."""
        found: set[bytes] = set()
        for file in self._files:
            file.seek(0)
            hashes = np.frombuffer(file.read(), dtype="V16")
            file.close()
            hashes = np.sort(hashes.view([("high", "<u8"), ("low", "<u8")]), order=("high", "low"))
            same = np.flatnonzero(hashes[1:] == hashes[:-1])
            found |= {bytes(hashes[at].tobytes()) for at in same}
        return found


def _raise_duplicates(source: str, duplicates: set[bytes], image_column: str, id_column: str) -> None:
    """Raise UsageError with the ids of these hashes."""
    names: dict[str, None] = {}
    for row in read(source, image_column=image_column, id_column=id_column):
        if hashlib.blake2b(row.id.encode(), digest_size=16).digest() in duplicates:
            names[row.id] = None
            if len(names) == MAX_NAMED:
                break
    more = f" and {len(duplicates) - len(names):,} more" if len(duplicates) > len(names) else ""
    raise UsageError(
        f"manifest {redacted(source)}: duplicate ids: {', '.join(map(repr, names))}{more}. "
        f"Give each row a unique id in column {id_column!r}"
    )


def _add_type(types: dict[str, type], name: str, kind: type, row: int, source: str) -> None:
    """Record the type of a column's value. Integers widen to floats; raises UsageError for other mixed types."""
    known = types.setdefault(name, kind)
    if known is kind:
        return
    if {known, kind} == {int, float}:
        types[name] = float
        return
    raise UsageError(
        f"manifest {redacted(source)}: column {name!r} is {known.__name__} at first and "
        f"{kind.__name__} in row {row + 1}; "
        "a column must have one type"
    )


def _widened(value: Any, kind: pa.DataType | None) -> Any:
    """The value as a column of this type holds it: integers in float columns become floats."""
    return float(value) if kind == TYPES[float] and type(value) is int else value


def _canonical(row: ManifestRow) -> bytes:
    return json.dumps([row.id, row.image, sorted(row.columns.items())]).encode() + b"\n"


def _absolute(source: str) -> str:
    return source if "://" in source else str(Path(source).expanduser().absolute())


def _shard_schema(carried: pa.Schema) -> pa.Schema:
    own = [("row", pa.int64()), ("id", pa.string()), ("image", pa.string())]
    return pa.schema([*(pa.field(*field) for field in own), *carried])


def _write(store: Store, shard: int, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    store.put(_key(shard), encode(pa.Table.from_pylist(rows, schema=schema)))


def _key(shard: int) -> str:
    return f"{FOLDER}/shard-{shard:05d}.arrow"
