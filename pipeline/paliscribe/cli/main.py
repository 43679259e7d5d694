"""The command line: parse, call one function, print. Results on stdout, everything else on stderr."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from paliscribe import __version__, config
from paliscribe.cli import jobs as cli_jobs
from paliscribe.cli.jobs import Json, Quiet
from paliscribe.config import JobConfig, ModelSpec, PoolConfig, ServeConfig
from paliscribe.errors import PaliscribeError, RunError, Stopped

app = typer.Typer(
    help="Annotate image collections of any size with PaliGemma. "
    "Start with `paliscribe demo`; `paliscribe COMMAND --help` has examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(
    epilog="Examples:  paliscribe submit job.yaml --address http://127.0.0.1:8265  |  "
    "paliscribe submit job.yaml --env AWS_PROFILE=annotator --follow"
)(cli_jobs.submit)
app.add_typer(cli_jobs.jobs, name="jobs")


def _option(settings: type[BaseModel], name: str, more: str = "", *, flag: str | None = None) -> Any:
    """A flag whose help text is the setting's description."""
    help_ = f"{settings.model_fields[name].description}{more}"
    return typer.Option(*filter(None, [flag]), help=help_)


def _version(asked: bool) -> None:
    if asked:
        print(f"paliscribe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Examples:  paliscribe annotate job.yaml  |  paliscribe annotate job.yaml --append  |  paliscribe annotate "
    "--manifest photos/ --task 'caption en' --task 'detect cat ; dog' --output s3://bucket/run-1"
)
def annotate(
    job: Annotated[Path | None, typer.Argument(help="A YAML job file; flags override its settings.")] = None,
    manifest: Annotated[list[str] | None, _option(JobConfig, "manifest", " Repeat for more.")] = None,
    task: Annotated[list[str] | None, _option(JobConfig, "tasks", " Repeat for more.")] = None,
    output: Annotated[str | None, _option(JobConfig, "output")] = None,
    model: Annotated[str | None, _option(ModelSpec, "id")] = None,
    revision: Annotated[str | None, _option(ModelSpec, "revision")] = None,
    precision: Annotated[str | None, _option(ModelSpec, "precision")] = None,
    quantization: Annotated[str | None, _option(ModelSpec, "quantization")] = None,
    image_column: Annotated[str | None, _option(JobConfig, "image_column")] = None,
    id_column: Annotated[str | None, _option(JobConfig, "id_column")] = None,
    drop_column: Annotated[list[str] | None, _option(JobConfig, "drop_columns", " Repeat for more.")] = None,
    rename_column: Annotated[list[str] | None, _option(JobConfig, "rename_columns", " Repeat for more.")] = None,
    partition_by: Annotated[list[str] | None, _option(JobConfig, "partition_by", " Repeat to nest.")] = None,
    shard_rows: Annotated[int | None, _option(JobConfig, "shard_rows")] = None,
    max_tokens: Annotated[int | None, _option(JobConfig, "max_tokens")] = None,
    max_error_rate: Annotated[float | None, _option(JobConfig, "max_error_rate")] = None,
    mask_decoder: Annotated[str | None, _option(JobConfig, "mask_decoder")] = None,
    replicas: Annotated[int | None, _option(PoolConfig, "replicas")] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add the rows whose ids are new to the finished run in the output.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Annotate a manifest of images into partitioned Parquet.

    The same command resumes an interrupted run or append; committed shards are not computed again.
    """
    values = config.load(job) if job is not None else {}
    flags = {
        "manifest": manifest or None,
        "tasks": task or None,
        "output": output,
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
    values |= _without_none(flags)
    _nest(values, "model", {"id": model, "revision": revision, "precision": precision, "quantization": quantization})
    _nest(values, "pool", {"replicas": replicas})
    checked = config.parse(values, source=str(job) if job is not None else "annotate")
    summary = _run(checked, quiet, append=append)
    print(json.dumps(summary) if as_json else _summary_words(summary, checked.output))


@app.command(epilog="Example:  paliscribe demo --folder /tmp/demo -n 200")
def demo(
    folder: Annotated[Path, typer.Option(help="Folder for images and results.")] = Path("demo-output"),
    images: Annotated[int, typer.Option("--images", "-n", min=1, help="Scenes to draw and annotate.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Generate a small collection, annotate it with the demo model, and measure the accuracy."""
    from paliscribe.cli.report import demo_accuracy
    from paliscribe.demo.collection import write_collection

    place = folder / f"{images}-scenes-seed-{seed}"
    manifest = write_collection(place / "collection", images, seed)
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


@app.command(epilog="Example:  paliscribe status s3://bucket/run-1 --json")
def status(output: Annotated[str, typer.Argument(help="The output of a run.")], as_json: Json = False) -> None:
    """Show a run's status: rows, errors by kind, whether a driver is running, and the next step."""
    from paliscribe.api.status import run_status
    from paliscribe.cli.report import status_words

    found = run_status(output)
    print(json.dumps(found) if as_json else status_words(found))


@app.command(epilog="Example:  paliscribe retry s3://bucket/run-1")
def retry(
    output: Annotated[str, typer.Argument(help="The output of a finished run.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Annotate a run's dead letters again, once their causes are fixed; nothing else is touched."""
    from paliscribe.api.display import progress_display
    from paliscribe.batch.run import run_retry

    with progress_display(quiet or as_json) as report:
        summary = run_retry(output, report)
    print(json.dumps(summary) if as_json else _summary_words(summary, output))


@app.command(epilog="Examples:  paliscribe ask photo.jpg 'caption en'  |  paliscribe ask s3://b/k.jpg 'detect cat'")
def ask(
    image: Annotated[str, typer.Argument(help="A path, s3:// or http(s):// address.")],
    prompt: Annotated[str, typer.Argument(help="PaliGemma's grammar: caption en, ocr, detect cat ; dog, ...")],
    model: Annotated[str, _option(ModelSpec, "id")] = "demo",
    max_tokens: Annotated[int | None, _option(JobConfig, "max_tokens")] = None,
    as_json: Json = False,
) -> None:
    """Answer one prompt about one image, in this process."""
    from paliscribe.api.ask import ask as answer
    from paliscribe.cli.report import answer_words
    from paliscribe.results import record_values

    found = record_values(answer(image, prompt, model=model, max_tokens=max_tokens))
    print(json.dumps(found) if as_json else answer_words(found))


@app.command(epilog="Examples:  paliscribe serve demo  |  paliscribe serve endpoint.yaml --port 8080")
def serve(
    endpoint: Annotated[
        str | None, typer.Argument(help="A model's id, or a YAML file of settings, which flags override.")
    ] = None,
    model: Annotated[list[str] | None, _option(ModelSpec, "id", " Repeat for more.")] = None,
    host: Annotated[str | None, _option(ServeConfig, "host")] = None,
    port: Annotated[int | None, _option(ServeConfig, "port")] = None,
    keys: Annotated[str | None, _option(ServeConfig, "keys")] = None,
    files: Annotated[str | None, _option(ServeConfig, "files")] = None,
    open_: Annotated[bool | None, _option(ServeConfig, "open", flag="--open")] = None,
) -> None:
    """Answer live calls over HTTP until stopped: OpenAI's chat completions, and records as a run writes them."""
    from paliscribe.online.checks import check, check_port

    is_file = endpoint is not None and (endpoint.endswith((".yaml", ".yml", ".json")) or Path(endpoint).is_file())
    if endpoint is not None and not is_file:
        model = [endpoint, *(model or [])]
    values = config.load(Path(endpoint), "endpoint file") if endpoint is not None and is_file else {}
    values |= _without_none({"host": host, "port": port, "keys": keys, "files": files, "open": open_})
    if model:
        values["models"] = [{"model": name} for name in model]
    settings = config.parse_serve(values, source=endpoint if endpoint is not None and is_file else "serve")
    check(settings)
    check_port(settings.host, settings.port)
    from paliscribe.online.application import serve_forever

    names = ", ".join(served.called for served in settings.models)
    print(f"starting {names}", file=sys.stderr)
    words, out = f"serving {names} at {{}} (Ctrl-C stops)", sys.stdout
    serve_forever(settings, lambda address: print(words.format(address), file=out, flush=True))


@app.command(epilog="Example:  paliscribe doctor s3://bucket/run-1")
def doctor(
    locations: Annotated[list[str] | None, typer.Argument(help="Folders or prefixes to test for access.")] = None,
    as_json: Json = False,
) -> None:
    """Check this machine, its packages and its credentials. Exit code 1 if a run would fail."""
    from paliscribe.cli.doctor import examine

    checks = examine(locations or [])
    if as_json:
        print(json.dumps([check.as_dict() for check in checks]))
    else:
        for check in checks:
            print(f"{'ok ' if check.ok else 'NO '} {check.name:<12} {check.found}")
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def _without_none(flags: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value is not None}


def _nest(values: dict[str, Any], key: str, flags: dict[str, Any]) -> None:
    """Merge flags into a nested mapping of the job file; `model: ID` is short for `model: {id: ID}`."""
    if given := _without_none(flags):
        nested = values.get(key) or {}
        values[key] = ({"id": nested} if isinstance(nested, str) else dict(nested)) | given


def _run(job: JobConfig, quiet: bool, *, append: bool = False) -> dict[str, Any]:
    from paliscribe.api.display import progress_display
    from paliscribe.batch.run import run_append, run_batch

    with progress_display(quiet) as report:
        return run_append(job, report) if append else run_batch(job, report)


def _summary_words(summary: dict[str, Any], output: str) -> str:
    from paliscribe.api.results import summary_words

    words: str = summary_words(summary, output)
    return words


def main() -> None:
    """Run the command line. Paliscribe's own errors become one line on stderr and an exit code."""
    try:
        app()
    except (RunError, Stopped) as error:
        print(f"paliscribe: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except PaliscribeError as error:
        print(f"paliscribe: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("paliscribe: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
