"""Lines of a batch: problems are reported by line number; records become replies like those of live requests."""

import json
from typing import Any

import pytest
from online.conftest import CONFIG

from paliscribe.images.untrusted import UntrustedImages
from paliscribe.online.background import lines
from paliscribe.online.chat import EXAMPLE_IMAGE


def line(name: str = "a", prompt: str = "caption en", url: str = EXAMPLE_IMAGE, **body: Any) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
    call = {"model": "demo", "messages": [{"role": "user", "content": content}]} | body
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": call}


def read(*given: Any) -> lines.Lines:
    file = [raw if isinstance(raw, bytes) else json.dumps(raw).encode() for raw in given]
    return lines.read_lines(file, ["demo", "other"], UntrustedImages(CONFIG.images), CONFIG.max_prompt)


def test_a_line_becomes_a_row() -> None:
    found = read(line("first", max_tokens=7, temperature=0.5, seed=3, stop="x"), b"  \n", line("second", "ocr"))
    assert found.model == "demo" and not found.problems
    first, second = found.rows
    assert (first.id, first.image, first.ask) == ("first", EXAMPLE_IMAGE, "caption en")
    chosen = {"max_tokens": 7, "temperature": 0.5, "top_p": 1.0, "seed": 3, "stop": ["x"]}
    assert json.loads(first.options) == chosen
    assert json.loads(second.options)["max_tokens"] == 128, "the default of the task's kind"


def test_braces_in_prompts_are_literal() -> None:
    assert (
        read(line(prompt="answer en what is {this} and {that}?")).rows[0].ask == "answer en what is {this} and {that}?"
    )


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        ({}, "missing_required_parameter", "body"),
        (line() | {"more": 1}, "unknown_parameter", "more"),
        (line() | {"custom_id": 7}, "invalid_custom_id", "custom_id"),
        (line(" a"), "invalid_custom_id", "custom_id"),
        (line("a\nb"), "invalid_custom_id", "custom_id"),
        (line() | {"method": "GET"}, "invalid_method", "method"),
        (line() | {"url": "/v1/embeddings"}, "invalid_url", "url"),
        (line() | {"body": {"model": "demo"}}, "invalid_request", "body.messages"),
        (line(temperature=9), "invalid_request", "body.temperature"),
        (line(stream=True), "unsupported_parameter", "body.stream"),
        (line(logprobs=True), "unsupported_parameter", "body.logprobs"),
        (line(n=2), "unsupported_parameter", "body.n"),
        (line(tools=[{"type": "function"}]), "unsupported_parameter", "body.tools"),
        (line(model="third"), "model_not_found", "body.model"),
        (line(model="other"), "mismatched_model", "body.model"),
        (line("ok"), "duplicate_custom_id", "custom_id"),
        (line(url="file:///etc/passwd"), "bad_uri", "body"),
        (line(url="/etc/passwd"), "bad_uri", "body"),
        (line(url="https://elsewhere.example/x.png"), "not_allowed", "body"),
        (line(url="s3://bucket/x.png"), "not_allowed", "body"),
        (line(prompt="x" * 5000), "prompt_too_long", "body"),
        (line(prompt="two\nlines"), "prompt", "body"),
    ],
)
def test_invalid_lines_are_reported(bad: Any, code: str, param: str | None) -> None:
    found = read(line("ok"), bad)
    assert [(p["code"], p["param"], p["line"]) for p in found.problems] == [(code, param, 2)]
    assert found.problems[0]["message"]


def test_an_empty_file_and_too_many_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [p["code"] for p in read(b"\n").problems] == ["empty_file"]
    monkeypatch.setattr(lines, "MAX_LINES", 2)
    found = read(line("a"), line("b"), line("c"), line("d"))
    assert [(p["code"], p["line"]) for p in found.problems] == [("too_many_requests", 3)]


def test_the_number_of_reported_problems_is_limited() -> None:
    assert len(read(*[b"no"] * 150).problems) == lines.MAX_PROBLEMS


RECORD = {
    "row": 3,
    "id": "mine",
    "status": "ok",
    "text": "a cat",
    "finish_reason": "stop",
    "prompt_tokens": 68,
    "tokens": 2,
    "revision": "r1",
    "error_kind": None,
    "error_message": None,
}


def test_a_record_becomes_a_chat_completion() -> None:
    answered, text = lines.reply_line("batch_ab", RECORD, "demo", 17)
    found = json.loads(text)
    assert answered and found["custom_id"] == "mine" and found["error"] is None
    assert found["response"]["status_code"] == 200
    body = found["response"]["body"]
    assert body["choices"][0]["message"]["content"] == "a cat" and body["created"] == 17 and body["model"] == "demo"
    assert body["usage"] == {"prompt_tokens": 68, "completion_tokens": 2, "total_tokens": 70}


@pytest.mark.parametrize(("kind", "status"), [("missing", 400), ("unreachable", 502), ("model", 500)])
def test_a_dead_letter_becomes_an_error(kind: str, status: int) -> None:
    failed = {"status": "error", "text": None, "error_kind": kind, "error_message": "internal detail"}
    answered, text = lines.reply_line("batch_ab", RECORD | failed, "demo", 17)
    found = json.loads(text)["response"]
    assert not answered and found["status_code"] == status and found["body"]["error"]["code"] == kind
    assert ("internal detail" in text) == (kind != "model"), "messages of model failures are not exposed"


def test_unanswered_lines_of_an_expired_batch() -> None:
    [text] = lines.expired_lines("batch_ab", [(4, "late")])
    found = json.loads(text)
    assert found["custom_id"] == "late" and found["response"] is None and found["error"]["code"] == "batch_expired"
