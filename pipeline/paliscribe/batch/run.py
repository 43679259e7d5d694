"""A run: freeze the manifest, annotate its shards on a pool, publish the parts. Start at `run_batch`."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray

from paliscribe import manifest, results
from paliscribe.batch.dataset import annotate_shards
from paliscribe.batch.generation import Run, begin_retry, finished_summary
from paliscribe.batch.parts import Parts
from paliscribe.batch.precision import in_settled_precision, settle_precision
from paliscribe.batch.progress import Progress, Report
from paliscribe.batch.session import repeating, session
from paliscribe.batch.stage import Plan
from paliscribe.config import ImagesConfig, JobConfig
from paliscribe.errors import RunError, UsageError
from paliscribe.grammar.tasks import Task, parse_tasks
from paliscribe.manifest import FrozenManifest
from paliscribe.model.weights import locate
from paliscribe.pool.client import PoolClient
from paliscribe.pool.deploy import PoolAddress, open_pool
from paliscribe.pool.placement import has_gpus, live_nodes, missing_resources, replica_resources, stage_size
from paliscribe.pool.ray_cluster import cluster
from paliscribe.results import Marker, ModelFacts
from paliscribe.results.record import load_mask_decoder
from paliscribe.results.run_file import Fingerprint, RunFile, refuse_changes
from paliscribe.storage import StorageError, Store, check_writable, open_store

RATE_SAMPLE = 20  # minimum number of finished requests before max_error_rate can stop a run


def run_batch(
    job: JobConfig,
    report: Report = lambda progress: None,
    guard: ImagesConfig | None = None,
    pool: PoolAddress | None = None,
) -> dict[str, Any]:
    """Annotate a manifest. Returns the run's summary; `shards_annotated` counts this process's shards.

    `guard`: image limits for untrusted callers' runs. `pool`: pool to use, even if still starting; it must serve the
    job's model in a fixed precision. Default: as the job's `pool` says. Raises UsageError before any work, RunError if
    the run cannot continue, Stopped on SIGINT or SIGTERM.
    """
    tasks = parse_tasks(list(job.tasks), max_tokens=job.max_tokens)
    store = _writable(job.output)
    with session(store, report) as progress:
        file, frozen = _open_run(job, tasks, store, progress)
        if (summary := finished_summary(store)) is not None:
            return summary
        return _run_generation(Run(job, store, frozen, file, tasks, 0, progress, guard, pool))


def run_retry(output: str, report: Report = lambda progress: None) -> dict[str, Any]:
    """Retry a finished run's dead letters, or resume an interrupted retry. Returns the run's new summary.

    Raises UsageError if there is no finished run, RunError or Stopped as `run_batch` does.
    """
    store = _writable(output)
    file, frozen = RunFile.read(store), manifest.load(store)
    if file is None or frozen is None:
        raise UsageError(f"{output}: no run is here; `paliscribe annotate` starts one")
    job = file.job.model_copy(update={"output": output})
    revision = locate(in_settled_precision(job.model, file)).revision
    if revision != file.fingerprint.revision:
        raise UsageError(
            f"model {job.model.id} is at {revision} now; the run was made with {file.fingerprint.revision}"
        )
    with session(store, report) as progress:
        summary = results.read_summary(store)
        if summary is None:
            raise UsageError(
                f"{output}: the run is not finished; resume it with the command that started it, then retry"
            )
        generation = summary["retries"] + 1
        if not summary["errors"]:
            return finished_summary(store) or summary
        begin_retry(store, frozen, job, generation, progress)
        tasks = parse_tasks(list(job.tasks), max_tokens=job.max_tokens)
        return _run_generation(Run(job, store, frozen, file, tasks, generation, progress))


def _run_generation(run: Run) -> dict[str, Any]:
    """Annotate uncommitted shards, publish unpublished parts, and write the summary."""
    base = results.generation_base(run.generation)
    finished, published = results.done(run.store, base), results.published(run.store, run.generation)
    wanted = [shard for part in range(run.layout.parts) if part not in published for shard in run.shards(part)]
    todo = [shard for shard in wanted if shard not in finished]
    run.progress.rows = run.frozen.rows
    run.progress.rows_before = run.frozen.rows - sum(map(run.frozen.rows_of, todo))
    parts = Parts(run, published, finished)
    if todo:
        with cluster():
            run.file = settle_precision(run)
            _annotate(run, todo, parts)
    else:
        run.file.write(run.store)
    run.progress.stage = "publishing"
    parts.publish_rest()
    facts = {
        "model": run.job.model.id,
        "revision": run.file.fingerprint.revision,
        "precision": run.file.model.precision,
    }
    summary = results.finish(run.store, run.layout, facts, run.generation)
    results.sweep(run.store, run.layout)
    run.progress.stage = "finished"
    return summary | {"shards_annotated": len(todo)}


def _writable(output: str) -> Store:
    try:
        store = open_store(output)
        check_writable(store)
    except StorageError as error:
        raise UsageError(f"output {error}") from None
    return store


def _open_run(job: JobConfig, tasks: list[Task], store: Store, progress: Progress) -> tuple[RunFile, FrozenManifest]:
    """Freeze the manifest for a new run, or check that the existing run has the same fingerprint."""

    def count(rows: int) -> None:
        progress.rows = rows

    file, frozen = RunFile.read(store), manifest.load(store)
    located = locate(in_settled_precision(job.model, file))
    load_mask_decoder(job.mask_decoder)
    columns = {"image_column": job.image_column, "id_column": job.id_column}
    if file is not None and frozen is not None:
        progress.stage = "comparing the manifest with the run's"
        found = manifest.scan(job.manifest, progress=count, **columns)
        now = Fingerprint.of(job, manifest=found.digest, rows=found.rows, revision=located.revision)
        refuse_changes(store, file.fingerprint, now)
        return replace(file, job=job), frozen
    progress.stage = "freezing the manifest"
    frozen = manifest.freeze(job.manifest, store, shard_rows=job.shard_rows, progress=count, **columns)
    for task in tasks:
        if absent := [name for name in task.columns if name not in frozen.schema.names]:
            raise UsageError(f"task {task.template!r} needs a column {absent[0]!r}, which the manifest does not have")
    known = {"task", "kind", *frozen.schema.names}
    if unknown := [name for name in job.partition_by if name not in known]:
        raise UsageError(f"partition_by names {unknown[0]!r}; available columns: {', '.join(sorted(known))}")
    fingerprint = Fingerprint.of(job, manifest=frozen.digest, rows=frozen.rows, revision=located.revision)
    return RunFile(fingerprint, job, located.pin(job.model), located.image_size), frozen


def _annotate(run: Run, todo: list[int], parts: Parts) -> None:
    """Annotate shards on a pool, and publish parts as they are completed."""
    job, spec = run.job, run.file.model
    with contextlib.ExitStack() as opened:
        with _reporting_startup(run):
            pool = run.pool or opened.enter_context(open_pool(spec, job.pool, results.run_name(run.store.uri)))
        plan = Plan(
            output=run.store.uri,
            tasks=tuple(run.tasks),
            schema=results.schema(run.frozen.schema),
            facts=ModelFacts(spec.id, run.file.fingerprint.revision, spec.precision),
            image_size=run.file.image_size,
            slots=PoolClient(pool).facts().slots,
            fetch=job.fetch,
            mask_decoder=job.mask_decoder,
            guard=run.guard,
            options_column=job.options_column,
            generation=run.generation,
        )
        cpus, workers = stage_size(
            job.fetch,
            total=ray.cluster_resources().get("CPU", 0.0),
            free=ray.available_resources().get("CPU", 0.0),
            replicas=pool.replicas * job.pool.cpus_per_replica,
        )
        run.progress.stage, run.progress.annotating_since = "annotating", time.monotonic()
        shards = annotate_shards(plan, pool, todo, cpus=cpus, workers=workers, progress=run.progress)
        with contextlib.closing(shards) as markers:
            for marker in markers:
                _add_committed(run, marker)
                parts.committed(marker.shard)
        parts.wait()


def _add_committed(run: Run, marker: Marker) -> None:
    """Add a committed shard to the progress. Raises RunError if the error rate exceeds max_error_rate."""
    progress = run.progress
    progress.rows_committed += run.frozen.rows_of(marker.shard)
    progress.rows_open = max(0, progress.rows_open - run.frozen.rows_of(marker.shard))
    progress.requests += marker.records
    progress.statuses.update(marker.statuses)
    progress.error_kinds.update(marker.error_kinds)
    rate = progress.statuses["error"] / progress.requests if progress.requests else 0.0
    if run.generation == 0 and progress.requests >= RATE_SAMPLE and rate > run.job.max_error_rate:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in progress.error_kinds.most_common(3))
        raise RunError(
            f"{progress.statuses['error']:,} of the first {progress.requests:,} requests failed ({kinds}), more than "
            f"max_error_rate {run.job.max_error_rate:g} allows. Fix the cause, run the same command again, then "
            "`paliscribe retry`"
        )


@contextlib.contextmanager
def _reporting_startup(run: Run) -> Iterator[None]:
    """Report that the pool is starting or, while no node can hold a replica, the missing resources."""
    pool, words = run.job.pool, f"starting the pool of {run.file.model.id}"
    wanted = replica_resources(pool, pool.gpus(available=has_gpus()))

    def look() -> None:
        lack = missing_resources(live_nodes(), wanted)
        run.progress.stage = words if lack is None else f"waiting for resources: {lack}"

    run.progress.stage = words
    if pool.name is not None or run.pool is not None:  # existing pool
        yield
        return
    with repeating(look):
        yield
