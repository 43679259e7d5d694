"""One generation of a run: the whole manifest (0), or the dead letters of the previous one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paliscribe import manifest, results
from paliscribe.batch.progress import Progress
from paliscribe.config import ImagesConfig, JobConfig, ModelSpec
from paliscribe.errors import UsageError
from paliscribe.grammar.tasks import Task
from paliscribe.manifest import FrozenManifest
from paliscribe.pool.address import PoolAddress
from paliscribe.results import Layout
from paliscribe.results.run_file import RunFile
from paliscribe.storage import Store
from paliscribe.storage.parallel import in_order


@dataclass(slots=True)
class Run:
    """One generation of a run: its inputs, state and output."""

    job: JobConfig
    store: Store
    frozen: FrozenManifest
    file: RunFile
    tasks: list[Task]
    generation: int
    progress: Progress
    guard: ImagesConfig | None = None
    pool: PoolAddress | None = None

    @property
    def layout(self) -> Layout:
        """How shards fall into parts."""
        return Layout(
            self.frozen.shards, self.frozen.shard_rows, self.frozen.rows, self.job.tasks, self.job.partition_by
        )

    def wanted(self, published: set[int]) -> npt.NDArray[np.bool_]:
        """[shards]: whether this generation must annotate each shard, if these parts are published."""
        found = np.zeros(self.frozen.shards, np.bool_)
        unpublished = [part for part in range(self.layout.parts) if part not in published]
        if self.generation == 0:
            for part in unpublished:
                shards = self.layout.shards_of(part)
                found[shards.start : shards.stop] = True
            return found
        for before in in_order(lambda part: results.read_part(self.store, part, self.generation - 1), unpublished):
            if before is not None:
                found[before.shards_with_errors] = True
        return found


def in_settled_precision(spec: ModelSpec, file: RunFile | None) -> ModelSpec:
    """The job's model in the precision that the run has recorded, if any."""
    if file is None or spec.precision != "auto":
        return spec
    return spec.model_copy(update={"precision": file.model.precision})


def begin_retry(store: Store, frozen: FrozenManifest, job: JobConfig, generation: int, progress: Progress) -> None:
    """Record the rows to retry: the dead letters' rows, re-read from the manifest, or as frozen if that fails."""
    failed: dict[str, int] = {}
    shards = (shard for part in results.read_parts(store, generation - 1) for shard in part.shards_with_errors)
    for records in in_order(lambda shard: results.read_failed(store, shard, generation - 1), shards):
        failed |= {record["id"]: record["row"] for record in records}
    try:
        updated = manifest.read_updated(frozen, failed, **job.columns)
    except UsageError as error:
        progress.stage, updated = f"retrying the rows as frozen: {error}", []
    results.begin_retry(store, generation, updated, frozen.shard_rows)


def finished_summary(store: Store) -> dict[str, Any] | None:
    """The summary of a run with nothing left to do, or None. Raises UsageError if a retry was interrupted."""
    summary = results.read_summary(store)
    if summary is None:
        return None
    if results.retry_begun(store, summary["retries"] + 1):
        raise UsageError(f"{store.uri}: a retry was interrupted here; resume it with `paliscribe retry {store.uri}`")
    store.put(results.SUCCESS, b"")
    return summary | {"shards_annotated": 0}
