"""Verification of a run: its parts, then stray files, then the summary. Nothing is written."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from paliscribe import manifest, results
from paliscribe.errors import RunError, UsageError
from paliscribe.manifest.frozen import FOLDER, INDEX
from paliscribe.results import ModelFacts
from paliscribe.results.lease import KEY as LEASE
from paliscribe.results.publish import part_key
from paliscribe.results.retrying import begun_key
from paliscribe.results.run_file import RUN_FILE, RunFile
from paliscribe.storage import StorageError, Store, open_store
from paliscribe.storage.parallel import in_order
from paliscribe.verify.findings import Finding, Remedy, Report
from paliscribe.verify.parts import Part, Run, name_of, verify_part

PARTS = 2  # verified at the same time
LOOKS = 3  # at a part that a driver may be publishing

Progress = Callable[[int, int], None]  # gets the records that were read, of how many
T = TypeVar("T")


def verify(output: str, progress: Progress = lambda done, of: None) -> Report:
    """Prove a run whole against its frozen manifest, in memory that does not depend on its size.

    Of an unfinished run, what is committed and published so far. Raises UsageError if no run is there, or if it cannot
    be read.
    """
    try:
        return examine(open_store(output), output, progress)
    except StorageError as error:
        raise UsageError(str(error)) from None


def examine(store: Store, output: str, progress: Progress = lambda done, of: None, *, held: bool = False) -> Report:
    """Verify a run. `held`: this process holds its lease. Raises StorageError, and UsageError if no run is there."""
    report = Report(output)
    _Verification(store, report, progress).run(held)
    return report


class _Verification:
    """One verification."""

    def __init__(self, store: Store, report: Report, progress: Progress) -> None:
        self._store, self._report, self._progress = store, report, progress
        self._read = 0

    def run(self, held: bool) -> None:
        """Verify; the report gets what is found."""
        store, report = self._store, self._report
        holder = self._loaded(LEASE, lambda: None if held else results.read_lease(store))
        if holder is not None and not holder.is_dead:
            report.driver = f"process {holder.pid} on {holder.host}"
        file = self._loaded(RUN_FILE, lambda: RunFile.read(store))
        frozen = self._loaded(INDEX, lambda: manifest.load(store))
        self._summary = self._loaded(results.SUMMARY, lambda: results.read_summary(store))
        if file is None or frozen is None:
            self._not_begun(file, frozen)
            return
        self._file, self._frozen = file, frozen
        given = (frozen.digest, frozen.shard_rows, frozen.additions[0].row if frozen.additions else frozen.rows)
        if given != (file.fingerprint.manifest, file.fingerprint.shard_rows, file.fingerprint.rows):
            self._found(INDEX, "it is not the manifest that the run file names")
            return
        trusted = self._trusted_rows()
        report.state = self._state(trusted)
        self._check_parts()
        self._check_strays()
        if not report.driver:
            self._check_end()

    def _not_begun(self, file: RunFile | None, frozen: manifest.FrozenManifest | None) -> None:
        """A run without a run file or a frozen manifest: it has not begun, or they are lost."""
        if not self._report.findings and file is None and frozen is None and not self._published():
            raise UsageError(f"{self._report.output}: no run is here; `paliscribe annotate` starts one")
        self._report.state = "running" if self._report.driver else "unfinished"
        begun = self._published() or next(iter(self._store.list("_run/done/")), None) is not None
        named = {finding.key for finding in self._report.findings}
        for key, found in ((RUN_FILE, file), (INDEX, frozen)):
            if begun and found is None and key not in named:
                self._found(key, "the file is missing")

    def _published(self) -> bool:
        return any(next(iter(self._store.list(f"{kind}/")), None) is not None for kind in ("annotations", "errors"))

    def _loaded(self, key: str, read: Callable[[], T]) -> T | None:
        """What is read from a file of the run; None, with a finding, if it is damaged."""
        try:
            return read()
        except results.Damaged as damaged:
            remedies: dict[str, Remedy] = {results.SUMMARY: "finish", LEASE: "lease"}
            self._report.findings.append(Finding(key, damaged.what, remedies.get(key, "none")))
        except RunError as error:  # of another version
            raise UsageError(str(error)) from None
        return None

    def _found(self, key: str, what: str, **more: Any) -> None:
        self._report.findings.append(Finding(key, what, **more))

    def _trusted_rows(self) -> int:
        """How many rows of the frozen manifest are proven by its digest: those with which the run began, or none."""
        try:
            digest = manifest.frozen_digest(self._store, self._frozen)
        except results.Damaged as damaged:
            self._found(damaged.key, damaged.what)
            return 0
        if digest is None:
            return 0
        if digest != self._frozen.digest:
            self._found(FOLDER, "the rows in it are not those that were frozen")
            return 0
        return self._file.fingerprint.rows

    def _state(self, trusted: int) -> str:
        """finished, unfinished or running. Sets what the parts are verified against."""
        begun = results.retries_begun(self._store)
        summary, frozen = self._summary, self._frozen
        done = summary["retries"] if summary else 0
        last = max(done, self._published_generations())
        for generation in range(begun + 1, last + 1):
            self._found(begun_key(generation), "the file that begins a retry is missing", remedy="finish")
        begun = max(begun, last)
        if summary and summary["rows"] > frozen.rows:
            self._found(INDEX, f"it has {frozen.rows:,} rows, the summary {summary['rows']:,}")
        layout = frozen.layout(self._file.job.tasks, self._file.job.partition_by)

        def may_lack(part: int, generation: int) -> bool:
            if summary is None:
                return True
            is_appended = frozen.first_row(layout.shards_of(part).start) >= summary["rows"]
            return generation > done or (is_appended and generation == 0)

        spec = self._file.model
        facts = ModelFacts(spec.id, self._file.fingerprint.revision, spec.precision)
        hashes = {key: str(found["sha256"]) for key, found in summary["files"].items()} if summary else {}
        self._run = Run(self._store, frozen, layout, facts, begun, may_lack, hashes, trusted)
        if self._report.driver:
            return "running"
        return "finished" if summary and begun == done and frozen.rows <= summary["rows"] else "unfinished"

    def _published_generations(self) -> int:
        """The last retry that has published a part, as far as retries follow each other; at most one is left out."""
        last = 0
        while any(results.published(self._store, last + step) for step in (1, 2)):
            last += 1 if results.published(self._store, last + 1) else 2
        return last

    def _check_parts(self) -> None:
        self._open: set[int] = set()
        self._files: set[str] = set()
        self._lacking = False  # whether a part is not published
        for part in in_order(self._part, range(self._run.layout.parts), PARTS):
            self._report.findings += [each for each in part.findings if each not in self._report.findings]
            self._report.checked.update(part.checked)
            self._report.checked["parts"] += bool(part.markers)
            self._lacking = self._lacking or not part.is_published
            self._files.update(part.files)
            if part.is_open:
                self._open.add(part.number)
        self._report.checked["rows"] = self._frozen.rows
        for generation in range(self._run.generations + 1):
            for number in results.published(self._store, generation):
                if number >= self._run.layout.parts_in(generation):
                    self._found(part_key(number, generation), "the run has no such part", remedy="stray")

    def _part(self, number: int) -> Part:
        """Verify a part; once more if a driver has published it since."""
        for look in range(LOOKS):
            before = self._publications(number)
            found = verify_part(self._run, number, self._progressed)
            if not self._report.driver or not found.findings or self._publications(number) == before:
                break
            if look == LOOKS - 1:
                found.findings, found.is_open = [], True
        return found

    def _publications(self, number: int) -> list[bool]:
        """Which generations of a part are published; one more than was begun when the verification began."""
        return [self._store.exists(part_key(number, each)) for each in range(self._run.generations + 2)]

    def _progressed(self, records: int) -> None:
        self._read += records
        self._progress(self._read, self._frozen.rows * len(self._run.layout.tasks))

    def _check_strays(self) -> None:
        """Find files that readers would take for results, and that no marker names."""
        named = {name_of(part, g) for part in self._open for g in range(self._run.generations + 2)}
        strays = []
        for item in self._store.list():
            top = item.key.split("/", 1)[0]
            is_result = top in ("annotations", "errors") and not item.key.endswith("/")
            if not is_result and (top.startswith("_") or not item.key.endswith(".parquet")):
                continue
            if item.key not in self._files and item.key.rpartition("/")[2] not in named:
                strays.append(item.key)
        if strays and self._report.driver:  # it may have published them since
            strays = [key for key in strays if key not in self._named_now()]
        for key in strays:
            self._found(key, "no marker names this file, and readers take it for results", remedy="stray")

    def _named_now(self) -> set[str]:
        found: set[str] = set()
        for generation in range(self._run.generations + 2):
            with contextlib.suppress(results.Damaged):
                found.update(key for marker in results.read_parts(self._store, generation) for key in marker.files)
        return found

    def _check_end(self) -> None:
        """Compare the summary with the markers; look for `_SUCCESS`."""
        if self._report.state == "unfinished" and self._summary is not None:
            return  # a retry or an append goes on
        is_whole = not any(finding.remedy in ("marker", "none") for finding in self._report.findings)
        if self._lacking or not is_whole or self._store.exists(begun_key(self._run.generations + 1)):
            return
        try:
            expected = results.summarise(self._store, self._run.layout, facts_of(self._file), self._run.generations)
        except RunError:
            if self._summary is not None and not self._report.findings:
                self._found(results.SUMMARY, "the records of the parts do not add up", remedy="none")
            return
        named = {finding.key for finding in self._report.findings}
        if self._summary is None and results.SUMMARY not in named:
            self._found(results.SUMMARY, "the summary of a run that is published is missing", remedy="finish")
        elif self._summary is not None and self._summary != expected:
            wrong = sorted(key for key in {*expected, *self._summary} if expected.get(key) != self._summary.get(key))
            self._found(results.SUMMARY, f"not what the markers say: {', '.join(wrong)[:80]}", remedy="finish")
        if not self._store.exists(results.SUCCESS):
            self._found(results.SUCCESS, "the file is missing, which is written last", remedy="finish")


def facts_of(file: RunFile) -> dict[str, Any]:
    """What the summary has from the run file."""
    return {
        "model": file.job.model.id,
        "revision": file.fingerprint.revision,
        "precision": file.model.precision,
    }
