"""Client of the Ray dashboard's job API. Ray's errors are translated here."""

import asyncio
import contextlib
import importlib.util
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paliscribe import __version__
from paliscribe.errors import RunError, UsageError
from paliscribe.pool.joining import auth_mode, find_token, remedy
from paliscribe.storage import redacted
from paliscribe.submit.dashboard import ADDRESS, check_dashboard, dashboard
from paliscribe.submit.package import JOB_FILE, Package

ENTRYPOINT = "python -m paliscribe annotate"
METADATA_KEY = "paliscribe"  # marks jobs submitted by paliscribe; the value is the version
POLL = 0.5  # seconds between two status requests
STOP_TIMEOUT = 60.0  # seconds to wait for a job to stop; Ray kills it after 3, or RAY_JOB_STOP_WAIT_TIME_S
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A Ray job. `state`: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED. Times in seconds since 1970."""

    id: str
    state: str
    submitted: float | None
    ended: float | None
    manifest: str | None
    output: str | None
    model: str | None
    message: str | None  # first line of Ray's message about the state

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.state in ENDED

    @property
    def seconds(self) -> float:
        """Seconds since submission."""
        return max(0.0, time.time() - (self.submitted or time.time()))

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict."""
        return asdict(self)


class Jobs:
    """Jobs of one cluster. Methods raise RunError if the dashboard does not respond, UsageError for an unknown id."""

    def __init__(self, address: str | None) -> None:
        """Connect to the dashboard at `address`, by default RAY_API_SERVER_ADDRESS.

        Raises UsageError for an invalid address, RunError if no dashboard responds there or it rejects the token.
        """
        self.address = dashboard(address)
        check_dashboard(self.address)
        from ray.job_submission import JobSubmissionClient

        for name in ("", ".dashboard.modules.dashboard_sdk", ".dashboard.modules.job.sdk"):  # they log each upload
            logging.getLogger(f"ray{name}").setLevel(logging.ERROR)
        # The environment variable would override the argument.
        with self._translate_errors(), _environment(ADDRESS, self.address):
            self._client = JobSubmissionClient(self.address)

    def submit(
        self, package: Package, variables: Mapping[str, str], *, code: bool = False, append: bool = False
    ) -> str:
        """Submit a job; returns its id.

        `code`: also upload the local `paliscribe` package. `append`: add new rows to the finished run in its output.
        """
        job = package.job
        name = re.sub(r"[^A-Za-z0-9-]+", "-", job.output.rstrip("/").rpartition("/")[2])[:40].strip("-") or "run"
        facts = {
            METADATA_KEY: __version__,
            "manifest": " ".join(job.manifest),
            "output": job.output,
            "model": job.model.id,
        }
        runtime: dict[str, Any] = {"env_vars": dict(variables), "excludes": ["__pycache__"]}
        if code:
            runtime["py_modules"] = [_folder("paliscribe")]
        with tempfile.TemporaryDirectory(prefix="paliscribe-") as folder, self._translate_errors():
            package.write(Path(folder))
            found: str = self._client.submit_job(
                entrypoint=f"{ENTRYPOINT} {JOB_FILE}" + " --append" * append,
                submission_id=f"paliscribe-{name}-{secrets.token_hex(3)}",
                runtime_env=runtime | {"working_dir": folder},
                metadata={key: redacted(value) for key, value in facts.items()},
            )
        return found

    def list_jobs(self) -> list[SubmittedJob]:
        """Jobs of paliscribe, newest first, found by metadata or entrypoint. Other jobs are left out."""
        with self._translate_errors():
            found = self._client.list_jobs()
        chosen = [
            job
            for job in found
            if job.submission_id and (METADATA_KEY in (job.metadata or {}) or ENTRYPOINT in job.entrypoint)
        ]
        return sorted(map(_job, chosen), key=lambda job: job.submitted or 0.0, reverse=True)

    def find(self, job_id: str) -> SubmittedJob:
        """The job with this id."""
        with self._translate_errors():
            found = [job for job in self._client.list_jobs() if job.submission_id == job_id]
        if not found:
            raise UsageError(f"no job {job_id} at {self.address}; list jobs with `paliscribe jobs list`")
        return _job(found[0])

    def log(self, job_id: str) -> str:
        """The log of the job's driver so far."""
        self.find(job_id)
        with self._translate_errors():
            log: str = self._client.get_job_logs(job_id)
        return log

    def follow(self, job_id: str, write: Callable[[str], None]) -> SubmittedJob:
        """Pass the log to `write` in pieces until the job has ended. Reconnects after a lost connection."""
        job, seen = self.find(job_id), 0
        while not job.over:
            seen += self._tail(job_id, seen, write)
            job = self.find(job_id)
            if not job.over:
                time.sleep(POLL)
        write(self.log(job_id)[seen:])
        return job

    def stop(self, job_id: str) -> SubmittedJob:
        """Stop a job and wait until it has ended. Raises RunError after `STOP_TIMEOUT` seconds."""
        job = self.find(job_id)
        until = time.monotonic() + STOP_TIMEOUT
        while not job.over:
            if time.monotonic() > until:
                raise RunError(f"job {job_id} has not stopped within {STOP_TIMEOUT:.0f} s; it is {job.state}")
            with self._translate_errors():
                self._client.stop_job(job_id)  # repeated: a job that has not started yet may miss the request
            time.sleep(POLL)
            job = self.find(job_id)
        return job

    def _tail(self, job_id: str, seen: int, write: Callable[[str], None]) -> int:
        """Stream a log to `write`, without its first `seen` characters; returns the number of characters written."""
        import aiohttp

        written = 0

        async def tail() -> None:
            nonlocal written
            skip = seen
            async for text in self._client.tail_job_logs(job_id):
                skip, rest = max(0, skip - len(text)), text[skip:]
                written += len(rest)
                write(rest)

        # A lost connection is not an error here: `follow` checks the job and the dashboard next.
        with contextlib.suppress(aiohttp.ClientError, RuntimeError):
            asyncio.run(tail())
        return written

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise RunError(f"the dashboard at {self.address}: {remedy(auth_mode(), find_token()[1])}") from None
        except OSError as error:  # includes exceptions of `requests`
            raise RunError(f"no Ray dashboard responds at {self.address} ({type(error).__name__})") from None
        except (RuntimeError, ValueError, KeyError) as error:  # what Ray raises for unexpected responses
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunError(f"the dashboard at {self.address}: {line[:300]}") from None


def _job(details: Any) -> SubmittedJob:
    facts = details.metadata or {}
    message = (details.message or "").strip().splitlines()
    return SubmittedJob(
        id=details.submission_id,
        state=str(details.status),
        submitted=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        manifest=facts.get("manifest"),
        output=facts.get("output"),
        model=facts.get("model"),
        message=message[0] if message else None,
    )


def _folder(package: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None  # it is installed: this module is part of it
    return str(Path(spec.origin).parent)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
