"""A preview of a run: a seeded sample of its manifest, annotated by the same code into an output of its own."""

import shutil
import time
from typing import Any

from paliscribe import manifest
from paliscribe.batch.checks import check, notes, writable
from paliscribe.batch.estimate import Estimate, estimate, rows_to_pace
from paliscribe.batch.generation import Run
from paliscribe.batch.progress import Report, Timeline
from paliscribe.batch.run import open_run, run_generation, without_empty_folders
from paliscribe.batch.session import session
from paliscribe.config import JobConfig
from paliscribe.errors import UsageError
from paliscribe.manifest import Sample
from paliscribe.pool.joining import destination
from paliscribe.storage import is_local, local_path, open_store

SHARDS = 8  # of a sample: the times of their commits tell the rate
PACE = "_pace"  # folder in the output of the second sample, which is removed again


def preview(
    job: JobConfig,
    sample: Sample,
    output: str,
    report: Report = lambda progress: None,
    *,
    begun: float | None = None,
) -> dict[str, Any]:
    """Annotate a sample of a job's manifest into `output`, and estimate the whole run. The job's output is not touched.

    If the sample is over within seconds, more rows are annotated to measure the rate, and removed again.

    `begun`: `time.monotonic()` when the command began; None: now. Returns a dict for JSON: the summary of the sample's
    run and the estimate, times in seconds. The estimate is of all rows, also if the job's output has some of them.
    Raises UsageError if `output` lies in the job's or holds a run, and the errors of `run_batch`.
    """
    begun = time.monotonic() if begun is None else begun
    inside = f"{output.rstrip('/')}/"
    if inside.startswith(f"{job.output.rstrip('/')}/"):
        raise UsageError(f"preview: {output} lies in the output of the job; use another place")
    rows = min(sample.rows, job.limit or sample.rows)
    changes = {"output": output, "max_error_rate": 1.0, "shard_rows": -(-rows // SHARDS)}
    small = job.model_copy(update=changes)
    tasks = check(small)
    with without_empty_folders(output), session(store := writable(output), report) as progress:
        for words in notes(tasks):
            progress.note(words)
        if manifest.load(store) is not None:
            raise UsageError(f"preview: {output} holds a run already; use another place")
        progress.timeline = timeline = Timeline()
        file, frozen = open_run(small, tasks, store, progress, sample)
        whole, progress.rows = progress.rows, frozen.rows  # so many were read
        run = Run(small, store, frozen, file, tasks, 0, progress)
        progress.tell(destination())
        from paliscribe.pool.ray_cluster import cluster  # it imports Ray

        with cluster():
            from paliscribe.batch.annotate import kept_pool

            with kept_pool(run):
                summary = run_generation(run)
                ready, ended = progress.annotating_since or begun, time.monotonic()
                pace = _pace(run, rows_to_pace(timeline, ready, whole), sample.seed + 1)
                closing = time.monotonic()
        ended += time.monotonic() - closing
    found = estimate(timeline, begun=begun, ready=ready, ended=ended, rows=whole, tasks=len(tasks), pace=pace)
    return {"rows": whole, "sampled": frozen.rows, "seed": sample.seed, "output": output} | {
        "summary": {name: value for name, value in summary.items() if name != "files"},
        "error_rate": summary["errors"] / summary["records"],
        "max_error_rate": job.max_error_rate,
        "estimate": _values(found, timeline),
    }


def _pace(run: Run, rows: int, seed: int) -> tuple[float, Timeline] | None:
    """Annotate so many rows to measure the rate: when that began, and its timeline. None for no rows."""
    if not rows:
        return None
    progress, place = run.progress, f"{run.store.uri}/{PACE}"
    progress.note(f"the sample is over too soon to tell the rate: {rows:,} rows are annotated for it alone")
    job = run.job.model_copy(update={"output": place, "shard_rows": -(-rows // (4 * SHARDS))})
    store = open_store(place)
    try:
        file, frozen = open_run(job, run.tasks, store, progress, Sample(rows, seed))
        progress.timeline, progress.rows_committed = Timeline(), 0
        begun = progress.annotating_since = time.monotonic()
        run_generation(Run(job, store, frozen, file, run.tasks, 0, progress, pool=run.pool))
        return begun, progress.timeline
    finally:
        store.delete_many([item.key for item in store.list()])
        if is_local(place):
            shutil.rmtree(local_path(place), ignore_errors=True)


def _values(found: Estimate, timeline: Timeline) -> dict[str, Any]:
    """The estimate as plain values; a range is [low, high]."""
    seconds, low, high = found.total
    steady, *steady_range = found.steady
    device = "gpu" if timeline.gpus else "core"
    units = (timeline.gpus or timeline.cores) / 3600
    return {
        "seconds": seconds,
        "seconds_range": [low, high],
        "startup_seconds": found.startup,
        "steady_seconds": steady,
        "rows_per_second": found.rate,
        "replicas": timeline.replicas,
        "gpus": timeline.gpus,
        f"{device}_hours": steady * units,
        f"{device}_hours_range": [each * units for each in steady_range],
        "is_rough": found.is_rough,
    }
