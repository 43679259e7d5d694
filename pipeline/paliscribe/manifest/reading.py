"""Reads a manifest in order, validated, as tables or as rows: in constant memory, by columns in threads."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from paliscribe.errors import UsageError
from paliscribe.manifest import formats
from paliscribe.manifest.blocks import ROWS, Block, Row, Source, Uncertain
from paliscribe.manifest.columns import ID, IMAGE, Names, normalised, plain, resolved, text_of
from paliscribe.records import ManifestRow
from paliscribe.storage import redacted, split
from paliscribe.storage.inline import is_inline
from paliscribe.storage.parallel import in_order

THREADS = min(8, len(os.sched_getaffinity(0)))
UNNAMED = 1000  # rows without an image column before a manifest is refused
TYPES: dict[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
WORDS = {kind: python.__name__ for python, kind in TYPES.items()}


class Reading:
    """One pass over a manifest. `rows`: read so far. `types`: of the carried columns so far; integers widen to floats.
    `numbered`: the first row whose id is its number, or None so far.

    The id of a row defaults to its image reference, or to `row-N` for an inline or missing image.
    """

    def __init__(self, source: str | Sequence[str], image_column: str, id_column: str) -> None:
        self.source, self._image, self._id = source, image_column, id_column
        self.rows = 0
        self.types: dict[str, pa.DataType] = {}
        self.numbered: int | None = None
        self._seen: dict[str, None] = {}  # columns, until the image column is found
        self._named = False

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows as tables with the columns `id`, `image` (or null) and those carried ones that have values.

        Raises UsageError: malformed lines, no rows, no image column, a column with the name of a result column, a
        column of two types.
        """
        blocks = formats.blocks(self.source, self._image, self._id)
        for source, block, found in in_order(self._by_columns, blocks, THREADS):
            with source.translating():
                for table, columns in found or self._by_rows(source, block):
                    if not table.num_rows:
                        continue
                    if not self._named:
                        self._seen |= dict.fromkeys(columns)
                        self._named = self._image in self._seen
                    yield self._checked(table, source)
                    if self.rows >= UNNAMED and not self._named:
                        raise self._no_image()
        if not self._seen:
            raise UsageError(f"manifest {formats.shown(self.source)}: no rows")
        if not self._named:
            raise self._no_image()

    def _by_columns(self, item: tuple[Source, Block]) -> tuple[Source, Block, list[tuple[pa.Table, list[str]]] | None]:
        source, block = item
        try:
            return source, block, [normalised(block, self._names(source))]
        except Uncertain:
            return source, block, None

    def _names(self, source: Source) -> Names:
        return Names(self._image, self._id, split(source.uri)[0])

    def _checked(self, table: pa.Table, source: Source) -> pa.Table:
        """The table with all ids; counts its rows and records its types. Raises UsageError for another type."""
        ids = table[ID]
        if ids.null_count:
            if self.numbered is None:
                self.numbered = self.rows + pc.index(pc.is_null(ids), True).as_py()
            numbers = pa.array(range(self.rows, self.rows + len(table))).cast(pa.string())
            ids = pc.coalesce(ids, pc.binary_join_element_wise("row-", numbers, ""))
            table = table.set_column(0, ID, ids)
        for field in table.schema:
            if field.name not in (ID, IMAGE):
                row = self.rows
                if self.types.get(field.name, field.type) != field.type:
                    row += pc.index(pc.is_valid(table[field.name]), True).as_py()
                self._add_type(field.name, field.type, row, source)
        self.rows += len(table)
        return table

    def _add_type(self, name: str, kind: pa.DataType, row: int, source: Source) -> None:
        """Record the type of a column's values. Integers widen to floats; raises UsageError for other mixed types."""
        known = self.types.setdefault(name, kind)
        if known == kind:
            return
        if {WORDS[known], WORDS[kind]} == {"int", "float"}:
            self.types[name] = TYPES[float]
            return
        raise UsageError(
            f"manifest {redacted(source.uri)}: column {name!r} is {WORDS[known]} at first and "
            f"{WORDS[kind]} in row {row + 1}; a column must have one type"
        )

    def _by_rows(self, source: Source, block: Block) -> Iterator[tuple[pa.Table, list[str]]]:
        """The rows of a block, read one by one: `normalised` in other words, with the row in its errors."""
        names, rows = self._names(source), block.rows()
        while found := list(islice(rows, ROWS)):
            seen = dict(self._seen)
            values: list[Row] = []
            for number, row in enumerate(found, start=self.rows):
                seen |= dict.fromkeys(row)
                if clash := sorted(names.taken & row.keys()):
                    if self._image not in seen:
                        self._seen = seen
                        raise self._no_image()  # it probably has another name
                    raise UsageError(
                        f"manifest {redacted(source.uri)}: column {', '.join(map(repr, clash))} has the name of "
                        "a result column; rename it"
                    )
                values.append(self._plain(row, number, source))
            kinds = {name: self.types[name] for row in values for name in row if name not in (ID, IMAGE)}
            columns = {ID: pa.string(), IMAGE: pa.string()} | dict(sorted(kinds.items()))
            table = pa.table({name: _array([row.get(name) for row in values], kind) for name, kind in columns.items()})
            yield table.set_column(1, IMAGE, resolved(table[IMAGE].combine_chunks(), names.folder)), list(seen)

    def _plain(self, row: Row, number: int, source: Source) -> Row:
        """A row's values as a table holds them, with a relative image; without nulls. Raises UsageError."""
        at = f"manifest {redacted(source.uri)}"
        reference, given = text_of(row.pop(self._image, None)), text_of(row.pop(self._id, None))
        found: Row = {IMAGE: reference, ID: given or (reference if reference and not is_inline(reference) else None)}
        for name, value in row.items():
            try:
                carried = plain(value)
            except ValueError as error:
                place = f"column {name!r} in row {number + 1}" if isinstance(value, int) else f"column {name!r}"
                raise UsageError(f"{at}: {place} {error}") from None
            if carried is not None:
                self._add_type(name, TYPES[type(carried)], number, source)
                found[name] = carried
        for text in (*row, *found.values()):
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:  # lone surrogates, which JSON can represent and UTF-8 cannot
                    raise UsageError(f"{at}: row {number + 1} holds text that is not Unicode: {text!r}") from None
        return found

    def _no_image(self) -> UsageError:
        known = ", ".join(map(repr, self._seen))
        return UsageError(
            f"manifest {formats.shown(self.source)}: no column {self._image!r} (columns: {known}); set "
            "the right one with --image-column"
        )


def read(source: str | Sequence[str], *, image_column: str = "image", id_column: str = "id") -> Iterator[ManifestRow]:
    """Stream the rows of a manifest. A row without an image has `image` None. Raises UsageError: see `Reading`."""
    reading = Reading(source, image_column, id_column)
    start = 0
    for table in reading.tables():
        yield from as_rows(table, start)
        start = reading.rows


def as_rows(table: pa.Table, start: int) -> Iterator[ManifestRow]:
    """The rows of a table; the first one has the number `start`."""
    for number, values in enumerate(table.to_pylist(), start):
        name, image = values.pop(ID), values.pop(IMAGE)
        yield ManifestRow(number, name, image, {key: value for key, value in values.items() if value is not None})


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """The values as an array; integers of any size become floats in a column of floats, as Python rounds them."""
    if kind == TYPES[float]:
        values = [None if value is None else float(value) for value in values]
    return pa.array(values, kind)
