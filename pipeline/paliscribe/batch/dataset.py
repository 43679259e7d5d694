"""A run's shards as a Ray Data dataset: one block per shard, from shard number to committed marker."""

import contextlib
import functools
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from paliscribe.batch.progress import Progress
from paliscribe.batch.session import repeating
from paliscribe.batch.stage import Plan, Stage
from paliscribe.pool.client import PoolClient
from paliscribe.pool.deploy import PoolAddress
from paliscribe.pool.ray_cluster import translating
from paliscribe.results import Marker


def annotate_shards(
    plan: Plan, pool: PoolAddress, shards: Sequence[int], *, cpus: float, workers: int, progress: Progress
) -> Generator[Marker]:
    """Annotate shards on at most `workers` stage processes of `cpus` each; yields their markers as they are committed.

    Updates `progress.rows_open` meanwhile. Raises TemporaryError if a process keeps failing.
    """
    board = _OpenRows.options(num_cpus=0).remote()  # type: ignore[attr-defined]
    blocks = ray.data.from_blocks([pa.table({"shard": [shard]}) for shard in shards]).map_batches(
        _StageActor,
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        fn_constructor_args=(plan, pool, board),
        num_cpus=cpus,
        max_restarts=3,
        max_task_retries=3,
    )
    with _tracking(board, progress), translating():
        for batch in blocks.iter_batches(batch_size=None, prefetch_batches=0):
            yield from map(Marker.from_json, batch["marker"])


@ray.remote
class _OpenRows:
    """Rows annotated in shards that are not committed yet, reported by the stage processes."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}

    def note(self, shard: int, rows: int | None) -> None:
        if rows is None:
            self._rows.pop(shard, None)
        else:
            self._rows[shard] = rows

    def total(self) -> int:
        return sum(self._rows.values())


class _StageActor:
    """A stage process as a Ray Data actor."""

    def __init__(self, plan: Plan, pool: PoolAddress, board: Any) -> None:
        self._stage, self._board = Stage(plan, PoolClient(pool)), board

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        markers = []
        for shard in map(int, batch["shard"]):
            marker = self._stage.annotate_shard(shard, functools.partial(self._board.note.remote, shard))
            self._board.note.remote(shard, None)
            markers.append(marker.as_json().decode())
        return {"marker": np.array(markers, dtype=object)}


@contextlib.contextmanager
def _tracking(board: Any, progress: Progress) -> Iterator[None]:
    """Update `progress.rows_open` periodically."""

    def look() -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            progress.rows_open = ray.get(board.total.remote(), timeout=10)

    with repeating(look):
        yield
    progress.rows_open = 0
