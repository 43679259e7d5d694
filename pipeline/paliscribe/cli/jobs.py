"""The command line of clusters: `paliscribe submit` and `paliscribe jobs`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paliscribe.errors import RunError, UsageError

if TYPE_CHECKING:
    from paliscribe.submit import Jobs, SubmittedJob

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Address = Annotated[
    str | None, typer.Option(help="The cluster's dashboard, http://HOST:8265. Default: RAY_API_SERVER_ADDRESS.")
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="As `submit` and `jobs list` print it.")]

jobs = typer.Typer(help="List, watch and stop the jobs of a cluster.", no_args_is_help=True, rich_markup_mode=None)


def submit(
    job: Annotated[Path, typer.Argument(help="A YAML job file.")],
    address: Address = None,
    env: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, or NAME for its value here; repeat. Never a secret.")
    ] = None,
    code: Annotated[bool, typer.Option("--code", help="Send this machine's paliscribe along.")] = False,
    shared_paths: Annotated[
        bool, typer.Option("--shared-paths", help="Paths of the job file are the same on every node.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show the log on stderr until the job ends.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a job file on a Ray cluster, and print the job's id. Submit the same file again to go on where it stopped.

    The file is checked here first. Credentials go by reference (AWS_PROFILE, HF_TOKEN_PATH), never by value. The
    dashboard's own token is taken from RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN.
    """
    from paliscribe.submit import Jobs, pack, variables

    package = pack(job, shared_paths=shared_paths)
    given = variables(env or [])
    cluster = Jobs(address)
    job_id = cluster.submit(package, given, code=code)
    facts = {"id": job_id, "address": cluster.address, "output": package.job.output}
    print(json.dumps(facts) if as_json else job_id, flush=True)
    if follow:
        _follow(cluster, job_id, sys.stderr)
    elif not quiet:
        print(f"follow it by: paliscribe jobs logs {job_id} --follow   (or: jobs status, jobs stop)", file=sys.stderr)


@jobs.command("list", epilog="Example:  paliscribe jobs list --address http://127.0.0.1:8265")
def list_(address: Address = None, as_json: Json = False) -> None:
    """List the cluster's runs that were submitted, newest first: id, state, age, output."""
    from paliscribe.api.display import duration
    from paliscribe.submit import Jobs

    cluster = Jobs(address)
    found = cluster.list_jobs()
    if as_json:
        print(json.dumps([job.as_dict() for job in found]))
        return
    width = max((len(job.id) for job in found), default=0)
    for job in found:
        print(f"{job.id:<{width}}  {job.state:<9}  {duration(job.seconds):>12}  {job.output or '-'}")
    if not found:
        print(f"no jobs at {cluster.address}")


@jobs.command(epilog="Example:  paliscribe jobs status paliscribe-run-1-3fa9c1 --json")
def status(job_id: JobId, address: Address = None, as_json: Json = False) -> None:
    """Say how far a job is: Ray's state, its last line of progress, and where its output can be read, the run's own."""
    from paliscribe.api.display import duration, last_line
    from paliscribe.cli.report import status_words
    from paliscribe.submit import Jobs

    cluster = Jobs(address)
    job = cluster.find(job_id)
    progress, run = last_line(cluster.log(job_id)), _run_of(job)
    if as_json:
        print(json.dumps(job.as_dict() | {"progress": progress, "run": run}))
        return
    print(f"{job.id}: {job.state}, submitted {duration(job.seconds)} ago")
    print(f"  progress {progress or job.message or 'nothing is printed yet'}")
    if run is not None:
        print(status_words(run))


@jobs.command(epilog="Example:  paliscribe jobs logs paliscribe-run-1-3fa9c1 --follow")
def logs(
    job_id: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends; its success is ours.")] = False,
) -> None:
    """Print what a job's driver has printed."""
    from paliscribe.submit import Jobs

    cluster = Jobs(address)
    if follow:
        _follow(cluster, job_id, sys.stdout)
    else:
        print(cluster.log(job_id), end="")


@jobs.command(epilog="Example:  paliscribe jobs stop paliscribe-run-1-3fa9c1")
def stop(job_id: JobId, address: Address = None, as_json: Json = False) -> None:
    """Stop a job and wait until it has. What it has committed stays; submit the same file again to go on."""
    from paliscribe.submit import Jobs

    cluster = Jobs(address)
    ended = cluster.find(job_id).over
    job = cluster.stop(job_id)
    if as_json:
        print(json.dumps(job.as_dict()))
    elif ended:
        print(f"{job.id}: {job.state} already")
    else:
        print(f"{job.id}: {job.state}")
        print("what it has committed stays; submit the same job file again to go on", file=sys.stderr)


def _follow(cluster: "Jobs", job_id: str, out: Any) -> None:
    """Show a log to its end. Raises RunError unless the job succeeds; Ctrl-C ends the showing alone."""
    try:
        job = cluster.follow(job_id, lambda text: print(text, end="", file=out, flush=True))
    except KeyboardInterrupt:
        words = f"job {job_id} goes on; `paliscribe jobs stop {job_id}` stops it"
        print(f"\npaliscribe: no longer following: {words}", file=sys.stderr)
        raise typer.Exit(130) from None
    if job.state == "STOPPED":
        raise RunError(f"job {job_id} was stopped; submit the same job file again to go on")
    if job.state != "SUCCEEDED":
        raise RunError(f"job {job_id} failed: {job.message or 'Ray says no more'}")


def _run_of(job: "SubmittedJob") -> dict[str, Any] | None:
    """Where the run stands by its own output, or None where that cannot be read from here."""
    from paliscribe.api.status import run_status

    try:
        return run_status(job.output) if job.output else None
    except UsageError:
        return None
