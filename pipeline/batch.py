"""A run: freeze the manifest, annotate its shards on a pool, publish the parts. `run_batch` is the story."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import ray

from pipeline import manifest, results
from pipeline.config import JobConfig
from pipeline.errors import PaliscribeError, RunError, UsageError
from pipeline.manifest import FrozenManifest
from pipeline.pool import PoolAddress, PoolClient, open_pool
from pipeline.results import Marker, ModelFacts
from pipeline.runs import Fingerprint, RunFile, refuse_changes
from pipeline.stage import Plan, Stage, load_mask_decoder
from pipeline.storage import StorageError, Store, check_writable, open_store
from pipeline.tasks import parse_tasks
from pipeline.weights import Located, locate

RATE_SAMPLE = 20  # requests that must be finished before their error rate can stop a run


@dataclass(slots=True)
class Progress:
    """Where a run stands. Counts of this process's work exclude what an earlier one had committed."""

    stage: str = "checking"  # a few words for people
    rows: int = 0  # of the whole run
    rows_before: int = 0  # committed before this process began
    rows_done: int = 0  # annotated by this one, shards that are not committed yet included
    requests: int = 0  # finished in committed shards
    statuses: Counter[str] = field(default_factory=Counter)
    error_kinds: Counter[str] = field(default_factory=Counter)
    annotating_since: float | None = None  # time.monotonic() of the first shard's start
    finished: bool = False

    @property
    def images_per_second(self) -> float | None:
        """Images annotated a second since the pool was ready; None until there is something to measure."""
        if self.annotating_since is None or not self.rows_done:
            return None
        return self.rows_done / max(time.monotonic() - self.annotating_since, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None while it is unknown."""
        rate = self.images_per_second
        return None if rate is None else max(0, self.rows - self.rows_before - self.rows_done) / rate


Report = Callable[[Progress], None]


class Stopped(RunError):
    """The run was told to stop (Ctrl-C, SIGTERM). What is committed stays; the same command goes on from there."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class Lost(RunError):
    """Another driver took over the run's lease."""


def run_batch(job: JobConfig, report: Report = lambda progress: None) -> dict[str, Any]:
    """Annotate a manifest; returns the run's summary, with `shards_annotated` by this process.

    Raises UsageError before any work is begun, RunError if the run cannot go on, Stopped on SIGINT or SIGTERM.
    """
    tasks = parse_tasks(list(job.tasks), max_tokens=job.max_tokens)
    store = _writable(job.output)
    located = locate(job.model)
    load_mask_decoder(job.mask_decoder)
    progress = Progress()
    with _signals(), results.Lease.acquire(store) as lease, _ticker(progress, report):
        run, frozen = _settle(job, store, located, progress)
        schema = results.schema(frozen.schema)
        _check_partitions(job, frozen)
        parts = results.Parts.of(frozen, tasks=len(tasks), partition_by=job.partition_by)
        finished = results.done(store)
        todo = [shard for shard in range(frozen.shards) if shard not in finished]
        progress.rows = frozen.rows
        progress.rows_before = frozen.rows - sum(_rows_of(frozen, shard) for shard in todo)
        if todo:
            with _cluster():
                run = _with_precision(run, store)
                plan = Plan(
                    output=job.output,
                    tasks=tuple(tasks),
                    schema=schema,
                    facts=ModelFacts(run.fingerprint.model, run.fingerprint.revision, run.model.precision),
                    image_size=run.image_size,
                    group_size=job.pool.group_size,
                    fetch=job.fetch,
                    mask_decoder=job.mask_decoder,
                )
                progress.stage = f"starting the pool of {run.model.id}"
                with open_pool(run.model, job.pool, results.name_of(store)) as pool:
                    _annotate(plan, pool, job, todo, frozen, progress, lease)
        progress.stage = "publishing"
        return results.finish(store, parts)


def _writable(output: str) -> Store:
    try:
        store = open_store(output)
        check_writable(store)
    except StorageError as error:
        raise UsageError(f"output {output}: {error}") from None
    return store


def _settle(job: JobConfig, store: Store, located: Located, progress: Progress) -> tuple[RunFile, FrozenManifest]:
    """Freeze the manifest and write the run file; or, where a run is, make sure that it is this one."""

    def count(rows: int) -> None:
        progress.rows = rows

    columns = {"image_column": job.image_column, "id_column": job.id_column}
    run = RunFile.read(store)
    frozen = manifest.load(store) if run is not None else None
    if run is None or frozen is None:
        progress.stage = "freezing the manifest"
        frozen = manifest.freeze(job.manifest, store, shard_rows=job.shard_rows, progress=count, **columns)
        fingerprint = Fingerprint.of(job, manifest=frozen.digest, rows=frozen.rows, revision=located.revision)
        return RunFile(fingerprint, job, job.model, located.image_size), frozen
    progress.stage = "comparing the manifest with the run's"
    digest, rows = manifest.digest(job.manifest, **columns)
    refuse_changes(
        store, run.fingerprint, Fingerprint.of(job, manifest=digest, rows=rows, revision=located.revision)
    )
    return run, frozen


def _annotate(
    plan: Plan,
    pool: PoolAddress,
    job: JobConfig,
    todo: list[int],
    progress: Progress,
    on_commit: Callable[[Marker], None],
) -> None:
    """Run the shards through Ray Data: one block a shard, one stage process a worker."""
    board = _Board.options(num_cpus=0).remote()  # type: ignore[attr-defined]
    watch = threading.Event()
    threading.Thread(target=_follow, args=(board, progress, watch), daemon=True).start()
    workers = job.fetch.workers or _default_workers(job)
    blocks = ray.data.range(len(todo), override_num_blocks=len(todo)).map_batches(
        _StageActor,
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, max_tasks_in_flight_per_actor=2),
        fn_constructor_args=(plan, pool, board, todo),
        num_cpus=_stage_cpus(),
        max_restarts=3,
        max_task_retries=3,
    )
    progress.annotating_since = time.monotonic()
    try:
        for batch in blocks.iter_batches(batch_size=None, prefetch_batches=0):
            for body in batch["marker"]:
                on_commit(Marker.from_json(body))
    except PaliscribeError:
        raise
    except Exception as error:  # Ray wraps what a worker raised in types of its own, several deep
        raise _translated(error) from error
    finally:
        watch.set()
