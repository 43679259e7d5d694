"""A run's shards as a Ray Data dataset: a bounded number of blocks, each with ranges of shards.

A stage process yields a marker for each shard of its block, in order, one output block each. Ray repeats the whole
block if the process is lost, and leaves out as many outputs as it had received, so the order must not change.

A process whose node is drained finishes the shards that it has begun and gives back the others: its outputs end early.
What is missing at the end of a dataset is annotated by another one, whose processes start on other nodes.
"""

import contextlib
import logging
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from paliscribe.batch.progress import Doing, Progress
from paliscribe.batch.session import repeating
from paliscribe.batch.stage import Plan, Stage
from paliscribe.batch.stage_notes import Notes, StageNotes
from paliscribe.pool.address import PoolAddress
from paliscribe.pool.client import PoolClient
from paliscribe.pool.deploy import wait_until_ready
from paliscribe.pool.draining import Draining, drain_at_notice
from paliscribe.pool.ray_cluster import translating
from paliscribe.results import Marker
from paliscribe.storage.retry import waiting

# A node was lost, or cannot be reached. Ray repeats the blocks of its processes, but not in every moment of that.
LOST = (ray.exceptions.ActorUnavailableError, ray.exceptions.ObjectLostError)
MOST_LOSSES = 3  # datasets in a row that end so without a commit

log = logging.getLogger(__name__)


def annotate_shards(
    plan: Plan,
    pool: PoolAddress,
    shards: npt.NDArray[np.int64],
    *,
    cpus: float,
    workers: int,
    progress: Progress,
    stage: type | None = None,
) -> Generator[Marker]:
    """Annotate shards on at most `workers` stage processes of `cpus` each; yields their markers as they are committed.

    Updates what `progress` says of open shards. `stage`: instead of `StageActor`, for measurements. Raises
    TemporaryError if processes keep failing.
    """
    notes, losses = StageNotes(), 0
    with _tracking(notes, progress), translating():
        while len(shards):
            is_done = np.zeros(len(shards), np.bool_)
            reason = "were given back by nodes that are drained"
            try:
                for marker in _round(plan, pool, shards, cpus, workers, notes.name, stage or StageActor):
                    is_done[np.searchsorted(shards, marker.shard)] = True
                    yield marker
            except LOST as error:
                losses = 1 if is_done.any() else losses + 1
                if losses >= MOST_LOSSES:
                    raise
                reason = f"were lost with a node ({type(error).__name__})"
            shards = shards[~is_done]
            if len(shards):
                log.warning("%d shards %s; others begin them", len(shards), reason)


def _round(
    plan: Plan, pool: PoolAddress, shards: npt.NDArray[np.int64], cpus: float, workers: int, notes: str, stage: type
) -> Iterator[Marker]:
    """The markers of shards as they are committed, by one dataset; not of those that are given back."""
    blocks = ray.data.from_blocks([as_block(part) for part in divide(shards, workers)])
    markers = blocks.map_batches(
        stage,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        fn_constructor_args=(plan, pool, notes),
        num_cpus=cpus,
        max_restarts=3,
        max_task_retries=3,
    )
    markers.context.target_max_block_size = 1  # bytes: every marker is an output block, sent at once
    markers.context._max_num_blocks_in_streaming_gen_buffer = 256
    for batch in markers.iter_batches(batch_size=None, prefetch_batches=0):
        yield from map(Marker.from_json, batch["marker"])


def divide(shards: npt.NDArray[np.int64], workers: int) -> Iterator[npt.NDArray[np.int64]]:
    """Split shards between processes: large parts first, single ones last, so that all processes end together.

    Guided self-scheduling (Polychronopoulos and Kuck, 1987): each part is what is left over twice the processes. The
    number of parts grows with the logarithm of the number of shards. One process gets all in one part.
    """
    start = 0
    while start < len(shards):
        left = len(shards) - start
        size = left if workers == 1 else -(-left // (2 * workers))
        yield shards[start : start + size]
        start += size


def as_block(shards: npt.NDArray[np.int64]) -> pa.Table:
    """Ascending shard numbers as ranges: `first` and `last`, inclusive."""
    ends = np.flatnonzero(np.diff(shards) != 1)
    return pa.table({"first": shards[np.append(0, ends + 1)], "last": shards[np.append(ends, -1)]})


def shards_of(block: pa.Table) -> Iterator[int]:
    """The inverse of `as_block`."""
    for first, last in zip(*block.select(["first", "last"]).to_pydict().values(), strict=True):
        yield from range(first, last + 1)


class StageActor:
    """A stage process as a Ray Data actor. It may be up before the pool is: its first block waits."""

    def __init__(self, plan: Plan, pool: PoolAddress, notes: str) -> None:
        self._stage, self._pool = Stage(plan, PoolClient(pool)), pool
        self._notes = Notes(notes, self._doing)
        self._draining = Draining()
        drain_at_notice()

    def __call__(self, block: pa.Table) -> Iterator[dict[str, Any]]:
        """Yield the marker of each shard of a block, an output block each; not of those that are given back."""
        wait_until_ready(self._pool)
        for marker in self._stage.annotate(shards_of(block), self._notes.note, self._draining):
            yield {"marker": np.array([marker.as_json().decode()], dtype=object)}

    def _doing(self) -> Doing:
        return replace(self._stage.doing, retries=waiting())


@contextlib.contextmanager
def _tracking(notes: StageNotes, progress: Progress) -> Iterator[None]:
    """Update what `progress` says of open shards periodically."""

    def look() -> None:
        progress.rows_open, progress.stages_wait, progress.stage_doing = notes.read(progress.annotating_since)

    with repeating(look):
        yield
    progress.rows_open, progress.stages_wait, progress.stage_doing = 0, "", None
