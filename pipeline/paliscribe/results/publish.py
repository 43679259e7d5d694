"""Publication of parts: the Parquet files that readers see, made from committed shards, with deterministic names.

The state of a run's first generation is under `_run`; that of the g-th retry under `_run/retry-00g`, where the same
commit protocol runs over the previous generation's dead letters. A part is a function of its generation's commits:

* `annotations/[col-value/]part-00003[.retry-001].parquet`: answered records (ok and invalid);
* `errors/[col-value/]part-00003.parquet`: dead letters of the newest generation.

A retry deletes the previous generation's errors, then writes its own, then adds annotations. A concurrent reader may
miss a record for a moment but never sees it twice, even if its corrected row moves to another folder. Every step is
idempotent: repeated after a crash it writes equal bytes. The part's marker is written last.

Folders are named `task-caption en`, not `task=caption en`, and every column is in the files. From hive-style
`name=value` paths readers infer an additional or replacing column of another type: pandas and
`pyarrow.parquet.read_table` reject even a string column that is in both, `pyarrow.dataset(partitioning="hive")` an
integer one and strings such as `007`, and DuckDB turns booleans and floats into text. Also a long task would not fit
into a name of 255 bytes. Files of a folder hold a single partition value, so footer statistics still let readers skip
them.
"""

import contextlib
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paliscribe.errors import RunError
from paliscribe.results import state
from paliscribe.results.commit import FIRST_RUN, Marker, add, read_committed, read_marker
from paliscribe.results.layout import Layout
from paliscribe.storage import Store
from paliscribe.storage.parallel import in_order

READ_AHEAD = 4  # shards of a part that are read at the same time
ROW_GROUP, GROUP_BYTES = 65_536, 64 * 2**20  # records of a row group, and their bytes in memory, about
HELD_BYTES = 4 * GROUP_BYTES  # of all files of a part that are not written yet
FOLDER_BYTES = 120  # most bytes of a column name or a value in a folder's name
KEY_BYTES = 720  # most bytes of all of them in a key; with the rest, and the output's prefix, S3 allows 1,024
SUMMARY, SUCCESS = "_summary.json", "_SUCCESS"


@dataclass(frozen=True, slots=True)
class PartMarker:
    """Marker of a published part: its files and the counts of their records."""

    part: int
    files: dict[str, dict[str, Any]]  # key -> records, sha256
    records: int
    statuses: dict[str, int]
    error_kinds: dict[str, int]
    tokens: int
    shards_with_errors: list[int]
    kept: list[str] = field(default_factory=list)  # their files, which a retry reads; none in older markers

    def as_json(self) -> bytes:
        """Canonical JSON."""
        return state.encode(asdict(self))


def generation_base(generation: int) -> str:
    """Prefix of a generation's state. Generation 0 is the run itself, 1 its first retry."""
    return FIRST_RUN if generation == 0 else f"{FIRST_RUN}/retry-{generation:03d}"


def read_part(store: Store, part: int, generation: int = 0) -> PartMarker | None:
    """The marker of a published part, or None. Raises Damaged."""
    found = state.read(store, key := part_key(part, generation), state.typed(PartMarker))
    if found is not None and found.part != part:
        raise state.Damaged(store.uri, key, f"it is the marker of part {found.part}")
    return found


def read_parts(store: Store, generation: int = 0) -> list[PartMarker]:
    """The markers of all published parts, in order."""
    found = in_order(lambda part: read_part(store, part, generation), sorted(published(store, generation)))
    return [marker for marker in found if marker is not None]


def published(store: Store, generation: int = 0) -> set[int]:
    """The published parts, from one listing."""
    start = f"{generation_base(generation)}/parts/part-"
    return {int(found.key.removeprefix(start).removesuffix(".json")) for found in store.list(start)}


def publish_part(store: Store, layout: Layout, part: int, generation: int = 0) -> PartMarker:
    """Publish a part whose shards are all committed. Idempotent: an already published part is unchanged."""
    if (existing := read_part(store, part, generation)) is not None:
        return existing
    before = read_part(store, part, layout.retried_generation(part, generation)) if generation else None
    base = generation_base(generation)
    shards = layout.shards_of(part) if before is None else before.shards_with_errors
    markers = list(in_order(lambda shard: read_marker(store, shard, base), shards))
    with tempfile.TemporaryDirectory(prefix="paliscribe-") as folder:
        written = write_part(store, layout, part, generation, markers, Path(folder))
        if before is not None:
            if (existing := read_part(store, part, generation)) is not None:
                return existing  # another driver took over; a later retry may have replaced these files
            store.delete_many(sorted(key for key in before.files if key.startswith("errors/")))
        for key in sorted(written, reverse=True):  # errors before annotations
            store.put_file(key, written[key][0])
        made = part_marker(part, markers, {key: facts for key, (_, facts) in written.items()})
    store.put(part_key(part, generation), made.as_json())
    return made


def write_part(
    store: Store, layout: Layout, part: int, generation: int, markers: list[Marker], folder: Path
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Write the files of a part into a local folder, from these shards; returns key -> path, facts."""
    suffix = "" if generation == 0 else f".retry-{generation:03d}"
    files = _Files(folder, layout, f"part-{part:05d}", suffix)
    with contextlib.closing(in_order(lambda marker: read_committed(store, marker), markers, READ_AHEAD)) as tables:
        for table in tables:
            files.add(table)
    return files.close()


def finish(store: Store, layout: Layout, facts: dict[str, Any], generation: int = 0) -> dict[str, Any]:
    """Check the totals, write the summary, then `_SUCCESS`. Arguments and errors: see `summarise`."""
    summary = summarise(store, layout, facts, generation)
    store.put(SUMMARY, json.dumps(summary, indent=2).encode())
    store.put(SUCCESS, b"")
    return summary


def summarise(store: Store, layout: Layout, facts: dict[str, Any], generation: int = 0) -> dict[str, Any]:
    """The summary of a run whose parts are all published. `generation`: the newest one, that of the last retry.

    Raises RunError if a number of records is wrong.
    """
    newest: dict[int, PartMarker] = {}  # by part
    statuses: Counter[str] = Counter()
    error_kinds: Counter[str] = Counter()
    tokens = 0
    files: dict[str, dict[str, Any]] = {}
    for number in range(generation + 1):
        parts = read_parts(store, number)
        expected = layout.rows * len(layout.tasks)
        if number:
            expected = sum(newest[part].statuses.get("error", 0) for part in range(layout.parts_in(number)))
        if (found := sum(marker.records for marker in parts)) != expected:
            raise RunError(f"{store.uri}: {found:,} records, expected {expected:,}; the run is not marked as finished")
        for marker in parts:
            newest[marker.part] = marker
            add(statuses, marker.statuses)
            tokens += marker.tokens
            files |= {key: value for key, value in marker.files.items() if key.startswith("annotations/")}
    for marker in newest.values():
        add(error_kinds, marker.error_kinds)
        files |= marker.files
    summary = {
        "rows": layout.rows,
        "tasks": list(layout.tasks),
        "records": layout.rows * len(layout.tasks),
        "ok": statuses["ok"],
        "invalid": statuses["invalid"],
        "errors": sum(marker.statuses.get("error", 0) for marker in newest.values()),
        "error_kinds": dict(sorted(error_kinds.items())),
        "tokens": tokens,
        **facts,
        "retries": generation,
        "files": {key: files[key] for key in sorted(files)},
    }
    if layout.appended:
        summary["appends"] = len(layout.appended)
    return summary


def run_name(uri: str) -> str:
    """A short, deterministic name for the run of this output."""
    return hashlib.sha256(uri.encode()).hexdigest()[:12]


def sweep(store: Store, shards: int) -> int:
    """Delete files of these first `shards` shards that are no longer needed; returns their number.

    Only for a finished run whose lease is held: every shard is committed and published, so only shards with dead
    letters are still needed, by a retry. If the lease is lost before that, as by a driver that is stopped for long,
    another may append: its shards are later ones.
    """
    needed: set[str] = set()
    for marker in read_parts(store):
        known = marker.kept or [read_marker(store, shard).file for shard in marker.shards_with_errors]
        needed.update(known)
    deleted = 0

    def orphans() -> Iterator[str]:
        nonlocal deleted
        for found in store.list(start := f"{FIRST_RUN}/shards/"):
            number = found.key.removeprefix(f"{start}shard-").partition(".")[0]
            if found.key not in needed and not (number.isdigit() and int(number) >= shards):
                deleted += 1
                yield found.key

    store.delete_many(orphans())
    return deleted


def part_key(part: int, generation: int) -> str:
    """Key of a part's marker."""
    return f"{generation_base(generation)}/parts/part-{part:05d}.json"


def part_marker(part: int, markers: list[Marker], files: dict[str, dict[str, Any]]) -> PartMarker:
    """The marker of a part with these shards and files."""
    statuses: Counter[str] = Counter()
    error_kinds: Counter[str] = Counter()
    for marker in markers:
        add(statuses, marker.statuses)
        add(error_kinds, marker.error_kinds)
    return PartMarker(
        part=part,
        files=files,
        records=sum(marker.records for marker in markers),
        statuses=dict(sorted(statuses.items())),
        error_kinds=dict(sorted(error_kinds.items())),
        tokens=sum(marker.tokens for marker in markers),
        shards_with_errors=[marker.shard for marker in markers if marker.statuses.get("error")],
        kept=[marker.file for marker in markers if marker.statuses.get("error")],
    )


class _Files:
    """Writes the Parquet files of one part, one for each folder of the output."""

    def __init__(self, scratch: Path, layout: Layout, name: str, suffix: str) -> None:
        self._scratch, self._by, self._name, self._suffix = scratch, layout.partition_by, name, suffix
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._waiting: dict[str, list[pa.Table]] = {}
        self._records: Counter[str] = Counter()
        self._held: Counter[str] = Counter()  # bytes of what waits

    def add(self, table: pa.Table) -> None:
        """Distribute a shard's records to the files that they belong to."""
        failed = pc.equal(table["status"], "error")
        for kind, half in (("annotations", table.filter(pc.invert(failed))), ("errors", table.filter(failed))):
            for folder, slice_ in _split(half, self._by):
                suffix = self._suffix if kind == "annotations" else ""
                key = "/".join([kind, *folder, f"{self._name}{suffix}.parquet"])
                self._waiting.setdefault(key, []).append(slice_)
                self._records[key] += slice_.num_rows
                self._held[key] += slice_.nbytes
                is_large = self._held[key] >= GROUP_BYTES
                if is_large or sum(t.num_rows for t in self._waiting[key]) >= ROW_GROUP:
                    self._write(key, whole=is_large)
        while self._held.total() >= HELD_BYTES:
            self._write(max(self._held, key=self._held.__getitem__), whole=True)

    def close(self) -> dict[str, tuple[Path, dict[str, Any]]]:
        """Finish the files one by one, to bound open files; returns key -> path, facts (records, sha256)."""
        made = {}
        for key in list(self._waiting):
            self._write(key, whole=True)
            self._writers[key].close()
            path = self._path(key)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            made[key] = (path, {"records": self._records[key], "sha256": digest})
        return made

    def _write(self, key: str, *, whole: bool) -> None:
        """Write row groups. `whole`: all that waits; otherwise what makes full ones."""
        table = pa.concat_tables(self._waiting[key])
        count = table.num_rows if whole else table.num_rows // ROW_GROUP * ROW_GROUP
        if key not in self._writers:
            self._writers[key] = pq.ParquetWriter(self._path(key), table.schema, compression="zstd")
        if count:
            self._writers[key].write_table(table.slice(0, count).combine_chunks(), row_group_size=ROW_GROUP)
        self._waiting[key] = [table.slice(count)]
        self._held[key] = self._waiting[key][0].nbytes

    def _path(self, key: str) -> Path:
        return self._scratch / hashlib.sha256(key.encode()).hexdigest()


def _split(table: pa.Table, columns: tuple[str, ...]) -> Iterator[tuple[list[str], pa.Table]]:
    """Slices with equal partition values and their folder names. Rows keep their order."""
    if not table.num_rows:
        return
    if not columns:
        yield [], table
        return
    most = min(FOLDER_BYTES, KEY_BYTES // (2 * len(columns)))
    names = [[_folder(name, value, most) for value in table[name].to_pylist()] for name in columns]
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, folders in enumerate(zip(*names, strict=True)):
        rows.setdefault(folders, []).append(row)
    for folders, chosen in rows.items():
        yield list(folders), table.take(pa.array(chosen))


def is_in_folder(table: pa.Table, columns: tuple[str, ...], key: str) -> bool:
    """Whether the records of a file belong into its folder. `columns`: those that name the folders."""
    values = table.select(columns).group_by(list(columns)).aggregate([]) if columns else table
    return [folders for folders, _ in _split(values, columns)] == [key.split("/")[1:-1]]


def _folder(column: str, value: Any, most: int) -> str:
    """Name of a partition folder: not hive-style, not hidden, and another one for each value on every file system.

    `most`: bytes of the column's name, and of the value.
    """
    name = quote(column, safe="")
    if name[0] in "_.":
        name = f"%{ord(name[0]):02X}{name[1:]}"
    words = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"{_short(name, most)}-{_short(_quoted(words), most)}"


def _quoted(words: str) -> str:
    """A value as a name. Upper case is told by a suffix, since file systems may ignore case: `Cat` is `Cat~1`.

    The suffix has a bit for each character of `words`, the first one lowest, in hexadecimal.
    """
    capitals = sum(1 << at for at, letter in enumerate(words) if "A" <= letter <= "Z")
    return quote(words, safe=" ").replace("~", "%7E") + (f"~{capitals:x}" if capitals else "")


def _short(quoted: str, most: int) -> str:
    """A quoted name; if it is too long, its start and a hash of the whole."""
    if len(quoted) <= most:
        return quoted
    return f"{quoted[: most - 9]}~{hashlib.sha256(quoted.encode()).hexdigest()[:8]}"
