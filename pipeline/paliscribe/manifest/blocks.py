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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, Protocol, TextIO, cast

import pyarrow as pa

from paliscribe.errors import UsageError
from paliscribe.storage import StorageError, open_store, redacted, split

Row = dict[str, Any]
BLOCK = 4 << 20  # bytes of text
ROWS = 4096  # of a block that is made of rows
SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))  # what str.strip() removes
BOM = b"\xef\xbb\xbf"


class Uncertain(Exception):
    """A block must be read by rows."""


@dataclass(frozen=True, slots=True)
class Source:
    """A manifest to read.

    `compression`: `gzip`, `zstd` or None. `image_column`: the column name for the lines of a text list.
    """

    uri: str
    compression: str | None
    image_column: str

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

    @contextlib.contextmanager
    def translating(self) -> Iterator[None]:
        """Turn the errors of reading into UsageError, with the manifest's address."""
        try:
            yield
        except StorageError as error:
            raise UsageError(f"manifest {error}") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"manifest {redacted(self.uri)}: not UTF-8 text (at byte {error.start})") from None
        except (EOFError, OSError, ValueError, zlib.error, pa.ArrowException) as error:
            words = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"manifest {redacted(self.uri)}: cannot be read: {words}") from None


class Block(Protocol):
    """Consecutive rows of a manifest."""

    def table(self) -> pa.Table:
        """The rows by columns. Raises Uncertain, or an error of Arrow, if only `rows` can tell."""

    def rows(self) -> Iterator[Row]:
        """The rows, one by one. Raises UsageError with file and line, or what `Source.translating` catches."""


@dataclass(frozen=True, slots=True)
class Columns:
    """A block that is a table already."""

    data: pa.Table

    def table(self) -> pa.Table:
        """See Block."""
        if len(set(self.data.column_names)) != self.data.num_columns:
            raise Uncertain
        return self.data

    def rows(self) -> Iterator[Row]:
        """See Block."""
        yield from self.data.to_pylist()


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
    while found := list(islice(rows, ROWS)):
        yield Listed(found)


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines of a text file. `line`: number of lines before them."""

    source: Source
    data: bytes
    line: int

    def text(self) -> TextIO:
        """The lines as text, which ends lines as Python does: at `\\n`, `\\r\\n` or `\\r`. Raises UsageError."""
        try:
            return io.StringIO(self.data.decode(), newline="")
        except UnicodeDecodeError as error:
            line = self.line + line_ends(self.data[: error.start]) + 1
            raise UsageError(f"manifest {redacted(self.source.uri)}, line {line}: not UTF-8 text") from None

    def checkline_ends(self) -> None:
        """Raise Uncertain for line ends that only Python takes for such."""
        if b"\r" in self.data and self.data.count(b"\r") != self.data.count(b"\r\n"):
            raise Uncertain


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """A text file in pieces, without a byte order mark."""
    if (start := file.read(len(BOM))) and start != BOM:
        yield start
    while chunk := file.read(BLOCK):
        yield chunk


def line_ends(data: bytes) -> int:
    """Number of line ends, counted as Python does."""
    alone = len(re.findall(rb"\r(?!\n)", data)) if b"\r" in data else 0
    return data.count(b"\n") + alone
