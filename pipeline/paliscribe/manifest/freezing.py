"""A manifest is read once to check it, once more to freeze it into shards, both in constant memory."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from paliscribe.errors import UsageError
from paliscribe.manifest.reading import read
from paliscribe.records import ManifestRow
from paliscribe.storage import StorageError, Store, redacted
from paliscribe.storage.arrow import decode, encode

FOLDER = "_run/manifest"


INDEX = f"{FOLDER}/manifest.json"


BUCKETS = 64


NAMED = 5  # duplicate ids that an error names


TYPES: dict[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


@dataclass(frozen=True, slots=True)
class FrozenManifest:
    """A manifest as a run works on it. `schema`: the carried columns."""

    source: str
    rows: int
    shards: int
    shard_rows: int
    digest: str
    schema: pa.Schema

    def rows_of(self, shard: int) -> int:
        """Rows of a shard; the last may have fewer than the others."""
        return min(self.shard_rows, self.rows - shard * self.shard_rows)


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a manifest found."""

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
    """Check a whole manifest in one pass. Raises UsageError, for duplicate ids too.

    Memory is constant: ids are kept as 16-byte hashes in `BUCKETS` temporary files (1.6 GB of disk for 100 million
    rows) that are sorted one at a time (25 MB each then). Two unequal ids among 100 million collide with a
    probability of about 1e-23.
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
                _settle(types, name, type(value), row.row, source)
            rows += 1
            if rows % 10_000 == 0:
                progress(rows)
        repeated = ids.repeated()
    progress(rows)
    if repeated:
        _refuse(source, repeated, image_column, id_column)
    fields = [pa.field(name, TYPES[kind]) for name, kind in sorted(types.items())]
    return Scan(rows, whole.hexdigest(), pa.schema(fields))


def freeze(
    source: str,
    store: Store,
    *,
    shard_rows: int,
    image_column: str = "image",
    id_column: str = "id",
    progress: Callable[[int], None] = lambda rows: None,
) -> FrozenManifest:
    """Check a manifest and write it into the run as shards, its index last. Equal manifests give equal bytes."""
    names = {"image_column": image_column, "id_column": id_column}
    found = scan(source, progress=progress, **names)
    schema = _shard_schema(found.schema)
    types = {field.name: field.type for field in found.schema}
    changed = UsageError(f"manifest {redacted(source)} changed while it was read; run the command again")
    waiting: list[dict[str, Any]] = []
    shard = 0
    whole = hashlib.sha256()
    for row in read(source, **names):
        whole.update(_canonical(row))
        columns = {name: _fitting(value, types.get(name)) for name, value in row.columns.items()}
        if any(TYPES[type(value)] != types.get(name) for name, value in columns.items()):
            raise changed
        waiting.append({"row": row.row, "id": row.id, "image": row.image, **columns})
        if len(waiting) == shard_rows:
            _write(store, shard, waiting, schema)
            shard, waiting = shard + 1, []
    if waiting:
        _write(store, shard, waiting, schema)
        shard += 1
    if whole.hexdigest() != found.digest:
        raise changed
    source = source if "://" in source else str(Path(source).expanduser().absolute())
    frozen = FrozenManifest(source, found.rows, shard, shard_rows, found.digest, found.schema)
    index = {
        "source": redacted(source),  # run files hold no secrets
        "rows": found.rows,
        "shards": shard,
        "shard_rows": shard_rows,
        "digest": found.digest,
        "columns": {field.name: str(field.type) for field in found.schema},
    }
    store.put(INDEX, json.dumps(index, indent=2).encode())
    return frozen


def load(store: Store) -> FrozenManifest | None:
    """The frozen manifest of a run, or None if there is none (a freeze that was cut short counts as none)."""
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
    """The rows of a shard."""
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


def read_mended(
    frozen: FrozenManifest, failed: Mapping[str, int], *, image_column: str, id_column: str
) -> list[ManifestRow]:
    """The rows with these ids (-> their row numbers in the run) as the manifest has them now, for a retry.

    Columns that the run does not carry are left out. Raises UsageError where the manifest can no longer be read, or a
    carried column has another type.
    """
    types = {field.name: field.type for field in frozen.schema}
    mended = []
    for row in read(frozen.source, image_column=image_column, id_column=id_column):
        if row.id in failed:
            columns = {name: _fitting(v, types[name]) for name, v in row.columns.items() if name in types}
            for name, value in columns.items():
                if TYPES[type(value)] != types[name]:
                    raise UsageError(
                        f"manifest {frozen.source}: column {name!r} in row {row.row + 1} is {type(value).__name__} "
                        f"now; the run carries it as {types[name]}"
                    )
            mended.append(replace(row, row=failed[row.id], columns=columns))
    return mended


class _Ids:
    """Hashes of ids, spread over files by their first byte, so that equal ones meet."""

    def __init__(self, folder: Path) -> None:
        self._files = [(folder / f"{number:02d}").open("w+b") for number in range(BUCKETS)]

    def add(self, name: str) -> None:
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        self._files[digest[0] % BUCKETS].write(digest)

    def repeated(self) -> set[bytes]:
        found: set[bytes] = set()
        for file in self._files:
            file.seek(0)
            hashes = np.frombuffer(file.read(), dtype="V16")
            file.close()
            hashes = np.sort(hashes.view([("high", "<u8"), ("low", "<u8")]), order=("high", "low"))
            same = np.flatnonzero(hashes[1:] == hashes[:-1])
            found |= {bytes(hashes[at].tobytes()) for at in same}
        return found


def _refuse(source: str, repeated: set[bytes], image_column: str, id_column: str) -> None:
    names: dict[str, None] = {}
    for row in read(source, image_column=image_column, id_column=id_column):
        if hashlib.blake2b(row.id.encode(), digest_size=16).digest() in repeated:
            names[row.id] = None
            if len(names) == NAMED:
                break
    more = f" and {len(repeated) - len(names):,} more" if len(repeated) > len(names) else ""
    raise UsageError(
        f"manifest {redacted(source)}: ids are given more than once: {', '.join(map(repr, names))}{more}. "
        f"Give each row its own in column {id_column!r}"
    )


def _settle(types: dict[str, type], name: str, kind: type, row: int, source: str) -> None:
    """Book the type of a column's value; whole numbers widen to floats, anything else must agree."""
    known = types.setdefault(name, kind)
    if known is kind:
        return
    if {known, kind} == {int, float}:
        types[name] = float
        return
    raise UsageError(
        f"manifest {redacted(source)}: column {name!r} is {known.__name__} at first and "
        f"{kind.__name__} in row {row + 1}; "
        "a column has one type"
    )


def _fitting(value: Any, kind: pa.DataType | None) -> Any:
    """A value of a column of this type; whole numbers among floats become floats."""
    return float(value) if kind == TYPES[float] and type(value) is int else value


def _canonical(row: ManifestRow) -> bytes:
    return json.dumps([row.id, row.image, sorted(row.columns.items())]).encode() + b"\n"


def _shard_schema(carried: pa.Schema) -> pa.Schema:
    own = [("row", pa.int64()), ("id", pa.string()), ("image", pa.string())]
    return pa.schema([*(pa.field(*field) for field in own), *carried])


def _write(store: Store, shard: int, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    store.put(_key(shard), encode(pa.Table.from_pylist(rows, schema=schema)))


def _key(shard: int) -> str:
    return f"{FOLDER}/shard-{shard:05d}.arrow"
