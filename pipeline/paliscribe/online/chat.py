"""OpenAI's chat completions over PaliGemma: one picture, one prompt, one answer.

Shapes are those of OpenAI's API reference, "Create chat completion". What PaliGemma cannot do is refused by name.
"""

import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from paliscribe.errors import RequestError
from paliscribe.online.service import Asked, Served, Service, refusal
from paliscribe.records import Piece

LONGEST, LONGEST_FIELD = 1000, 100  # characters of an error's message, which may quote the call, and of its field
LONGEST_STOP = 200  # characters of a stop string: the engine looks for it at every token
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
PICTURE = (  # one pixel, for the examples of the documentation
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
DONE = "data: [DONE]\n\n"  # the last event of a stream that came to its end


class ImageUrl(BaseModel):
    """Where a picture is."""

    url: str = Field(description="`data:image/...;base64,...`, or an address that this endpoint allows.")
    detail: str | None = Field(None, description="Ignored: PaliGemma sees every picture at one size.")


class Part(BaseModel):
    """A picture or a text."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Message(BaseModel):
    """The one message of the user."""

    role: str
    content: str | list[Part]


class StreamOptions(BaseModel):
    """How a stream ends."""

    include_usage: bool = Field(False, description="Send the usage in a last chunk.")


class ChatRequest(BaseModel):
    """A chat completion: one user message with one picture and one prompt in PaliGemma's grammar."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "model": "demo",
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": PICTURE}},
                            {"type": "text", "text": "caption en"},
                        ],
                    }
                ],
            }
        },
    )

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="Longest answer, in tokens. Default: by the task's kind.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The same, by its newer name.")
    temperature: float | None = Field(None, ge=0, le=2, description="Default 0: greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    n: int | None = None

    def check(self) -> tuple[str, str]:
        """The picture and the prompt. Raises RequestError for what PaliGemma cannot do, naming the field."""
        for name, value in (self.model_extra or {}).items():
            if name not in IGNORED and value not in (None, [], {}, 0, "auto", "none", "text", {"type": "text"}):
                raise unsupported(name, f"{name} is not supported: PaliGemma answers one prompt about one picture")
        if self.n not in (None, 1):
            raise unsupported("n", "n is not supported: there is one answer")
        if len(self.messages) != 1 or self.messages[0].role != "user":
            words = "messages must be one message of the user: PaliGemma takes neither turns nor a system prompt"
            raise unsupported("messages", words)
        content = self.messages[0].content
        parts = [] if isinstance(content, str) else content
        pictures = [part.image_url.url for part in parts if part.image_url is not None]
        prompts = [part.text for part in parts if part.type == "text" and part.text is not None]
        if len(pictures) != 1 or len(prompts) != 1 or len(parts) != 2:
            raise unsupported("messages[0].content", "the content must be one image_url part and one text part")
        if any(len(word) > LONGEST_STOP for word in self._stops()):
            words = f"a stop string has at most {LONGEST_STOP} characters"
            raise RequestError(400, "invalid_request", words, "stop")
        return pictures[0], prompts[0]

    def options(self) -> dict[str, Any]:
        """What of it the engine's request takes."""
        return {
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": self.temperature or 0.0,
            "top_p": self.top_p or 1.0,
            "seed": self.seed or 0,
            "stop": tuple(word for word in self._stops() if word),
            "spelled": bool(self.logprobs),
        }

    def _stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


def unsupported(field: str, message: str) -> RequestError:
    """A refusal that names the field at fault."""
    return RequestError(400, "unsupported_parameter", message, field)


async def complete(service: Service, served: Served, call: ChatRequest, asked: Asked) -> dict[str, Any]:
    """The whole answer as a `chat.completion`."""
    [prediction] = await service.predict(served, [asked])
    if (error := refusal(prediction)) is not None:
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
    """A `chat.completion` of one answer, without its usage. `created`: seconds since 1970."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    return _head(name, "chat.completion", model, revision, created) | {"choices": [choice]}


async def stream(service: Service, served: Served, call: ChatRequest, asked: Asked) -> AsyncIterator[str]:
    """The answer as server-sent events: `chat.completion.chunk` objects, then `[DONE]`.

    The first event is held back until there is something to say, so that an error before it is an error of the call.
    """
    name, now = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    head = _head(name, "chat.completion.chunk", served.name, served.revision, now)

    def chunk(delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event(head | {"choices": [choice]})

    started = False
    async for part in service.stream(served, asked):
        if isinstance(part, Piece):
            delta = {"content": part.text} if started else {"role": "assistant", "content": part.text}
            started = True
            yield chunk(delta, logprobs=_logprobs(part.spelling, part.logprobs) if call.logprobs else None)
            continue
        if (error := refusal(part)) is not None:
            raise error
        if not started:
            yield chunk({"role": "assistant", "content": ""})
        yield chunk({}, part.finish_reason)
        if call.stream_options is not None and call.stream_options.include_usage:
            yield event(head | {"choices": [], "usage": usage(part.prompt_tokens, len(part.tokens))})
    yield DONE


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body)}\n\n"


def error_event(error: RequestError) -> str:
    """What a stream that had begun says when it cannot go on."""
    return event(error_body(error))


def error_body(error: RequestError) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        error.status, "server_error" if error.status >= 500 else "invalid_request_error"
    )
    field = None if error.field is None else whole(error.field[:LONGEST_FIELD])
    return {"error": {"message": whole(str(error)[:LONGEST]), "type": kind, "param": field, "code": error.code}}


def whole(text: str) -> str:
    """Text that can be written as UTF-8: halves of characters, which JSON and forms can bring, become `?`."""
    return text.encode("utf-8", "replace").decode()


def usage(read: int, written: int) -> dict[str, int]:
    """Tokens of a call: those of image and prompt, and those of the answer."""
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _head(name: str, kind: str, model: str, revision: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": created, "model": model, "system_fingerprint": revision}


def _logprobs(spelling: Sequence[str], logprobs: Sequence[float]) -> dict[str, Any]:
    """Of each token its text, bytes and natural log-probability; that of the end of the answer is left out."""
    tokens = [
        {"token": text, "logprob": max(value, -9999.0), "bytes": list(text.encode()), "top_logprobs": []}
        for text, value in zip(spelling, logprobs, strict=False)
        if math.isfinite(value)
    ]
    return {"content": tokens, "refusal": None}
