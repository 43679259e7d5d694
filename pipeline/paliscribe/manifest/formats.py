"""Manifest formats: each is read as blocks of rows, in constant memory. A folder or prefix is listed."""

import io
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from paliscribe.errors import UsageError
from paliscribe.manifest.blocks import BLOCK, Block, Columns, Row, Source, in_blocks
from paliscribe.manifest.csv_records import csv_records
from paliscribe.manifest.json_files import json_file
from paliscribe.manifest.lines import json_lines, text_lines
from paliscribe.manifest.listing import Listing, as_text, is_image
from paliscribe.manifest.members import archive_members
from paliscribe.manifest.messages import listed
from paliscribe.manifest.naming import Naming
from paliscribe.manifest.pictures import Pictures, addressed, selected
from paliscribe.storage import is_local, local_path, open_store, redacted, split
from paliscribe.storage.archives import COMPRESSED, WAY_OUT
from paliscribe.storage.arrow import sized_batches
from paliscribe.storage.base import ObjectInfo

__all__ = ["FORMATS", "Block", "Row", "Source", "blocks", "files", "in_blocks", "shown"]

PARQUET_ROWS, PARQUET_BATCH = 16_384, 1024  # in a block, and decoded at once, at most
PARQUET_BUFFER = 1 << 20  # bytes of a column that are read at once
LISTED_ROWS = 10_000
ARCHIVES, COCO = (".zip", ".tar"), ".json"


def shown(manifest: str | Sequence[str]) -> str:
    """A manifest's address in a message, without secrets; of several the first."""
    if isinstance(manifest, str):
        return redacted(manifest)
    more = f" and {len(manifest) - 1} more" if len(manifest) > 1 else ""
    return f"{redacted(manifest[0])}{more}"


def blocks(
    manifest: str | Sequence[str], naming: Naming, tell: Callable[[str], None] = lambda words: None
) -> Iterator[tuple[Source, Block]]:
    """The blocks of a manifest's files, in order. `tell`: gets a line about what a folder has beside them.

    Raises UsageError, with file and line if known.
    """
    if not isinstance(manifest, str):
        for each in manifest:
            yield from blocks(each, naming, tell)
        return
    _refuse_packed(manifest)
    if is_file(manifest):
        yield from _blocks_of(manifest, naming, tell)
        return
    if is_image(manifest) and "*" not in manifest and not _is_folder(manifest):
        image = pa.table({naming.id: [manifest]} | {naming.image: ["/".join(split(manifest))]})
        yield Source(manifest, None, naming.image), Columns(image)
        return
    source, keys, found = Source(manifest, None, naming.image), list[str](), False
    with source.translating():
        listing = Listing(manifest)
        for item in listing.items():
            if not is_image(item.key):
                listing.skip(item)
                continue
            found = True
            keys.append(item.key)
            if len(keys) == LISTED_ROWS:
                yield source, _addresses(listing, keys, naming)
                keys = []
    if keys:
        yield source, _addresses(listing, keys, naming)
    if found:
        if words := listing.words():
            tell(f"manifest {redacted(manifest)}: {words}")
        return
    for file, item in files(manifest).items():
        yield from _blocks_of(file, naming, tell, item.key)


def is_file(manifest: str) -> bool:
    """Whether a manifest is a file of one of the formats, not a folder, a prefix or a pattern."""
    if "*" in manifest or _reader(manifest)[0] is None:
        return False
    return not _is_folder(manifest)


def _is_folder(manifest: str) -> bool:
    return is_local(manifest) and local_path(manifest).expanduser().is_dir()


def _refuse_packed(manifest: str) -> None:
    """Raise UsageError for a compressed archive."""
    if COMPRESSED.fullmatch(manifest) and not _is_folder(manifest):
        raise UsageError(f"manifest {redacted(manifest)}: {WAY_OUT}")


def files(manifest: str) -> dict[str, ObjectInfo]:
    """The files of a manifest that is a folder, a prefix or a pattern, by address and in order.

    Empty if there is an image: then the manifest is a list of images. Archives count where there is no other manifest,
    which may name their members; COCO files only if a pattern names them. Raises UsageError if there is nothing.
    """
    found: dict[str, ObjectInfo] = {}
    archives: dict[str, ObjectInfo] = {}
    names_coco = plain_name(manifest).endswith(COCO)
    with Source(manifest, None, "").translating():
        listing = Listing(manifest)
        for item in listing.items():
            if is_image(item.key):
                return {}
            address = listing.address(item.key)
            if item.key.lower().endswith(ARCHIVES) or COMPRESSED.fullmatch(item.key):
                archives[address] = item
            elif is_file(address) and (names_coco or not plain_name(address).endswith(COCO)):
                found[address] = item
            else:
                listing.skip(item)
    if not (found := found or archives):
        left_out = f" ({words})" if (words := listing.words()) else ""
        raise UsageError(
            f"manifest {redacted(manifest)}: no folder or prefix with images or manifests{left_out}, and not a file "
            f"named {', '.join(FORMATS)} (with .gz or .zst)"
        )
    return dict(sorted(found.items()))


def _addresses(listing: Listing, keys: list[str], naming: Naming) -> Block:
    """Listed images: their ids are their keys."""
    addresses = pa.array(map(listing.address, keys), pa.string())
    return Columns(pa.table({naming.id: pa.array(map(as_text, keys), pa.string())} | {naming.image: addresses}))


def _blocks_of(
    manifest: str, naming: Naming, tell: Callable[[str], None], name: str = ""
) -> Iterator[tuple[Source, Block]]:
    _refuse_packed(manifest)
    read, compression = _reader(manifest)
    source = Source(manifest, compression, naming.image, naming.dropped, naming.id, name, tell)
    assert read is not None
    with source.translating():
        for block in read(source):
            yield source, block


def plain_name(source: str) -> str:
    """A manifest's name without its compression, in lower case."""
    return source.lower().removesuffix(".gz").removesuffix(".zst")


def _reader(source: str) -> tuple[Callable[[Source], Iterator[Block]] | None, str | None]:
    """The reader of a manifest's format, None if its name has none, and its compression."""
    name, compression = source, None
    if source.startswith(("http://", "https://")):
        name = source.partition("?")[0]  # a presigned URL has a query
    for suffix, codec in ((".gz", "gzip"), (".zst", "zstd")):
        if name.lower().endswith(suffix):
            name, compression = name[: -len(suffix)], codec
    return next((reader for suffix, reader in FORMATS.items() if name.lower().endswith(suffix)), None), compression


def _parquet(source: Source) -> Iterator[Block]:
    """Parquet needs random access: a stream without it is copied to a temporary file first."""
    folder, name = split(source.uri)
    with open_store(folder).open(name) as file, tempfile.TemporaryFile(prefix="paliscribe-") as copy:
        if not file.seekable():
            shutil.copyfileobj(file, copy, 1 << 20)
        whole = pq.ParquetFile(file if file.seekable() else copy, buffer_size=PARQUET_BUFFER, pre_buffer=False)
        names = whole.schema_arrow.names
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise UsageError(f"manifest {redacted(source.uri)}: there are two columns {listed(twice)}")
        unread = source.dropped.intersection(names)
        pictures = Pictures.of(source, whole)
        if pictures is not None and isinstance(file, io.BufferedReader):  # what it reads ahead would be images
            whole = pq.ParquetFile(file.raw, metadata=whole.metadata, buffer_size=PARQUET_BUFFER, pre_buffer=False)
        batches: list[pa.RecordBatch] = []
        ids: list[pa.Array] = []

        def columns(group: int) -> list[str] | None:
            return selected(names, unread, pictures, group)

        for batch, default in addressed(sized_batches(whole, BLOCK, PARQUET_BATCH, columns), pictures):
            batches.append(batch)
            ids += [default] if default is not None else []
            if sum(map(len, batches)) >= PARQUET_ROWS or sum(each.nbytes for each in batches) >= BLOCK:
                yield Columns(pa.Table.from_batches(batches), unread, pa.concat_arrays(ids) if ids else None)
                batches, ids = [], []
        if batches:
            yield Columns(pa.Table.from_batches(batches), unread, pa.concat_arrays(ids) if ids else None)


# File name extension, without .gz or .zst -> reader, which yields blocks of rows.
FORMATS: dict[str, Callable[[Source], Iterator[Block]]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".csv": csv_records,
    ".parquet": _parquet,
    ".txt": text_lines,
    ".lst": text_lines,
    ".tsv": csv_records,
    ".zip": archive_members,
    ".tar": archive_members,
    ".json": json_file,
}
