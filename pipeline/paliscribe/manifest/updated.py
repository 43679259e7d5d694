"""The rows of a retry, looked up in the manifests again in constant memory."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paliscribe.errors import UsageError
from paliscribe.manifest import formats
from paliscribe.manifest.columns import ID, IMAGE
from paliscribe.manifest.extending import refuse_numbered
from paliscribe.manifest.freezing import Addresses
from paliscribe.manifest.frozen import FrozenManifest
from paliscribe.manifest.ids import KnownIds, hashed
from paliscribe.manifest.kinds import TYPES, WORDS, settled
from paliscribe.manifest.messages import quoted
from paliscribe.manifest.naming import ColumnSettings, Naming
from paliscribe.manifest.reading import Reading, as_rows
from paliscribe.records import ManifestRow

ROW = "row"  # column with the row's number in the run; no carried column has this name
BUCKETS = 64  # temporary files
SPILL_ROWS = 65_536  # rows in memory until they are written to them


def updated_rows(
    frozen: FrozenManifest,
    failed: KnownIds,
    folder: Path,
    *,
    unreadable: Callable[[UsageError], None],
    **columns: Unpack[ColumnSettings],
) -> Iterator[ManifestRow]:
    """The failed rows as they are in the run's manifests now, in the order of the run; those not found are left out.

    `failed`: the row number of each id. `folder`: for temporary files. Where several manifests have a row, that of the
    one given last counts. Columns that the run does not carry are dropped. `unreadable`: gets the error of a manifest
    that is no longer readable, or in which a carried column has another type; nothing of it is used.
    """
    rows, naming = _Sorted(folder, frozen.rows), Naming.of(**columns)
    dropped: dict[Addresses, tuple[str, ...]] = {
        added.source: added.dropped for added in frozen.additions if added.dropped is not None
    }

    def add(source: Addresses, kept: list[int], types: Mapping[str, pa.DataType]) -> None:
        rows.truncate(kept)
        named = replace(naming, dropped=frozenset(dropped.get(source, naming.dropped)))
        for table in _found(source, frozen, failed, named, types):
            rows.add(table)

    newest_first = dict.fromkeys(given.source for given in reversed(frozen.given))
    for source in reversed(newest_first):
        kept = rows.size()
        try:
            settled(partial(add, source, kept))
        except UsageError as error:
            rows.truncate(kept)
            unreadable(error)
    yield from rows


def _found(
    source: Addresses, frozen: FrozenManifest, failed: KnownIds, naming: Naming, read_as: Mapping[str, pa.DataType]
) -> Iterator[pa.Table]:
    """The failed rows of one manifest, with the columns of the run and `ROW`. Raises UsageError and Mixed.

    `read_as`: the `types` of `Reading`.
    """
    types = {ID: pa.string(), IMAGE: pa.string()} | {field.name: field.type for field in frozen.schema}
    reading = Reading(source, naming, read_as)
    start = 0
    for whole in reading.tables():
        if source != frozen.source:
            refuse_numbered(reading, naming.id)
        numbers = failed.find(hashed(whole[ID]))
        mask = pa.array(numbers >= 0)
        found = whole.filter(mask).select([name for name in whole.column_names if name in types])
        for field in found.schema:
            widens = types[field.name] == TYPES[float] and field.type == TYPES[int]
            if field.type != types[field.name] and not widens and found[field.name].null_count < len(found):
                row = start + pc.index(pc.and_(mask, pc.is_valid(whole[field.name])), True).as_py()
                raise UsageError(
                    f"manifest {formats.shown(source)}: column {quoted(field.name)} in row {row + 1} is "
                    f"{WORDS[field.type]} now; the run carries it as {types[field.name]}"
                )
        kinds = pa.schema([(name, types[name]) for name in found.column_names])
        yield found.cast(kinds, safe=False).append_column(ROW, pa.array(numbers[numbers >= 0]))
        start = reading.rows


class _Sorted:
    """Rows sorted by their numbers in files, each of a range of numbers. Of equal numbers the one added last counts."""

    def __init__(self, folder: Path, rows: int) -> None:
        self._files = [(folder / f"rows-{number:02d}").open("w+b") for number in range(BUCKETS)]
        self._range = -(-rows // BUCKETS)
        self._waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        if len(table):
            self._waiting.append(table)
        if sum(map(len, self._waiting)) >= SPILL_ROWS:
            self._spill()

    def size(self) -> list[int]:
        """What `truncate` takes to go back to the rows added so far."""
        self._spill()
        return [file.tell() for file in self._files]

    def truncate(self, size: list[int]) -> None:
        """Forget the rows added since."""
        self._waiting = []
        for file, end in zip(self._files, size, strict=True):
            file.seek(end)
            file.truncate()

    def __iter__(self) -> Iterator[ManifestRow]:
        """The rows, ascending."""
        self._spill()
        for file in self._files:
            end = file.tell()
            file.seek(0)
            tables = []
            while file.tell() < end:
                with pa.ipc.open_stream(file) as stream:
                    tables.append(stream.read_all())
            file.close()
            if tables:
                yield from _in_order(pa.concat_tables(tables, promote_options="default"))

    def _spill(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting, promote_options="default")
        self._waiting = []
        buckets = table[ROW].to_numpy() // self._range
        for bucket in np.unique(buckets).tolist():
            with pa.ipc.new_stream(self._files[bucket], table.schema) as stream:
                stream.write_table(table.filter(pa.array(buckets == bucket)))


def _in_order(table: pa.Table) -> Iterator[ManifestRow]:
    """The rows of a table, ascending by their numbers, the last of equal ones."""
    numbers, places = np.unique(table[ROW].to_numpy()[::-1], return_index=True)
    rows = as_rows(table.drop_columns(ROW).take(pa.array(len(table) - 1 - places)), 0)
    for number, row in zip(numbers.tolist(), rows, strict=True):
        yield replace(row, row=number)
