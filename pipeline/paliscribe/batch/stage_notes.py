"""What stage processes tell the driver between two commits: rows annotated in open shards, and what they wait for.

They meet at a named actor, which the driver starts only if the run lasts: it takes a process of its own. This module
imports little, since that process needs nothing else.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import ray

WORTHWHILE = 10.0  # seconds of annotating after which the actor is started
PAUSE = 2.0  # seconds between two attempts to find it, and between two looks at what a process waits for


@ray.remote
class _Notes:
    """Rows annotated so far, by shard; what is waited for, by stage process."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._waits: dict[str, tuple[float, str]] = {}

    def note(self, shard: int, rows: int | None) -> None:
        if rows is None:
            self._rows.pop(shard, None)
        else:
            self._rows[shard] = rows

    def wait(self, process: str, words: str) -> None:
        self._waits[process] = time.monotonic(), words

    def read(self) -> tuple[int, list[str]]:
        fresh = time.monotonic() - 3 * PAUSE  # a process may have died
        return sum(self._rows.values()), [words for said, words in self._waits.values() if words and said > fresh]


class StageNotes:
    """The driver's end."""

    def __init__(self) -> None:
        self.name = f"stage-notes-{uuid.uuid4().hex[:12]}"
        self._actor: Any = None

    def read(self, annotating_since: float | None) -> tuple[int, str]:
        """Rows in open shards, and what stage processes wait for, in words; nothing while the run is young.

        `annotating_since`: `time.monotonic()` of its begin.
        """
        if annotating_since is None or time.monotonic() - annotating_since < WORTHWHILE:
            return 0, ""
        if self._actor is None:
            self._actor = _Notes.options(num_cpus=0, name=self.name).remote()  # type: ignore[attr-defined]
        with contextlib.suppress(ray.exceptions.RayError):
            rows, waits = ray.get(self._actor.read.remote(), timeout=10)
            more = f" (and {len(waits) - 1} stage processes more)" if len(waits) > 1 else ""
            return rows, waits[0] + more if waits else ""
        return 0, ""


class Notes:
    """A stage process's end. `waiting`: says what the process waits for, or nothing; asked every `PAUSE` seconds."""

    def __init__(self, name: str, waiting: Callable[[], str]) -> None:
        self._name, self._waiting, self._actor, self._next_try = name, waiting, None, 0.0
        self._process = uuid.uuid4().hex
        threading.Thread(target=self._tell, daemon=True).start()

    def note(self, shard: int, rows: int | None) -> None:
        """Note the rows of a shard that are annotated, or None once it is committed."""
        if (actor := self._found()) is not None:
            actor.note.remote(shard, rows)

    def _tell(self) -> None:
        said = ""
        while True:
            time.sleep(PAUSE)
            words = self._waiting()
            if (words or said) and (actor := self._found()) is not None:
                actor.wait.remote(self._process, words)
                said = words

    def _found(self) -> Any:
        if self._actor is None and time.monotonic() >= self._next_try:
            self._next_try = time.monotonic() + PAUSE
            with contextlib.suppress(ValueError):  # not started
                self._actor = ray.get_actor(self._name)
        return self._actor
