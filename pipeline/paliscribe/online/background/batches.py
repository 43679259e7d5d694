"""Background jobs over HTTP: batches in the shape of OpenAI's Batch API, and paliscribe job files.

Each is an ordinary run on the pool of a served model.
"""

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from paliscribe.config import JobConfig, ServeConfig, Settings, plain_yaml
from paliscribe.config.base import one_or_many
from paliscribe.errors import RequestError
from paliscribe.images.untrusted import UntrustedImages
from paliscribe.online.background.files import (
    After,
    Limit,
    entries_after,
    file_info,
    list_page,
    no_longer,
    owner,
    require,
)
from paliscribe.online.background.lines import ENDPOINT
from paliscribe.online.background.store import TERMINAL, BackgroundJob, BackgroundStore, Kind, new_id
from paliscribe.storage.base import scheme

WINDOW: Final = re.compile(r"([1-9][0-9]{0,4})([smhd])")
SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
MAX_KEY, MAX_VALUE, MAX_PAIRS = 64, 512, 16  # limits of a batch's metadata, as in OpenAI's API
MAX_JOB_FILE: Final = 2**18  # bytes; parsing YAML is slow
TIMES: Final = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelled")
# Settings of a job that a caller may set. The others (pool, image fetching) are reserved for the operator.
SETTABLE: Final = (
    "manifest",
    "tasks",
    "output",
    "image_column",
    "id_column",
    "drop_columns",
    "rename_columns",
    "options_column",
    "partition_by",
    "shard_rows",
    "max_tokens",
    "max_error_rate",
)
JobCall: type[Settings] = create_model(
    "JobCall",
    __base__=Settings,
    model=(str | None, Field(None, description="One of `GET /v1/models`. Default: the first.")),
    **{name: (JobConfig.model_fields[name].annotation, JobConfig.model_fields[name]) for name in SETTABLE},  # type: ignore[call-overload]
)


class Launcher(Protocol):
    """Starts and cancels background jobs: see `drivers`."""

    async def start(self, job: BackgroundJob) -> None:
        """Start a job that has been stored."""

    async def cancel(self, job: BackgroundJob) -> None:
        """Stop a job; what it has finished is kept."""


class BatchCall(BaseModel):
    """A batch: a file of lines to answer within a time window."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(description="A file of /v1/files.")
    endpoint: Literal["/v1/chat/completions"] = Field(description="What each line calls.")
    completion_window: str = Field(description="`24h`; others such as `90m` and `7d` too.")
    metadata: dict[str, str] | None = Field(None, description="Up to 16 key-value pairs, stored with the batch.")

    def check(self) -> int:
        """The window in seconds. Raises RequestError."""
        pairs = self.metadata or {}
        long = any(len(key) > MAX_KEY or len(value) > MAX_VALUE for key, value in pairs.items())
        if long or len(pairs) > MAX_PAIRS:
            words = f"at most {MAX_PAIRS} pairs, keys of {MAX_KEY} and values of {MAX_VALUE} characters"
            raise RequestError(400, "invalid_request", f"metadata: {words}", "metadata")
        window = WINDOW.fullmatch(self.completion_window)
        if window is None:
            words = "completion_window must be a number and a unit (s, m, h, d), such as 24h"
            raise RequestError(400, "invalid_request", words, "completion_window")
        return int(window[1]) * SECONDS[window[2]]


def routes(  # long: the handlers of one router
    config: ServeConfig, models: list[str], store: BackgroundStore | None, launcher: Launcher | None
) -> APIRouter:
    """The routes for batches and jobs. Without `store` each raises RequestError 404."""
    router = APIRouter()
    images = UntrustedImages(config.images)

    async def add(job: BackgroundJob) -> dict[str, Any]:
        await asyncio.to_thread(require(store).add_job, job)
        if launcher is not None:
            await launcher.start(job)
        return _render(job, {}, None)  # no further store access: a failure here would make the caller submit it twice

    async def find(request: Request, name: str, kind: Kind) -> BackgroundJob:
        job = await asyncio.to_thread(require(store).job, owner(request), name)
        if job is None or job.kind != kind:
            raise no_longer(kind, name, config.expire_after)
        return job

    async def cancel(job: BackgroundJob) -> dict[str, Any]:
        background = require(store)
        if (state := await asyncio.to_thread(background.state, job)).get("status") in TERMINAL:
            raise RequestError(409, "conflict", f"the {job.kind} is already {state['status']}")
        await asyncio.to_thread(background.cancel, job)
        if launcher is not None:
            await launcher.cancel(job)
        return await asyncio.to_thread(_view, background, job)

    async def index(request: Request, kind: Kind, after: str | None, limit: int) -> dict[str, Any]:
        def found() -> dict[str, Any]:
            background, who = require(store), owner(request)
            jobs = (background.job(who, name) for name in entries_after(background.jobs(who, kind)[::-1], after))
            return list_page((_view(background, job) for job in jobs if job is not None), limit)

        return await asyncio.to_thread(found)

    @router.post("/v1/batches", summary="Create a batch: answer the lines of a file in the background")
    async def create_batch(request: Request, call: BatchCall) -> dict[str, Any]:
        seconds = call.check()
        info = await file_info(store, request, call.input_file_id, config.expire_after)
        if (until := info.until(config.expire_after)) is not None and until <= time.time():  # about to be deleted
            raise RequestError(404, "not_found", f"the file {info.id} has expired", "input_file_id")
        if info.purpose != "batch":
            raise RequestError(400, "invalid_request", "the file's purpose is not batch", "input_file_id")
        now, values = int(time.time()), call.model_dump()
        return await add(BackgroundJob(new_id("batch_"), owner(request), "batch", values, now, now + seconds))

    @router.get("/v1/batches", summary="List the caller's batches, newest first")
    async def list_batches(request: Request, limit: Limit = 20, after: After = None) -> dict[str, Any]:
        return await index(request, "batch", after, limit)

    @router.get("/v1/batches/{batch_id}", summary="Get a batch's status")
    async def retrieve_batch(request: Request, batch_id: str) -> dict[str, Any]:
        job = await find(request, batch_id, "batch")
        return await asyncio.to_thread(_view, require(store), job)

    @router.post("/v1/batches/{batch_id}/cancel", summary="Cancel a batch; finished answers are kept")
    async def cancel_batch(request: Request, batch_id: str) -> dict[str, Any]:
        return await cancel(await find(request, batch_id, "batch"))

    @router.post("/v1/jobs", summary="Run a job file, JSON or YAML, on a served model", openapi_extra=_job_body())
    async def create_job(request: Request) -> dict[str, Any]:
        require(store)
        call = await asyncio.to_thread(read_job, await request.body(), config, models, images)
        return await add(BackgroundJob(new_id("job_"), owner(request), "job", call, int(time.time())))

    @router.get("/v1/jobs", summary="List the caller's jobs, newest first")
    async def list_jobs(request: Request, limit: Limit = 20, after: After = None) -> dict[str, Any]:
        return await index(request, "job", after, limit)

    @router.get("/v1/jobs/{job_id}", summary="Get a job's status")
    async def retrieve_job(request: Request, job_id: str) -> dict[str, Any]:
        job = await find(request, job_id, "job")
        return await asyncio.to_thread(_view, require(store), job)

    @router.post("/v1/jobs/{job_id}/cancel", summary="Cancel a job; submitting the same job again resumes it")
    async def cancel_job(request: Request, job_id: str) -> dict[str, Any]:
        return await cancel(await find(request, job_id, "job"))

    return router


def read_job(body: bytes, config: ServeConfig, models: list[str], images: UntrustedImages) -> dict[str, Any]:
    """Parse and check a job file. Raises RequestError: invalid, or a setting or address that callers may not use."""
    if len(body) > MAX_JOB_FILE:
        raise RequestError(413, "too_large", f"a job file has at most {MAX_JOB_FILE:,} bytes")
    try:
        values = plain_yaml(body)
    except ValueError:
        raise RequestError(400, "invalid_request", "the job file is neither JSON nor YAML") from None
    try:
        call = JobCall.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or None
        reserved = first["type"] == "extra_forbidden" and place in JobConfig.model_fields
        words = "reserved for the operator" if reserved else first["msg"].removeprefix("Value error, ").lower()
        raise RequestError(400, "invalid_request", f"{place or 'the job'}: {words}", place) from None
    job: dict[str, Any] = call.model_dump(mode="json")
    job["model"] = job["model"] or models[0]
    if job["model"] not in models:
        raise RequestError(404, "model_not_found", f"there is no model {job['model'][:100]!r}", "model")
    for address in one_or_many(job["manifest"]):
        _check_manifest(address, images)
    if not any(_below(job["output"], place) for place in config.outputs):
        raise RequestError(403, "not_allowed", "output: not below any of the endpoint's `outputs`", "output")
    return job


def _check_manifest(address: str, images: UntrustedImages) -> None:
    if scheme(address) != "s3":
        raise RequestError(400, "bad_uri", "manifest: must be an s3:// address that this endpoint allows", "manifest")
    try:
        images.check(address)
    except RequestError as error:
        words = "manifest: this endpoint does not allow the address"
        raise RequestError(error.status, error.code, words, "manifest") from None


def _below(output: str, place: str) -> bool:
    """Whether an output is inside a folder or prefix. Always False for file://, which has many spellings of a path."""
    if scheme(output) != scheme(place) or scheme(output) not in ("", "s3"):
        return False
    if not scheme(place):
        return Path(output).is_absolute() and Path(output).resolve().is_relative_to(Path(place).expanduser().resolve())
    inside = output.startswith(place.rstrip("/") + "/") and len(output) > len(place.rstrip("/")) + 1
    return inside and not {"..", "."} & set(output.split("/"))


def _view(store: BackgroundStore, job: BackgroundJob) -> dict[str, Any]:
    """Read a background job's current state and render it."""
    state = store.state(job)
    may_be_cancelled = state.get("status") not in TERMINAL - {"cancelled"}
    return _render(job, state, store.cancelled_at(job) if may_be_cancelled else None)


def _render(job: BackgroundJob, state: dict[str, Any], cancelled: int | None) -> dict[str, Any]:
    """A background job as JSON for its caller."""
    status = state.get("status", "validating" if job.kind == "batch" else "queued")
    status = "cancelling" if cancelled is not None and status not in TERMINAL else status
    times = {f"{name}_at": state.get(f"{name}_at") for name in TIMES} | {"cancelling_at": cancelled}
    details: Callable[[BackgroundJob, dict[str, Any]], dict[str, Any]] = _batch if job.kind == "batch" else _job
    return (
        {"id": job.id, "object": job.kind, "status": status, "created_at": job.created_at} | times | details(job, state)
    )


def _batch(job: BackgroundJob, state: dict[str, Any]) -> dict[str, Any]:
    problems = state.get("problems")
    return {
        "endpoint": ENDPOINT,
        "input_file_id": job.asked["input_file_id"],
        "completion_window": job.asked["completion_window"],
        "expires_at": job.expires_at,
        "output_file_id": state.get("output_file_id"),
        "error_file_id": state.get("error_file_id"),
        "errors": {"object": "list", "data": problems} if problems else None,
        "request_counts": state.get("counts", {"total": 0, "completed": 0, "failed": 0}),
        "metadata": job.asked["metadata"],
    }


def _job(job: BackgroundJob, state: dict[str, Any]) -> dict[str, Any]:
    return {
        "job": job.asked,
        "progress": state.get("progress"),
        "summary": state.get("summary"),
        "error": (state.get("problems") or [None])[0],
    }


def _job_body() -> dict[str, Any]:
    """OpenAPI request body of a job. Written out, as FastAPI cannot derive a body that may be YAML."""
    schema = JobCall.model_json_schema()
    example = {"manifest": "s3://images/manifest.jsonl", "tasks": ["caption en"], "output": "s3://runs/first"}
    content = {"schema": schema, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content, "application/yaml": content}}}
