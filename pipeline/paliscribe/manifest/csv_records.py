"""Blocks of CSV files, also as spreadsheets write them: other delimiters, empty rows, columns without a name."""

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from paliscribe.errors import UsageError
from paliscribe.manifest.blocks import (
    SPACE,
    Block,
    Lines,
    Listed,
    Row,
    Source,
    Uncertain,
    line_ends,
    pieces,
    whole_lines,
)
from paliscribe.manifest.messages import listed
from paliscribe.manifest.naming import UNNAMED
from paliscribe.storage import redacted

LONG = 16 << 20  # bytes of a record; the file is read by rows from a longer one on
LONGEST = 64 << 20  # characters of a value at most; a longer one has probably a quote that is not closed
DELIMITERS = (",", ";", "\t", "|")
SEP = re.compile(r'"?sep=([^"\w\s]|\t)"?\s*', re.IGNORECASE)  # the first line of a file that Excel wrote
csv.field_size_limit(LONGEST)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a CSV file. `names`: of its columns. `unnamed`: those that it has no name for."""

    names: tuple[str, ...]
    unnamed: frozenset[str] = frozenset()
    delimiter: str = ","


@dataclass(frozen=True, slots=True)
class CsvLines(Lines):
    """Records of a CSV file. Values are strings: `007` stays `007`. Records of empty values are no rows."""

    header: Header

    def table(self) -> pa.Table:
        """See Block."""
        self.check_line_ends()
        if not self.data.strip():
            raise Uncertain
        found = pa.csv.read_csv(
            pa.BufferReader(self.data),
            read_options=pa.csv.ReadOptions(
                use_threads=False, block_size=len(self.data) + 1, column_names=list(self.header.names)
            ),
            parse_options=pa.csv.ParseOptions(delimiter=self.header.delimiter, newlines_in_values=b'"' in self.data),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(self.header.names, pa.string()), strings_can_be_null=False
            ),
        )
        empty = None
        for column in found.columns:
            blank = pc.equal(pc.utf8_trim(column, characters=SPACE), "")
            empty = blank if empty is None else pc.and_(empty, blank)
            if not pc.any(empty).as_py():
                break
        else:
            found = found.filter(pc.invert(empty))
        for name in self.header.unnamed:
            place = found.column_names.index(name)
            column = pc.if_else(pc.equal(found[name], ""), None, found[name])
            found = found.remove_column(place)
            if column.null_count < len(column):
                found = found.add_column(place, name, column)
        return found

    def rows(self) -> Iterator[Row]:
        """See Block."""
        yield from csv_rows(self.source, self.text(), self.header, self.line)


def csv_rows(source: Source, text: Iterable[str], header: Header, line: int) -> Iterator[Row]:
    """The records of CSV text. `line`: number of lines before it."""
    reader = csv.reader(text, strict=True, delimiter=header.delimiter)
    before = 0  # lines of whole records
    try:
        for values in reader:
            before = reader.line_num
            if not any(map(str.strip, values)):
                continue
            if any(map(str.strip, values[len(header.names) :])) or len(values) < len(header.names):
                raise UsageError(
                    f"{source.at(line + reader.line_num)}: {len(values)} values under {len(header.names)} columns"
                )
            row = dict(zip(header.names, values, strict=False))
            yield {name: value for name, value in row.items() if value or name not in header.unnamed}
    except csv.Error as error:
        if "field limit" in str(error):
            words = f"a value of more than {LONGEST >> 20} MiB; is its quote not closed?"
            raise UsageError(f"{source.at(line + before + 1)}: {words}") from None
        raise UsageError(f"{source.at(line + reader.line_num)}: {error}") from None


def csv_records(source: Source) -> Iterator[Block]:
    """The blocks of a CSV file. From a misplaced quote on, the rest of the file is one block, read by rows."""
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(source.open())
        offset, found = pieces(file)
        data, ended, head = b"", False, None
        while head is None and not ended:
            piece = next(found, b"")
            data, ended = data + piece, not piece
            head = _header(source, data, offset, ended or len(data) > LONG)
        if head is None:
            return
        header, line = head
        start = _offset(data, line)
        data, offset = data[start:], offset + start
        while data or not ended:
            cut = _record_end(data, ended, header.delimiter)
            if cut is None or (cut == 0 and len(data) > LONG):
                opened.pop_all()
                lines = whole_lines(source, chain([data], found), line, offset)
                yield Listed(_csv_rest(source, file, lines, header, line))
                return
            if cut:
                yield CsvLines(source, data[:cut], line, offset, header)
                line, offset = line + line_ends(data[:cut]), offset + cut
            piece = next(found, b"")
            data, ended = data[cut:] + piece, not piece


def _csv_rest(source: Source, file: BinaryIO, lines: Iterator[Lines], header: Header, line: int) -> Iterator[Row]:
    """The records of the rest of a CSV file, which is closed at the end."""
    with file:
        yield from csv_rows(source, chain.from_iterable(each.text() for each in lines), header, line)


def _header(source: Source, data: bytes, offset: int, is_enough: bool) -> tuple[Header, int] | None:
    """The header at the start of a CSV file, and the number of lines up to its end; None if there is no whole one.

    It is cut at the delimiter of a line `sep=`, or at the first one that gives the image column, or most columns.
    """
    whole = data if is_enough else data[: data.rfind(b"\n") + 1]
    if not is_enough and whole.count(b'"') % 2:
        return None
    lines = Lines(source, whole, 0, offset).text().readlines()
    said = SEP.fullmatch(lines[0]) if lines else None
    best: tuple[list[str], int, str] | None = None
    problem: csv.Error | None = None
    for delimiter in (said[1],) if said is not None else DELIMITERS:
        reader = csv.reader(lines[1 if said else 0 :], strict=True, delimiter=delimiter)
        try:
            names = next((values for values in reader if any(map(str.strip, values))), None)
        except csv.Error as error:
            problem = problem or error
            continue
        if names is None:
            return None
        if best is None or source.image_column in names or len(names) > len(best[0]):
            best = names, reader.line_num + bool(said), delimiter
        if source.image_column in names:
            break
    if best is None:
        if problem is None or not is_enough:
            return None
        raise UsageError(f"{source.at(1)}: {problem}")
    names, line, delimiter = best
    if twice := [name for name, count in Counter(names).items() if count > 1 and name.strip()]:
        raise UsageError(f"manifest {redacted(source.uri)}: the header names a column twice: {listed(twice)}")
    taken = {name for name in names if name.strip()}
    made = {n: f"{UNNAMED}_{n + 1}" for n, name in enumerate(names) if not name.strip()}
    made = {n: name if name not in taken else f"{name}_" for n, name in made.items()}
    return Header(tuple(made.get(n, name) for n, name in enumerate(names)), frozenset(made.values()), delimiter), line


def _record_end(data: bytes, is_last: bool, delimiter: str = ",") -> int | None:
    """Length of the whole records at the start of CSV data; None if a quote is misplaced, so that no one can tell.

    Strict CSV has quotes at the start and at the end of a value, and doubled in between.
    """
    if b'"' not in data:
        return len(data) if is_last else data.rfind(b"\n") + 1
    codes = np.frombuffer(b"\n" + data + b"\n", np.uint8)
    quotes = np.flatnonzero(codes == ord('"'))
    around = np.frombuffer(b'"\r\n' + delimiter.encode(), np.uint8)  # what is beside a quote that is in its place
    if not (np.isin(codes[quotes[::2] - 1], around).all() and np.isin(codes[quotes[1::2] + 1], around).all()):
        return None
    if is_last:
        return None if quotes.size % 2 else len(data)
    ends = np.flatnonzero(codes[1:-1] == ord("\n"))
    outside = ends[np.searchsorted(quotes, ends) % 2 == 0]
    return int(outside[-1]) + 1 if outside.size else 0


def _offset(data: bytes, lines: int) -> int:
    """Where the line after the first `lines` lines begins."""
    ends = [match.end() for match in islice(re.finditer(rb"\r\n|\n|\r", data), lines)]
    return ends[-1] if len(ends) == lines else len(data)
