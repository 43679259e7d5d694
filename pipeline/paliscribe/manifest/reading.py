"""Reads a manifest in order, validated, as tables or as rows: in constant memory, by columns in threads."""

import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Unpack

import pyarrow as pa
import pyarrow.compute as pc

from paliscribe.errors import UsageError
from paliscribe.manifest import formats
from paliscribe.manifest.blocks import Block, Columns, Row, Source, Uncertain, some
from paliscribe.manifest.columns import ID, IMAGE, Part, normalised, resolved
from paliscribe.manifest.kinds import Kinds, Mixed, array, carried_type, common, kind_of, natural
from paliscribe.manifest.messages import cut, listed, quoted
from paliscribe.manifest.naming import ColumnSettings, Naming
from paliscribe.manifest.values import holds_bytes, holds_no_text, plain, text_of, written_as_text
from paliscribe.records import ManifestRow
from paliscribe.storage import redacted, split
from paliscribe.storage.inline import is_inline
from paliscribe.storage.parallel import in_order

THREADS = min(8, len(os.sched_getaffinity(0)))
MIXED = {"big": "int", "huge": "int beyond 64 bits", "nan": "float"}  # kinds in words
Tell = Callable[[str], None]  # gets a line for the user
UNNAMED = 1000  # rows without an image column before a manifest is refused
NO_TEXT = "it must be text, such as an address or a data URL; name another column with {}"


class Reading:
    """One pass over a manifest. `rows`: read so far. `nested`: carried columns with lists or structs so far.
    `numbered`: the first row whose id is its number, or None so far.

    The id of a row defaults to its image reference, or to `row-N` for an inline or missing image. `types`: of carried
    columns that are not as their values are, see `kinds`. `limit`: rows to read, as if there were no
    others.
    """

    def __init__(
        self,
        source: str | Sequence[str],
        naming: Naming,
        types: Mapping[str, pa.DataType] | None = None,
        tell: Tell = lambda words: None,
        limit: int | None = None,
    ) -> None:
        self.source, self._naming, self._types, self._tell = source, naming, types or {}, tell
        self._limit = sys.maxsize if limit is None else limit
        self.rows = 0
        self.nested: set[str] = set()
        self.numbered: int | None = None
        self._kinds: dict[str, Kinds] = {}
        self._seen: dict[str, pa.DataType] = {}  # columns of the manifest
        self._unread: frozenset[str] = frozenset()

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The types of the carried columns that have values so far."""
        return {name: self._types.get(name, common(kinds)) for name, kinds in self._kinds.items()}

    @property
    def empty(self) -> dict[str, pa.DataType]:
        """The types of the carried columns that have no values so far, as the manifest gives them; else text."""
        known = ((self._naming.carried(name), kind) for name, kind in self._seen.items())
        return {name: carried_type(kind) for name, kind in known if name is not None and name not in self._kinds}

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows as tables with the columns `id`, `image` (or null) and those carried ones that have values.

        Raises UsageError: malformed lines, no rows, no image column, columns whose names readers of the results mix
        up. Raises Mixed at the end if the manifest must be read again, with types for some columns.
        """
        found = formats.blocks(self.source, self._naming, self._tell)
        mixed = False
        for source, block, part in in_order(self._by_columns, found, THREADS):
            with source.translating():
                if isinstance(block, Columns):
                    self._check_types(block.data, source)
                    self._unread |= block.unread
                left = self._limit - self.rows
                is_whole = part is not None and len(part.table) <= left  # else its columns may be those of later rows
                for each in [part] if is_whole and part is not None else self._by_rows(source, block, left):
                    if not each.table.num_rows:
                        continue
                    self._register(each, source)
                    mixed = mixed or bool(self._mixed())
                    table = self._with_ids(each.table)
                    self.rows += len(table)
                    if not mixed:
                        yield table
                    if self.rows >= UNNAMED and self._naming.image not in self._seen:
                        raise self._no_image()
            if self.rows == self._limit:
                break
        if not self._seen:
            raise UsageError(f"manifest {formats.shown(self.source)}: no rows")
        if self._naming.image not in self._seen:
            raise self._no_image()
        if self.rows < self._limit:
            self._naming.check_all_found([*self._seen, *self._unread], formats.shown(self.source))
        if mixed:
            raise Mixed({name: common(kinds) for name, kinds in self._mixed().items()})
        self._tell_names()

    def _mixed(self) -> dict[str, Kinds]:
        """The columns whose values have no common type as they are."""
        return {
            name: kinds for name, kinds in self._kinds.items() if name not in self._types and natural(kinds) is None
        }

    def _tell_names(self) -> None:
        """Say which columns are not carried as they are in the manifest."""
        if made := self._naming.made(self._seen):
            self._tell(f"columns without a name are carried as {listed(made)}")
        mixed = {name: self._kinds[name] - {"nan"} for name in self._types if self._kinds.get(name, Kinds()) != {"str"}}
        if texts := [name for name, kinds in mixed.items() if self._types[name] == pa.string() and kinds != {"str"}]:
            first = mixed[texts[0]]
            first -= {"int"} if "float" in first else set()  # small numbers may be read as either
            words = ", ".join(sorted({MIXED.get(kind, kind) for kind in first}))
            self._tell(
                f"columns with values of several types are carried as text: {listed(texts)} (the first: {words})"
            )

    def _by_columns(self, item: tuple[Source, Block]) -> tuple[Source, Block, Part | None]:
        source, block = item
        try:
            return source, block, normalised(block, self._naming, split(source.uri)[0], self._types)
        except Uncertain:
            return source, block, None

    def _register(self, part: Part, source: Source) -> None:
        """Record the columns of a part, and the kinds of their values. Raises UsageError for names that clash."""
        if new := [name for name in part.columns if name not in self._seen]:
            self._seen |= {name: part.columns[name] for name in new}
            if clash := self._naming.clash(self._seen):
                if self._naming.image not in self._seen:
                    raise self._no_image()  # it probably has another name
                raise UsageError(f"manifest {redacted(source.uri)}: {clash}")
        for name, kind in part.columns.items():
            if pa.types.is_null(self._seen[name]):
                self._seen[name] = kind
        for name, kinds in part.kinds.items():
            self._kinds[name] = self._kinds.get(name, kinds) | kinds
        self.nested |= part.nested

    def _with_ids(self, table: pa.Table) -> pa.Table:
        ids = table[ID]
        if not ids.null_count:
            return table
        if self.numbered is None:
            self.numbered = self.rows + pc.index(pc.is_null(ids), True).as_py()
        numbers = pa.array(range(self.rows, self.rows + len(table))).cast(pa.string())
        ids = pc.coalesce(ids, pc.binary_join_element_wise("row-", numbers, ""))
        return table.set_column(0, ID, ids)

    def _check_types(self, table: pa.Table, source: Source) -> None:
        """Raise UsageError for ids and images of a type that has no text, and for carried columns with bytes."""
        at = f"manifest {redacted(source.uri)}: column"
        for name, flag in ((self._naming.image, "--image-column"), (self._naming.id, "--id-column")):
            if name in table.column_names and holds_no_text(kind := table.schema.field(name).type):
                raise UsageError(f"{at} {quoted(name)} is {cut(str(kind))}; {NO_TEXT.format(flag)}")
        for field, column in zip(table.schema, table.columns, strict=True):
            if holds_bytes(field.type) and column.null_count < len(column) and self._naming.carried(field.name):
                raise UsageError(
                    f"{at} {quoted(field.name)} is {cut(str(field.type))}, and bytes cannot be carried; leave it out "
                    f"with --drop-column {shlex.quote(cut(field.name))}"
                )

    def _by_rows(self, source: Source, block: Block, most: int = sys.maxsize) -> Iterator[Part]:
        """The first rows of a block, read one by one: `normalised` in other words, with the row in its errors."""
        rows = itertools.islice(block.rows(), most)
        defaults = iter(block.ids.to_pylist() if isinstance(block, Columns) and block.ids is not None else ())
        known = {field.name: field.type for field in block.data.schema} if isinstance(block, Columns) else {}
        while found := some(rows):
            columns = dict(known)
            kinds: dict[str, Kinds] = {}
            nested: set[str] = set()
            values: list[Row] = []
            for number, row in enumerate(found, start=self.rows):
                columns |= {name: pa.null() for name in row if name not in columns}
                values.append(self._plain(row, number, source, nested, next(defaults, None)))
                for name, value in values[-1].items():
                    if name not in (ID, IMAGE):
                        kinds[name] = kinds.get(name, Kinds()) | {kind_of(value)}
            types = {name: self._types.get(name, natural(kinds[name]) or pa.string()) for name in sorted(kinds)}
            types = {ID: pa.string(), IMAGE: pa.string()} | types
            table = pa.table({name: array([row.get(name) for row in values], kind) for name, kind in types.items()})
            table = table.set_column(1, IMAGE, resolved(table[IMAGE].combine_chunks(), split(source.uri)[0]))
            yield Part(table, columns, kinds, frozenset(nested))

    def _plain(self, row: Row, number: int, source: Source, nested: set[str], default: str | None) -> Row:
        """A row's values as a table holds them, with a relative image; without nulls. Raises UsageError.

        `default`: its id if none is given; None: its image.
        """
        at = f"manifest {redacted(source.uri)}"
        reference, given = row.get(self._naming.image), row.get(self._naming.id)
        given = None if self._naming.id in self._naming.dropped else given
        for value, name in ((reference, self._naming.image), (given, self._naming.id)):
            if isinstance(value, (list, dict)):
                kind = "a list" if isinstance(value, list) else "an object"
                flag = "--image-column" if value is reference else "--id-column"
                raise UsageError(f"{at}: column {quoted(name)} is {kind} in row {number + 1}; {NO_TEXT.format(flag)}")
        reference, given = text_of(reference), text_of(given)
        if reference and (what := written_as_text(reference)):
            words = NO_TEXT.format("--image-column").replace("text, such as ", "")
            raise UsageError(f"{at}: column {quoted(self._naming.image)} is {what} in row {number + 1}; {words}")
        default = default or (reference if reference and not is_inline(reference) else None)
        found: Row = {IMAGE: reference, ID: given or default}
        for name, value in row.items():
            if value is None or (carried := self._naming.carried(name)) is None:
                continue
            found[carried] = plain(value)
            if isinstance(value, (list, dict)):
                nested.add(carried)
        for text in (*row, *found.values()):
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:  # lone surrogates, which JSON can represent and UTF-8 cannot
                    raise UsageError(f"{at}: row {number + 1} holds text that is not Unicode: {quoted(text)}") from None
        return found

    def _no_image(self) -> UsageError:
        return UsageError(
            f"manifest {formats.shown(self.source)}: no column {quoted(self._naming.image)} (columns: "
            f"{listed(self._seen)}); set the right one with --image-column"
        )


def read(source: str | Sequence[str], **columns: Unpack[ColumnSettings]) -> Iterator[ManifestRow]:
    """Stream the rows of a manifest. A row without an image has `image` None. Raises UsageError: see `Reading`.

    A column whose values have several types is text from the row on in which the second type is found.
    """
    naming, types, done = Naming.of(**columns), dict[str, pa.DataType](), 0
    while True:
        reading = Reading(source, naming, types)
        start = 0
        try:
            for table in reading.tables():
                if reading.rows > done:
                    yield from as_rows(table.slice(max(0, done - start)), max(start, done))
                    done = reading.rows
                start = reading.rows
            return
        except Mixed as mixed:
            types |= mixed.types


def as_rows(table: pa.Table, start: int) -> Iterator[ManifestRow]:
    """The rows of a table; the first one has the number `start`."""
    for number, values in enumerate(table.to_pylist(), start):
        name, image = values.pop(ID), values.pop(IMAGE)
        yield ManifestRow(number, name, image, {key: value for key, value in values.items() if value is not None})
