"""Extends a frozen manifest by the rows of another manifest whose ids it does not have, in constant memory."""

import itertools
import shlex
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paliscribe.errors import UsageError
from paliscribe.manifest import formats
from paliscribe.manifest.checked import Checked, Count, Scan, in_files
from paliscribe.manifest.columns import ID, IMAGE
from paliscribe.manifest.freezing import WRITES, Addresses, absolute, identity, version, write_files
from paliscribe.manifest.frozen import FOLDER, Addition, FrozenManifest, replace_index, shard_file_key
from paliscribe.manifest.ids import KnownIds, hashed
from paliscribe.manifest.kinds import TYPES, WORDS, settled
from paliscribe.manifest.messages import cut, quoted
from paliscribe.manifest.naming import ColumnSettings, Naming
from paliscribe.manifest.reading import Reading, Tell
from paliscribe.storage import Store
from paliscribe.storage.parallel import in_order


@dataclass(frozen=True, slots=True)
class Extension:
    """What a manifest would add to a run: the frozen manifest as it is with its new rows, if any, in written files.

    `changed`: rows whose id the run has with another image; they are not added.
    """

    frozen: FrozenManifest
    changed: int = 0


def extend(
    source: Addresses,
    store: Store,
    frozen: FrozenManifest,
    *,
    retries: int,
    limit: int | None = None,
    dry: bool = False,
    check: Callable[[pa.Schema], None],
    progress: Count = lambda n: None,
    tell: Tell = lambda words: None,
    **columns: Unpack[ColumnSettings],
) -> Extension:
    """Write the rows of a manifest whose ids a run does not have as further files; the index is left to be replaced.

    `retries`: how often the run has been retried. `limit`: of the manifest's first rows. `dry`: write nothing.
    `check`: gets the manifest's columns, and may raise UsageError. `tell`: gets lines for the user. Raises
    UsageError as `scan`; if the manifest changes while it is read; if it has columns that the run does not carry, or of
    another type; if a row has nothing to be told by. StorageError if the store cannot be read or written.
    """
    before, known = version(source, settled=False), identity(source, limit)
    if known is not None and any(given.identity == known for given in frozen.given):
        return Extension(frozen)
    attempt, naming = uuid.uuid4().hex[:8], Naming.of(**columns)

    def write(types: Mapping[str, pa.DataType]) -> tuple[list[int], int, Scan]:
        checked = Checked(source, naming, types, progress, tell, limit)
        with tempfile.TemporaryDirectory(prefix="paliscribe-") as folder:
            new = _New(store, frozen, Path(folder))
            tables = new.rows(_refusing(table, checked.reading, frozen, naming.id) for table in checked.files())
            files = in_files(tables)
            written = list(map(len, files)) if dry else write_files(store, files, len(frozen.files), attempt)
        return written, new.changed, checked.result()

    try:
        written, changed, found = settled(write)
        if before != version(source, settled=False):
            raise UsageError(f"manifest {formats.shown(source)} changed while it was read; run the command again")
        check(found.schema)
    except UsageError:
        _delete_files(store, lambda key: key.endswith(f".{attempt}.arrow"))
        raise
    if not written:
        return Extension(frozen, changed)
    added = Addition(
        row=frozen.rows,
        shard=frozen.shards,
        file=len(frozen.files),
        retries=retries,
        source=absolute(source),
        digest=found.digest,
        identity=known,
        attempt=attempt,
        dropped=tuple(columns.get("drop_columns", ())),
    )
    return Extension(_extended(frozen, written, added, found.nested), changed)


def _extended(frozen: FrozenManifest, written: list[int], added: Addition, nested: tuple[str, ...]) -> FrozenManifest:
    """The frozen manifest with an addition in files of so many rows."""
    return replace(
        frozen,
        rows=frozen.rows + sum(written),
        shards=frozen.shards - (-sum(written) // frozen.shard_rows),
        files=frozen.files + tuple(frozen.rows + end for end in itertools.accumulate(written)),
        additions=(*frozen.additions, added),
        nested=tuple(sorted({*frozen.nested, *nested})),
    )


def commit_extension(store: Store, before: FrozenManifest, extension: Extension) -> None:
    """Replace the index by that of an extension, and delete what interrupted appends have left.

    Raises TemporaryError if another driver has replaced it, StorageError.
    """
    replace_index(store, before, extension.frozen)
    named = set(map(extension.frozen.key_of, range(len(extension.frozen.files))))
    _delete_files(store, lambda key: key not in named)


class _New:
    """Tells the rows that a run does not have, by the hashes of ids in a folder; counts those that have changed."""

    def __init__(self, store: Store, frozen: FrozenManifest, folder: Path) -> None:
        self.changed = 0
        self._known = KnownIds(folder)
        for table in in_order(lambda key: _ids_and_images(store, key), _keys(frozen), WRITES):
            self._known.add(hashed(table[ID]), _image_numbers(table))

    def rows(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The new rows of tables."""
        for table in tables:
            images = self._known.find(hashed(table[ID]))
            self.changed += int(((images >= 0) & (images != _image_numbers(table))).sum())
            if (images < 0).any():
                yield table.filter(pa.array(images < 0))


def _keys(frozen: FrozenManifest) -> Iterator[str]:
    """Keys of the files that hold the run's rows."""
    yield from map(shard_file_key, range(frozen.shard_files))
    yield from map(frozen.key_of, range(1 if frozen.shard_files else 0, len(frozen.files)))


def _ids_and_images(store: Store, key: str) -> pa.Table:
    body = store.get(key)
    names = pa.ipc.open_file(pa.BufferReader(body)).schema.names
    options = pa.ipc.IpcReadOptions(included_fields=[names.index(ID), names.index(IMAGE)])
    return pa.ipc.open_file(pa.BufferReader(body), options=options).read_all()


def _image_numbers(table: pa.Table) -> npt.NDArray[np.int64]:
    """[rows]: a number for each image address, 0 or more; equal for equal addresses, in this process."""
    return np.fromiter(map(hash, table[IMAGE].to_pylist()), np.int64, len(table)) & np.iinfo(np.int64).max


def _refusing(table: pa.Table, reading: Reading, frozen: FrozenManifest, id_column: str) -> pa.Table:
    """The table, unless what was read so far does not go into the run: then UsageError."""
    refuse_numbered(reading, id_column)
    manifest = f"manifest {formats.shown(reading.source)}"
    for name, kind in sorted(reading.types.items()):
        if name not in frozen.schema.names:
            raise UsageError(
                f"{manifest}: column {quoted(name)} is not in the run, whose files all have the same columns. "
                f"--drop-column {shlex.quote(cut(name))} leaves it out; or use another output"
            )
        carried = frozen.schema.field(name).type
        if kind != carried and (kind, carried) != (TYPES[int], TYPES[float]):
            raise UsageError(
                f"{manifest}: column {quoted(name)} is {WORDS[kind]}, and the run carries it as {WORDS[carried]}. "
                f"Change it, leave it out (--drop-column {shlex.quote(cut(name))}), or use another output"
            )
    return table


def refuse_numbered(reading: Reading, id_column: str) -> None:
    """Raise UsageError if the id of a row is its number in the manifest: in another manifest it is another row's."""
    if reading.numbered is not None:
        raise UsageError(
            f"manifest {formats.shown(reading.source)}: row {reading.numbered + 1} has neither an id nor an image with "
            f"an address, and an append tells rows by these. Give each row an id in column {quoted(id_column)}; rows "
            f"of the run without one have ids such as 'row-{reading.numbered}'"
        )


def _delete_files(store: Store, unwanted: Callable[[str], bool]) -> None:
    """Delete those files of the frozen manifest whose keys are unwanted."""
    store.delete_many([item.key for item in store.list(f"{FOLDER}/rows-") if unwanted(item.key)])
