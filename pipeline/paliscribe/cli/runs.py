"""Commands for runs: `paliscribe annotate`, `demo`, `status` and `retry`."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from paliscribe import config
from paliscribe.cli.options import Append, Json, Quiet, option, without_none
from paliscribe.config import JobConfig, ModelSpec, PoolConfig
from paliscribe.errors import UsageError
from paliscribe.pool.joining import check_cluster


def annotate(
    job: Annotated[Path | None, typer.Argument(help="A YAML job file; flags override its settings.")] = None,
    manifest: Annotated[list[str] | None, option(JobConfig, "manifest", " Repeat for more.")] = None,
    task: Annotated[list[str] | None, option(JobConfig, "tasks", " Repeat for more.")] = None,
    output: Annotated[str | None, option(JobConfig, "output")] = None,
    model: Annotated[str | None, option(ModelSpec, "id")] = None,
    revision: Annotated[str | None, option(ModelSpec, "revision")] = None,
    precision: Annotated[str | None, option(ModelSpec, "precision")] = None,
    quantization: Annotated[str | None, option(ModelSpec, "quantization")] = None,
    image_column: Annotated[str | None, option(JobConfig, "image_column")] = None,
    id_column: Annotated[str | None, option(JobConfig, "id_column")] = None,
    drop_column: Annotated[list[str] | None, option(JobConfig, "drop_columns", " Repeat for more.")] = None,
    rename_column: Annotated[list[str] | None, option(JobConfig, "rename_columns", " Repeat for more.")] = None,
    partition_by: Annotated[list[str] | None, option(JobConfig, "partition_by", " Repeat to nest.")] = None,
    shard_rows: Annotated[int | None, option(JobConfig, "shard_rows")] = None,
    max_tokens: Annotated[int | None, option(JobConfig, "max_tokens")] = None,
    max_error_rate: Annotated[float | None, option(JobConfig, "max_error_rate")] = None,
    mask_decoder: Annotated[str | None, option(JobConfig, "mask_decoder")] = None,
    replicas: Annotated[int | None, option(PoolConfig, "replicas")] = None,
    limit: Annotated[int | None, option(JobConfig, "limit")] = None,
    append: Append = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; write nothing, start nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Annotate a manifest of images into partitioned Parquet.

    The same command resumes an interrupted run or append; committed shards are not computed again.
    """
    settings = {
        "manifest": manifest or None,
        "tasks": task or None,
        "output": output,
        "limit": limit,
        "image_column": image_column,
        "id_column": id_column,
        "drop_columns": drop_column or None,
        "rename_columns": rename_column or None,
        "partition_by": partition_by or None,
        "shard_rows": shard_rows,
        "max_tokens": max_tokens,
        "max_error_rate": max_error_rate,
        "mask_decoder": mask_decoder,
    }
    models = {"id": model, "revision": revision, "precision": precision, "quantization": quantization}
    values = job_values(job, settings, models, {"replicas": replicas})
    checked = config.parse(values, source=str(job) if job is not None else "annotate")
    if dry:
        _print_plan(checked, quiet, as_json, append=append)
        return
    check_cluster()
    if not quiet and not append:  # an append says first that it compares the manifest
        print(f"annotating into {checked.output}", file=sys.stderr, flush=True)
    summary = _run(checked, quiet, append=append)
    print(json.dumps(summary) if as_json else _summary_words(summary, checked.output))


def demo(
    folder: Annotated[Path, typer.Option(help="Folder for images and results.")] = Path("demo-output"),
    images: Annotated[int, typer.Option("--images", "-n", min=1, help="Scenes to draw and annotate.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Generate a small collection, annotate it with the demo model, and measure the accuracy."""
    check_cluster()
    if not quiet:
        print(f"drawing {images} scenes in {folder}, to annotate them with demo", file=sys.stderr)
    from paliscribe.cli.report import demo_accuracy
    from paliscribe.demo.collection import write_collection

    place = folder / f"{images}-scenes-seed-{seed}"
    try:
        manifest = write_collection(place / "collection", images, seed)
    except OSError as error:
        raise UsageError(f"demo: {place} cannot be written: {error.strerror}") from None
    except ValueError as error:  # there are no such scenes
        raise UsageError(f"demo: {error}") from None
    job = JobConfig(
        manifest=(str(manifest),),
        tasks=("caption en", "answer en {question}", "ocr", "detect {objects}"),
        output=str(place / "output"),
        shard_rows=max(1, images // 4),
    )
    summary = _run(job, quiet)
    accuracy = demo_accuracy(job.output, manifest.parent)
    if as_json:
        print(json.dumps({"summary": summary, "accuracy": accuracy, "output": job.output}))
        return
    print(_summary_words(summary, job.output))
    print("\nAgainst the scenes' truth, computed from the Parquet files:")
    for name, value in accuracy.items():
        print(f"  {name:<28} {value}")
    print(f"\nImages and truth: {manifest.parent}\nAnnotations:      {job.output}/annotations")
    print(f"Look at them:     paliscribe view {shlex.quote(job.output)}")


def status(output: Annotated[str, typer.Argument(help="The output of a run.")], as_json: Json = False) -> None:
    """Show a run's status: rows, errors by kind, whether a driver is running, and the next step."""
    from paliscribe.api.status import run_status
    from paliscribe.cli.report import status_words

    found = run_status(output)
    print(json.dumps(found) if as_json else status_words(found))


def retry(
    output: Annotated[str, typer.Argument(help="The output of a finished run.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Annotate a run's dead letters again, once their causes are fixed; nothing else is touched."""
    check_cluster()
    from paliscribe.api.display import progress_display
    from paliscribe.batch.run import run_retry

    with progress_display(quiet or as_json) as report:
        summary = run_retry(output, report)
    print(json.dumps(summary) if as_json else _summary_words(summary, output))


def job_values(
    job: Path | None, settings: dict[str, Any], model: dict[str, Any], pool: dict[str, Any]
) -> dict[str, Any]:
    """The values of a job file, if one is given, with those of the flags that are not None. Raises UsageError."""
    values = (config.load_job(job) if job is not None else {}) | without_none(settings)
    _nest(values, "model", model)
    _nest(values, "pool", pool)
    return values


def _nest(values: dict[str, Any], key: str, flags: dict[str, Any]) -> None:
    """Merge flags into a nested mapping of the job file; `model: ID` is short for `model: {id: ID}`."""
    if given := without_none(flags):
        nested = values.get(key) or {}
        values[key] = ({"id": nested} if isinstance(nested, str) else dict(nested)) | given


def _run(job: JobConfig, quiet: bool, *, append: bool = False) -> dict[str, Any]:
    from paliscribe.api.display import progress_display
    from paliscribe.batch.run import run_append, run_batch

    with progress_display(quiet) as report:
        return run_append(job, report) if append else run_batch(job, report)


def _print_plan(job: JobConfig, quiet: bool, as_json: bool, *, append: bool) -> None:
    from paliscribe.api.display import progress_display
    from paliscribe.batch.dry_run import dry_run
    from paliscribe.cli.plan import plan_words

    with progress_display(quiet) as report:
        plan = dry_run(job, report, append=append)
    print(json.dumps(plan) if as_json else plan_words(plan))


def _summary_words(summary: dict[str, Any], output: str) -> str:
    from paliscribe.api.results import summary_words

    words: str = summary_words(summary, output)
    return words
