"""The begin of a retry: which rows it annotates, as they are in the manifests now."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from paliscribe import manifest, results
from paliscribe.batch.generation import with_errors
from paliscribe.batch.progress import Progress
from paliscribe.config import JobConfig
from paliscribe.errors import UsageError
from paliscribe.manifest import FrozenManifest
from paliscribe.records import ManifestRow
from paliscribe.storage import Store
from paliscribe.storage.parallel import in_order


def begin_retry(store: Store, frozen: FrozenManifest, job: JobConfig, generation: int, progress: Progress) -> None:
    """Record the rows to retry: the dead letters' rows, re-read from the manifests, or as frozen if that fails."""
    results.begin_retry(store, generation, _read_again(store, frozen, job, generation, progress), frozen.shard_of)


def _read_again(
    store: Store, frozen: FrozenManifest, job: JobConfig, generation: int, progress: Progress
) -> Iterator[ManifestRow]:
    """The rows of the dead letters that a retry annotates, as they are in the manifests now, in order."""

    def unreadable(error: UsageError) -> None:
        progress.stage = f"retrying the rows as frozen: {error}"

    def read_failed(shard: int) -> list[dict[str, Any]]:
        return results.read_failed(store, shard, frozen.retried_generation(shard, generation))

    layout = frozen.layout(job.tasks, job.partition_by)
    with tempfile.TemporaryDirectory(prefix="paliscribe-") as folder:
        failed = manifest.KnownIds(Path(folder))
        shards = itertools.chain.from_iterable(with_errors(store, layout, range(layout.parts), generation))
        for records in in_order(read_failed, shards):
            ids = pa.array([record["id"] for record in records], pa.string())
            failed.add(manifest.hashed(ids), np.array([record["row"] for record in records], np.int64))
        yield from manifest.updated_rows(frozen, failed, Path(folder), unreadable=unreadable, **job.columns)
