"""Manifest formats: each is read as a stream of rows, in constant memory.

CSV values are always strings: `007` stays `007`. JSON Lines keep their types; nested values become JSON text.
"""

import csv
import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from paliscribe.errors import UsageError
from paliscribe.storage import StorageError, open_store, redacted, split

Row = dict[str, Any]
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif", ".mpo")


@dataclass(frozen=True, slots=True)
class Source:
    """A manifest to read.

    `compression`: `gzip`, `zstd` or None. `image_column`: the column name for the lines of a text list.
    """

    uri: str
    compression: str | None
    image_column: str

    def lines(self) -> TextIO:
        """Open the decompressed text. Raises StorageError."""
        return _text(self.uri, self.compression)


def rows(source: str, image_column: str, id_column: str) -> Iterator[Row]:
    """The raw rows of a manifest. Raises UsageError, with file and line if known."""
    read, compression = _reader(source)
    try:
        if read is None:
            yield from _listed(source, image_column, id_column)
        else:
            yield from read(Source(source, compression, image_column))
    except StorageError as error:
        raise UsageError(f"manifest {error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"manifest {redacted(source)}: not UTF-8 text (at byte {error.start})") from None
    except (EOFError, OSError, ValueError, zlib.error, pa.ArrowException) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"manifest {redacted(source)}: cannot be read: {words}") from None


def is_file(source: str) -> bool:
    """Whether a manifest is a file of one of the formats, not a folder or prefix with images."""
    return _reader(source)[0] is not None


def _reader(source: str) -> tuple[Callable[[Source], Iterator[Row]] | None, str | None]:
    """The reader of a manifest's format, None for a folder or prefix, and its compression."""
    name, compression = source, None
    if source.startswith(("http://", "https://")):
        name = source.partition("?")[0]  # a presigned URL has a query
    for suffix, codec in ((".gz", "gzip"), (".zst", "zstd")):
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), codec
    return next((reader for suffix, reader in FORMATS.items() if name.lower().endswith(suffix)), None), compression


def _text(source: str, compression: str | None) -> TextIO:
    folder, name = split(source)
    raw: BinaryIO = open_store(folder).open(name)
    if compression == "gzip":
        raw = cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    elif compression == "zstd":
        raw = cast(
            BinaryIO, io.BufferedReader(cast(io.RawIOBase, pa.CompressedInputStream(pa.PythonFile(raw), "zstd")))
        )
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def _jsonl(source: Source) -> Iterator[Row]:
    with source.lines() as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UsageError(f"manifest {redacted(source.uri)}, line {number}: not a JSON object")
            yield {
                key: json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value
                for key, value in row.items()
            }


def _csv(source: Source) -> Iterator[Row]:
    with source.lines() as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            if len(set(header)) != len(header):
                raise UsageError(f"manifest {redacted(source.uri)}: the header names a column twice")
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise UsageError(
                        f"manifest {redacted(source.uri)}, line {reader.line_num}: {len(values)} values "
                        f"under {len(header)} columns"
                    )
                yield dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise UsageError(f"manifest {redacted(source.uri)}, line {reader.line_num}: {error}") from None


def _list(source: Source) -> Iterator[Row]:
    with source.lines() as lines:
        for line in lines:
            if image := line.strip():
                yield {source.image_column: image}


def _parquet(source: Source) -> Iterator[Row]:
    """Parquet needs random access: a stream without it is copied to a temporary file first."""
    folder, name = split(source.uri)
    with open_store(folder).open(name) as file, tempfile.TemporaryFile(prefix="paliscribe-") as copy:
        if not file.seekable():
            shutil.copyfileobj(file, copy, 1 << 20)
        for batch in pq.ParquetFile(file if file.seekable() else copy).iter_batches(batch_size=4096):
            yield from batch.to_pylist()


def _listed(source: str, image_column: str, id_column: str) -> Iterator[Row]:
    store = open_store(source)
    found = False
    for item in store.list():
        if item.key.lower().endswith(IMAGES):
            found = True
            yield {id_column: item.key, image_column: f"{store.uri.rstrip('/')}/{item.key}"}
    if not found:
        raise UsageError(
            f"manifest {redacted(source)}: no folder or prefix with images, and not a file named "
            f"{', '.join(FORMATS)} (with .gz or .zst)"
        )


# File name extension, without .gz or .zst -> reader, which yields one dict per row.
FORMATS: dict[str, Callable[[Source], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _list,
    ".lst": _list,
}
