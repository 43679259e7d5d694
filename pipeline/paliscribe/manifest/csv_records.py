"""Blocks of CSV files."""

import contextlib
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, TextIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv

from paliscribe.errors import UsageError
from paliscribe.manifest.blocks import Block, Lines, Listed, Row, Source, Uncertain, chunks, line_ends
from paliscribe.storage import redacted

LONGEST = 64 << 20  # bytes of a record; a longer one has probably a quote that is not closed
AROUND = np.frombuffer(b'",\r\n', np.uint8)  # what is beside a quote that is in its place
csv.field_size_limit(1 << 30)  # inline images


@dataclass(frozen=True, slots=True)
class CsvLines(Lines):
    """Records of a CSV file. Values are strings: `007` stays `007`."""

    header: tuple[str, ...]

    def table(self) -> pa.Table:
        """See Block."""
        self.checkline_ends()
        if not self.data.strip():
            raise Uncertain
        return pa.csv.read_csv(
            pa.BufferReader(self.data),
            read_options=pa.csv.ReadOptions(
                use_threads=False, block_size=len(self.data) + 1, column_names=list(self.header)
            ),
            parse_options=pa.csv.ParseOptions(newlines_in_values=b'"' in self.data),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(self.header, pa.string()), strings_can_be_null=False
            ),
        )

    def rows(self) -> Iterator[Row]:
        """See Block."""
        yield from csv_rows(self.source, self.text(), self.header, self.line)


def csv_rows(source: Source, text: TextIO, header: tuple[str, ...], line: int) -> Iterator[Row]:
    """The records of CSV text. `line`: number of lines before it."""
    reader = csv.reader(text, strict=True)
    try:
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise UsageError(
                    f"manifest {redacted(source.uri)}, line {line + reader.line_num}: {len(values)} values "
                    f"under {len(header)} columns"
                )
            yield dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise UsageError(f"manifest {redacted(source.uri)}, line {line + reader.line_num}: {error}") from None


def csv_records(source: Source) -> Iterator[Block]:
    """The blocks of a CSV file. From a misplaced quote on, the rest of the file is one block, read by rows."""
    header: tuple[str, ...] | None = None
    line, rest, ended = 0, b"", False
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(source.open())
        pieces = chunks(file)
        while not ended:
            chunk = next(pieces, b"")
            data, ended = rest + chunk, not chunk
            cut = _record_end(data, ended)
            if cut is None or (cut == 0 and len(data) > LONGEST):
                opened.pop_all()
                yield Listed(_csv_rest(source, _Joined(data, file), header, line))
                return
            data, rest = data[:cut], data[cut:]
            if header is None and data:
                header, line = _header(source, None, Lines(source, data, 0).text(), 0)
                data = data[_offset(data, line) :]
            if data and header is not None:
                yield CsvLines(source, data, line, header)
                line += line_ends(data)


def _csv_rest(source: Source, file: "_Joined", header: tuple[str, ...] | None, line: int) -> Iterator[Row]:
    """The records of the rest of a CSV file, which is closed at the end."""
    with io.TextIOWrapper(cast(BinaryIO, file), encoding="utf-8", newline="") as text:
        yield from csv_rows(source, text, *_header(source, header, text, line))


def _header(source: Source, header: tuple[str, ...] | None, text: TextIO, line: int) -> tuple[tuple[str, ...], int]:
    """The header of a CSV file and the number of lines before the records; reads it from `text` if it is not known."""
    if header is not None:
        return header, line
    reader = csv.reader(text, strict=True)
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise UsageError(f"manifest {redacted(source.uri)}, line {reader.line_num}: {error}") from None
    if len(set(names)) != len(names):
        raise UsageError(f"manifest {redacted(source.uri)}: the header names a column twice")
    return tuple(names), reader.line_num


def _record_end(data: bytes, is_last: bool) -> int | None:
    """Length of the whole records at the start of CSV data; None if a quote is misplaced, so that no one can tell.

    Strict CSV has quotes at the start and at the end of a value, and doubled in between.
    """
    if b'"' not in data:
        return len(data) if is_last else data.rfind(b"\n") + 1
    codes = np.frombuffer(b"\n" + data + b"\n", np.uint8)
    quotes = np.flatnonzero(codes == ord('"'))
    if not (np.isin(codes[quotes[::2] - 1], AROUND).all() and np.isin(codes[quotes[1::2] + 1], AROUND).all()):
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


class _Joined(io.RawIOBase):
    """Bytes, then the rest of a file."""

    def __init__(self, start: bytes, file: BinaryIO) -> None:
        self._start, self._file = io.BytesIO(start), file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._start.read(len(buffer)) or self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
