"""Commands for Ray clusters: `paliscribe submit` and `paliscribe jobs`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paliscribe import config
from paliscribe.cli.options import Append, Json, Quiet
from paliscribe.errors import RunError, UsageError

if TYPE_CHECKING:
    from paliscribe.submit import Jobs, SubmittedJob

Address = Annotated[
    str | None, typer.Option(help="The cluster's dashboard, http://HOST:8265. Default: RAY_API_SERVER_ADDRESS.")
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as printed by `submit` and `jobs list`.")]

jobs = typer.Typer(help="List, follow and stop the jobs of a cluster.", no_args_is_help=True, rich_markup_mode=None)


def submit(
    job: Annotated[Path, typer.Argument(help="A YAML job file.")],
    address: Address = None,
    env: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, or NAME for its local value; repeat for more. No secrets.")
    ] = None,
    append: Append = False,
    code: Annotated[bool, typer.Option("--code", help="Upload the local paliscribe package too.")] = False,
    shared_paths: Annotated[
        bool, typer.Option("--shared-paths", help="The job file's local paths exist on every node.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show the log on stderr until the job ends.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a job file on a Ray cluster and print the job's id. Submit the same file again to resume its run.

    The file is checked locally first. Pass credentials by reference (AWS_PROFILE, HF_TOKEN_PATH), never by value. The
    dashboard's token is read from RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN.
    """
    config.parse(config.load_job(job), source=str(job))  # before the imports that packaging needs
    from paliscribe.submit import Jobs, pack, variables

    package = pack(job, shared_paths=shared_paths)
    given = variables(env or [])
    cluster = Jobs(address)
    if not quiet:
        print(f"submitting {job} to {cluster.address}", file=sys.stderr, flush=True)
    job_id = cluster.submit(package, given, code=code, append=append)
    facts = {"id": job_id, "address": cluster.address, "output": package.job.output}
    print(json.dumps(facts) if as_json else job_id, flush=True)
    if follow:
        _follow(cluster, job_id, sys.stderr)
    elif not quiet:
        print(f"follow it with: paliscribe jobs logs {job_id} --follow   (or: jobs status, jobs stop)", file=sys.stderr)


@jobs.command("list", epilog="Example:  paliscribe jobs list --address http://127.0.0.1:8265")
def list_(address: Address = None, as_json: Json = False) -> None:
    """List the cluster's submitted runs, newest first: id, state, age, output."""
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
    """Show a job's state, its last line of progress and, if its output is readable from here, the run's status."""
    from paliscribe.api.display import duration, last_line
    from paliscribe.cli.report import status_words
    from paliscribe.submit import Jobs

    cluster = Jobs(address)
    job = cluster.find(job_id)
    progress, run = last_line(cluster.log(job_id)), _run_status(job)
    if as_json:
        print(json.dumps(job.as_dict() | {"progress": progress, "run": run}))
        return
    print(f"{job.id}: {job.state}, submitted {duration(job.seconds)} ago")
    print(f"  progress {progress or job.message or 'no output yet'}")
    if run is not None:
        print(status_words(run))


@jobs.command(epilog="Example:  paliscribe jobs logs paliscribe-run-1-3fa9c1 --follow")
def logs(
    job_id: JobId,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the job ends; exit code 1 if it fails.")
    ] = False,
) -> None:
    """Print the log of a job's driver."""
    from paliscribe.submit import Jobs

    cluster = Jobs(address)
    if follow:
        _follow(cluster, job_id, sys.stdout)
    else:
        print(cluster.log(job_id), end="")


@jobs.command(epilog="Example:  paliscribe jobs stop paliscribe-run-1-3fa9c1")
def stop(job_id: JobId, address: Address = None, as_json: Json = False) -> None:
    """Stop a job and wait until it has ended. Committed shards are kept; submit the same file again to resume."""
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
        print("committed shards are kept; submit the same job file again to resume", file=sys.stderr)


def _follow(cluster: "Jobs", job_id: str, out: Any) -> None:
    """Print a log until the job ends. Raises RunError unless the job succeeds; Ctrl-C does not stop the job."""
    try:
        job = cluster.follow(job_id, lambda text: print(text, end="", file=out, flush=True))
    except KeyboardInterrupt:
        words = f"job {job_id} continues; `paliscribe jobs stop {job_id}` stops it"
        print(f"\npaliscribe: no longer following: {words}", file=sys.stderr)
        raise typer.Exit(130) from None
    if job.state == "STOPPED":
        raise RunError(f"job {job_id} was stopped; submit the same job file again to resume")
    if job.state != "SUCCEEDED":
        words = job.message or "no message from Ray"
        raise RunError(f"job {job_id} failed: {words}; `paliscribe jobs logs {job_id}` prints its log")


def _run_status(job: "SubmittedJob") -> dict[str, Any] | None:
    """The run's status, or None if its output cannot be read from this machine."""
    from paliscribe.api.status import run_status

    try:
        return run_status(job.output) if job.output else None
    except UsageError:
        return None
