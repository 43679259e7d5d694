"""`paliscribe preview`: a sample of a job, and what the whole would take."""

import json
import shlex
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from paliscribe import config
from paliscribe.cli.options import Json, Quiet, option
from paliscribe.cli.runs import job_values
from paliscribe.config import JobConfig, ModelSpec, PoolConfig
from paliscribe.pool.joining import check_cluster


def preview(
    job: Annotated[Path | None, typer.Argument(help="A YAML job file; flags override its settings.")] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, max=100_000, help="Rows of the sample.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sample.")] = 0,
    gpu_hour_price: Annotated[
        float | None, typer.Option("--gpu-hour-price", min=0, help="Price of one GPU for an hour, in any currency.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="Folder or s3:// prefix for the sample's output. Default: a new temporary folder; a cluster of "
            "several machines needs one that all of them reach.",
        ),
    ] = None,
    manifest: Annotated[list[str] | None, option(JobConfig, "manifest", " Repeat for more.")] = None,
    task: Annotated[list[str] | None, option(JobConfig, "tasks", " Repeat for more.")] = None,
    output: Annotated[str | None, option(JobConfig, "output", " It is not touched.")] = None,
    model: Annotated[str | None, option(ModelSpec, "id")] = None,
    revision: Annotated[str | None, option(ModelSpec, "revision")] = None,
    precision: Annotated[str | None, option(ModelSpec, "precision")] = None,
    quantization: Annotated[str | None, option(ModelSpec, "quantization")] = None,
    image_column: Annotated[str | None, option(JobConfig, "image_column")] = None,
    id_column: Annotated[str | None, option(JobConfig, "id_column")] = None,
    drop_column: Annotated[list[str] | None, option(JobConfig, "drop_columns", " Repeat for more.")] = None,
    rename_column: Annotated[list[str] | None, option(JobConfig, "rename_columns", " Repeat for more.")] = None,
    max_tokens: Annotated[int | None, option(JobConfig, "max_tokens")] = None,
    mask_decoder: Annotated[str | None, option(JobConfig, "mask_decoder")] = None,
    replicas: Annotated[int | None, option(PoolConfig, "replicas")] = None,
    limit: Annotated[int | None, option(JobConfig, "limit")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Annotate a seeded sample of a job's manifest, and estimate time, GPU hours and cost of the whole.

    The sample's results are in an output of their own, to be looked at. The job's output is neither read nor written.
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
        "max_tokens": max_tokens,
        "mask_decoder": mask_decoder,
    }
    models = {"id": model, "revision": revision, "precision": precision, "quantization": quantization}
    values = job_values(job, settings, models, {"replicas": replicas})
    values.setdefault("output", "output")  # it may be chosen later
    checked = config.parse(values, source=str(job) if job is not None else "preview")
    check_cluster()
    found = _previewed(checked, to, rows, seed, gpu_hour_price, quiet)
    print(json.dumps(found) if as_json else "\n".join(_words(found, gpu_hour_price)))


def _begun() -> float:
    """When this process began, on the clock of `time.monotonic()`."""
    import psutil

    return time.monotonic() - (time.time() - psutil.Process().create_time())


def _previewed(
    job: JobConfig, to: str | None, rows: int, seed: int, price: float | None, quiet: bool
) -> dict[str, Any]:
    """What `batch.preview` finds, with figures by task and the cost. A temporary folder is removed if it fails."""
    from paliscribe.api.display import progress_display
    from paliscribe.batch.preview import preview as run
    from paliscribe.manifest import Sample
    from paliscribe.published import open_tables
    from paliscribe.view.figures import Figures

    begun = _begun()
    place = to or f"{tempfile.mkdtemp(prefix='paliscribe-preview-')}/output"
    try:
        with progress_display(quiet) as report:
            found = run(job, Sample(rows, seed), place, report, begun=begun)
    except BaseException:
        if to is None:
            shutil.rmtree(Path(place).parent, ignore_errors=True)
        raise
    tasks = [
        {
            "task": each.task,
            "records": each.records,
            "invalid_rate": each.invalid_rate,
            "error_rate": each.error_rate,
            "tokens": each.tokens,
            "score": each.score,
        }
        for each in Figures(open_tables(place, rows=False)).tasks()
    ]
    guess = found["estimate"]
    if price is not None and guess["gpus"]:
        guess["cost"] = price * guess["gpu_hours"]
        guess["cost_range"] = [price * each for each in guess["gpu_hours_range"]]
    return found | {"tasks": tasks}


def _words(found: dict[str, Any], price: float | None) -> list[str]:
    """What was seen, and the estimate, as text."""
    summary, guess = found["summary"], found["estimate"]
    lines = [f"{found['sampled']:,} of {found['rows']:,} rows, chosen by seed {found['seed']}:"]
    for each in found["tasks"]:
        mean = "no answers" if each["tokens"] is None else f"{each['tokens']:.1f} tokens, score {each['score']:.3f}"
        lines.append(
            f"  {each['task'][:60]}  {mean} on average; {each['invalid_rate']:.1%} invalid, "
            f"{each['error_rate']:.1%} dead letters"
        )
    if kinds := ", ".join(f"{kind} {count:,}" for kind, count in summary["error_kinds"].items()):
        lines.append(f"  dead letters: {kinds}")
    if found["error_rate"] > found["max_error_rate"]:
        lines.append(f"  the run would stop: max_error_rate is {found['max_error_rate']:g}")
    low, high = guess["seconds_range"]
    speed = f"{guess['rows_per_second']:,.3g} rows/s on {guess['replicas']} replica{'s' * (guess['replicas'] > 1)}"
    lines += [
        "the whole run, estimated:",
        f"  time       {_time(guess['seconds'])} ({_time(low)} to {_time(high)}): {_time(guess['startup_seconds'])} to "
        f"start and end, the rest at {speed}",
    ]
    device = "gpu" if guess["gpus"] else "core"
    low, high = guess[f"{device}_hours_range"]
    name = "GPU hours " if guess["gpus"] else "core hours"
    lines.append(f"  {name} {guess[f'{device}_hours']:,.3g} ({low:,.3g} to {high:,.3g})")
    if "cost" in guess:
        low, high = guess["cost_range"]
        lines.append(f"  cost       {guess['cost']:,.2f} ({low:,.2f} to {high:,.2f}) at {price:g} a GPU hour")
    elif price is not None:
        lines.append("  cost       none for GPUs: the pool has none, so --gpu-hour-price does not apply")
    if guess["is_rough"]:
        lines.append("  The sample is too small to fill this pool, so the run is probably faster: try a larger -n.")
    return [*lines, f"look at it:  paliscribe view {shlex.quote(found['output'])}"]


def _time(seconds: float) -> str:
    """A time in words, to two or three figures."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:,.1f} days"
