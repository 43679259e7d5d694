"""One generation of a run: the whole manifest (0), or the dead letters of the previous one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paliscribe import results
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
        return self.frozen.layout(self.job.tasks, self.job.partition_by)

    @property
    def newest_generation(self) -> int:
        """The run's newest generation: this one; of an append, that of the last retry before it."""
        return max([self.generation, *(added.retries for added in self.frozen.additions)])

    def wanted(self, published: set[int]) -> npt.NDArray[np.bool_]:
        """[shards]: whether this generation must annotate each shard, if these parts are published."""
        found = np.zeros(self.frozen.shards, np.bool_)
        unpublished = [part for part in range(self.layout.parts_in(self.generation)) if part not in published]
        if self.generation == 0:
            for part in unpublished:
                shards = self.layout.shards_of(part)
                found[shards.start : shards.stop] = True
            return found
        for failed in with_errors(self.store, self.layout, unpublished, self.generation):
            found[failed] = True
        return found


def in_settled_precision(spec: ModelSpec, file: RunFile | None) -> ModelSpec:
    """The job's model in the precision that the run has recorded, if any."""
    if file is None or spec.precision != "auto":
        return spec
    return spec.model_copy(update={"precision": file.model.precision})


def with_errors(store: Store, layout: Layout, parts: Iterable[int], generation: int) -> Iterator[list[int]]:
    """The shards of parts that a retry annotates: those with dead letters, part by part."""
    for before in in_order(
        lambda part: results.read_part(store, part, layout.retried_generation(part, generation)), parts
    ):
        if before is not None:
            yield before.shards_with_errors


def finished_summary(store: Store, frozen: FrozenManifest) -> dict[str, Any] | None:
    """The summary of a run with nothing left to do, or None. Raises UsageError if a retry or append was interrupted."""
    summary = results.read_summary(store)
    if summary is None:
        return None
    refuse_interrupted_retry(store, summary)
    refuse_interrupted_append(store, frozen, summary)
    store.put(results.SUCCESS, b"")
    return summary | {"shards_annotated": 0}


def refuse_interrupted_retry(store: Store, summary: dict[str, Any]) -> None:
    """Raise UsageError if a retry was interrupted."""
    if results.retry_begun(store, summary["retries"] + 1):
        raise UsageError(f"{store.uri}: a retry was interrupted here; resume it with `paliscribe retry {store.uri}`")


def refuse_interrupted_append(store: Store, frozen: FrozenManifest, summary: dict[str, Any]) -> None:
    """Raise UsageError if an append was interrupted."""
    if is_appending(frozen, summary):
        raise UsageError(
            f"{store.uri}: an append was interrupted here; resume it with the command that began it, "
            "`paliscribe annotate ... --append`"
        )


def is_appending(frozen: FrozenManifest, summary: dict[str, Any]) -> bool:
    """Whether an append has begun whose rows are not in the summary yet."""
    return bool(frozen.rows > summary["rows"])
