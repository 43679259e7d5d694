"""Orders: batches in the shape of OpenAI's Batch API, and jobs of our own; each an ordinary run on the served pool."""

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from paliscribe.config import JobConfig, ServeConfig, Settings, plain_yaml
from paliscribe.errors import RequestError
from paliscribe.images.untrusted import Pictures
from paliscribe.online.background.files import After, Limit, facts_of, following, kept, listed, owner
from paliscribe.online.background.lines import ENDPOINT
from paliscribe.online.background.store import OVER, Kind, Order, Orders, new_id
from paliscribe.storage.base import scheme

WINDOW: Final = re.compile(r"([1-9][0-9]{0,4})([smhd])")
SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LONGEST_KEY, LONGEST_VALUE, MOST_PAIRS = 64, 512, 16  # of a batch's metadata, as OpenAI has it
LARGEST_JOB: Final = 2**18  # bytes; reading YAML takes its time
TIMES: Final = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelled")
# What a caller may set of a job. The rest is the operator's: which replicas answer, how images are fetched.
SETTABLE: Final = (
    "manifest",
    "tasks",
    "output",
    "image_column",
    "id_column",
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
    """Who works on orders: see `offline`."""

    async def begin(self, order: Order) -> None:
        """Work on an order that has been placed."""

    async def cancel(self, order: Order) -> None:
        """Stop working on one; what it has finished is kept."""


class BatchCall(BaseModel):
    """A file of lines to be answered, within a window of time."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(description="A file of /v1/files.")
    endpoint: Literal["/v1/chat/completions"] = Field(description="What each line calls.")
    completion_window: str = Field(description="`24h`; others such as `90m` and `7d` too.")
    metadata: dict[str, str] | None = Field(None, description="Up to 16 pairs, which the batch carries.")

    def check(self) -> int:
        """The window in seconds. Raises RequestError."""
        pairs = self.metadata or {}
        long = any(len(key) > LONGEST_KEY or len(value) > LONGEST_VALUE for key, value in pairs.items())
        if long or len(pairs) > MOST_PAIRS:
            words = f"at most {MOST_PAIRS} pairs, keys of {LONGEST_KEY} and values of {LONGEST_VALUE} characters"
            raise RequestError(400, "invalid_request", f"metadata: {words}", "metadata")
        window = WINDOW.fullmatch(self.completion_window)
        if window is None:
            raise RequestError(400, "invalid_request", "completion_window is like 24h", "completion_window")
        return int(window[1]) * SECONDS[window[2]]


def routes(  # long: the handlers of one router
    config: ServeConfig, models: list[str], orders: Orders | None, launcher: Launcher | None
) -> APIRouter:
    """The calls about batches and jobs; without `orders` each is refused."""
    router = APIRouter()
    pictures = Pictures(config.images)

    async def place(order: Order) -> dict[str, Any]:
        await asyncio.to_thread(kept(orders).place, order)
        if launcher is not None:
            await launcher.begin(order)
        return _as_shown(order, {}, None)  # nothing that fails now may make the caller place it again

    async def found(request: Request, name: str, kind: Kind) -> Order:
        order = await asyncio.to_thread(kept(orders).order, owner(request), name)
        if order is None or order.kind != kind:
            raise RequestError(404, "not_found", f"there is no {kind} {name[:100]!r}")
        return order

    async def cancel(order: Order) -> dict[str, Any]:
        here = kept(orders)
        if (state := await asyncio.to_thread(here.state, order)).get("status") in OVER:
            raise RequestError(409, "conflict", f"the {order.kind} is {state['status']} already")
        await asyncio.to_thread(here.cancel, order)
        if launcher is not None:
            await launcher.cancel(order)
        return await asyncio.to_thread(_shown, here, order)

    async def index(request: Request, kind: Kind, after: str | None, limit: int) -> dict[str, Any]:
        def shown() -> dict[str, Any]:
            here, who = kept(orders), owner(request)
            placed = (here.order(who, name) for name in following(here.orders(who, kind)[::-1], after))
            return listed((_shown(here, order) for order in placed if order is not None), limit)

        return await asyncio.to_thread(shown)

    @router.post("/v1/batches", summary="Answer the lines of a file, in the background")
    async def create_batch(request: Request, call: BatchCall) -> dict[str, Any]:
        seconds = call.check()
        facts = await facts_of(orders, request, call.input_file_id)
        if facts.purpose != "batch":
            raise RequestError(400, "invalid_request", "the file is not one of purpose batch", "input_file_id")
        now = int(time.time())
        return await place(Order(new_id("batch_"), owner(request), "batch", call.model_dump(), now, now + seconds))

    @router.get("/v1/batches", summary="The caller's batches, the newest first")
    async def list_batches(request: Request, limit: Limit = 20, after: After = None) -> dict[str, Any]:
        return await index(request, "batch", after, limit)

    @router.get("/v1/batches/{batch_id}", summary="Where a batch stands")
    async def retrieve_batch(request: Request, batch_id: str) -> dict[str, Any]:
        order = await found(request, batch_id, "batch")
        return await asyncio.to_thread(_shown, kept(orders), order)

    @router.post("/v1/batches/{batch_id}/cancel", summary="Give a batch up; what is answered is kept")
    async def cancel_batch(request: Request, batch_id: str) -> dict[str, Any]:
        return await cancel(await found(request, batch_id, "batch"))

    @router.post("/v1/jobs", summary="Run a job file, JSON or YAML, on a served model", openapi_extra=_job_body())
    async def create_job(request: Request) -> dict[str, Any]:
        kept(orders)
        call = await asyncio.to_thread(read_job, await request.body(), config, models, pictures)
        return await place(Order(new_id("job_"), owner(request), "job", call, int(time.time())))

    @router.get("/v1/jobs", summary="The caller's jobs, the newest first")
    async def list_jobs(request: Request, limit: Limit = 20, after: After = None) -> dict[str, Any]:
        return await index(request, "job", after, limit)

    @router.get("/v1/jobs/{job_id}", summary="Where a job stands")
    async def retrieve_job(request: Request, job_id: str) -> dict[str, Any]:
        order = await found(request, job_id, "job")
        return await asyncio.to_thread(_shown, kept(orders), order)

    @router.post("/v1/jobs/{job_id}/cancel", summary="Stop a job; the same job asked for again goes on from there")
    async def cancel_job(request: Request, job_id: str) -> dict[str, Any]:
        return await cancel(await found(request, job_id, "job"))

    return router


def read_job(body: bytes, config: ServeConfig, models: list[str], pictures: Pictures) -> dict[str, Any]:
    """A job file's settings, checked. Raises RequestError: what is wrong, or not for a caller to say."""
    if len(body) > LARGEST_JOB:
        raise RequestError(413, "too_large", f"a job file has at most {LARGEST_JOB:,} bytes")
    try:
        values = plain_yaml(body)
    except ValueError:
        raise RequestError(400, "invalid_request", "the job is neither JSON nor YAML") from None
    try:
        call = JobCall.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or None
        theirs = first["type"] == "extra_forbidden" and place in JobConfig.model_fields
        words = "is the operator's to set" if theirs else first["msg"].removeprefix("Value error, ").lower()
        raise RequestError(400, "invalid_request", f"{place or 'the job'}: {words}", place) from None
    job: dict[str, Any] = call.model_dump(mode="json")
    job["model"] = job["model"] or models[0]
    if job["model"] not in models:
        raise RequestError(404, "model_not_found", f"there is no model {job['model'][:100]!r} here", "model")
    if scheme(job["manifest"]) != "s3":
        raise RequestError(400, "bad_uri", "manifest: an s3:// address that this endpoint allows", "manifest")
    try:
        pictures.check(job["manifest"])
    except RequestError as error:
        raise RequestError(error.status, error.code, "manifest: this endpoint does not allow it", "manifest") from None
    if not any(_below(job["output"], place) for place in config.outputs):
        raise RequestError(403, "not_allowed", "output: not below one of the endpoint's `outputs`", "output")
    return job


def _below(output: str, place: str) -> bool:
    """Whether an output lies below a folder or prefix; file:// addresses, which can be spelled in many ways, do not."""
    if scheme(output) != scheme(place) or scheme(output) not in ("", "s3"):
        return False
    if not scheme(place):
        return Path(output).is_absolute() and Path(output).resolve().is_relative_to(Path(place).expanduser().resolve())
    inside = output.startswith(place.rstrip("/") + "/") and len(output) > len(place.rstrip("/")) + 1
    return inside and not {"..", "."} & set(output.split("/"))


def _shown(orders: Orders, order: Order) -> dict[str, Any]:
    """An order as its caller sees it."""
    state = orders.state(order)
    asked_to = state.get("status") not in OVER - {"cancelled"}
    return _as_shown(order, state, orders.cancelled_at(order) if asked_to else None)


def _as_shown(order: Order, state: dict[str, Any], cancelled: int | None) -> dict[str, Any]:
    status = state.get("status", "validating" if order.kind == "batch" else "queued")
    status = "cancelling" if cancelled is not None and status not in OVER else status
    times = {f"{name}_at": state.get(f"{name}_at") for name in TIMES} | {"cancelling_at": cancelled}
    make: Callable[[Order, dict[str, Any]], dict[str, Any]] = _batch if order.kind == "batch" else _job
    return (
        {"id": order.id, "object": order.kind, "status": status, "created_at": order.created_at}
        | times
        | make(order, state)
    )


def _batch(order: Order, state: dict[str, Any]) -> dict[str, Any]:
    problems = state.get("problems")
    return {
        "endpoint": ENDPOINT,
        "input_file_id": order.asked["input_file_id"],
        "completion_window": order.asked["completion_window"],
        "expires_at": order.expires_at,
        "output_file_id": state.get("output_file_id"),
        "error_file_id": state.get("error_file_id"),
        "errors": {"object": "list", "data": problems} if problems else None,
        "request_counts": state.get("counts", {"total": 0, "completed": 0, "failed": 0}),
        "metadata": order.asked["metadata"],
    }


def _job(order: Order, state: dict[str, Any]) -> dict[str, Any]:
    return {
        "job": order.asked,
        "progress": state.get("progress"),
        "summary": state.get("summary"),
        "error": (state.get("problems") or [None])[0],
    }


def _job_body() -> dict[str, Any]:
    """The body of a job for the OpenAPI document: what it takes is read by hand, as it may be YAML."""
    schema = JobCall.model_json_schema()
    example = {"manifest": "s3://images/manifest.jsonl", "tasks": ["caption en"], "output": "s3://runs/first"}
    content = {"schema": schema, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content, "application/yaml": content}}}
