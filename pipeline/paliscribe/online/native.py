"""Our own interface: pictures and tasks in, the records of a batch out."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from paliscribe.errors import RequestError
from paliscribe.online.chat import DONE, PICTURE, event
from paliscribe.online.service import Service, refusal
from paliscribe.records import Piece

Named = tuple[str, str | bytes]  # a picture: its name, and its address or its bytes


class AnnotateRequest(BaseModel):
    """Pictures, and what is asked of each."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"images": [PICTURE], "tasks": ["caption en"]}}
    )

    images: list[str] = Field(min_length=1, description="`data:image/...;base64,...`, or addresses that are allowed.")
    tasks: list[str] = Field(min_length=1, description="Prompts in PaliGemma's grammar.")
    model: str | None = Field(None, description="One of `GET /v1/models`. Default: the first.")
    max_tokens: int | None = Field(None, ge=1, description="Longest answer, in tokens. Default: by the task's kind.")
    stream: bool = Field(False, description="One image and one task: its text as server-sent events, then its record.")

    def single(self) -> tuple[str, str]:
        """The one image and the one task of a stream. Raises RequestError."""
        if len(self.images) != 1 or len(self.tasks) != 1:
            raise RequestError(400, "invalid_request", "stream takes exactly one image and one task", "stream")
        return self.images[0], self.tasks[0]


async def annotate(
    service: Service, pictures: Sequence[Named], tasks: Sequence[str], model: str | None, max_tokens: int | None
) -> dict[str, Any]:
    """The records of every picture under every task, in that order.

    A picture or a prompt that cannot be asked refuses the call; an answer that fails is a record of status `error`,
    unless it is the only one.
    """
    served = service.model(model)
    limit = service.config.max_requests
    if len(pictures) * len(tasks) > limit:
        words = f"{len(pictures)} images x {len(tasks)} tasks are more than the {limit} requests of one call"
        raise RequestError(413, "too_many_requests", words, "images")
    seen = await asyncio.gather(*(service.look(served, picture) for _, picture in pictures))
    asked = [service.ask(image, task, max_tokens=max_tokens) for image in seen for task in tasks]
    names = [name for name, _ in pictures for _ in tasks]
    predictions = await service.predict(served, asked)
    if len(predictions) == 1 and (error := refusal(predictions[0])) is not None:
        raise error
    answered = zip(names, asked, predictions, strict=True)
    records = [service.record(served, name, one, prediction) for name, one, prediction in answered]
    return {"model": served.name, "revision": served.revision, "annotations": records}


async def stream(service: Service, call: AnnotateRequest) -> AsyncIterator[str]:
    """One answer as server-sent events: `{"text": ...}` for each piece, at the end its record, then `[DONE]`.

    Nothing comes before the picture has been read and the answer begun: an error until then is the call's own.
    """
    picture, prompt = call.single()
    served = service.model(call.model)
    asked = service.ask(await service.look(served, picture), prompt, max_tokens=call.max_tokens)
    async for part in service.stream(served, asked):
        if isinstance(part, Piece):
            yield event({"text": part.text})
            continue
        if (error := refusal(part)) is not None:
            raise error
        record = service.record(served, "0", asked, part)
        yield event({"annotation": record, "model": served.name, "revision": served.revision})
    yield DONE
