"""A run: freeze the manifest, annotate its shards on a pool, publish the parts. Start at `run_batch`."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from paliscribe import manifest, results
from paliscribe.batch.checks import check, check_columns, notes, output_store, unusable_output, writable
from paliscribe.batch.generation import (
    Run,
    finished_summary,
    in_settled_precision,
    is_appending,
    refuse_interrupted_append,
    refuse_interrupted_retry,
)
from paliscribe.batch.progress import Progress, Report
from paliscribe.batch.retrying import begin_retry
from paliscribe.batch.session import session
from paliscribe.batch.token_limit import check_committed, only_the_limit_differs
from paliscribe.config import ImagesConfig, JobConfig
from paliscribe.errors import UsageError
from paliscribe.grammar.tasks import Task, parse_tasks
from paliscribe.manifest import Extension, FrozenManifest
from paliscribe.model.weights import Located, locate
from paliscribe.pool.address import PoolAddress
from paliscribe.pool.joining import check_cluster, destination
from paliscribe.results.record import load_mask_decoder
from paliscribe.results.run_file import Fingerprint, RunFile, refuse_changes
from paliscribe.storage import Store, is_local, local_path


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
    tasks = check(job)
    with without_empty_folders(job.output), session(store := writable(job.output), report) as progress:
        for words in notes(tasks):
            progress.note(words)
        file, frozen = open_run(job, tasks, store, progress)
        if (summary := finished_summary(store, frozen)) is not None:
            return summary
        run = Run(job, store, frozen, file, tasks, 0, progress, guard, pool)
        again = 0
        retries = results.retries_begun(store)  # of a run of which `verify --repair` has withdrawn parts
        for generation in range(retries):
            again += _annotate_generation(replace(run, generation=generation))
        summary = run_generation(replace(run, generation=retries))
        return summary | {"shards_annotated": again + summary["shards_annotated"]}


def run_append(job: JobConfig, report: Report = lambda progress: None) -> dict[str, Any]:
    """Annotate the rows of a manifest whose ids a finished run does not have, or resume an interrupted append.

    Its `drop_columns` may be others than the run's: columns that only this manifest has can be left out.

    Returns the run's new summary; `rows_appended` counts the rows that are new in it, `rows_changed` those of the
    manifest that the run has with another image, which are left as they are. Raises UsageError if there is no finished
    run with these settings, or if the manifest does not go into it; RunError or Stopped as `run_batch` does.
    """
    tasks = check(job)
    file, frozen = run_to_extend(job, output_store(job.output))
    store = writable(job.output)
    with session(store, report) as progress:
        summary = finished_before(job, store)
        frozen = manifest.load(store) or frozen  # another append may have ended since
        extension = _extend(job, tasks, store, frozen, summary["retries"], progress)
        frozen = extension.frozen
        counts = {"rows_appended": frozen.rows - summary["rows"], "rows_changed": extension.changed}
        if not is_appending(frozen, summary):
            store.put(results.SUCCESS, b"")
            return summary | {"shards_annotated": 0} | counts
        return run_generation(Run(job, store, frozen, replace(file, job=job), tasks, 0, progress)) | counts


def run_to_extend(job: JobConfig, store: Store) -> tuple[RunFile, FrozenManifest]:
    """The run in an output, to which a job may append. Raises UsageError if there is none, or one of other settings."""
    file, frozen = _existing(store, "no run is here to append to; leave out --append to begin one")
    located = locate(in_settled_precision(job.model, file))
    load_mask_decoder(job.mask_decoder)
    facts = {"manifest": file.fingerprint.manifest, "revision": located.revision}
    now = Fingerprint.of(job, rows=file.fingerprint.rows, shard_rows=frozen.shard_rows, **facts)
    refuse_changes(store, file.fingerprint, replace(now, drop_columns=file.fingerprint.drop_columns))
    return file, frozen


def finished_before(job: JobConfig, store: Store) -> dict[str, Any]:
    """The summary of a run to append to. Raises UsageError if it is not finished, or if a retry was interrupted."""
    summary = results.read_summary(store)
    if summary is None:
        raise UsageError(
            f"{job.output}: the run is not finished; finish it with the command that began it, without --append "
            "and with the manifest as it was, then append"
        )
    refuse_interrupted_retry(store, summary)
    return summary


def run_retry(output: str, report: Report = lambda progress: None) -> dict[str, Any]:
    """Retry a finished run's dead letters, or resume an interrupted retry. Returns the run's new summary.

    Raises UsageError if there is no finished run, RunError or Stopped as `run_batch` does.
    """
    check_cluster()
    file, frozen = _existing(output_store(output), "no run is here; `paliscribe annotate` starts one")
    store = writable(output)
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
        frozen = manifest.load(store) or frozen  # an append may have ended since
        refuse_interrupted_append(store, frozen, summary)
        if not summary["errors"]:
            return finished_summary(store, frozen) or summary
        generation = summary["retries"] + 1
        begin_retry(store, frozen, job, generation, progress)
        tasks = parse_tasks(list(job.tasks), max_tokens=job.max_tokens)
        return run_generation(Run(job, store, frozen, file, tasks, generation, progress))


def _existing(store: Store, words: str) -> tuple[RunFile, FrozenManifest]:
    """The run in an output. Raises UsageError with these words if there is none."""
    with unusable_output():
        file, frozen = RunFile.read(store), manifest.load(store)
    if file is None or frozen is None:
        raise UsageError(f"{store.uri}: {words}")
    return file, frozen


def run_generation(run: Run) -> dict[str, Any]:
    """Annotate uncommitted shards, publish unpublished parts, and write the summary."""
    annotated = _annotate_generation(run)
    facts = {
        "model": run.job.model.id,
        "revision": run.file.fingerprint.revision,
        "precision": run.file.model.precision,
    }
    summary = results.finish(run.store, run.layout, facts, run.newest_generation)
    results.sweep(run.store, run.frozen.shards)
    run.progress.stage = "finished"
    return summary | {"shards_annotated": annotated}


def _annotate_generation(run: Run) -> int:
    """Annotate uncommitted shards and publish unpublished parts; returns the number of shards."""
    base = results.generation_base(run.generation)
    published = results.published(run.store, run.generation)
    todo = run.wanted(published)
    todo &= ~results.done(run.store, run.frozen.shards, base)
    run.progress.rows = run.frozen.rows
    run.progress.rows_before = run.frozen.rows - run.frozen.rows_in(todo)
    annotated = int(todo.sum())
    if annotated:
        run.progress.tell(destination())
    from paliscribe.batch.parts import Parts  # it imports Ray
    from paliscribe.pool.ray_cluster import cluster

    parts = Parts(run, published, todo)
    if annotated:
        with cluster():
            from paliscribe.batch.annotate import annotate  # it needs Ray's libraries: loaded while Ray starts

            annotate(run, np.flatnonzero(todo), parts)
    else:
        run.file.write(run.store)
    run.progress.stage = "publishing"
    parts.publish_rest()
    return annotated


@contextlib.contextmanager
def without_empty_folders(output: str) -> Iterator[None]:
    """If a new local output is refused, remove the folders that were made to try it."""
    path = local_path(output).expanduser() if is_local(output) else None
    if path is None or path.exists():
        yield
        return
    try:
        yield
    except UsageError:
        for made in [*sorted(path.rglob("*"), reverse=True), path]:
            with contextlib.suppress(OSError):  # a file, or not empty
                made.rmdir()
        raise


def open_run(
    job: JobConfig, tasks: list[Task], store: Store, progress: Progress, sample: manifest.Sample | None = None
) -> tuple[RunFile, FrozenManifest]:
    """Freeze the manifest, or a sample of it, for a new run; or check that the existing run has the same fingerprint.

    Raises UsageError as `run_batch`.
    """
    file, frozen = RunFile.read(store), manifest.load(store)
    located = locate(in_settled_precision(job.model, file))
    load_mask_decoder(job.mask_decoder)
    if file is not None and frozen is not None:
        now = refuse_other_run(job, store, file, frozen, located, progress)
        file = replace(file, job=job)
        if now.max_tokens != file.fingerprint.max_tokens:
            file = replace(file, fingerprint=replace(file.fingerprint, max_tokens=now.max_tokens))
            file.replace(store)
        return file, frozen
    progress.stage = "freezing the manifest"
    frozen = manifest.freeze(
        job.manifest,
        store,
        shard_rows=job.shard_rows,
        limit=job.limit,
        sample=sample,
        check=lambda schema: check_columns(job, tasks, schema.names),
        progress=progress.set_rows,
        tell=progress.note,
        **job.columns,
    )
    facts = {"manifest": frozen.digest, "revision": located.revision}
    fingerprint = Fingerprint.of(job, rows=frozen.rows, shard_rows=frozen.shard_rows, **facts)
    return RunFile(fingerprint, job, located.pin(job.model), located.image_size), frozen


def refuse_other_run(
    job: JobConfig, store: Store, file: RunFile, frozen: FrozenManifest, located: Located, progress: Progress
) -> Fingerprint:
    """The fingerprint of a job. Raises UsageError, with the differences, if the run in an output is another one.

    An unfinished run goes on with another `max_tokens` if no committed record depends on it.
    """
    digest, rows = file.fingerprint.manifest, frozen.rows
    known = manifest.identity(job.manifest, job.limit)
    if known is None or all(given.identity != known for given in frozen.given):
        progress.stage = "comparing the manifest with the run's"
        found = manifest.scan(job.manifest, limit=job.limit, progress=progress.set_rows, **job.columns)
        if all(added.digest != found.digest for added in frozen.additions):
            is_legacy = not digest.startswith(manifest.COLUMNS)
            digest = manifest.legacy_digest(job.manifest, **job.columns) if is_legacy else found.digest
            rows = found.rows
    now = Fingerprint.of(job, manifest=digest, rows=rows, revision=located.revision, shard_rows=frozen.shard_rows)
    then = replace(file.fingerprint, rows=frozen.rows)
    if only_the_limit_differs(then, now) and not store.exists(results.SUMMARY):
        check_committed(store, frozen, then, now)
    else:
        refuse_changes(store, then, now, file.job.limit)
    return now


def _extend(
    job: JobConfig, tasks: list[Task], store: Store, frozen: FrozenManifest, retries: int, progress: Progress
) -> Extension:
    """Add the new rows of a job's manifest to the frozen one, which begins their append."""
    progress.stage = "comparing the manifest with the run's"
    extension = manifest.extend(
        job.manifest,
        store,
        frozen,
        retries=retries,
        limit=job.limit,
        check=lambda schema: check_columns(job, tasks, schema.names),
        progress=progress.set_rows,
        tell=progress.note,
        **job.columns,
    )
    if extension.frozen != frozen:
        store.delete(results.SUCCESS)
        manifest.commit_extension(store, frozen, extension)
    return extension
