"""Progress of a run, in numbers."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Timeline:
    """What a run's speed is estimated from. `commits`: `time.monotonic()` and rows of each committed shard.

    `slots`: of all replicas. `gpus`: of all replicas, in Ray's units. `cores`: of the cluster.
    """

    commits: list[tuple[float, int]] = field(default_factory=list)
    replicas: int = 1
    slots: int = 0
    gpus: float = 0.0
    cores: float = 1.0


@dataclass(frozen=True, slots=True)
class Doing:
    """What a stage process is doing. `retries`: the store that it waits for, in words, if for long."""

    shard: int | None = None  # the first one that is open
    words: str = ""
    retries: str = ""


@dataclass(slots=True)
class Progress:
    """Progress of one process's work on a run; earlier processes' rows are counted separately."""

    stage: str = "checking"  # short text for display
    waiting: str = ""  # what this process waits for, if for long
    stages_wait: str = ""  # the store that stage processes wait for, if for long
    stage_doing: str | None = None  # what the slowest stage process is doing; empty: all are idle, None: not known
    stalled: str = ""  # what the run waits for, if there has been no progress for long
    notes: list[str] = field(default_factory=list)  # lines for the user, each to be shown once
    on_note: Callable[[], None] = lambda: None  # called after each
    end: Callable[[str], object] = lambda words: None  # ends the run, with this error, from any thread
    rows: int = 0  # of the whole run
    rows_before: int = 0  # committed before this process began
    rows_committed: int = 0  # in shards committed by this process
    rows_open: int = 0  # annotated in shards not committed yet
    requests: int = 0  # in committed shards
    publishing: int = 0  # parts that are being published
    statuses: Counter[str] = field(default_factory=Counter)
    error_kinds: Counter[str] = field(default_factory=Counter)
    annotating_since: float | None = None  # time.monotonic() when the pool was ready
    timeline: Timeline | None = None  # kept if it is given

    @property
    def mark(self) -> tuple[object, ...]:
        """Changes with each step forward."""
        return self.rows_committed, self.rows_open, self.requests, self.publishing, self.annotating_since is None

    def note(self, words: str) -> None:
        """Add a line for the user, and show it at once: while Ray starts, what is written to stderr is lost."""
        if words not in self.notes:
            self.notes.append(words)
            self.on_note()

    def tell(self, stage: str) -> None:
        """Set the stage, and show it at once."""
        self.stage = stage
        self.on_note()

    def committed(self, rows: int, requests: int, statuses: Mapping[str, int], error_kinds: Mapping[str, int]) -> None:
        """Add a committed shard."""
        if self.annotating_since is None:
            self.stage, self.annotating_since = "annotating", time.monotonic()
        if self.timeline is not None:
            self.timeline.commits.append((time.monotonic(), rows))
        self.rows_committed += rows
        self.rows_open = max(0, self.rows_open - rows)
        self.requests += requests
        self.statuses.update(statuses)
        self.error_kinds.update(error_kinds)

    def set_rows(self, rows: int) -> None:
        """Set the rows of the run, while they are counted."""
        self.rows = rows

    @property
    def rows_done(self) -> int:
        """Rows annotated by this process."""
        return self.rows_committed + self.rows_open

    @property
    def images_per_second(self) -> float | None:
        """Throughput since the pool was ready; None before the first row."""
        if self.annotating_since is None or not self.rows_done:
            return None
        return self.rows_done / max(time.monotonic() - self.annotating_since, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the end, in seconds; None while unknown."""
        rate = self.images_per_second
        return None if rate is None else max(0, self.rows - self.rows_before - self.rows_done) / rate


Report = Callable[[Progress], None]
