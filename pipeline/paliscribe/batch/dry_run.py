"""What a run would do: everything is checked, nothing is written, and Ray is not started."""

import os
from typing import Any

from paliscribe import manifest, results
from paliscribe.batch.checks import check, check_columns, notes, output_store
from paliscribe.batch.generation import in_settled_precision, refuse_interrupted_append, refuse_interrupted_retry
from paliscribe.batch.progress import Progress, Report
from paliscribe.batch.run import finished_before, refuse_other_run, run_to_extend
from paliscribe.batch.session import ticking
from paliscribe.config import JobConfig
from paliscribe.errors import UsageError
from paliscribe.grammar.tasks import Task
from paliscribe.manifest import FrozenManifest
from paliscribe.manifest.freezing import automatic_shard_rows
from paliscribe.model.weights import locate
from paliscribe.pool.joining import destination
from paliscribe.results.record import load_mask_decoder
from paliscribe.results.run_file import RunFile
from paliscribe.storage import StorageError, Store, is_local, local_path, redacted


def dry_run(job: JobConfig, report: Report = lambda progress: None, *, append: bool = False) -> dict[str, Any]:
    """The plan of a run or of an append, as a dict for JSON. Raises the errors that the run would raise before Ray.

    Whether an object store can be written is not tried, since that would write to it.
    """
    tasks, store, progress = check(job), output_store(job.output), Progress()
    with ticking(progress, report):
        for words in notes(tasks):
            progress.note(words)
        progress.stage = "reading the manifest"
        try:
            _check_folder(job.output)
            found = _appended(job, tasks, store, progress) if append else _annotated(job, tasks, store, progress)
        except StorageError as error:
            raise UsageError(f"output {error}") from None
        progress.stage = "checked"
    return found | {
        "requests": found["rows_to_annotate"] * len(tasks),
        "tasks": [{"task": task.template, "kind": task.kind, "max_tokens": task.max_tokens} for task in tasks],
        "manifest": [redacted(each) for each in job.manifest],
        "output": job.output,
        "ray": destination(),
    }


def _annotated(job: JobConfig, tasks: list[Task], store: Store, progress: Progress) -> dict[str, Any]:
    """What `run_batch` would do."""
    file, frozen = RunFile.read(store), manifest.load(store)
    located = locate(in_settled_precision(job.model, file))
    load_mask_decoder(job.mask_decoder)
    model = {"id": job.model.id, "revision": located.revision, "image_size": located.image_size}
    if file is not None and frozen is not None:
        refuse_other_run(job, store, file, frozen, located, progress)
        if (summary := results.read_summary(store)) is not None:
            refuse_interrupted_retry(store, summary)
            refuse_interrupted_append(store, frozen, summary)
        return _left(store, frozen) | {"state": "resumed" if summary is None else "finished", "model": model}
    found = manifest.scan(job.manifest, limit=job.limit, progress=progress.set_rows, tell=progress.note, **job.columns)
    check_columns(job, tasks, found.schema.names)
    size = job.shard_rows or automatic_shard_rows(found.rows)
    return {
        "state": "new",
        "rows": found.rows,
        "rows_to_annotate": found.rows,
        "shards": -(-found.rows // size),
        "shard_rows": size,
        "columns": {field.name: str(field.type) for field in found.schema},
        "model": model,
    }


def _appended(job: JobConfig, tasks: list[Task], store: Store, progress: Progress) -> dict[str, Any]:
    """What `run_append` would do."""
    file, frozen = run_to_extend(job, store)
    summary = finished_before(job, store)
    extension = manifest.extend(
        job.manifest,
        store,
        frozen,
        retries=summary["retries"],
        limit=job.limit,
        dry=True,
        check=lambda schema: check_columns(job, tasks, schema.names),
        progress=progress.set_rows,
        tell=progress.note,
        **job.columns,
    )
    facts = {"id": job.model.id, "revision": file.fingerprint.revision, "image_size": file.image_size}
    return _left(store, extension.frozen) | {"state": "appended", "model": facts, "rows_changed": extension.changed}


def _left(store: Store, frozen: FrozenManifest) -> dict[str, Any]:
    """What is left to do of a run with this manifest."""
    return {
        "rows": frozen.rows,
        "rows_to_annotate": frozen.rows - frozen.rows_in(results.done(store, frozen.shards)),
        "shards": frozen.shards,
        "shard_rows": frozen.shard_rows,
        "columns": {field.name: str(field.type) for field in frozen.schema},
    }


def _check_folder(output: str) -> None:
    """Raise UsageError if a local output cannot be a folder that is written to."""
    if not is_local(output):
        return
    path = local_path(output).expanduser().absolute()
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not there.is_dir():
        raise UsageError(f"output {there}: a file where a folder should be")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"output {there}: no permission")
