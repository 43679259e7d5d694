"""Rows annotated in shards that are not committed yet: noted by stage processes, read by the driver.

They meet at a named actor, which the driver starts only if the run lasts: it takes a process of its own. This module
imports little, since that process needs nothing else.
"""

import contextlib
import time
import uuid
from typing import Any

import ray

WORTHWHILE = 10.0  # seconds of annotating after which the actor is started
PAUSE = 2.0  # seconds between two attempts to find it


@ray.remote
class _OpenRows:
    """Rows annotated so far, by shard."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}

    def note(self, shard: int, rows: int | None) -> None:
        if rows is None:
            self._rows.pop(shard, None)
        else:
            self._rows[shard] = rows

    def total(self) -> int:
        return sum(self._rows.values())


class OpenRows:
    """The driver's end."""

    def __init__(self) -> None:
        self.name = f"open-rows-{uuid.uuid4().hex[:12]}"
        self._actor: Any = None

    def total(self, annotating_since: float | None) -> int:
        """Rows in open shards; 0 while the run is young. `annotating_since`: `time.monotonic()` of its begin."""
        if annotating_since is None or time.monotonic() - annotating_since < WORTHWHILE:
            return 0
        if self._actor is None:
            self._actor = _OpenRows.options(num_cpus=0, name=self.name).remote()  # type: ignore[attr-defined]
        with contextlib.suppress(ray.exceptions.RayError):
            return int(ray.get(self._actor.total.remote(), timeout=10))
        return 0


class OpenRowsNotes:
    """A stage process's end."""

    def __init__(self, name: str) -> None:
        self._name, self._actor, self._next_try = name, None, 0.0

    def note(self, shard: int, rows: int | None) -> None:
        """Note the rows of a shard that are annotated, or None once it is committed."""
        if self._actor is None and time.monotonic() >= self._next_try:
            self._next_try = time.monotonic() + PAUSE
            with contextlib.suppress(ValueError):  # not started
                self._actor = ray.get_actor(self._name)
        if self._actor is not None:
            self._actor.note.remote(shard, rows)
