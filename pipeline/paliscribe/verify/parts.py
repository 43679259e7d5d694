"""Verification of one part: its markers, the markers of its shards, its files and their records."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from paliscribe import results
from paliscribe.errors import RunError
from paliscribe.manifest import FrozenManifest
from paliscribe.results import Layout, Marker, ModelFacts, PartMarker
from paliscribe.results.commit import marker_key
from paliscribe.results.publish import is_in_folder, part_key, part_marker
from paliscribe.storage import StorageError, Store, is_local
from paliscribe.storage.parallel import in_order
from paliscribe.verify.findings import Finding, Remedy
from paliscribe.verify.records import READ, PartRecords, Wrong, count

BATCH = 65_536  # records that are read at once
CHUNK = 8 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Run:
    """What a part is verified against.

    `generations`: how many retries were begun. `may_lack`: whether a part and generation need not be published yet.
    `hashes`: SHA-256 of published files as the summary has them. `trusted`: so many rows of the frozen manifest, from
    the first on, are proven to be as they were frozen.
    """

    store: Store
    frozen: FrozenManifest
    layout: Layout
    facts: ModelFacts
    generations: int
    may_lack: Callable[[int, int], bool]
    hashes: dict[str, str]
    trusted: int

    def remedy(self, part: int, wrong: Wrong) -> Remedy:
        """For records that are not as the manifest has them: nothing, if it may be the manifest that is damaged."""
        last = self.layout.shards_of(part)[-1]
        end = self.frozen.first_row(last) + self.frozen.rows_of(last)
        return "part" if wrong.is_certain and end <= self.trusted else "none"


@dataclass
class Part:
    """A verified part. `files`: keys that its markers name. `is_open`: others of it may be being written."""

    number: int
    findings: list[Finding] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    is_open: bool = False
    agreed: set[int] = field(default_factory=set)  # generations whose marker is that of its shards
    is_published: bool = False  # in all generations that have begun
    checked: Counter[str] = field(default_factory=Counter)
    markers: dict[int, PartMarker] = field(default_factory=dict)  # by generation

    def has(self, key: str, generation: int) -> bool:
        """Whether a file that the marker of a generation names is there still: a retry deletes its dead letters."""
        return key.startswith("annotations/") or generation == max(self.markers)

    def found(self, key: str, what: str, remedy: Remedy, generation: int = 0) -> None:
        """Add a finding."""
        self.findings.append(Finding(key, what, remedy, self.number, generation))


def name_of(part: int, generation: int) -> str:
    """Name of a part's files of annotations."""
    return f"part-{part:05d}{f'.retry-{generation:03d}' if generation else ''}.parquet"


def verify_part(run: Run, number: int, progress: Callable[[int], None]) -> Part:
    """Verify a part. `progress`: gets numbers of records that were read. Raises StorageError if the store fails."""
    part = Part(number)
    chain = [0, *(g for g in range(1, run.generations + 1) if number < run.layout.parts_in(g))]
    _read_markers(run, part, chain)
    shards: dict[int, list[Marker]] = {}
    for generation in (*part.markers, *chain[len(part.markers) : len(part.markers) + 1]):
        shards[generation] = _shard_markers(run, part, generation)
    if part.findings and not part.markers:
        part.is_open = True
        return part
    try:
        _check_content(run, part, shards, progress)
    except results.Damaged as damaged:  # of the frozen manifest or of a retry's rows
        part.findings.append(Finding(damaged.key, damaged.what))
    return part


def _read_markers(run: Run, part: Part, chain: list[int]) -> None:
    """Read the markers of a part, up to the first that is not there."""
    ended = False
    for generation in chain:
        key = part_key(part.number, generation)
        try:
            marker = results.read_part(run.store, part.number, generation)
        except results.Damaged as damaged:
            part.found(key, damaged.what, "marker", generation)
            part.is_open, ended = True, True
            continue
        if marker is None:
            later = any(run.store.exists(part_key(part.number, g)) for g in chain if g > generation)
            if not ended and (later or not run.may_lack(part.number, generation)):
                part.found(key, "the marker of a published part is missing", "marker", generation)
                part.is_open = True
            ended = True
        elif not ended:
            part.markers[generation] = marker
    part.is_published = len(part.markers) == len(chain)
    part.files = [
        key for generation, marker in part.markers.items() for key in marker.files if part.has(key, generation)
    ]


def _shard_markers(run: Run, part: Part, generation: int) -> list[Marker]:
    """The markers of the shards that a generation has annotated, compared with that of the part."""
    base = results.generation_base(generation)
    marker = part.markers.get(generation)
    before = part.markers.get(run.layout.retried_generation(part.number, generation)) if generation else None
    if generation and before is None:
        return []
    shards = before.shards_with_errors if before is not None else run.layout.shards_of(part.number)

    def read(shard: int) -> Marker | Finding | None:
        key = marker_key(shard, base)
        try:
            found = results.find_marker(run.store, shard, base)
        except results.Damaged as damaged:
            return Finding(key, damaged.what, "shard", part.number, generation, shard)
        if found is None and marker is not None:
            what = "the marker of a committed shard is missing"
            return Finding(key, what, "shard", part.number, generation, shard)
        if found is not None and not generation:
            rows = run.frozen.rows_of(shard)
            if (found.rows, found.records) != (rows, rows * len(run.layout.tasks)):
                what = "its counts are not those of the shard's rows"
                return Finding(key, what, "shard", part.number, generation, shard)
        return found

    read_all = list(in_order(read, shards))
    part.findings += [each for each in read_all if isinstance(each, Finding)]
    markers = [each for each in read_all if isinstance(each, Marker)]
    part.checked["shards"] += len(markers)
    if marker is None:
        part.is_open = part.is_open or 0 < len(markers) == len(shards)
    elif len(markers) == len(shards):
        expected = part_marker(part.number, markers, marker.files)
        for name in ("records", "statuses", "error_kinds", "tokens", "shards_with_errors"):
            if getattr(marker, name) != getattr(expected, name):
                what = f"{name} are not those of its shards"
                part.found(part_key(part.number, generation), what, "marker", generation)
                break
        else:
            part.agreed.add(generation)
    return markers


def _check_content(run: Run, part: Part, shards: dict[int, list[Marker]], progress: Callable[[int], None]) -> None:
    """Check the records of a part: of its files; before it is published, of the files of its committed shards."""
    records = PartRecords(run.store, run.frozen, run.layout.tasks, run.layout.shards_of(part.number))
    if not part.markers:
        whole = [_check_shard(run, part, records, marker, progress) for marker in shards[0]]
        if all(whole) and (what := records.missing([marker.shard for marker in shards[0]])):
            part.found(part_key(part.number, 0), what, run.remedy(part.number, Wrong(what)))
        return
    newest = max(part.markers)
    counted: dict[tuple[int, str], tuple[Counter[str], Counter[str], int]] = {}
    is_whole = True
    for generation, marker in part.markers.items():
        for key, facts in sorted(marker.files.items()):
            if not part.has(key, generation) or (part.is_open and key.startswith("errors/")):
                continue
            found = _check_file(run, part, records, key, facts, generation, progress)
            is_whole = is_whole and found is not None
            kind = key.partition("/")[0]
            old = counted.get((generation, kind), (Counter[str](), Counter[str](), 0))
            if found is not None:
                counted[generation, kind] = (old[0] + found[0], old[1] + found[1], old[2] + found[2])
    if is_whole and not part.is_open:
        if what := records.missing():
            part.found(part_key(part.number, newest), what, run.remedy(part.number, Wrong(what)), newest)
        else:
            _compare_counts(part, counted)
    _check_kept(run, part, shards.get(newest, []), newest)


def _compare_counts(part: Part, counted: dict[tuple[int, str], tuple[Counter[str], Counter[str], int]]) -> None:
    """Compare the counts of the markers with those of the records."""
    none = (Counter[str](), Counter[str](), 0)
    generations = sorted(part.markers)
    for generation in generations:
        marker = part.markers[generation]
        statuses, _, tokens = counted.get((generation, "annotations"), none)
        failed, kinds, _ = counted.get((generation, "errors"), none)
        later = [g for g in generations if g > generation]
        errors = part.markers[later[0]].records if later else failed["error"]
        expected = {"ok": statuses["ok"], "invalid": statuses["invalid"], "error": errors}
        if (
            Counter(marker.statuses) != +Counter(expected)
            or marker.tokens != tokens
            or (not later and Counter(marker.error_kinds) != kinds)
        ):
            remedy: Remedy = "part" if generation in part.agreed else "marker"
            part.found(part_key(part.number, generation), "its counts are not those of the records", remedy, generation)


def _check_file(
    run: Run,
    part: Part,
    records: PartRecords,
    key: str,
    facts: dict[str, object],
    generation: int,
    progress: Callable[[int], None],
) -> tuple[Counter[str], Counter[str], int] | None:
    """Check a published file: hash, schema, folder, records. Returns the counts of its records; None with a finding."""
    schema = results.schema(run.frozen.schema)
    try:
        with hashed(run.store, key) as (stream, digest):
            if digest != facts["sha256"]:
                is_marker = digest == run.hashes.get(key)
                words = "its marker has another SHA-256" if is_marker else "altered: its SHA-256 is not its marker's"
                place = part_key(part.number, generation) if is_marker else key
                part.found(place, words, "marker" if is_marker else "part", generation)
                return None
            wrong, counts = _read(run, records, stream, key, schema, generation, progress)
    except StorageError as error:
        if error.kind != "missing":
            raise
        part.found(key, "the file is missing", "part", generation)
        return None
    except (pa.ArrowException, OSError, ValueError) as error:
        part.found(key, f"it cannot be read ({(str(error).splitlines() or [''])[0][:100]})", "part", generation)
        return None
    if wrong is None and counts[0].total() != facts["records"]:
        part.found(part_key(part.number, generation), f"it counts the records of {key} wrongly", "marker", generation)
        return None
    if wrong is not None:
        part.found(key, wrong.what, run.remedy(part.number, wrong), generation)
        return None
    part.checked["files"] += 1
    part.checked["records"] += counts[0].total()
    return counts


def _read(
    run: Run,
    records: PartRecords,
    stream: BinaryIO,
    key: str,
    schema: pa.Schema,
    generation: int,
    progress: Callable[[int], None],
) -> tuple[Wrong | None, tuple[Counter[str], Counter[str], int]]:
    """What is wrong with the records of a file, if anything, and their counts."""
    statuses, kinds, tokens = Counter[str](), Counter[str](), 0
    file = pq.ParquetFile(stream)
    if not file.schema_arrow.equals(schema):
        return Wrong("its columns are not those of the run"), (statuses, kinds, tokens)
    allowed = {"ok", "invalid"} if key.startswith("annotations/") else {"error"}
    needed = {*READ, *run.layout.partition_by, *run.frozen.schema.names}
    columns = [name for name in schema.names if name in needed]
    for batch in file.iter_batches(BATCH, columns=columns, use_threads=False):
        table = pa.Table.from_batches([batch])
        found = count(table)
        wrong = records.add(table, generation, run.facts)
        if wrong is None and not found[0].keys() <= allowed:
            wrong = Wrong(f"it has records of status {min(found[0].keys() - allowed)!r:.20}")
        if wrong is None and not is_in_folder(table, run.layout.partition_by, key):
            wrong = Wrong("it has records of another folder")
        if wrong is not None:
            return wrong, (statuses, kinds, tokens)
        statuses, kinds, tokens = statuses + found[0], kinds + found[1], tokens + found[2]
        progress(len(table))
    return None, (statuses, kinds, tokens)


def _check_shard(run: Run, part: Part, records: PartRecords, marker: Marker, progress: Callable[[int], None]) -> bool:
    """Check the file of a committed shard that is not published yet; returns whether it is whole."""
    remedy: Remedy
    try:
        table = results.read_committed(run.store, marker)
        progress(len(table))
        if (wrong := records.add(table, 0, run.facts)) is None:
            part.checked["records"] += len(table)
            return True
        what, remedy = wrong.what, run.remedy(part.number, wrong)
    except StorageError as error:
        if error.kind != "missing":
            raise
        what, remedy = "the file of a committed shard is missing", "shard"
    except (RunError, pa.ArrowException) as error:
        what = "altered: it does not match its marker" if isinstance(error, RunError) else "it cannot be read"
        remedy = "shard"
    remedy = "shard" if remedy == "part" else remedy
    part.findings.append(Finding(marker.file, what, remedy, part.number, 0, marker.shard))
    return False


def _check_kept(run: Run, part: Part, markers: Iterable[Marker], generation: int) -> None:
    """Check the files of the shards whose dead letters the next retry reads."""

    def check(marker: Marker) -> Finding | None:
        try:
            whole = hashlib.sha256(run.store.get(marker.file)).hexdigest() == marker.sha256
            what = None if whole else "altered: it does not match its marker"
        except StorageError as error:
            if error.kind != "missing":
                raise
            what = "the file that the next retry reads is missing"
        return Finding(marker.file, what, "shard", part.number, generation, marker.shard) if what else None

    failed = [marker for marker in markers if marker.statuses.get("error")]
    part.findings += filter(None, in_order(check, failed, 4))


class hashed:  # a context manager
    """A file of a store as a seekable stream at its start, with its SHA-256. Raises StorageError."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key

    def __enter__(self) -> tuple[BinaryIO, str]:
        source, digest = self._store.open(self._key), hashlib.sha256()
        copy = None if is_local(self._store.uri) else tempfile.TemporaryFile()
        self._stream: BinaryIO = copy or source
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            if copy is not None:
                copy.write(chunk)
        if copy is not None:
            source.close()
        self._stream.seek(0)
        return self._stream, digest.hexdigest()

    def __exit__(self, *_: object) -> None:
        self._stream.close()
