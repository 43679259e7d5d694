"""OpenAI's chat completions for PaliGemma: one image, one prompt, one answer.

Shapes are those of OpenAI's API reference, "Create chat completion". Unsupported parameters are rejected by name.
"""

import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field

from paliscribe.config.fields import MAX_STOPS, MaxTokens, Seed, Temperature, TopP
from paliscribe.errors import RequestError
from paliscribe.online.service import CheckedRequest, Served, Service, request_error
from paliscribe.online.shape import error_body
from paliscribe.records import Piece

MAX_STOP = 200  # characters of a stop string: the engine searches for it at every token
NEUTRAL: dict[str, Any] = {
    "modalities": ["text"],
    "best_of": 1,
    "repetition_penalty": 1,
    "length_penalty": 1,
    "top_k": -1,
    "verbosity": "medium",
}
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
EXAMPLE_IMAGE = (  # one pixel, for the examples in the OpenAPI document
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
DONE = "data: [DONE]\n\n"  # last event of a completed stream


class ImageUrl(BaseModel):
    """Location of an image."""

    url: str = Field(description="`data:image/...;base64,...`, or an address that this endpoint allows.")
    detail: str | None = Field(None, description="Ignored: PaliGemma has one image size.")


class Part(BaseModel):
    """An image or a text."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: Annotated[
        ImageUrl | None,
        BeforeValidator(lambda value: {"url": value} if isinstance(value, str) else value, str | ImageUrl | None),
    ] = None


class Message(BaseModel):
    """A chat message."""

    role: str
    content: Annotated[
        list[Part] | None,
        FailFast(),
        BeforeValidator(
            lambda value: [{"type": "text", "text": value}] if isinstance(value, str) else value,
            str | list[Part] | None,
        ),
    ] = None


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = Field(False, description="Send the token usage in a last chunk.")


class ChatRequest(BaseModel):
    """A chat completion: one user message with one image and one prompt in PaliGemma's grammar."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "model": "demo",
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": EXAMPLE_IMAGE}},
                            {"type": "text", "text": "caption en"},
                        ],
                    }
                ],
            }
        },
    )

    model: str
    messages: Annotated[list[Message], FailFast()] = Field(min_length=1)
    max_tokens: MaxTokens | None = Field(None, description="Most tokens of the answer. Default: by the task's kind.")
    max_completion_tokens: MaxTokens | None = Field(None, description="Newer name of `max_tokens`.")
    temperature: Temperature | None = Field(None, description="Default 0: greedy.")
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: Annotated[
        list[str] | None,
        Field(max_length=MAX_STOPS),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value, str | list[str] | None),
    ] = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    n: int | None = None
    last_picture: bool | None = Field(
        None,
        description="Take a longer conversation: answer the text of its last user message about its last picture, "
        "whatever else it contains. Default: the endpoint's setting.",
    )

    def check(self, *, last_picture: bool = False) -> tuple[str, str]:
        """The image and the prompt. Raises RequestError for unsupported parameters, with the field's name.

        `last_picture`: used if the call does not set it.
        """
        for name, value in (self.model_extra or {}).items():
            neutral: tuple[Any, ...] = (None, [], {}, 0, "auto", "none", "text", {"type": "text"}, NEUTRAL.get(name))
            if name not in IGNORED and value not in neutral:
                raise unsupported(name, f"{name} is not supported: PaliGemma answers one prompt about one image")
        if self.n not in (None, 1):
            raise unsupported("n", "n must be 1")
        if any(len(word) > MAX_STOP for word in self.stop or ()):
            words = f"a stop string has at most {MAX_STOP} characters"
            raise RequestError(400, "invalid_request", words, "stop")
        return self._last() if (last_picture if self.last_picture is None else self.last_picture) else self._only()

    def _only(self) -> tuple[str, str]:
        """The image and the text of the only message."""
        if len(self.messages) != 1 or self.messages[0].role != "user":
            words = "messages must be one user message: PaliGemma supports neither turns nor a system prompt"
            raise unsupported("messages", f"{words}; `last_picture: true` takes only the last text and picture of them")
        images, texts = _images_and_texts(self.messages)
        if len(images) != 1 or len(texts) != 1 or len(self.messages[0].content or ()) != 2:
            raise unsupported("messages[0].content", "content must be one image_url part and one text part")
        return images[0], texts[0]

    def _last(self) -> tuple[str, str]:
        """The last image of a conversation, and the text of its last user message."""
        users = [message for message in self.messages if message.role == "user"]
        images, _ = _images_and_texts(users)
        _, texts = _images_and_texts(users[-1:])
        if not images:
            raise unsupported("messages", "no user message has a picture: PaliGemma answers prompts about a picture")
        if not (prompt := " ".join(text for text in texts if text.strip())):
            raise unsupported("messages", "the last user message has no text")
        return images[-1], prompt

    def options(self) -> dict[str, Any]:
        """The fields of the engine's `Request` that it sets."""
        return {
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": self.temperature or 0.0,
            "top_p": self.top_p or 1.0,
            "seed": self.seed or 0,
            "stop": tuple(word for word in self.stop or () if word),
            "spelled": bool(self.logprobs),
        }


def _images_and_texts(messages: Sequence[Message]) -> tuple[list[str], list[str]]:
    parts = [part for message in messages for part in message.content or ()]
    images = [part.image_url.url for part in parts if part.image_url is not None]
    return images, [part.text for part in parts if part.type == "text" and part.text is not None]


def invalid(error: Mapping[str, Any], body: str = "") -> RequestError:
    """A field of the wrong type or length as an error that names it, as in `messages[0].content[1].type`."""
    place = ""
    for part in error["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    place = f"{body}{place}".removeprefix(".body").removeprefix(".")
    words = error["msg"].removeprefix("Value error, ")
    return RequestError(400, "invalid_request", f"{place or 'the body'}: {words[:1].lower()}{words[1:]}", place or None)


def unsupported(field: str, message: str) -> RequestError:
    """The error for an unsupported parameter."""
    return RequestError(400, "unsupported_parameter", message, field)


async def complete(service: Service, served: Served, call: ChatRequest, checked: CheckedRequest) -> dict[str, Any]:
    """The answer as a `chat.completion` object. Raises RequestError."""
    [prediction] = await service.predict(served, [checked])
    if (error := request_error(prediction)) is not None:
        raise error
    name, now = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    body = completion(name, served.name, served.revision, now, prediction.text, prediction.finish_reason)
    if call.logprobs:
        starts = (0, *prediction.ends[:-1])
        spelling = [prediction.text[a:b] for a, b in zip(starts, prediction.ends, strict=False)]
        body["choices"][0]["logprobs"] = _logprobs(spelling, prediction.logprobs)
    return body | {"usage": usage(prediction.prompt_tokens, len(prediction.tokens))}


def completion(
    name: str, model: str, revision: str, created: int, text: str, finish_reason: str | None
) -> dict[str, Any]:
    """A `chat.completion` object of one answer, without `usage`. `created`: seconds since 1970."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    return _head(name, "chat.completion", model, revision, created) | {"choices": [choice]}


async def stream(service: Service, served: Served, call: ChatRequest, checked: CheckedRequest) -> AsyncIterator[str]:
    """The answer as server-sent events: `chat.completion.chunk` objects, then `[DONE]`.

    The first event comes with the first piece of the answer. Raises RequestError; before the first event the caller
    can still answer with an error status.
    """
    name, now = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    head = _head(name, "chat.completion.chunk", served.name, served.revision, now)

    def chunk(delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event(head | {"choices": [choice]})

    started = False
    async for part in service.stream(served, checked):
        if isinstance(part, Piece):
            delta = {"content": part.text} if started else {"role": "assistant", "content": part.text}
            started = True
            yield chunk(delta, logprobs=_logprobs(part.spelling, part.logprobs) if call.logprobs else None)
            continue
        if (error := request_error(part)) is not None:
            raise error
        if not started:
            yield chunk({"role": "assistant", "content": ""})
        yield chunk({}, part.finish_reason)
        if call.stream_options is not None and call.stream_options.include_usage:
            yield event(head | {"choices": [], "usage": usage(part.prompt_tokens, len(part.tokens))})
    yield DONE


def about_model(served: Served) -> dict[str, Any]:
    """OpenAI's `model` object, with what the model can do: `tasks`, `languages` (empty: many), `about`."""
    model = {"id": served.name, "object": "model", "created": 0, "owned_by": "paliscribe"}
    return model | asdict(served.abilities)


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body)}\n\n"


def error_event(error: RequestError) -> str:
    """The last event of a stream that fails after it started."""
    return event(error_body(error))


def usage(read: int, written: int) -> dict[str, int]:
    """OpenAI's `usage` object. `read`: tokens of image and prompt; `written`: tokens of the answer."""
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _head(name: str, kind: str, model: str, revision: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": created, "model": model, "system_fingerprint": revision}


def _logprobs(spelling: Sequence[str], logprobs: Sequence[float]) -> dict[str, Any]:
    """OpenAI's `logprobs` object: text, bytes and natural log-probability of each token, without end-of-sequence."""
    tokens = [
        {"token": text, "logprob": max(value, -9999.0), "bytes": list(text.encode()), "top_logprobs": []}
        for text, value in zip(spelling, logprobs, strict=False)
        if math.isfinite(value)
    ]
    return {"content": tokens, "refusal": None}
