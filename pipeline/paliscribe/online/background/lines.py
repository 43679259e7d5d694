"""Lines of an OpenAI batch: one chat completion request a line in, one reply a line out.

Input: `{"custom_id", "method": "POST", "url": "/v1/chat/completions", "body": {...}}`. Output: `{"id", "custom_id",
"response": {"status_code", "request_id", "body"} or null, "error": {"code", "message"} or null}`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from paliscribe.config import RequestOptions
from paliscribe.errors import RequestError
from paliscribe.images.untrusted import UntrustedImages
from paliscribe.online.chat import ChatRequest, completion, invalid, unsupported, usage
from paliscribe.online.service import STATUS, checked_task
from paliscribe.online.shape import error_body

ENDPOINT: Final = "/v1/chat/completions"
MAX_LINES: Final = 50_000  # lines of a batch
MAX_PROBLEMS: Final = 100  # problems listed for an invalid file
KEYS: Final = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True, slots=True)
class Line:
    """A valid line, as a row of the batch's manifest. `ask`: the prompt; `options`: JSON of `RequestOptions`."""

    id: str
    image: str
    ask: str
    options: str


@dataclass(slots=True)
class Lines:
    """The parsed input file: its rows and the one model they name, or its problems."""

    rows: list[Line] = field(default_factory=list)
    model: str | None = None
    problems: list[dict[str, Any]] = field(default_factory=list)


def read_lines(file: Iterable[bytes], models: Sequence[str], images: UntrustedImages, max_prompt: int) -> Lines:
    """Parse and check every line. A file with any problem must not be run."""
    found, seen = Lines(), set[str]()
    for number, raw in enumerate(file, start=1):
        if not raw.strip():
            continue
        if len(found.rows) == MAX_LINES:
            problem = RequestError(400, "too_many_requests", f"a batch has at most {MAX_LINES:,} lines")
        else:
            try:
                row, model = _line(raw, models, images, max_prompt)
                if row.id in seen:
                    words = f"custom_id {row.id[:100]!r} is a duplicate"
                    raise RequestError(400, "duplicate_custom_id", words, "custom_id")
                if (found.model or model) != model:
                    words = "all lines of a batch must name the same model"
                    raise RequestError(400, "mismatched_model", words, "body.model")
                found.model = model
                found.rows.append(row)
                seen.add(row.id)
                continue
            except RequestError as error:
                problem = error
        entry = {"code": problem.code, "message": str(problem), "param": problem.field, "line": number}
        found.problems.append(entry)
        if len(found.problems) == MAX_PROBLEMS or problem.code == "too_many_requests":
            break
    if not found.rows and not found.problems:
        found.problems.append({"code": "empty_file", "message": "the file has no lines", "param": None, "line": None})
    return found


def _line(raw: bytes, models: Sequence[str], images: UntrustedImages, max_prompt: int) -> tuple[Line, str]:
    """Parse one line; returns its row and its model. Raises RequestError."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        raise RequestError(400, "invalid_json_line", "the line is not JSON") from None
    if not isinstance(line, dict):
        raise RequestError(400, "invalid_json_line", "the line is not a JSON object")
    for name in sorted(KEYS - line.keys()):
        raise RequestError(400, "missing_required_parameter", f"{name} is missing", name)
    for name in sorted(line.keys() - KEYS):
        raise RequestError(400, "unknown_parameter", f"unknown key {name[:100]!r}", name)
    name = line["custom_id"]
    if not isinstance(name, str) or not 0 < len(name) <= 512 or not name.isprintable() or name != name.strip():
        words = "custom_id must be 1 to 512 printable characters without surrounding spaces"
        raise RequestError(400, "invalid_custom_id", words, "custom_id")
    if line["method"] != "POST":
        raise RequestError(400, "invalid_method", "method must be POST", "method")
    if line["url"] != ENDPOINT:
        raise RequestError(400, "invalid_url", f"url must be {ENDPOINT}, the batch's endpoint", "url")
    try:
        call = ChatRequest.model_validate(line["body"])
    except ValidationError as error:
        raise invalid(error.errors()[0], "body") from None
    return _row(name, call, models, images, max_prompt), call.model


def _row(name: str, call: ChatRequest, models: Sequence[str], images: UntrustedImages, max_prompt: int) -> Line:
    """Check the body of a line. Raises RequestError."""
    try:
        image, prompt = call.check()
        for unknown in ("stream", "logprobs"):
            if getattr(call, unknown):
                raise unsupported(unknown, f"{unknown} is not supported in a batch")
        images.check(image)
        given = call.options()
        del given["spelled"]
        task = checked_task(prompt, given["max_tokens"], max_prompt)
    except RequestError as error:
        place = "body" if error.field is None else f"body.{error.field}"
        raise RequestError(error.status, error.code, str(error), place) from None
    if call.model not in models:
        raise RequestError(400, "model_not_found", f"there is no model {call.model[:100]!r}", "body.model")
    options = RequestOptions(**given | {"max_tokens": task.max_tokens})
    return Line(name, image, task.render({}), options.model_dump_json())


def reply_line(batch: str, record: Mapping[str, Any], model: str, created: int) -> tuple[bool, str]:
    """The output line of a record, and whether it belongs in the output file (True) or the error file (False).

    `created`: seconds since 1970.
    """
    name = f"{batch.removeprefix('batch_')}{record['row']:06x}"
    kind = record["error_kind"]
    if record["status"] != "error":
        body = completion(
            f"chatcmpl-{name}", model, record["revision"], created, record["text"], record["finish_reason"]
        )
        body["usage"] = usage(record["prompt_tokens"], record["tokens"])
        status = 200
    else:
        status = STATUS.get(kind, 400)
        words = "the model failed on this request" if kind == "model" else str(record["error_message"])
        body = error_body(RequestError(status, kind, words))
    response = {"status_code": status, "request_id": f"req_{name}", "body": body}
    line = {"id": f"batch_req_{name}", "custom_id": record["id"], "response": response, "error": None}
    return status == 200, json.dumps(line)


def expired_lines(batch: str, rows: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Error lines for requests that were not answered before the batch expired. `rows`: row numbers and ids."""
    error = {"code": "batch_expired", "message": "the batch expired before this request was answered"}
    for row, name in rows:
        own = f"batch_req_{batch.removeprefix('batch_')}{row:06x}"
        yield json.dumps({"id": own, "custom_id": name, "response": None, "error": error})
