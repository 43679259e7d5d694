"""What an online call goes through, whatever its shape: picture, prompt, engine, record. No HTTP here."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from paliscribe.config import ServeConfig
from paliscribe.errors import RequestError, RowError, UsageError
from paliscribe.grammar.masks import MaskDecoder
from paliscribe.grammar.tasks import Task, parse_task
from paliscribe.images.decode import Decoded, decode
from paliscribe.images.untrusted import Pictures
from paliscribe.records import ONLINE, ManifestRow, Piece, Prediction, Request
from paliscribe.results import record_values
from paliscribe.results.record import record

log = logging.getLogger(__name__)
STATUS = {  # of a row's error, for a caller who waits: his own fault unless named here
    "unreachable": 502,
    "throttled": 503,
    "too_large": 413,
    "too_many_pixels": 413,
    "expired": 504,
    "replica_lost": 503,
    "model": 500,
}


class Backend(Protocol):
    """The replicas of one model, as a gateway calls them."""

    async def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        """Answer requests in their order. Raises RequestError: 429, 503, 504."""

    def stream(self, request: Request) -> AsyncIterator[Piece | Prediction]:
        """The pieces of one answer as they come, and its prediction at the end. Raises RequestError likewise."""


@dataclass(frozen=True, slots=True)
class Served:
    """One model that is served: what clients call it, what it is, and who answers."""

    name: str
    revision: str
    image_size: int
    backend: Backend


@dataclass(slots=True)
class Asked:
    """A call that has been checked: what to send to the engine, and what its answer needs to be read."""

    task: Task
    image: Decoded
    request: Request


class Service:
    """The models of an endpoint and the limits of its calls."""

    def __init__(self, config: ServeConfig, models: Sequence[Served], masks: MaskDecoder | None = None) -> None:
        self.config, self.masks = config, masks
        self.models = {served.name: served for served in models}
        self.pictures = Pictures(config.images)
        self._numbers = itertools.count()

    def model(self, name: str | None) -> Served:
        """The model of this name; without a name the first one. Raises RequestError 404."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(sorted(self.models))
            raise RequestError(404, "model_not_found", f"there is no model {name[:100]!r} here; there is {known}")
        return self.models[name]

    async def look(self, served: Served, picture: str | bytes) -> Decoded:
        """Read and decode a picture for this model. Raises RequestError."""
        try:
            data = await self.pictures.read(picture)
            limit = self.config.images.max_pixels
            return await asyncio.to_thread(decode, data, served.image_size, max_pixels=limit)
        except RowError as error:
            raise RequestError(STATUS.get(error.kind, 400), error.kind, error.message) from None

    def ask(self, image: Decoded, prompt: str, *, max_tokens: int | None = None, **options: Any) -> Asked:
        """Check a prompt and make the request. `options` are those of `Request`. Raises RequestError."""
        task = checked_task(prompt, max_tokens, self.config.max_prompt)
        options.setdefault("timeout", self.config.timeout)
        request = Request(
            id=f"online-{next(self._numbers)}",
            prompt=task.render({}),
            pixels=image.pixels,
            image_key=image.sha256,
            max_tokens=task.max_tokens,
            priority=ONLINE,
            **options,
        )
        return Asked(task, image, request)

    async def predict(self, served: Served, asked: Sequence[Asked]) -> list[Prediction]:
        """Answer requests; an error that is a request's own is in its prediction."""
        return [_guarded(one) for one in await served.backend.predict([one.request for one in asked])]

    async def stream(self, served: Served, asked: Asked) -> AsyncIterator[Piece | Prediction]:
        """The pieces of an answer, then its prediction."""
        async for part in served.backend.stream(asked.request):
            yield _guarded(part) if isinstance(part, Prediction) else part

    def record(self, served: Served, name: str, asked: Asked, prediction: Prediction) -> dict[str, Any]:
        """The record that a batch writes, as plain values, without those of a manifest."""
        row, prompt = ManifestRow(0, name, None), asked.request.prompt
        made = record(row, asked.task, prompt, asked.image, prediction, None, 0, self.masks)
        values = record_values(replace(made, task=prompt))
        for column in ("shard", "row"):
            values.pop(column, None)
        return values | {"model": served.name, "revision": served.revision, "replica": prediction.replica}


def checked_task(prompt: str, max_tokens: int | None, max_prompt: int) -> Task:
    """A caller's prompt as a task without placeholders. Raises RequestError."""
    if len(prompt) > max_prompt:
        words = f"the prompt has {len(prompt):,} characters; at most {max_prompt:,} are taken"
        raise RequestError(400, "prompt_too_long", words)
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise RequestError(400, "prompt", "the prompt holds half a character (a lone surrogate of UTF-16)")
    try:
        return parse_task(prompt.replace("{", "{{").replace("}", "}}"), max_tokens=max_tokens)
    except UsageError as error:
        raise RequestError(400, "prompt", str(error)) from None


def _guarded(prediction: Prediction) -> Prediction:
    """A failure of the model without its words, which are about our inside: they go into the log."""
    if prediction.error_kind != "model":
        return prediction
    log.error("request %s: %s", prediction.id, prediction.error_message)
    return replace(prediction, error_message="the model failed on this request")


def refusal(prediction: Prediction) -> RequestError | None:
    """A prediction's own error as the refusal of its call."""
    if prediction.error_kind is None:
        return None
    status = STATUS.get(prediction.error_kind, 400)
    return RequestError(status, prediction.error_kind, str(prediction.error_message))
