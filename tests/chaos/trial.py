"""Trials: a run that is disturbed, resumed, and compared with an undisturbed one byte for byte.

The run is small and has all that a long one has: shards in parts, dead letters, a retry, an append, another retry.
Every phase begins where the undisturbed run ended the phase before.
"""

import copy
import io
import itertools
import json
import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final

import psutil
import pyarrow.parquet as pq
import pytest
from batch.alone import draw
from chaos.driver import Order, drive
from chaos.notes import read, small_parts
from results.made import published

from paliscribe.results import SUMMARY
from paliscribe.storage import open_store
from paliscribe.verify import Report, verify

PHASES: Final = ("annotate", "retry", "append", "retry again")
RETRIES: Final = {"retry": 1, "retry again": 2}  # of the run when a phase is done
TASKS: Final = ("caption en", "answer en {ask}")
ROWS, APPENDED = 11, 5  # of the manifest, and new in the append's
LATE, GONE = {1: "retry", 6: "retry", 12: "retry again"}, (4, 13)  # rows whose images come with a phase, and never
SECONDS: Final = 120.0  # a driver that has not ended by then hangs


@dataclass(slots=True)
class Tally:
    """What trials of one kind have found. `recovered`: seconds from each fault to the next write of a step.

    `computed`: requests that were sent to the pool; `needed`: those of undisturbed runs. `wrong`: what was found.
    `ended`: how disturbed drivers on a cluster ended, in words.
    """

    faults: int = 0
    runs: int = 0
    resumed: int = 0
    lost: int = 0
    doubled: int = 0
    equal: int = 0
    verified: int = 0
    computed: int = 0
    needed: int = 0
    recovered: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether every run was whole and equal to an undisturbed one."""
        return not self.wrong and not self.lost + self.doubled and self.equal == self.verified == self.runs

    def add(self, other: "Tally") -> None:
        """Add the counts of other trials."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def row(self, kind: str) -> str:
        """The counts as a row of a Markdown table; its head is `HEAD`."""
        times = sorted(self.recovered)
        recovery = f"{statistics.median(times):.2f}, {times[-1]:.2f}" if times else ""
        counts = (self.faults, self.runs, self.resumed, self.lost, self.doubled, self.equal, self.verified)
        work = f"{self.computed / self.needed:.2f}" if self.needed else ""
        return f"| {' | '.join([kind, *map(str, counts), work, recovery])} |"


HEAD: Final = (
    "| fault | faults | runs | resumed | lost | doubled | byte-equal | verified | re-work | recovery, s |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


class World:
    """A collection, its undisturbed run, and the place of the disturbed ones, of which there is one at a time.

    `settings`: of all jobs, beside those that they have here.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.folder, self.environment, self.settings = folder, dict[str, str](), dict(settings or {})
        self.output = self._outputs = str(folder / "disturbed")
        self._trials = itertools.count()
        self.log = folder / "log"
        self.steps: dict[str, Counter[str]] = {}  # phase -> how often it takes each step
        self.needed: dict[str, int] = {}  # phase -> requests
        self.seconds: dict[str, float] = {}  # phase -> of an undisturbed driver
        self._published: dict[str, dict[str, bytes]] = {}
        self._processes = processes()
        self._collect()
        self._run_undisturbed()

    def at(self, output: str, environment: Mapping[str, str] | None = None) -> "World":
        """The same with disturbed runs elsewhere; in an object store, each has a prefix of its own.

        `environment`: the drivers' settings of the store.
        """
        other = copy.copy(self)
        other.output = other._outputs = output
        other.environment = dict(environment or {})
        return other

    def order(self, phase: str, **settings: Any) -> Order:
        """What a driver does in a phase of the disturbed run.

        A retry that is done is not repeated, which would be another one: the command that began the run ends it.
        """
        if phase.startswith("retry") and self._retries() == RETRIES[phase]:
            phase = PHASES[PHASES.index(phase) - 1]
        name = "m" if phase == "annotate" else "grown"
        job = {"manifest": str(self.folder / f"{name}.jsonl"), "tasks": TASKS, "shard_rows": 2, "max_error_rate": 1}
        is_retry = phase.startswith("retry")
        job |= self.settings
        values: dict[str, Any] = {"job": None if is_retry else job, "append": phase == "append"}
        return Order(self.output, str(self.log), **values | {"environment": self.environment} | settings)

    def begin(self, phase: str) -> None:
        """Make the disturbed run what the undisturbed one was before a phase."""
        self.log.unlink(missing_ok=True)
        before = PHASES.index(phase)
        for number, comes in LATE.items():
            image = self.folder / f"images/{number}.png"
            image.unlink(missing_ok=True)
            if before >= PHASES.index(comes):
                draw(image, number)
        source = self._after(PHASES[before - 1]) if before else None
        if "://" not in self._outputs:
            shutil.rmtree(self.output, ignore_errors=True)
            if source is not None:
                shutil.copytree(source, self.output)
            return
        self.output = f"{self._outputs}/{next(self._trials)}"
        if source is not None:
            store = open_store(self.output)
            for path in filter(Path.is_file, source.rglob("*")):
                store.put(path.relative_to(source).as_posix(), path.read_bytes())

    def start(self, order: Order) -> ForkServerProcess:
        """A driver in a process of its own."""
        process: ForkServerProcess = self._processes.Process(target=drive, args=(order,), daemon=True)
        process.start()
        return process

    def started_and_stopped(self, order: Order) -> ForkServerProcess:
        """A driver that has stopped at its point, or has ended without reaching it."""
        process, until = self.start(order), time.monotonic() + SECONDS
        while process.exitcode is None and psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < until, f"{order.point} was not reached"
            time.sleep(0.01)
        return process

    def run(self, order: Order, seconds: float = SECONDS) -> tuple[int | None, str]:
        """Run a driver to its end: its exit code, or None if it was killed, and what it said."""
        process = self.start(order)
        process.join(seconds)
        return self.ended(process)

    def ended(self, process: ForkServerProcess) -> tuple[int | None, str]:
        """How a driver ended. One that hangs is killed; its code is then 98."""
        if process.exitcode is None:
            process.kill()
            process.join()
            return 98, f"it did not end within {SECONDS:.0f} s"
        last = [note for note in read(self.log) if note["pid"] == process.pid and "end" in note]
        return (last[-1]["end"], last[-1]["said"]) if last else (None, "")

    def resume(
        self, phase: str, tally: Tally, since: float | None, *, may_retry: bool = False, **settings: Any
    ) -> None:
        """Resume a disturbed run without faults, and compare it.

        `since`: `time.monotonic()` of the last fault. `may_retry`: see `check`.
        """
        code, said = self.run(self.order(phase, **settings))
        tally.resumed += 1
        if code != 0:
            tally.wrong.append(f"{phase}: the resumed driver ended with {code}: {said}")
        if since is not None and (moment := self.next_step(since)) is not None:
            tally.recovered.append(moment - since)
        self.check(phase, tally, may_retry=may_retry)

    def next_step(self, since: float) -> float | None:
        """When a driver wrote the next step after a moment, other than its lease."""
        steps = (n["at"] for n in read(self.log) if n.get("step", "the lease") != "the lease" and n["at"] > since)
        return next(steps, None)

    def check(self, phase: str, tally: Tally, *, may_retry: bool = False) -> None:
        """Compare a run that has ended a phase with the undisturbed one.

        `may_retry`: there may have been further retries, which answer nothing more; the summary has their number.
        """
        tally.runs += 1
        notes = read(self.log)
        tally.computed += sum(note.get("asked", 0) for note in notes)
        tally.needed += self.needed[phase]
        found, expected = published(self.output), self._published[phase]
        if may_retry:
            summary = json.loads(expected[SUMMARY]) | {"retries": max(RETRIES[phase], self._retries())}
            expected = expected | {SUMMARY: json.dumps(summary, indent=2).encode()}
        records, wanted = _records(found), _records(expected)
        lost, doubled = (wanted - records).total(), (records - wanted).total()
        tally.lost += lost
        tally.doubled += doubled
        tally.equal += (is_equal := found == expected)
        report = _verified(self.output)
        tally.verified += (is_verified := report.good and report.state == "finished")
        commits = Counter(n["key"] for n in notes if n.get("step") == "the commit of a shard" and n["won"])
        again = [key for key, times in commits.items() if times > 1]
        if lost or doubled or not is_equal or not is_verified or again:
            differing = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
            words = f"{lost} lost, {doubled} doubled, differing {differing[:4]}, committed again {again}"
            words += f", the first {_first_difference(found, expected)}"
            tally.wrong.append(f"{phase}: {words}; {report.state} {[str(f) for f in report.findings][:3]}")

    def _collect(self) -> None:
        rows = []
        for number in range(ROWS + APPENDED):
            image = f"images/{number}.png"
            if number not in GONE:
                draw(self.folder / image, number)
            rows.append({"id": f"id-{number}", "image": image, "ask": f"what {number}", "n": number})
        for name, count in (("m", ROWS), ("grown", ROWS + APPENDED)):
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))

    def _run_undisturbed(self) -> None:
        for phase in PHASES:
            self.begin(phase)
            begun = time.monotonic()
            code, said = self.run(self.order(phase))
            assert code == 0, f"{phase}: {said}"
            self.seconds[phase] = time.monotonic() - begun
            notes = read(self.log)
            self.steps[phase] = Counter(note["step"] for note in notes if "step" in note)
            self.needed[phase] = sum(note.get("asked", 0) for note in notes)
            self._published[phase] = published(self.output)
            report = _verified(self.output)
            assert report.good and report.state == "finished", report.findings
            shutil.copytree(self.output, self._after(phase))

    def _retries(self) -> int:
        store = open_store(self.output)
        return int(json.loads(store.get(SUMMARY))["retries"]) if store.exists(SUMMARY) else 0

    def _after(self, phase: str) -> Path:
        return self.folder / f"after {phase}"


def processes() -> Any:
    """The context of drivers' processes: forked from one that has imported everything and does nothing else."""
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    context = get_context("forkserver")
    context.set_forkserver_preload(["chaos.driver", "paliscribe.batch.annotate", "paliscribe.batch.parts", "boto3"])
    return context


def _verified(output: str) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        small_parts(patch)
        return verify(output)


def _records(files: Mapping[str, bytes]) -> Counter[tuple[str, str]]:
    """How often each row and task is in the published files."""
    found: Counter[tuple[str, str]] = Counter()
    for key, body in files.items():
        if key.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(body), columns=["id", "task"])
            found.update(zip(*table.to_pydict().values(), strict=True))
    return found


def _first_difference(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> str:
    """Columns of the first record that is different in published files of the same names, with both values."""
    for key in sorted(found.keys() | expected.keys()):
        bodies = (found.get(key, b""), expected.get(key, b""))
        if bodies[0] == bodies[1] or not all(bodies) or not key.endswith(".parquet"):
            continue
        rows, others = (pq.read_table(io.BytesIO(body)).to_pylist() for body in bodies)
        for row, other in zip(rows, others, strict=False):
            if row != other:
                return f"{key}: {[(name, row[name], other[name]) for name in row if row[name] != other[name]]}"
    return "is none"
