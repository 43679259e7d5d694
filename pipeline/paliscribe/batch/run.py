"""A run: freeze the manifest, annotate its shards on a pool, publish the parts. Start at `run_batch`."""

from dataclasses import replace
from typing import Any

import numpy as np

from paliscribe import manifest, results
from paliscribe.batch.generation import Run, begin_retry, finished_summary, in_settled_precision
from paliscribe.batch.parts import Parts
from paliscribe.batch.progress import Progress, Report
from paliscribe.batch.session import session
from paliscribe.config import ImagesConfig, JobConfig
from paliscribe.errors import UsageError
from paliscribe.grammar.tasks import Task, parse_tasks
from paliscribe.manifest import FrozenManifest
from paliscribe.manifest.messages import listed
from paliscribe.model.weights import locate
from paliscribe.pool.address import PoolAddress
from paliscribe.pool.ray_cluster import cluster
from paliscribe.results.record import load_mask_decoder
from paliscribe.results.run_file import Fingerprint, RunFile, refuse_changes
from paliscribe.storage import StorageError, Store, check_writable, open_store


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
    published = results.published(run.store, run.generation)
    todo = run.wanted(published)
    todo &= ~results.done(run.store, run.frozen.shards, base)
    run.progress.rows = run.frozen.rows
    run.progress.rows_before = run.frozen.rows - run.frozen.rows_in(todo)
    annotated = int(todo.sum())
    parts = Parts(run, published, todo)
    if annotated:
        with cluster():
            from paliscribe.batch.annotate import annotate  # it needs Ray's libraries: loaded while Ray starts

            annotate(run, np.flatnonzero(todo), parts)
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
    results.sweep(run.store)
    run.progress.stage = "finished"
    return summary | {"shards_annotated": annotated}


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
    columns = job.columns
    if file is not None and frozen is not None:
        digest, rows = file.fingerprint.manifest, file.fingerprint.rows
        if frozen.identity is None or manifest.identity(job.manifest) != frozen.identity:
            progress.stage = "comparing the manifest with the run's"
            found = manifest.scan(job.manifest, progress=count, **columns)
            is_legacy = not digest.startswith(manifest.COLUMNS)
            digest = manifest.legacy_digest(job.manifest, **columns) if is_legacy else found.digest
            rows = found.rows
        now = Fingerprint.of(job, manifest=digest, rows=rows, revision=located.revision, shard_rows=frozen.shard_rows)
        refuse_changes(store, file.fingerprint, now)
        return replace(file, job=job), frozen
    progress.stage = "freezing the manifest"
    frozen = manifest.freeze(
        job.manifest, store, shard_rows=job.shard_rows, progress=count, tell=progress.note, **columns
    )
    for task in tasks:
        if absent := [name for name in task.columns if name not in frozen.schema.names]:
            raise UsageError(f"task {task.template!r} needs a column {absent[0]!r}, which the manifest does not have")
    known = {"task", "kind", *frozen.schema.names}
    if unknown := [name for name in job.partition_by if name not in known]:
        raise UsageError(f"partition_by names {unknown[0]!r}; available columns: {listed(sorted(known))}")
    facts = {"manifest": frozen.digest, "revision": located.revision}
    fingerprint = Fingerprint.of(job, rows=frozen.rows, shard_rows=frozen.shard_rows, **facts)
    return RunFile(fingerprint, job, located.pin(job.model), located.image_size), frozen
