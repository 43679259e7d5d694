"""Blocks: consecutive rows of a manifest, which are read by columns where that is certain to mean the same.

`rows` is the definition of a format. `table` is its fast equivalent, and raises `Uncertain` whenever another reader of
columns might see other rows, other values or no error: then the block is read by rows. So errors are found and named
by `rows` alone.
"""

import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, Protocol, TextIO, cast

import pyarrow as pa

from paliscribe.errors import UsageError
from paliscribe.manifest.messages import cut
from paliscribe.manifest.values import python_values
from paliscribe.storage import StorageError, open_store, redacted, split
from paliscribe.storage.arrow import parts

Row = dict[str, Any]
BLOCK = 4 << 20  # bytes of text
PART = 1 << 19  # bytes of columns that become Python objects together
ROWS, ROWS_BYTES = 4096, 8 << 20  # of rows that are read one by one and kept together
LONGEST = 128 << 20  # bytes of a line at most
SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))  # what str.strip() removes
BOM, UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


class Uncertain(Exception):
    """A block must be read by rows."""


@dataclass(frozen=True, slots=True)
class Source:
    """A manifest to read.

    `compression`: `gzip`, `zstd` or None. `image_column`: the column name for the lines of a text list. `dropped`:
    columns that nobody wants. `id_column`: the column name for ids that the reader makes. `name`: of an archive among
    others, in ids. `tell`: gets a line about what is left out. `unit`: what messages count.
    """

    uri: str
    compression: str | None
    image_column: str
    dropped: frozenset[str] = frozenset()
    id_column: str = "id"
    name: str = ""
    tell: Callable[[str], None] = lambda words: None
    unit: str = "line"

    def open(self) -> BinaryIO:
        """Open the decompressed file. Raises StorageError."""
        folder, name = split(self.uri)
        raw = open_store(folder).open(name)
        if self.compression == "gzip":
            return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        if self.compression == "zstd":
            stream = pa.CompressedInputStream(pa.PythonFile(raw), "zstd")
            return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream)))
        return raw

    def lines(self) -> TextIO:
        """Open the decompressed text. Raises StorageError."""
        return io.TextIOWrapper(self.open(), encoding="utf-8-sig", newline="")

    def at(self, line: int) -> str:
        """The start of a message about a line, or another unit."""
        return f"manifest {redacted(self.uri)}, {self.unit} {line}"

    @contextlib.contextmanager
    def translating(self) -> Iterator[None]:
        """Turn the errors of reading into UsageError, with the manifest's address."""
        try:
            yield
        except StorageError as error:
            raise UsageError(f"manifest {error}") from None
        except UnicodeDecodeError:
            raise UsageError(f"manifest {redacted(self.uri)}: not UTF-8 text; save it as UTF-8") from None
        except (EOFError, OSError, ValueError, OverflowError, zlib.error, pa.ArrowException) as error:
            words = cut((str(error).splitlines() or [type(error).__name__])[0], 200)
            raise UsageError(f"manifest {redacted(self.uri)}: cannot be read: {words}") from None


class Block(Protocol):
    """Consecutive rows of a manifest."""

    def table(self) -> pa.Table:
        """The rows by columns. Raises Uncertain, or an error of Arrow, if only `rows` can tell."""

    def rows(self) -> Iterator[Row]:
        """The rows, one by one. Raises UsageError with file and line, or what `Source.translating` catches."""


@dataclass(frozen=True, slots=True)
class Columns:
    """A block that is a table already, of columns with different names.

    `unread`: columns that it leaves out. `ids`: the default ids of rows whose image's address does not give one.
    """

    data: pa.Table
    unread: frozenset[str] = frozenset()
    ids: pa.Array | None = None

    def table(self) -> pa.Table:
        """See Block."""
        return self.data

    def rows(self) -> Iterator[Row]:
        """See Block."""
        for part in parts(self.data, PART):
            columns = [python_values(column) for column in part.columns]
            yield from (dict(zip(part.column_names, values, strict=True)) for values in zip(*columns, strict=True))


@dataclass(frozen=True, slots=True)
class Listed:
    """A block of rows that have been, or are being, read one by one."""

    found: Iterable[Row]

    def table(self) -> pa.Table:
        """See Block."""
        raise Uncertain

    def rows(self) -> Iterator[Row]:
        """See Block."""
        yield from self.found


def in_blocks(rows: Iterator[Row]) -> Iterator[Block]:
    """Blocks of rows that are read one by one, for formats without a reader by columns."""
    while found := some(rows):
        yield Listed(found)


def some(rows: Iterator[Row]) -> list[Row]:
    """The next rows: `ROWS`, or so many that their text has `ROWS_BYTES` characters; none at the end."""
    found: list[Row] = []
    size = 0
    for row in rows:
        found.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, (str, bytes)))
        if len(found) == ROWS or size >= ROWS_BYTES:
            break
    return found


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines of a text file. `line`, `offset`: number of lines and of bytes before them."""

    source: Source
    data: bytes
    line: int
    offset: int

    def text(self) -> TextIO:
        """The lines as text, which ends lines as Python does: at `\\n`, `\\r\\n` or `\\r`. Raises UsageError."""
        try:
            return io.StringIO(self.data.decode(), newline="")
        except UnicodeDecodeError as error:
            line, byte = self.line + line_ends(self.data[: error.start]) + 1, self.offset + error.start
            words = "UTF-16" if self.offset == 0 and self.data.startswith(UTF16) else f"not UTF-8 text (byte {byte:,})"
            raise UsageError(f"{self.source.at(line)}: {words}; save it as UTF-8") from None

    def check_line_ends(self) -> None:
        """Raise Uncertain for line ends that only Python takes for such."""
        if b"\r" in self.data and self.data.count(b"\r") != self.data.count(b"\r\n"):
            raise Uncertain


def pieces(file: BinaryIO) -> tuple[int, Iterator[bytes]]:
    """A text file in pieces without a byte order mark, and the size of the mark."""
    start = file.read(len(BOM))
    offset = len(start) if start == BOM else 0
    first = start[offset:]
    return offset, chain([first] if first else [], iter(lambda: file.read(BLOCK), b""))


def whole_lines(source: Source, found: Iterable[bytes], line: int, offset: int) -> Iterator[Lines]:
    """Whole lines of a text file, some `BLOCK` bytes at a time. Raises UsageError for a line that is too long.

    `line`, `offset`: number of lines and of bytes before them.
    """
    rest = b""
    for piece in found:
        if not (cut := _line_end(piece)):
            rest += piece
            if len(rest) > LONGEST:
                raise UsageError(f"{source.at(line + 1)}: a {source.unit} of more than {LONGEST >> 20} MiB")
            continue
        data, rest = rest + piece[:cut], piece[cut:]
        yield Lines(source, data, line, offset)
        line, offset = line + line_ends(data), offset + len(data)
    if rest:
        yield Lines(source, rest, line, offset)


def _line_end(data: bytes) -> int:
    """Length of the whole lines at the start of data; a carriage return at its end may be half of a line end."""
    return data.rfind(b"\n") + 1 or data.rfind(b"\r", 0, -1) + 1


def line_ends(data: bytes) -> int:
    """Number of line ends, counted as Python does."""
    alone = len(re.findall(rb"\r(?!\n)", data)) if b"\r" in data else 0
    return data.count(b"\n") + alone
