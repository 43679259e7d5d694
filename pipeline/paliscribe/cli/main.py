"""The command line: parse, call one function, print. Results on stdout, everything else on stderr."""

import contextlib
import json
import os
import re
import sys
from typing import Annotated

import typer

from paliscribe import __version__
from paliscribe.cli import evaluate as evaluations
from paliscribe.cli import export as exports
from paliscribe.cli import jobs, live, preview, report_file, runs
from paliscribe.cli import query as queries
from paliscribe.cli import verify as verifying
from paliscribe.cli import view as views
from paliscribe.cli.options import Json
from paliscribe.errors import PaliscribeError, RunError, Stopped, did_you_mean

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
)(jobs.submit)
app.add_typer(jobs.jobs, name="jobs")
app.command(
    epilog="Examples:  paliscribe annotate job.yaml  |  paliscribe annotate job.yaml --append  |  paliscribe annotate "
    "--manifest photos/ --task 'caption en' --task 'detect cat ; dog' --output s3://bucket/run-1 --limit 100 --dry-run"
)(runs.annotate)
app.command(epilog="Example:  paliscribe preview job.yaml -n 128 --gpu-hour-price 2.50")(preview.preview)
app.command(epilog="Example:  paliscribe demo --folder /tmp/demo -n 200")(runs.demo)
app.command(epilog="Example:  paliscribe status s3://bucket/run-1 --json")(runs.status)
app.command(epilog="Example:  paliscribe retry s3://bucket/run-1")(runs.retry)
app.command(epilog="Examples:  paliscribe verify s3://bucket/run-1  |  paliscribe verify s3://bucket/run-1 --repair")(
    verifying.verify
)
app.command(
    help=queries.HELP, epilog='Example:  paliscribe query s3://bucket/run-1 "SELECT count(*) FROM errors" --format csv'
)(queries.query)
app.command(epilog="Example:  paliscribe report s3://bucket/run-1 -o report.html --samples 48")(report_file.report)
app.command(
    epilog="Examples:  paliscribe evaluate s3://bucket/run-1 --truth truth.jsonl  |  paliscribe evaluate run-1 --truth "
    "instances.json --against run-2 --json  |  paliscribe evaluate run-1 --truth t.csv --column 'answer en {q}=answers'"
)(evaluations.evaluate)
app.command(
    epilog="Examples:  paliscribe export run-1 --format coco --to coco/ --images  |  "
    "paliscribe export s3://bucket/run-1 -f label-studio --to s3://bucket/review --task detect --min-score 0.3"
)(exports.export)
app.command(epilog="Example:  paliscribe import-review run-1 project-1.json")(exports.import_review)
app.command(
    epilog="Examples:  paliscribe view s3://bucket/run-1  |  paliscribe view run-1 run-2  |  paliscribe view --example"
)(views.view)
app.command(
    epilog="Examples:  paliscribe ask photo.jpg 'caption en'  |  paliscribe ask s3://b/k.jpg 'detect cat' --save k.png"
)(live.ask)
app.command(epilog="Examples:  paliscribe serve demo --port 0  |  paliscribe serve endpoint.yaml --port 8080")(
    live.serve
)


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


def main() -> None:
    """Run the command line. Errors become one line on stderr and an exit code."""
    try:
        raise SystemExit(_run())
    except typer.TyperException as error:
        print(_usage(error), file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except (PaliscribeError, Stopped) as error:
        said = "; ".join([str(error), *getattr(error, "__notes__", ())])
        print(f"paliscribe: {said}", file=sys.stderr)
        raise SystemExit(error.exit_code if isinstance(error, RunError | Stopped) else 1) from None
    except (KeyboardInterrupt, typer.Abort):
        print("paliscribe: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _run() -> int:
    """The exit code of the command."""
    try:
        code = app(prog_name="paliscribe", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # what is left in the buffer is written when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def _usage(error: typer.TyperException) -> str:
    """A mistake in the command line as one line, with what may be meant; of no command its help."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "paliscribe"
    words = error.format_message()
    if words.startswith("Usage:"):  # no command: that is its help
        return words
    words = re.sub(r"\. Did you mean (.+)\?$", r" (did you mean \1?)", words)
    if near := getattr(error, "possibilities", None):
        words = f"{error.message}{did_you_mean(getattr(error, 'option_name', ''), near)}"
    return f"paliscribe: {words[0].lower()}{words[1:].rstrip('.')}; see `{command} --help`"


if __name__ == "__main__":
    main()
