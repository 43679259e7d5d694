"""What stage processes tell the driver between two commits: rows annotated in open shards, and what they are doing.

They meet at a named actor, which the driver starts only if the run lasts: it takes a process of its own. This module
imports little, since that process needs nothing else.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from paliscribe.batch.progress import Doing

WORTHWHILE = 10.0  # seconds of annotating after which the actor is started
PAUSE = 2.0  # seconds between two attempts to find it, and between two reports of a process
SILENT = 30.0  # seconds without a report after which a process is stopped, lost or cut off


@dataclass(slots=True)
class _Report:
    process: str
    doing: Doing
    since: float  # time.monotonic() when it began to do this
    heard: float  # of the last report


@ray.remote
class _Notes:
    """Rows annotated so far, by shard; the last report of each stage process."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._reports: dict[str, _Report] = {}

    def note(self, shard: int, rows: int | None) -> None:
        if rows is None:
            self._rows.pop(shard, None)
        else:
            self._rows[shard] = rows

    def report(self, process: str, doing: Doing) -> None:
        for other in [name for name, found in self._reports.items() if name != process]:
            if doing.shard is not None and self._reports[other].doing.shard == doing.shard:
                del self._reports[other]  # it was lost, and its shard is done again
        now, last = time.monotonic(), self._reports.get(process)
        same = last is not None and (last.doing.shard, last.doing.words) == (doing.shard, doing.words)
        self._reports[process] = _Report(process, doing, last.since if same and last is not None else now, now)

    def read(self) -> tuple[int, list[str], str]:
        now = time.monotonic()
        heard = [report for report in self._reports.values() if now - report.heard < SILENT]
        retries = [report.doing.retries for report in heard if report.doing.retries and now - report.heard < 3 * PAUSE]
        return sum(self._rows.values()), retries, _longest(list(self._reports.values()), now)


def _longest(reports: list[_Report], now: float) -> str:
    """The process that has been silent, or has been doing one thing, for longest, in words; empty if all are idle."""
    busy = [report for report in reports if report.doing.words]
    if not busy:
        return ""
    silent = [report for report in busy if now - report.heard >= SILENT]
    if silent:
        first = min(silent, key=lambda report: report.heard)
        return (
            f"{first.process} has said nothing for {now - first.heard:.0f} s (stopped, lost or cut off); it was at: "
            f"{first.doing.words}"
        )
    first = min(busy, key=lambda report: report.since)
    return f"{first.process} has been at this for {now - first.since:.0f} s: {first.doing.words}"


class StageNotes:
    """The driver's end."""

    def __init__(self) -> None:
        self.name = f"stage-notes-{uuid.uuid4().hex[:12]}"
        self._actor: Any = None

    def read(self, annotating_since: float | None) -> tuple[int, str, str | None]:
        """Rows in open shards, the store that stage processes wait for, and what the slowest one is doing, in words.

        Nothing while the run is young. The last is empty if no process has anything to do, None if that is not known.
        `annotating_since`: `time.monotonic()` of its begin.
        """
        if annotating_since is None or time.monotonic() - annotating_since < WORTHWHILE:
            return 0, "", None
        if self._actor is None:
            self._actor = _Notes.options(num_cpus=0, name=self.name).remote()  # type: ignore[attr-defined]
        with contextlib.suppress(ray.exceptions.RayError):
            rows, waits, doing = ray.get(self._actor.read.remote(), timeout=10)
            more = f" (and {len(waits) - 1} stage processes more)" if len(waits) > 1 else ""
            return rows, waits[0] + more if waits else "", doing
        return 0, "", None


class Notes:
    """A stage process's end. `doing`: says what the process is doing; asked every `PAUSE` seconds."""

    def __init__(self, name: str, doing: Callable[[], Doing]) -> None:
        self._name, self._doing, self._actor, self._next_try = name, doing, None, 0.0
        self._process = f"stage process {os.getpid()} on {socket.gethostname()}"
        threading.Thread(target=self._tell, daemon=True).start()

    def note(self, shard: int, rows: int | None) -> None:
        """Note the rows of a shard that are annotated, or None once it is committed."""
        if (actor := self._found()) is not None:
            actor.note.remote(shard, rows)

    def _tell(self) -> None:
        while True:
            time.sleep(PAUSE)
            if (actor := self._found()) is not None:
                actor.report.remote(self._process, self._doing())

    def _found(self) -> Any:
        if self._actor is None and time.monotonic() >= self._next_try:
            self._next_try = time.monotonic() + PAUSE
            with contextlib.suppress(ValueError):  # not started
                self._actor = ray.get_actor(self._name)
        return self._actor
