"""A run from Python: the same job as the command's, with a table or rows as its manifest too."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paliscribe import config
from paliscribe.api.display import progress_display
from paliscribe.api.results import Results, load, summary_words
from paliscribe.api.status import run_status
from paliscribe.api.tables import Manifest, manifest_address

if TYPE_CHECKING:
    from paliscribe.config import JobConfig


@dataclass(frozen=True)
class Run:
    """A finished run: where it is and what it counted."""

    output: str
    summary: dict[str, Any]
    """What `_summary.json` of the output holds."""

    def results(self) -> Results:
        """What the run published."""
        return load(self.output)

    def status(self) -> dict[str, Any]:
        """Where the run stands, as `paliscribe status --json` prints it."""
        return run_status(self.output)

    def retry(self, *, progress: bool = True) -> "Run":
        """Ask again for what ended in an error. Raises UsageError and RunError as `annotate` does."""
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
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Annotate images under tasks into partitioned Parquet, as `paliscribe annotate` does.

    `manifest`: a path or address (JSONL, CSV, Parquet, a list, a folder or prefix), a table (pyarrow, pandas, polars,
    or anything with `__arrow_c_stream__`), or an iterable of rows, each a dict with a column `image`. Relative paths of
    images in a table or in rows are of the working directory; a table or rows are kept below `OUTPUT/_run/given/`.
    `tasks`: prompts in PaliGemma's grammar, `{column}` filled in from the manifest. `output`: a folder or `s3://`
    prefix of this run alone. `settings`: those of a job file, such as `model="google/paligemma2-3b-mix-448"`,
    `max_tokens=20`, `pool={"replicas": 2}`. `progress`: show it, in a notebook or on stderr.

    Called again after an interruption it goes on; on a finished run it returns at once. It starts Ray in this process
    unless Ray is running or RAY_ADDRESS names a cluster. Raises UsageError for what is wrong with the arguments before
    any work is done, and RunError if the run cannot go on.
    """
    from paliscribe.batch.run import run_batch

    job = _job(manifest, tasks, str(output), settings)
    with progress_display(not progress) as report:
        return Run(job.output, run_batch(job, report))


def _job(manifest: Manifest, tasks: str | Sequence[str], output: str, settings: dict[str, Any]) -> "JobConfig":
    values = {"tasks": [tasks] if isinstance(tasks, str) else list(tasks), "output": output, **settings}
    checked = config.parse(values | {"manifest": "-"}, source="annotate")  # before anything is written
    place = manifest_address(manifest, output, checked.image_column)
    return checked.model_copy(update={"manifest": place})
