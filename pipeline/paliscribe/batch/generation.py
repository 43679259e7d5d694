"""One generation of a run: the whole manifest (0), or the dead letters of the previous one."""

from dataclasses import dataclass
from typing import Any

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

    def shards(self, part: int) -> list[int]:
        """The shards of a part that this generation must annotate."""
        if self.generation == 0:
            return list(self.layout.shards_of(part))
        before = results.read_part(self.store, part, self.generation - 1)
        return before.shards_with_errors if before else []


def in_settled_precision(spec: ModelSpec, file: RunFile | None) -> ModelSpec:
    """The job's model in the precision that the run has recorded, if any."""
    if file is None or spec.precision != "auto":
        return spec
    return spec.model_copy(update={"precision": file.model.precision})


def begin_retry(store: Store, frozen: FrozenManifest, job: JobConfig, generation: int, progress: Progress) -> None:
    """Record the rows to retry: the dead letters' rows, re-read from the manifest, or as frozen if that fails."""
    failed: dict[str, int] = {}
    for part in sorted(results.published(store, generation - 1)):
        marker = results.read_part(store, part, generation - 1)
        for shard in marker.shards_with_errors if marker else []:
            failed |= {record["id"]: record["row"] for record in results.read_failed(store, shard, generation - 1)}
    names = {"image_column": job.image_column, "id_column": job.id_column}
    try:
        updated = manifest.read_updated(frozen, failed, **names)
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
