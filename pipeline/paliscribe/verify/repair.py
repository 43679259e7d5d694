"""Repair of a run: what can be derived is written again; a part that cannot be is withdrawn, to be annotated again.

Nothing is deleted that cannot be made again: files that are in the way are moved to `_run/stray/`. Every step may be
repeated. The steps of a withdrawal are in an order in which a run that was interrupted never looks finished.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paliscribe import manifest, results
from paliscribe.errors import RunError, TemporaryError
from paliscribe.results import Layout, Marker, PartMarker
from paliscribe.results.commit import described, marker_key
from paliscribe.results.publish import part_key, part_marker, write_part
from paliscribe.results.retrying import begun_key
from paliscribe.results.run_file import RunFile
from paliscribe.storage import StorageError, Store, check_writable, open_store
from paliscribe.storage.arrow import decode, encode
from paliscribe.verify.findings import Finding, Report
from paliscribe.verify.parts import hashed, name_of
from paliscribe.verify.whole import Progress, examine, facts_of

STRAY = "_run/stray"
PASSES = 4  # a repair may uncover what another finding hid


@dataclass
class Repaired:
    """A repair: what was done, line by line, and what a verification finds afterwards.

    `withdrawn`: parts that are to be annotated again.
    """

    report: Report
    done: list[str] = field(default_factory=list)
    withdrawn: set[int] = field(default_factory=set)


def repair(output: str, progress: Progress = lambda done, of: None) -> Repaired:
    """Repair a run as far as it can be, under its lease.

    Raises TemporaryError if a driver holds it or if storage fails, UsageError if no run is there.
    """
    try:
        store = open_store(output)
        check_writable(store)
        with results.hold(store):
            made = Repaired(examine(store, output, progress, held=True))
            for _ in range(PASSES):
                if all(each.remedy in ("none", "lease") for each in made.report.findings):
                    break
                steps = len(made.done)
                _Repair(store, made).run(made.report.findings)
                if len(made.done) == steps:
                    break
                made.report = examine(store, output, progress, held=True)
    except StorageError as error:
        raise TemporaryError(f"storage failed at {error}; run the same command again") from None
    return made


class _Repair:
    """One pass over findings."""

    def __init__(self, store: Store, made: Repaired) -> None:
        self._store, self._made = store, made
        file, frozen = RunFile.read(store), manifest.load(store)
        assert file is not None and frozen is not None
        self._file, self._frozen = file, frozen
        self._layout: Layout = frozen.layout(file.job.tasks, file.job.partition_by)
        self._retries = results.retries_begun(store)

    def run(self, findings: list[Finding]) -> None:
        """Repair what the findings name."""
        parts: dict[int, list[Finding]] = defaultdict(list)
        for finding in findings:
            if finding.remedy == "stray":
                self._set_aside(finding.key)
                self._did(f"{finding.key}: moved to {STRAY}/")
            elif finding.remedy == "marker":
                self._remake_marker(finding)
            elif finding.remedy == "part":
                parts[finding.part].append(finding)
        for part, found in parts.items():
            self._publish(part, found)
        for finding in findings:
            if finding.remedy == "shard" and finding.part not in self._made.withdrawn:
                self._remake_shard(finding)
        if ends := [finding for finding in findings if finding.remedy == "finish"]:
            self._finish(ends)

    def _did(self, words: str) -> None:
        self._made.done.append(words)

    def _set_aside(self, key: str) -> None:
        """Move a file where no reader looks for results."""
        try:
            with tempfile.TemporaryDirectory(prefix="paliscribe-") as folder, self._store.open(key) as source:
                copy = Path(folder) / "copy"
                with copy.open("wb") as target:
                    while chunk := source.read(8 << 20):
                        target.write(chunk)
                self._store.put_file(f"{STRAY}/{key}.stray", copy)
        except StorageError as error:
            if error.kind != "missing":
                raise
        self._store.delete(key)

    def _files_of(self, part: int, generations: Iterable[int]) -> list[str]:
        """The published files of a part, as a listing has them."""
        names = {name_of(part, generation) for generation in generations}
        listed = (item.key for kind in ("annotations", "errors") for item in self._store.list(f"{kind}/"))
        return [key for key in listed if key.rpartition("/")[2] in names]

    def _shards(self, part: int, generation: int) -> list[Marker]:
        """The markers of the shards of a part in a generation. Raises RunError if one is missing or damaged."""
        if generation:
            before = results.read_part(self._store, part, self._layout.retried_generation(part, generation))
            shards: Iterable[int] = before.shards_with_errors if before is not None else ()
        else:
            shards = self._layout.shards_of(part)
        markers = []
        for shard in shards:
            marker = results.find_marker(self._store, shard, results.generation_base(generation))
            if marker is None:
                raise RunError(f"the marker of shard {shard} is missing")
            markers.append(marker)
        return markers

    def _remake_marker(self, finding: Finding) -> None:
        """Make the marker of a part from those of its shards, and from its files."""
        part, generation = finding.part, finding.generation
        try:
            markers = self._shards(part, generation)
        except RunError:
            return
        known = (self._summary() or {}).get("files", {})
        is_newest = not any(
            self._store.exists(part_key(part, later)) for later in range(generation + 1, self._retries + 1)
        )
        files: dict[str, dict[str, Any]] = {}
        for key in self._files_of(part, {generation} | ({0} if is_newest else set())):
            if key.startswith("annotations/") and key.rpartition("/")[2] != name_of(part, generation):
                continue
            if key.startswith("errors/") and not is_newest:
                continue
            files[key] = known.get(key) or self._facts(key)
        made = part_marker(part, markers, files)
        self._store.put(finding.key, made.as_json())
        self._did(f"{finding.key}: made again from the markers of its shards and its files")

    def _summary(self) -> dict[str, Any] | None:
        try:
            return results.read_summary(self._store)
        except results.Damaged:
            return None

    def _facts(self, key: str) -> dict[str, Any]:
        with hashed(self._store, key) as (stream, digest):
            try:
                return {"records": pq.ParquetFile(stream).metadata.num_rows, "sha256": digest}
            except (pa.ArrowException, OSError):
                return {"records": 0, "sha256": ""}  # the next pass finds it altered

    def _publish(self, part: int, found: list[Finding]) -> None:
        """Publish the damaged files of a part again, each from its shards; else withdraw the part."""
        chain = [generation for generation in range(self._retries + 1) if part < self._layout.parts_in(generation)]
        damaged = {finding.key for finding in found if not finding.key.startswith("_run/")}
        if any(finding.key.startswith("_run/") for finding in found):  # its records are wrong, whatever its hashes say
            self._withdraw(part)
            return
        for generation in chain:
            try:
                marker = results.read_part(self._store, part, generation)
                wanted = damaged & set(marker.files if marker else ())
                if marker and wanted and not self._publish_files(part, generation, marker, wanted):
                    self._withdraw(part)
                    return
            except RunError:
                self._withdraw(part)
                return

    def _publish_files(self, part: int, generation: int, marker: PartMarker, wanted: set[str]) -> bool:
        """Publish files of a part again; False if shards that they need are gone."""
        errors_only = all(key.startswith("errors/") for key in wanted)
        needed = [
            each
            for each in self._shards(part, generation)
            if (each.statuses.get("error") if errors_only else each.records)
        ]
        if not all(self._is_whole(each) for each in needed):
            return False
        with tempfile.TemporaryDirectory(prefix="paliscribe-") as folder:
            written = write_part(self._store, self._layout, part, generation, needed, Path(folder))
            if not wanted <= written.keys():
                return False
            for key in sorted(wanted):
                self._store.put_file(key, written[key][0])
                self._did(f"{key}: published again from committed shards")
            facts = {key: written[key][1] for key in wanted}
        if any(marker.files[key] != found for key, found in facts.items()):  # another version of Parquet's writer
            self._store.put(part_key(part, generation), replace(marker, files=marker.files | facts).as_json())
        return True

    def _is_whole(self, marker: Marker) -> bool:
        try:
            results.read_committed(self._store, marker)
        except (StorageError, RunError) as error:
            if isinstance(error, StorageError) and error.kind != "missing":
                raise
            return False
        return True

    def _withdraw(self, part: int) -> None:
        """Take a part back: `paliscribe annotate` then does again those of its shards whose files are gone."""
        generations = range(self._retries + 1)
        gone = []
        for shard in self._layout.shards_of(part):
            try:
                marker = results.find_marker(self._store, shard)
            except results.Damaged:
                marker = None
            if marker is None or not self._is_whole(marker):
                gone.append(shard)
        self._store.delete_many([results.SUCCESS, results.SUMMARY])
        self._store.delete_many([part_key(part, generation) for generation in reversed(generations)])
        for key in self._files_of(part, generations):
            self._set_aside(key)
        bases = [results.generation_base(generation) for generation in reversed(generations)]
        self._store.delete_many([marker_key(shard, base) for base in bases for shard in gone])
        self._made.withdrawn.add(part)
        self._did(f"part {part}: withdrawn, {len(gone):,} of its shards are to be annotated again")

    def _remake_shard(self, finding: Finding) -> None:
        """Make the file and the marker of a shard again; if its part is not published, let it be annotated again."""
        part, generation, shard = finding.part, finding.generation, finding.shard
        base = results.generation_base(generation)
        key = marker_key(shard, base)
        try:
            marker = results.read_part(self._store, part, generation)
        except results.Damaged:
            return
        if marker is None:
            self._set_aside(key)
            self._did(f"shard {shard}: to be annotated again")
            return
        kept = dict(zip(marker.shards_with_errors, marker.kept, strict=False)).get(shard)
        file = kept or f"{base}/shards/shard-{shard:05d}.repaired.arrow"
        body, table = self._kept(kept) if kept and finding.key != kept else (b"", None)
        if table is None:
            keys = [each for each in marker.files if each.startswith("annotations/") or kept]
            table = self._published(keys, shard)
            body = encode(table)
            if kept:
                self._store.put(kept, body)
        made = described(shard, file, body, table)
        if finding.key == kept:  # its marker is whole
            before = results.read_marker(self._store, shard, base)
            made = replace(before, sha256=made.sha256, size=made.size)
        self._store.put(key, made.as_json())
        self._did(f"{finding.key}: made again from {'the published records' if file != kept else 'its records'}")

    def _kept(self, key: str) -> tuple[bytes, pa.Table | None]:
        try:
            return (body := self._store.get(key)), decode(body)
        except (StorageError, pa.ArrowException):
            return b"", None

    def _published(self, keys: Iterable[str], shard: int) -> pa.Table:
        """The published records of a shard, in the order of the shard."""
        tables = [results.schema(self._frozen.schema).empty_table()]
        for key in keys:
            try:
                with hashed(self._store, key) as (stream, _):
                    tables.append(pq.read_table(stream, filters=[("shard", "=", shard)]).cast(tables[0].schema))
            except StorageError as error:
                if error.kind != "missing":
                    raise
        table = pa.concat_tables(tables)
        order = pc.index_in(table["task"], pa.array(self._layout.tasks))
        places = pc.sort_indices(
            pa.table({"row": table["row"], "task": order}), sort_keys=[("row", "ascending"), ("task", "ascending")]
        )
        return table.take(places)

    def _finish(self, ends: list[Finding]) -> None:
        """Write what is written last again: the beginnings of retries, the summary, `_SUCCESS`."""
        for finding in ends:
            if finding.key not in (results.SUMMARY, results.SUCCESS):
                self._store.put_if_absent(finding.key, b"{}")
                self._did(f"{finding.key}: written again")
                self._retries = results.retries_begun(self._store)
        if self._made.withdrawn or self._store.exists(begun_key(self._retries + 1)):
            return
        try:
            results.finish(self._store, self._layout, facts_of(self._file), self._retries)
        except RunError:
            return  # parts are missing
        self._did(f"{results.SUMMARY} and {results.SUCCESS}: written from the markers")
