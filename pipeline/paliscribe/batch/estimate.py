"""Estimates of a whole run from a sample of its rows: start, steady rate, and the range of both.

A run takes a fixed time and one that grows with its rows. The fixed one is measured as it is: from the begin of the
command to the first committed rows, and from the last ones to the end. The rate is that of the rows committed between
these, so that neither an empty pipeline nor the first steps of a new process count. If the sample was over too soon to
tell, it is that of more rows on the same pool. Its range is a bootstrap of the times between commits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from paliscribe.batch.progress import Timeline

Floats = npt.NDArray[np.float64]
ROUNDS, SEED = 2000, 0  # of the bootstrap
COVERED: Final = (5.0, 95.0)  # percentiles
LEAST: Final = 0.1  # share of the steady time by which the range is wider at least: a short sample sees no slow hour
ROUGH: Final = 0.5  # of the rate, by which it may differ if there were too few commits to tell
FEW: Final = 3  # steps between commits, below which nothing is drawn
BURST: Final = 0.02  # share of the time: commits that are nearer to each other are one
ENOUGH: Final = 10.0  # seconds of steady work that tell the rate; half of it is accepted
MOST: Final = 64  # times the rows of the sample that a second one has at most
FULL: Final = 2  # times that the sample fills all slots, so that its rate is a pool's


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run takes. Seconds, each with its range.

    `startup`: until the first rows are committed, and what comes after the last ones. `rate`: rows a second between
    them. `is_rough`: the sample was too small for a pool of this size, so the run is probably faster.
    """

    startup: float
    rate: float
    steady: tuple[float, float, float]  # estimate, low, high
    is_rough: bool

    @property
    def total(self) -> tuple[float, float, float]:
        """Seconds of the whole run: estimate, low, high."""
        estimate, low, high = self.steady
        return self.startup + estimate, self.startup + low, self.startup + high


def rows_to_pace(timeline: Timeline, ready: float, whole: int) -> int:
    """Rows of a second sample that tells the rate, if the first was over too soon; else 0. `whole`: of the manifest."""
    rows, seconds = sum(count for _, count in timeline.commits), timeline.commits[-1][0] - ready
    wanted = min(whole, MOST * rows, math.ceil(rows / max(seconds, 1e-6) * ENOUGH))
    return wanted if seconds < ENOUGH / 2 and wanted > rows else 0


def estimate(
    timeline: Timeline,
    *,
    begun: float,
    ready: float,
    ended: float,
    rows: int,
    tasks: int,
    pace: tuple[float, Timeline] | None = None,
) -> Estimate:
    """Estimate a run of `rows` rows from the timeline of a sample, of which at least one shard was committed.

    `begun`, `ready`, `ended`: `time.monotonic()` when the sample's run began, its pool was ready, and it ended.
    `tasks`: requests of a row. `pace`: the begin and the timeline of a second sample, which tells the rate.
    """
    times, counts = _bursts(timeline.commits, ready)
    fixed = ended - times[-1]
    startup, left = (times[0] - begun, rows - counts[0]) if len(times) > 1 or pace else (ready - begun, rows)
    if pace is not None:
        ready, timeline = pace
        times, counts = _bursts(timeline.commits, ready)
    steps, sizes = (np.diff(times), counts[1:]) if len(times) > 1 else (times - ready, counts)
    steps = np.maximum(steps, 1e-6)
    rate = float(sizes.sum() / steps.sum())
    slow, fast = _rates(steps, sizes)
    seconds = max(0.0, float(left)) / rate
    low, high = min(seconds * rate / fast, seconds * (1 - LEAST)), max(seconds * rate / slow, seconds * (1 + LEAST))
    is_rough = len(steps) < FEW or bool(counts.sum() * tasks < FULL * timeline.slots)
    return Estimate(float(startup + fixed), rate, (seconds, low, high), is_rough)


def _bursts(commits: Sequence[tuple[float, int]], ready: float) -> tuple[Floats, Floats]:
    """Times and rows of commits, of which those that are near to each other are one: a call ends several shards."""
    ordered = sorted(commits)
    gap = BURST * (ordered[-1][0] - ready)
    times: list[float] = []
    rows: list[float] = []
    for time, count in ordered:
        if times and time - times[-1] <= gap:
            times[-1], rows[-1] = time, rows[-1] + count
        else:
            times.append(time)
            rows.append(count)
    return np.array(times), np.array(rows)


def _rates(steps: Floats, sizes: Floats) -> tuple[float, float]:
    """Low and high rate: percentiles of the rates of steps that are drawn again and again, with replacement."""
    if len(steps) < FEW:
        rate = float(sizes.sum() / steps.sum())
        return rate * (1 - ROUGH), rate * (1 + ROUGH)
    drawn = np.random.default_rng(SEED).integers(0, len(steps), (ROUNDS, len(steps)))
    low, high = np.percentile(sizes[drawn].sum(1) / steps[drawn].sum(1), COVERED)
    return float(low), float(high)
