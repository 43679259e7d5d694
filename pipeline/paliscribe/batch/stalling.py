"""Runs that stall: what a run without progress waits for, and its end after `stall_timeout`.

Progress is a shard that is committed, a part that is published, a row that is answered in an open shard, a replica that
becomes ready or an engine that works. So a long shard is not taken for a stall, whatever its size.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from paliscribe.batch.progress import Progress
from paliscribe.batch.session import repeating
from paliscribe.pool.address import PoolAddress
from paliscribe.pool.client import PoolClient
from paliscribe.pool.placement import Resources
from paliscribe.pool.shortage import free, shortage

TOLD_AFTER = 60.0  # seconds without progress after which a run says what it waits for
LOOK_EVERY = 10.0  # seconds between two looks at the cluster
ANSWER = 30.0  # seconds for such a look
NO_ANSWER = "the Ray cluster does not answer"
MOST = 500  # characters of what is said

log = logging.getLogger(__name__)


class Stall:
    """The time since the last progress, and what is waited for.

    `reason`: what is waited for, in words. `pulse`: a number that changes while engines work, or None. Both are called
    from a thread of their own, since they may hang with the cluster.
    """

    def __init__(
        self,
        progress: Progress,
        timeout: float | None,
        reason: Callable[[], str],
        pulse: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._progress, self._timeout, self._reason, self._pulse = progress, timeout, reason, pulse
        self._told_after = min(TOLD_AFTER, (timeout or 2 * TOLD_AFTER) / 2)
        self._mark, self._since = progress.mark, time.monotonic()
        self._beat: float | None = None
        self._words = ""
        self._looked, self._thread = 0.0, threading.Thread()

    def look(self) -> None:
        """Say what is waited for if there has been no progress for long, and end the run if for too long."""
        now, progress = time.monotonic(), self._progress
        if progress.mark != self._mark:
            self._mark, self._since, self._words, progress.stalled = progress.mark, now, "", ""
        seconds = now - self._since
        if seconds < self._told_after:
            return
        if not self._thread.is_alive() and now - self._looked >= min(LOOK_EVERY, self._told_after / 2):
            self._looked, self._thread = now, threading.Thread(target=self._inspect, name="stall", daemon=True)
            self._thread.start()
        is_over = self._timeout is not None and seconds > self._timeout
        if is_over or now - self._looked > ANSWER:
            self._words = self._words or NO_ANSWER
        if self._words:
            if not progress.stalled:
                log.warning("no progress for %s: %s", _duration(seconds), self._words)
            progress.stalled = f"no progress for {_duration(seconds)}: {self._words}"
        if is_over:
            progress.end(f"{progress.stalled}; ended by stall_timeout, run the same command again to resume")

    def _inspect(self) -> None:
        beat = self._pulse()
        if beat is not None and beat != self._beat:
            is_first, self._beat = self._beat is None, beat
            if not is_first:
                self._mark = ()  # an engine has worked since the last look: this counts as progress
                return
        self._words = self._reason()[:MOST]


@contextlib.contextmanager
def watching(
    progress: Progress, timeout: float | None, pool: PoolAddress, model: str, wanted: Resources, cpus: float
) -> Iterator[None]:
    """Look for a stall every moment, from a thread. `wanted`: resources of a replica. `cpus`: of a stage process."""

    def reason() -> str:
        try:
            return "; ".join(words for words in _waits(progress, pool, model, wanted, cpus) if words)
        except Exception as error:  # Serve does not answer: the exception types are private to Ray
            log.debug("looking for what a run waits for: %r", error)
            return NO_ANSWER

    with repeating(Stall(progress, timeout, reason, PoolClient(pool).pulse).look):
        yield
    progress.stalled = ""


def _waits(progress: Progress, pool: PoolAddress, model: str, wanted: Resources, cpus: float) -> Iterator[str]:
    """What a run waits for, the most telling first."""
    yield progress.waiting
    yield (lack := shortage(pool, model, wanted))
    yield progress.stages_wait
    if progress.publishing:
        yield f"{progress.publishing} parts are being published"
    elif progress.stage_doing:
        yield progress.stage_doing
    elif progress.stage_doing == "":
        yield f"no stage process has a shard: {free({'CPU': cpus})}"
    elif not lack:
        yield "nothing is known of the stage processes"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
