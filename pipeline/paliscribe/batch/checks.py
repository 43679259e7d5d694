"""What of a run can be checked without Ray, so that a mistake is reported before anything is started or written."""

import contextlib
from collections.abc import Collection, Iterator

from paliscribe import manifest
from paliscribe.config import JobConfig
from paliscribe.errors import TemporaryError, UsageError, did_you_mean
from paliscribe.grammar.advice import advice
from paliscribe.grammar.tasks import Task, parse_tasks
from paliscribe.manifest.messages import listed, quoted
from paliscribe.pool.joining import check_cluster
from paliscribe.storage import RETRYABLE, StorageError, Store, check_writable, open_store

OUTPUT_BYTES = 240  # longest address of an output in an object store


def check(job: JobConfig) -> list[Task]:
    """Check a job's tasks, manifest and cluster as far as that is quick; returns the tasks.

    Raises UsageError, and RunError if no cluster is at RAY_ADDRESS.
    """
    tasks = parse_tasks(list(job.tasks), max_tokens=job.max_tokens)
    if (columns := manifest.fixed_columns(job.manifest, **job.columns)) is not None:
        check_columns(job, tasks, columns)
    check_cluster()
    return tasks


def notes(tasks: list[Task]) -> list[str]:
    """Lines for the user about tasks that are probably not what was meant."""
    return [words for task in tasks if (words := advice(task)) is not None]


def check_columns(job: JobConfig, tasks: list[Task], columns: Collection[str]) -> None:
    """Raise UsageError if a manifest with these columns does not have one that a task or a partition names."""
    for task in tasks:
        if absent := [name for name in task.columns if name not in columns]:
            raise UsageError(
                f"task {task.template!r} needs a column {quoted(absent[0])}, which the manifest does not have"
                f"{did_you_mean(absent[0], columns)}; it carries {listed(sorted(columns)) or 'none'}"
            )
    known = {"task", "kind", *columns}
    if unknown := [name for name in job.partition_by if name not in known]:
        meant = did_you_mean(unknown[0], known)
        raise UsageError(f"partition_by names {quoted(unknown[0])}{meant}; available columns: {listed(sorted(known))}")


def output_store(output: str) -> Store:
    """The store of an output, which may be read. Raises UsageError for an address that cannot be one."""
    if "://" in output and len(output.encode()) > OUTPUT_BYTES:
        raise UsageError(
            f"output {output[:60]}…: more than {OUTPUT_BYTES} bytes; S3 allows 1,024 in a key, and names of files need "
            "the others"
        )
    try:
        return open_store(output)
    except StorageError as error:
        raise UsageError(f"output {error}") from None


def writable(output: str) -> Store:
    """The store of an output, which may be written. Raises UsageError, or TemporaryError if it does not answer."""
    store = output_store(output)
    with unusable_output():
        check_writable(store)
    return store


@contextlib.contextmanager
def unusable_output() -> Iterator[None]:
    """Raise TemporaryError in the place of a StorageError if the store may answer later, UsageError of any other."""
    try:
        yield
    except StorageError as error:
        kind = TemporaryError if error.kind in RETRYABLE else UsageError
        raise kind(f"output {error}") from None
