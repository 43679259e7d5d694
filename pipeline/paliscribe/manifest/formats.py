"""Manifest formats: each is read as blocks of rows, in constant memory. A folder or prefix is listed."""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from paliscribe.errors import UsageError
from paliscribe.manifest.blocks import Block, Columns, Row, Source, in_blocks
from paliscribe.manifest.csv_records import csv_records
from paliscribe.manifest.lines import json_lines, text_lines
from paliscribe.storage import Store, open_store, redacted, split
from paliscribe.storage.base import ObjectInfo

__all__ = ["FORMATS", "Block", "Row", "Source", "blocks", "files", "in_blocks", "shown"]

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif", ".mpo")
PARQUET_ROWS = 16_384  # in a block
LISTED_ROWS = 10_000


def shown(manifest: str | Sequence[str]) -> str:
    """A manifest's address in a message, without secrets; of several the first."""
    if isinstance(manifest, str):
        return redacted(manifest)
    more = f" and {len(manifest) - 1} more" if len(manifest) > 1 else ""
    return f"{redacted(manifest[0])}{more}"


def blocks(manifest: str | Sequence[str], image_column: str, id_column: str) -> Iterator[tuple[Source, Block]]:
    """The blocks of a manifest's files, in order. Raises UsageError, with file and line if known."""
    if not isinstance(manifest, str):
        for each in manifest:
            yield from blocks(each, image_column, id_column)
        return
    if is_file(manifest):
        yield from _blocks_of(manifest, image_column)
        return
    if manifest.lower().endswith(IMAGES) and "*" not in manifest:
        image = pa.table({id_column: [manifest]} | {image_column: ["/".join(split(manifest))]})
        yield Source(manifest, None, image_column), Columns(image)
        return
    source, names, found = Source(manifest, None, image_column), list[str](), False
    with source.translating():
        store, items = _listed(manifest)
        for item in items:
            if item.key.lower().endswith(IMAGES):
                found = True
                names.append(item.key)
                if len(names) == LISTED_ROWS:
                    yield source, _addresses(store, names, image_column, id_column)
                    names = []
    if names:
        yield source, _addresses(store, names, image_column, id_column)
    if found:
        return
    for file in files(manifest):
        yield from _blocks_of(file, image_column)


def is_file(manifest: str) -> bool:
    """Whether a manifest is a file of one of the formats, not a folder, a prefix or a pattern."""
    return "*" not in manifest and _reader(manifest)[0] is not None


def files(manifest: str) -> dict[str, ObjectInfo]:
    """The files of a manifest that is a folder, a prefix or a pattern, by address and in order.

    Empty if there is an image: then the manifest is a list of images. Raises UsageError if there is neither.
    """
    found: dict[str, ObjectInfo] = {}
    with Source(manifest, None, "").translating():
        store, items = _listed(manifest)
        for item in items:
            if item.key.lower().endswith(IMAGES):
                return {}
            if is_file(address := _address(store, item.key)):
                found[address] = item
    if not found:
        raise UsageError(
            f"manifest {redacted(manifest)}: no folder or prefix with images or manifests, and not a file named "
            f"{', '.join(FORMATS)} (with .gz or .zst)"
        )
    return dict(sorted(found.items()))


def _listed(manifest: str) -> tuple[Store, Iterator[ObjectInfo]]:
    """The objects of a folder or prefix, or those that match a pattern, and the store that their keys are in.

    `*` stands for any text without a slash, `**` for any text, `**/` for any folders.
    """
    start, star, _ = manifest.partition("*")
    if not star:
        store = open_store(manifest)
        return store, store.list()
    folder = start[: start.rfind("/") + 1]
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    wanted = "".join(
        words.get(word) or re.escape(word) for word in re.split(r"(\*\*/|\*\*|\*)", manifest[len(folder) :])
    )
    pattern = re.compile(wanted, re.DOTALL)
    store = open_store(folder or ".")
    return store, (item for item in store.list(start[len(folder) :]) if pattern.fullmatch(item.key))


def _address(store: Store, key: str) -> str:
    """The absolute address of a listed object."""
    return "/".join(split(f"{store.uri.rstrip('/')}/{key}"))


def _addresses(store: Store, keys: list[str], image_column: str, id_column: str) -> Block:
    """Listed images: their ids are their keys."""
    return Columns(pa.table({id_column: keys} | {image_column: [_address(store, key) for key in keys]}))


def _blocks_of(manifest: str, image_column: str) -> Iterator[tuple[Source, Block]]:
    read, compression = _reader(manifest)
    source = Source(manifest, compression, image_column)
    assert read is not None
    with source.translating():
        for block in read(source):
            yield source, block


def _reader(source: str) -> tuple[Callable[[Source], Iterator[Block]] | None, str | None]:
    """The reader of a manifest's format, None if its name has none, and its compression."""
    name, compression = source, None
    if source.startswith(("http://", "https://")):
        name = source.partition("?")[0]  # a presigned URL has a query
    for suffix, codec in ((".gz", "gzip"), (".zst", "zstd")):
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), codec
    return next((reader for suffix, reader in FORMATS.items() if name.lower().endswith(suffix)), None), compression


def _parquet(source: Source) -> Iterator[Block]:
    """Parquet needs random access: a stream without it is copied to a temporary file first."""
    folder, name = split(source.uri)
    with open_store(folder).open(name) as file, tempfile.TemporaryFile(prefix="paliscribe-") as copy:
        if not file.seekable():
            shutil.copyfileobj(file, copy, 1 << 20)
        for batch in pq.ParquetFile(file if file.seekable() else copy).iter_batches(batch_size=PARQUET_ROWS):
            yield Columns(pa.Table.from_batches([batch]))


# File name extension, without .gz or .zst -> reader, which yields blocks of rows.
FORMATS: dict[str, Callable[[Source], Iterator[Block]]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".csv": csv_records,
    ".parquet": _parquet,
    ".txt": text_lines,
    ".lst": text_lines,
}
