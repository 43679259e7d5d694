"""The frozen manifest of a run: its files, its index, and the shards that are read from them."""

import bisect
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paliscribe.errors import TemporaryError
from paliscribe.manifest.columns import ID
from paliscribe.manifest.kinds import TYPES
from paliscribe.manifest.reading import as_rows
from paliscribe.records import ManifestRow
from paliscribe.results import Layout, retried_generation, state
from paliscribe.storage import StorageError, Store, redacted
from paliscribe.storage.arrow import decode

FOLDER = "_run/manifest"
INDEX = f"{FOLDER}/manifest.json"
BATCH_ROWS = b"batch_rows"  # in the metadata of a file: rows of each of its batches but the last


@dataclass(frozen=True, slots=True)
class Addition:
    """Rows that an append has added to a run: its first row, shard and file; they begin where those before it end.

    `retries`: how often the run had been retried before. `source`, `digest`, `identity`: of the whole manifest that was
    given. `attempt`: in the names of its files, so that another driver's are not mistaken for them. `dropped`: columns
    that it did not carry; None: those of the run.
    """

    row: int
    shard: int
    file: int
    retries: int
    source: str | tuple[str, ...]
    digest: str
    identity: str | None
    attempt: str
    dropped: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class FrozenManifest:
    """The manifest of a run, in files; a shard is a range of rows.

    `shard_rows`: rows per shard. `digest`: see `Scan`. `schema`: the carried columns. `identity`: see
    `freezing.identity`. `files`: rows before the end of each file. `shard_files`: so many shards have a file each, as
    older versions wrote them; together these files count as one in `files`. `source`, `digest` and `identity` are those
    of the manifest that the run began with. `nested`: carried columns with lists or structs, which are JSON text.
    """

    source: str | tuple[str, ...]
    rows: int
    shards: int
    shard_rows: int
    digest: str
    schema: pa.Schema
    identity: str | None = None
    files: tuple[int, ...] = ()
    shard_files: int = 0
    additions: tuple[Addition, ...] = ()
    nested: tuple[str, ...] = ()

    @property
    def given(self) -> "tuple[FrozenManifest | Addition, ...]":
        """What holds source, digest and identity of each manifest that was given, in order."""
        return self, *self.additions

    def layout(self, tasks: tuple[str, ...], partition_by: tuple[str, ...]) -> Layout:
        """How the shards fall into parts."""
        appended = tuple((added.shard, added.retries) for added in self.additions)
        return Layout(self.shards, self.shard_rows, self.rows, tasks, partition_by, appended)

    def first_row(self, shard: int) -> int:
        """The first row of a shard."""
        added = self._last_addition("shard", shard)
        return added.row + (shard - added.shard) * self.shard_rows if added else shard * self.shard_rows

    def rows_of(self, shard: int) -> int:
        """Number of rows of a shard; the last one of the run or of an append may have fewer."""
        end = next((added.row for added in self.additions if added.shard > shard), self.rows)
        return min(self.shard_rows, end - self.first_row(shard))

    def rows_in(self, shards: npt.NDArray[np.bool_]) -> int:
        """Number of rows of those shards for which the array [shards] is true."""
        return sum(self.rows_of(shard) for shard in np.flatnonzero(shards).tolist())

    def shard_of(self, row: int) -> int:
        """The shard of a row."""
        added = self._last_addition("row", row)
        return added.shard + (row - added.row) // self.shard_rows if added else row // self.shard_rows

    def retried_generation(self, shard: int, generation: int) -> int:
        """The generation whose dead letters of a shard are those that the retry `generation` annotates."""
        added = self._last_addition("shard", shard)
        return retried_generation(generation, added.retries if added else 0)

    def key_of(self, file: int) -> str:
        """Key of a file."""
        added = self._last_addition("file", file)
        return file_key(file, added.attempt if added else None)

    def _last_addition(self, name: str, value: int) -> Addition | None:
        """The last addition whose first row, shard or file, as named, is not beyond a value."""
        place = bisect.bisect_right(self.additions, value, key=attrgetter(name))
        return self.additions[place - 1] if place else None


def load(store: Store) -> FrozenManifest | None:
    """The frozen manifest of a run; None if there is none, or if freezing was interrupted.

    Raises StorageError, and Damaged.
    """
    return state.read(store, INDEX, _parsed)


def replace_index(store: Store, before: FrozenManifest, now: FrozenManifest) -> None:
    """Put an index in the place of another. Raises TemporaryError if it is not there: another driver was faster."""
    body, etag = store.get_with_etag(INDEX)
    if (
        state.decode(store.uri, INDEX, body, _parsed) != before
        or store.put_if_match(INDEX, as_index(now), etag) is None
    ):
        raise TemporaryError(f"another driver appended to {store.uri} at the same time; run the same command again")


def as_index(frozen: FrozenManifest) -> bytes:
    """The index of a frozen manifest, as `load` reads it."""
    values = asdict(replace(frozen, schema=pa.schema([])))
    del values["schema"]
    for each in (values, *values["additions"]):
        given = each["source"]
        each["source"] = redacted(given) if isinstance(given, str) else list(map(redacted, given))
    for name in ("shard_files", "additions", "nested"):  # so that an index without them is as it was before they were
        if not values[name]:
            del values[name]
    columns = {field.name: str(field.type) for field in frozen.schema}
    return state.encode(values | {"columns": columns}, indent=2)


def file_key(number: int, attempt: str | None = None) -> str:
    """Key of a file of the frozen manifest. `attempt`: of an append."""
    return f"{FOLDER}/rows-{number:07d}{f'.{attempt}' if attempt else ''}.arrow"


def shard_file_key(shard: int) -> str:
    """Key of a shard's rows as older versions wrote them."""
    return f"{FOLDER}/shard-{shard:05d}.arrow"


class _Index(TypedDict):
    """The values of an index, for the check of their types."""

    source: str | list[str]
    rows: int
    shards: int
    shard_rows: int
    digest: str
    identity: NotRequired[str | None]
    files: NotRequired[list[int]]
    shard_files: NotRequired[int]
    additions: NotRequired[list[dict[str, Any]]]
    nested: NotRequired[list[str]]
    columns: dict[str, str]


def _parsed(values: dict[str, Any]) -> FrozenManifest:
    state.check_types(_Index, values)
    index = dict(values)
    by_name = {str(kind): kind for kind in TYPES.values()}
    schema = pa.schema([pa.field(name, by_name[kind]) for name, kind in index.pop("columns").items()])
    added = tuple(map(_addition, index.pop("additions", ())))
    if not index.get("files"):
        index |= {"files": [index["rows"]], "shard_files": index["shards"]}
    frozen = FrozenManifest(
        **index | {"source": _source(index), "files": tuple(index["files"]), "nested": tuple(index.get("nested", ()))},
        schema=schema,
        additions=added,
    )
    starts = [0, *(each.row for each in added), frozen.rows]
    shards = sum(-(-(end - start) // frozen.shard_rows) for start, end in itertools.pairwise(starts))
    if sorted({*starts, *frozen.files}) != sorted({0, *frozen.files}) or shards != frozen.shards or min(starts) < 0:
        raise ValueError("its counts do not fit together")
    return frozen


def _addition(values: dict[str, Any]) -> Addition:
    dropped = values.get("dropped")
    given = values | {"source": _source(values), "dropped": None if dropped is None else tuple(dropped)}
    return state.typed(Addition)(given)


def _source(values: dict[str, Any]) -> str | tuple[str, ...]:
    return values["source"] if isinstance(values["source"], str) else tuple(values["source"])


def read_file(store: Store, frozen: FrozenManifest, file: int) -> pa.Table:
    """The rows in a file. Raises StorageError, and Damaged for one that cannot be read."""
    with _damage(store, [key := frozen.key_of(file)]):
        table = decode(store.get(key))
        if len(table) != frozen.files[file] - (frozen.files[file - 1] if file else 0):
            raise ValueError("its number of rows is not that of the index")
        return table


@contextlib.contextmanager
def _damage(store: Store, at: list[str]) -> Iterator[None]:
    """Raise Damaged for a file that is missing or cannot be read: that with the key `at[0]`."""
    try:
        yield
    except StorageError as error:
        if error.kind != "missing":
            raise
        raise state.Damaged(store.uri, at[0], "the file is missing") from None
    except (pa.ArrowException, OSError, KeyError, ValueError, IndexError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise state.Damaged(store.uri, at[0], words) from None


class Shards:
    """Reads the shards of a run's frozen manifest. It keeps the batch of rows that it read last: not thread-safe."""

    def __init__(self, store: Store) -> None:
        """Raises StorageError."""
        frozen = load(store)
        if frozen is None:
            raise StorageError("missing", f"{store.uri}/{INDEX}", "the manifest is not frozen")
        self._store, self.frozen = store, frozen
        self._file: tuple[int, pa.ipc.RecordBatchFileReader] | None = None
        self._batch: tuple[tuple[int, int], pa.RecordBatch] | None = None

    def read(self, shard: int) -> list[ManifestRow]:
        """The rows of a shard. Raises as `tables`."""
        start = self.frozen.first_row(shard)
        rows: list[ManifestRow] = []
        for table in self.tables(shard):
            rows += as_rows(table, start + len(rows))
        return rows

    def tables(self, shard: int) -> Iterator[pa.Table]:
        """The rows of a shard as tables of id, image and those carried columns that have values there.

        Raises StorageError, and Damaged for a file that cannot be read.
        """
        start = self.frozen.first_row(shard)
        at = [shard_file_key(shard)]
        with _damage(self._store, at):
            if shard < self.frozen.shard_files:
                yield decode(self._store.get(at[0])).drop_columns("row")
            else:
                yield from self._tables(start, start + self.frozen.rows_of(shard), at)

    def _tables(self, start: int, end: int, at: list[str]) -> Iterator[pa.Table]:
        """The rows from `start` to `end`, which may be in several files and batches. Sets `at[0]` to the file's key."""
        while start < end:
            file = bisect.bisect_right(self.frozen.files, start)
            at[0] = self.frozen.key_of(file)
            first = self.frozen.files[file - 1] if file else 0
            size, batch = self._read_batch(file, start - first)
            offset = (start - first) % size
            found = pa.Table.from_batches([batch.slice(offset, min(end, self.frozen.files[file]) - start)])
            if not len(found) or found[ID].null_count:
                raise ValueError("rows are missing in it")
            start += found.num_rows
            types = [
                self.frozen.schema.field(f).type if f in self.frozen.schema.names else pa.string()
                for f in found.column_names
            ]
            yield found.cast(pa.schema(zip(found.column_names, types, strict=True)), safe=False)

    def _read_batch(self, file: int, row: int) -> tuple[int, pa.RecordBatch]:
        """The batch with this row of a file, and the size of the file's batches, of which the last may have less."""
        if self._file is None or self._file[0] != file:
            self._file = file, pa.ipc.open_file(pa.PythonFile(self._store.open(self.frozen.key_of(file)), "r"))
        reader = self._file[1]
        size = int(reader.schema.metadata[BATCH_ROWS])
        at = file, row // size
        if self._batch is None or self._batch[0] != at:
            self._batch = at, reader.get_batch(row // size)
        return size, self._batch[1]
