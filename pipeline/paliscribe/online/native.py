"""The native API, /v1/annotate: images and tasks in, records like those of a run out."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field

from paliscribe.config.fields import MaxTokens
from paliscribe.errors import RequestError
from paliscribe.online.chat import DONE, EXAMPLE_IMAGE, event
from paliscribe.online.service import Service, request_error
from paliscribe.records import Piece

NamedImage = tuple[str, str | bytes]  # name, and address or bytes


class AnnotateRequest(BaseModel):
    """Images, and the tasks to run on each."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"images": [EXAMPLE_IMAGE], "tasks": ["caption en"]}}
    )

    images: Annotated[list[str], FailFast()] = Field(
        min_length=1, description="`data:image/...;base64,...`, or addresses that this endpoint allows."
    )
    tasks: Annotated[list[str], FailFast()] = Field(min_length=1, description="Prompts in PaliGemma's grammar.")
    model: str | None = Field(None, description="One of `GET /v1/models`. Default: the first.")
    max_tokens: MaxTokens | None = Field(None, description="Most tokens of an answer. Default: by the task's kind.")
    stream: bool = Field(
        False, description="Stream the text as server-sent events, then the record. One image and one task only."
    )

    def single(self) -> tuple[str, str]:
        """The only image and the only task. Raises RequestError if there are more."""
        if len(self.images) != 1 or len(self.tasks) != 1:
            raise RequestError(400, "invalid_request", "stream requires exactly one image and one task", "stream")
        return self.images[0], self.tasks[0]


async def annotate(
    service: Service, images: Sequence[NamedImage], tasks: Sequence[str], model: str | None, max_tokens: int | None
) -> dict[str, Any]:
    """The records of every image under every task, image by image.

    Raises RequestError for an invalid image or prompt. A request that fails later becomes a record of status `error`,
    or raises RequestError if it is the only one.
    """
    served = service.model(model)
    limit = service.config.max_requests
    if len(images) * len(tasks) > limit:
        words = f"{len(images)} images x {len(tasks)} tasks exceed the limit of {limit} requests per call"
        raise RequestError(413, "too_many_requests", words, "images")
    decoded = await asyncio.gather(*(service.load(served, image) for _, image in images))
    checked = [service.check(image, task, max_tokens=max_tokens) for image in decoded for task in tasks]
    names = [name for name, _ in images for _ in tasks]
    predictions = await service.predict(served, checked)
    if len(predictions) == 1 and (error := request_error(predictions[0])) is not None:
        raise error
    answered = zip(names, checked, predictions, strict=True)
    records = [service.record(served, name, one, prediction) for name, one, prediction in answered]
    return {"model": served.name, "revision": served.revision, "annotations": records}


async def stream(service: Service, call: AnnotateRequest) -> AsyncIterator[str]:
    """One answer as server-sent events: `{"text": ...}` for each piece, then its record, then `[DONE]`.

    The first event comes with the first piece of the answer. Raises RequestError; before the first event the caller
    can still answer with an error status.
    """
    image, prompt = call.single()
    served = service.model(call.model)
    checked = service.check(await service.load(served, image), prompt, max_tokens=call.max_tokens)
    async for part in service.stream(served, checked):
        if isinstance(part, Piece):
            yield event({"text": part.text})
            continue
        if (error := request_error(part)) is not None:
            raise error
        record = service.record(served, "0", checked, part)
        yield event({"annotation": record, "model": served.name, "revision": served.revision})
    yield DONE
