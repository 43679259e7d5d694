"""Runs from Python, as `paliscribe annotate`; the manifest may also be a table or rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paliscribe import config
from paliscribe.api.display import progress_display
from paliscribe.api.results import Results, load, summary_words
from paliscribe.api.status import run_status
from paliscribe.api.tables import Manifest, manifest_addresses

if TYPE_CHECKING:
    from paliscribe.config import JobConfig


@dataclass(frozen=True)
class Run:
    """A finished run: its output and its summary."""

    output: str
    summary: dict[str, Any]
    """Content of the output's `_summary.json`."""

    def results(self) -> Results:
        """The published results. Raises UsageError if they cannot be read."""
        return load(self.output)

    def status(self) -> dict[str, Any]:
        """The run's status, as `paliscribe status --json` prints it."""
        return run_status(self.output)

    def retry(self, *, progress: bool = True) -> "Run":
        """Retry the run's dead letters. Raises UsageError and RunError as `annotate`."""
        from paliscribe.batch.run import run_retry

        with progress_display(not progress) as report:
            return Run(self.output, run_retry(self.output, report))

    def __repr__(self) -> str:
        return summary_words(self.summary, self.output)


def annotate(
    manifest: Manifest,
    tasks: str | Sequence[str],
    output: str | Path,
    *,
    append: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Annotate images into partitioned Parquet, as `paliscribe annotate`.

    `manifest`: a path or address (JSONL, CSV, Parquet, list, folder, prefix, pattern), a table (pyarrow, pandas, polars
    or any object with `__arrow_c_stream__`), or an iterable of dicts with a key `image`. A table or rows are stored
    below `OUTPUT/_run/given/`; their relative image paths are resolved against the working directory. `tasks`: prompts
    in PaliGemma's grammar; `{column}` is filled from the manifest. `output`: a folder or `s3://` prefix that only this
    run uses. `settings`: those of a job file, such as `model="google/paligemma2-3b-mix-448"`, `max_tokens=20`,
    `pool={"replicas": 2}`. `append`: annotate the rows whose ids the finished run in `output` does not have, and add
    them to it; then `summary` has `rows_appended`, and `rows_changed` for rows that the run has with another image,
    which are left as they are. `progress`: show progress, in a notebook or on stderr.

    The same call resumes an interrupted run, and returns at once for a finished one. It starts Ray in this process
    unless Ray is running or RAY_ADDRESS names a cluster. Raises UsageError for invalid arguments, before any work, and
    RunError if the run cannot continue.
    """
    from paliscribe.batch.run import run_append, run_batch

    job = _job(manifest, tasks, str(output), settings)
    with progress_display(not progress) as report:
        return Run(job.output, run_append(job, report) if append else run_batch(job, report))


def _job(manifest: Manifest, tasks: str | Sequence[str], output: str, settings: dict[str, Any]) -> "JobConfig":
    values = {"tasks": [tasks] if isinstance(tasks, str) else list(tasks), "output": output, **settings}
    checked = config.parse(values | {"manifest": "-"}, source="annotate")  # before any write
    place = manifest_addresses(manifest, output, checked.image_column)
    return checked.model_copy(update={"manifest": place})
