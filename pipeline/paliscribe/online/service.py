"""Steps of a live request, independent of its HTTP shape: load the image, check the prompt, predict, make a record."""

import asyncio
import functools
import itertools
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from paliscribe.config import ServeConfig
from paliscribe.errors import RequestError, RowError, UsageError
from paliscribe.grammar.masks import MaskDecoder
from paliscribe.grammar.tasks import Task, parse_task
from paliscribe.images.apart import PROCESSES
from paliscribe.images.cheap import is_cheap
from paliscribe.images.decode import Decoded, Limits, decode
from paliscribe.images.untrusted import UntrustedImages
from paliscribe.model.abilities import Abilities
from paliscribe.records import ONLINE, ManifestRow, Piece, Prediction, Request
from paliscribe.results import record_values
from paliscribe.results.record import record

log = logging.getLogger(__name__)
MOMENT = 0.001  # seconds: the least timeout of a request
STATUS = {  # row error kind -> HTTP status of a live request; 400 for the others
    "unreachable": 502,
    "throttled": 503,
    "too_large": 413,
    "too_many_pixels": 413,
    "too_costly": 413,
    "expired": 504,
    "replica_lost": 503,
    "model": 500,
}


class Backend(Protocol):
    """The replicas of one model, as the gateway calls them."""

    async def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        """Predictions for requests, in order. Raises RequestError: 429, 503, 504."""

    def stream(self, request: Request) -> AsyncIterator[Piece | Prediction]:
        """Pieces of one answer as they are generated, then its prediction. Raises RequestError as `predict`."""


@dataclass(frozen=True, slots=True)
class Served:
    """A served model: client-facing name, revision, image size in pixels a side, replicas, and what it can do.

    `masks`: decodes its masks; None: they stay codes.
    """

    name: str
    revision: str
    image_size: int
    backend: Backend
    abilities: Abilities = field(default_factory=Abilities)
    masks: MaskDecoder | None = None


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A decoded image, and when the call that sent it expires: `until`, in seconds of the monotonic clock."""

    image: Decoded
    until: float


@dataclass(slots=True)
class CheckedRequest:
    """A validated request: what to send to the engine, and what is needed to parse its answer."""

    task: Task
    image: Decoded
    request: Request


class Service:
    """The models of an endpoint and the limits of its requests."""

    def __init__(self, config: ServeConfig, models: Sequence[Served]) -> None:
        self.config = config
        self.models = {served.name: served for served in models}
        self.images = UntrustedImages(config.images)
        self._numbers = itertools.count()
        # Few threads, so that the pixels of all calls together are bounded; images that take long have threads of their
        # own and do not keep others waiting.
        self._cheap = ThreadPoolExecutor(PROCESSES, thread_name_prefix="cheap")
        self._costly = ThreadPoolExecutor(PROCESSES, thread_name_prefix="costly")

    def model(self, name: str | None) -> Served:
        """The model with this name; the first one without a name. Raises RequestError 404."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(sorted(self.models))
            raise RequestError(404, "model_not_found", f"there is no model {name[:100]!r}; available: {known}")
        return self.models[name]

    async def load(self, served: Served, image: str | bytes) -> LoadedImage:
        """Read and decode an untrusted image for this model, within the call's timeout. Raises RequestError."""
        until = time.monotonic() + self.config.timeout
        try:
            async with asyncio.timeout(self.config.timeout):
                return LoadedImage(await self._decoded(served, await self.images.read(image), until), until)
        except RowError as error:
            raise RequestError(STATUS.get(error.kind, 400), error.kind, error.message) from None
        except TimeoutError:
            raise RequestError(504, "expired", "the image was not read and decoded in time") from None

    async def _decoded(self, served: Served, data: bytes, until: float) -> Decoded:
        limits = self.config.images
        work = functools.partial(
            decode,
            data,
            served.image_size,
            max_pixels=limits.max_pixels,
            limits=Limits(limits.decode_seconds, limits.decode_memory),
            timeout=until - time.monotonic(),
        )
        threads = self._cheap if await asyncio.to_thread(is_cheap, data) else self._costly
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def check(
        self, loaded: LoadedImage, prompt: str, *, max_tokens: int | None = None, **options: Any
    ) -> CheckedRequest:
        """Check a prompt and build the request. `options`: fields of `Request`. Raises RequestError."""
        task = checked_task(prompt, max_tokens, self.config.max_prompt)
        options.setdefault("timeout", max(MOMENT, loaded.until - time.monotonic()))
        image = loaded.image
        request = Request(
            id=f"online-{next(self._numbers)}",
            prompt=task.render({}),
            pixels=image.pixels,
            image_key=image.sha256,
            max_tokens=task.max_tokens,
            priority=ONLINE,
            **options,
        )
        return CheckedRequest(task, image, request)

    async def predict(self, served: Served, checked: Sequence[CheckedRequest]) -> list[Prediction]:
        """Predictions for requests, in order. A request's own error is in its prediction. Raises RequestError."""
        return [_redacted(one) for one in await served.backend.predict([one.request for one in checked])]

    async def stream(self, served: Served, checked: CheckedRequest) -> AsyncIterator[Piece | Prediction]:
        """Pieces of an answer, then its prediction. Raises RequestError."""
        async for part in served.backend.stream(checked.request):
            yield _redacted(part) if isinstance(part, Prediction) else part

    def record(self, served: Served, name: str, checked: CheckedRequest, prediction: Prediction) -> dict[str, Any]:
        """The record that a run would write, as plain values, without the manifest's columns."""
        row, prompt = ManifestRow(0, name, None), checked.request.prompt
        made = record(row, checked.task, prompt, checked.image, prediction, None, 0, served.masks)
        values = record_values(replace(made, task=prompt))
        for column in ("shard", "row"):
            values.pop(column, None)
        return values | {"model": served.name, "revision": served.revision, "replica": prediction.replica}


def checked_task(prompt: str, max_tokens: int | None, max_prompt: int) -> Task:
    """A caller's prompt as a task; braces are literal, not placeholders. Raises RequestError."""
    if len(prompt) > max_prompt:
        words = f"the prompt has {len(prompt):,} characters; the limit is {max_prompt:,}"
        raise RequestError(400, "prompt_too_long", words)
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise RequestError(400, "prompt", "the prompt contains a lone UTF-16 surrogate")
    try:
        return parse_task(prompt.replace("{", "{{").replace("}", "}}"), max_tokens=max_tokens)
    except UsageError as error:
        raise RequestError(400, "prompt", str(error)) from None


def _redacted(prediction: Prediction) -> Prediction:
    """Replace a model failure's message, which may expose internals; the original goes to the log."""
    if prediction.error_kind != "model":
        return prediction
    log.error("request %s: %s", prediction.id, prediction.error_message)
    return replace(prediction, error_message="the model failed on this request")


def request_error(prediction: Prediction) -> RequestError | None:
    """A prediction's error as an HTTP error; None if it has none."""
    if prediction.error_kind is None:
        return None
    status = STATUS.get(prediction.error_kind, 400)
    return RequestError(status, prediction.error_kind, str(prediction.error_message))
