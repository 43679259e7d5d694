"""Freezes a manifest: one pass reads, checks, hashes and writes it, in constant memory."""

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Unpack

import pyarrow as pa

from paliscribe.errors import UsageError
from paliscribe.manifest import formats
from paliscribe.manifest.checked import COLUMNS, Checked, Count, Scan, digest, text_bytes
from paliscribe.manifest.frozen import BATCH_ROWS, FOLDER, INDEX, FrozenManifest, as_index, file_key, read_file
from paliscribe.manifest.kinds import settled
from paliscribe.manifest.naming import ColumnSettings, Naming
from paliscribe.manifest.reading import Tell
from paliscribe.manifest.sampling import Sample, sampled
from paliscribe.storage import StorageError, Store, is_local, open_store, redacted, scheme, split
from paliscribe.storage.arrow import encode
from paliscribe.storage.local import is_recent
from paliscribe.storage.parallel import in_order

SAMPLE = "-sample-"  # in the digest of a sample
BATCH, BATCH_BYTES = 8192, 8 << 20  # rows and bytes of text of a batch in a file at most
WRITES = 2  # at the same time
LEAST_ROWS, MOST_ROWS, SHARDS = 256, 8192, 4096  # rows per shard, and shards, of automatic sizes


Addresses = str | Sequence[str]  # of a manifest


def scan(
    source: Addresses,
    *,
    limit: int | None = None,
    progress: Count = lambda n: None,
    tell: Tell = lambda words: None,
    **columns: Unpack[ColumnSettings],
) -> Scan:
    """Validate a whole manifest, or its first rows. Raises UsageError, also for duplicate ids."""
    naming = Naming.of(**columns)

    def attempt(types: Mapping[str, pa.DataType]) -> Scan:
        reading = Checked(source, naming, types, progress, tell, limit)
        for _ in reading.files():
            pass
        return reading.result()

    return settled(attempt)


def automatic_shard_rows(rows: int) -> int:
    """Rows per shard for a manifest of so many: a power of two, few enough that a lost shard costs little.

    From a million rows on it grows, so that there are about `SHARDS` of them, until a shard has `MOST_ROWS`.
    """
    return min(MOST_ROWS, max(LEAST_ROWS, 1 << math.ceil(math.log2(max(1, rows / SHARDS)))))


def identity(source: Addresses, limit: int | None = None) -> str | None:
    """Text that changes whenever a file of a manifest does, found without reading it. `limit`: of its first rows.

    None if nothing tells: for a list of images, on a web server, or for a file that was written a moment ago.
    """
    known = version(source, settled=True)
    return known if known is None or limit is None else f"first {limit} rows of {known}"


def freeze(
    source: Addresses,
    store: Store,
    *,
    shard_rows: int | None,
    limit: int | None = None,
    sample: Sample | None = None,
    check: Callable[[pa.Schema], None] = lambda schema: None,
    progress: Count = lambda n: None,
    tell: Tell = lambda words: None,
    **columns: Unpack[ColumnSettings],
) -> FrozenManifest:
    """Validate a manifest and write it into the run, its index last. Equal manifests give equal files.

    `shard_rows`: None: by the number of rows, see `automatic_shard_rows`. `limit`: the first rows only. `sample`:
    of these, to be written alone. `check`: gets the carried columns, and may raise UsageError. `progress`: gets the
    number of rows read so far. `tell`: gets lines for the user. Raises UsageError as `scan`, and if
    the manifest changes while it is read; StorageError if the store cannot be written.
    """
    before, known = version(source, settled=False), identity(source, limit)
    naming = Naming.of(**columns)

    def attempt(types: Mapping[str, pa.DataType]) -> tuple[list[int], Scan]:
        reading = Checked(source, naming, types, progress, tell, limit)
        files = reading.files() if sample is None else sampled(reading.files(), sample)
        return write_files(store, files), reading.result()

    try:
        written, found = settled(attempt)
        if before != version(source, settled=False):
            raise UsageError(f"manifest {formats.shown(source)} changed while it was read; run the command again")
        check(found.schema)
    except UsageError:
        _delete_files(store, 0)
        raise
    _delete_files(store, len(written))  # of a freeze of another manifest that was interrupted here
    rows = sum(written)
    size = shard_rows or automatic_shard_rows(rows)
    frozen = FrozenManifest(
        source=absolute(source),
        rows=rows,
        shards=-(-rows // size),
        shard_rows=size,
        digest=found.digest if sample is None else f"{found.digest}{SAMPLE}{sample.rows}-{sample.seed}",
        schema=found.schema,
        identity=known if sample is None else None,
        files=tuple(itertools.accumulate(written)),
        nested=found.nested,
    )
    store.put(INDEX, as_index(frozen))
    return frozen


def frozen_digest(store: Store, frozen: FrozenManifest) -> str | None:
    """The digest of the rows with which a run began, computed from its files; None if an older version wrote them.

    Also None for a sample, whose digest is that of all rows of its manifest.

    Raises StorageError, and Damaged for a file that cannot be read.
    """
    if frozen.shard_files or not frozen.digest.startswith(COLUMNS) or SAMPLE in frozen.digest:
        return None
    whole, valued = hashlib.sha256(), set[str]()
    for file in range(frozen.additions[0].file if frozen.additions else len(frozen.files)):
        table = read_file(store, frozen, file)
        whole.update(digest(table))
        valued.update(name for name in table.column_names if table[name].null_count < len(table))
    types = {field.name: field.type for field in frozen.schema if field.name in valued}
    whole.update(str([(name, str(kind)) for name, kind in sorted(types.items())]).encode())
    return f"{COLUMNS}{whole.hexdigest()}"


def write_files(store: Store, files: Iterable[pa.Table], first: int = 0, attempt: str | None = None) -> list[int]:
    """Write files of the frozen manifest, numbered from `first`; returns their rows."""
    with contextlib.closing(
        in_order(lambda item: _write(store, file_key(item[0], attempt), item[1]), enumerate(files, first), WRITES)
    ) as written:
        return list(written)


def _write(store: Store, key: str, table: pa.Table) -> int:
    rows = max(1, min(BATCH, len(table) * BATCH_BYTES // max(1, int(text_bytes(table).sum()))))
    table = table.replace_schema_metadata({BATCH_ROWS: str(rows)})
    store.put(key, encode(table, rows))
    return len(table)


def _delete_files(store: Store, start: int) -> None:
    """Delete the files of the frozen manifest from this number on."""
    first = file_key(start)
    store.delete_many([item.key for item in store.list(f"{FOLDER}/rows-") if item.key >= first])


def version(source: Addresses, *, settled: bool) -> str | None:
    """Text that changes whenever a file of a manifest does; None if there is none. `settled`: see `Store.version`."""
    if not isinstance(source, str):
        versions = [version(each, settled=settled) for each in source]
        return None if None in versions else "\n".join(map(str, versions))
    try:
        if formats.is_file(source):
            folder, name = split(source)
            found = open_store(folder).version(name, settled=settled)
            return found and f"{redacted(_absolute(source))} {found}"
        files = formats.files(source)
    except (StorageError, UsageError):
        return None
    if not files or (settled and is_local(source) and any(is_recent(item.modified) for item in files.values())):
        return None
    listing = json.dumps([(uri, item.etag, item.size) for uri, item in files.items()])
    return f"{redacted(_absolute(source))} {len(files)} files {hashlib.sha256(listing.encode()).hexdigest()}"


def absolute(source: Addresses) -> str | tuple[str, ...]:
    """The absolute address or addresses of a manifest."""
    return _absolute(source) if isinstance(source, str) else tuple(map(_absolute, source))


def _absolute(source: str) -> str:
    return source if scheme(source) else str(Path(source).expanduser().absolute())
