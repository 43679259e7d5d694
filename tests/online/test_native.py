"""The native API: records like those of a run, from JSON and from a multipart form."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from online.conftest import CONFIG, KEY, Endpoint, data_url
from online.scripted import Scripted, scripted

from paliscribe.demo.answers import scene_items
from paliscribe.demo.scenes import Scene
from paliscribe.errors import RequestError

HEADERS = {"Authorization": f"Bearer {KEY}"}


def annotate(endpoint: Endpoint, **body: Any) -> httpx.Response:
    return httpx.post(f"{endpoint.address}/v1/annotate", json=body, headers=HEADERS, timeout=60)


def test_records_of_every_image_under_every_task(endpoint: Endpoint, scene: Scene, picture: bytes) -> None:
    other = data_url(picture)
    found = annotate(endpoint, images=[data_url(picture), other], tasks=["caption en", "detect circle ; square"]).json()
    records = found["annotations"]
    assert [(record["id"], record["task"]) for record in records] == [
        (image, task) for image in "01" for task in ("caption en", "detect circle ; square")
    ]
    caption = next(item.answer for item in scene_items(scene) if item.task == "caption")
    assert records[0]["text"] == caption and records[0]["kind"] == "caption" and records[0]["status"] == "ok"
    assert (records[0]["width"], records[0]["height"]) == (scene.width, scene.height)
    assert 0 < records[0]["score"] <= 1 and records[0]["model"] == found["model"] == "demo"
    assert records[0]["revision"] == found["revision"] == endpoint.engine.model.located.revision


def test_records_equal_those_of_a_run(endpoint: Endpoint, scene: Scene, picture: bytes, tmp_path: Path) -> None:
    from paliscribe.api.ask import ask
    from paliscribe.results import record_values

    item = next(item for item in scene_items(scene) if item.task == "detect" and item.boxes)
    path = tmp_path / "scene.png"
    path.write_bytes(picture)
    [record] = annotate(endpoint, images=[data_url(picture)], tasks=[item.prompt]).json()["annotations"]
    wanted = record_values(ask(path, item.prompt))
    assert record["boxes"] == wanted["boxes"] and record["boxes"][0]["score"] > 0
    assert {key: record[key] for key in wanted if key in record and key not in ("id", "image")} == {
        key: value for key, value in wanted.items() if key in record and key not in ("id", "image")
    }


def test_a_plain_curl_uploads_files(endpoint: Endpoint, picture: bytes, tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_bytes(picture)
    command = ["curl", "-sS", "-H", f"Authorization: Bearer {KEY}", "-F", f"image=@{tmp_path}/one.png"]
    command += ["-F", f"image=@{tmp_path}/two.png", "-F", "task=caption en", "-F", "task=ocr"]
    done = subprocess.run(
        [*command, f"{endpoint.address}/v1/annotate/upload"], capture_output=True, text=True, check=True, timeout=60
    )
    records = httpx.Response(200, text=done.stdout).json()["annotations"]
    assert [(record["id"], record["task"]) for record in records] == [
        (name, task) for name in ("one.png", "two.png") for task in ("caption en", "ocr")
    ]


def events(reply: httpx.Response) -> list[Any]:
    """The decoded events of a stream. The last one must be `[DONE]` and is left out."""
    *data, last, rest = reply.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in data]


@pytest.mark.parametrize("task", ["caption en", "detect circle ; square ; triangle"])
def test_a_stream_equals_the_plain_answer(endpoint: Endpoint, picture: bytes, task: str) -> None:
    body = {"images": [data_url(picture)], "tasks": [task]}
    plain = annotate(endpoint, **body).json()
    streamed = annotate(endpoint, **body, stream=True)
    assert streamed.status_code == 200 and streamed.headers["content-type"].startswith("text/event-stream")
    assert (streamed.headers["cache-control"], streamed.headers["x-accel-buffering"]) == ("no-cache", "no")
    *pieces, last = events(streamed)
    assert len(pieces) > 3 and all(list(piece) == ["text"] for piece in pieces)
    assert "".join(piece["text"] for piece in pieces) == plain["annotations"][0]["text"]
    assert last == {"annotation": plain["annotations"][0], "model": "demo", "revision": plain["revision"]}


def test_a_stream_supports_max_tokens(endpoint: Endpoint, picture: bytes) -> None:
    reply = annotate(endpoint, images=[data_url(picture)], tasks=["caption en"], stream=True, max_tokens=2)
    assert events(reply)[-1]["annotation"]["finish_reason"] == "length"


@pytest.mark.parametrize(("images", "tasks"), [(2, 1), (1, 2)])
def test_a_stream_requires_one_image_and_one_task(endpoint: Endpoint, picture: bytes, images: int, tasks: int) -> None:
    found = annotate(endpoint, images=[data_url(picture)] * images, tasks=["ocr"] * tasks, stream=True)
    assert (found.status_code, found.json()["error"]["param"]) == (400, "stream")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"images": ["https://example.com/a.png"], "tasks": ["ocr"]}, 403, "not_allowed"),
        ({"images": ["data:image/png;base64,aGk="], "tasks": ["ocr"]}, 400, "not_an_image"),
        ({"images": ["data:,"], "tasks": ["ocr"], "model": "other"}, 404, "model_not_found"),
    ],
)
def test_errors_before_a_stream_starts_have_a_status(
    endpoint: Endpoint, body: dict[str, Any], status: int, code: str
) -> None:
    found = annotate(endpoint, **body, stream=True)
    assert (found.status_code, found.json()["error"]["code"]) == (status, code)


def test_a_prompt_rejected_by_the_engine_has_a_status_in_a_stream_too(endpoint: Endpoint, picture: bytes) -> None:
    found = annotate(endpoint, images=[data_url(picture)], tasks=["answer en " + "why " * 490], stream=True)
    assert (found.status_code, found.json()["error"]["code"]) == (400, "prompt_too_long")


def test_an_error_during_a_stream_is_its_last_event(picture: bytes) -> None:
    with scripted(Scripted(["a purple", RequestError(503, "replica_lost", "the replica was lost")])) as address:
        body = {"images": [data_url(picture)], "tasks": ["ocr"], "stream": True}
        found = httpx.post(f"{address}/v1/annotate", json=body, timeout=60)
    first, last, rest = found.text.split("\n\n")
    assert found.status_code == 200 and first == 'data: {"text": "a purple"}' and rest == ""
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["message"], error["type"], error["code"]) == ("the replica was lost", "server_error", "replica_lost")


def test_a_disconnect_cancels_the_stream_and_frees_its_slot(
    endpoint: Endpoint, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint.engine.model, "end_tokens", frozenset())
    body = {"images": [data_url(picture)], "tasks": ["caption en"], "stream": True, "max_tokens": 400}
    address = f"{endpoint.address}/v1/annotate"
    with httpx.stream("POST", address, json=body, headers=HEADERS, timeout=60) as reply:
        assert "text" in next(reply.iter_lines()) and endpoint.engine.stats().live == 1
    until = time.monotonic() + 10
    while endpoint.engine.stats().live and time.monotonic() < until:
        time.sleep(0.01)
    assert endpoint.engine.stats().live == 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"images": ["http://127.0.0.1/a.png"], "tasks": ["ocr"]}, 403, "not_allowed"),
        ({"images": ["s3://bucket/a.png"], "tasks": ["ocr"]}, 403, "not_allowed"),
        ({"images": ["file:///etc/passwd"], "tasks": ["ocr"]}, 400, "bad_uri"),
        ({"images": ["/etc/passwd"], "tasks": ["ocr"]}, 400, "bad_uri"),
        ({"images": ["data:image/png;base64,###"], "tasks": ["ocr"]}, 400, "bad_uri"),
        ({"images": ["data:image/png,abc"], "tasks": ["ocr"]}, 400, "bad_uri"),
        ({"images": ["data:text/html;base64,aGk="], "tasks": ["ocr"]}, 400, "not_an_image"),
        ({"images": ["data:image/png;base64,"], "tasks": ["ocr"]}, 400, "empty"),
        ({"images": [], "tasks": ["ocr"]}, 400, "invalid_request"),
        ({"images": ["data:,"] * 13, "tasks": ["ocr"]}, 413, "too_many_requests"),
        ({"images": ["data:,"], "tasks": ["ocr"], "modle": "demo"}, 400, "invalid_request"),
        ({"images": ["data:,"], "tasks": ["ocr"], "model": "other"}, 404, "model_not_found"),
    ],
)
def test_invalid_requests_are_rejected(endpoint: Endpoint, body: dict[str, Any], status: int, code: str) -> None:
    found = annotate(endpoint, **body)
    assert (found.status_code, found.json()["error"]["code"]) == (status, code)


def test_image_size_is_limited(endpoint: Endpoint) -> None:
    from online.conftest import encoded
    from PIL import Image

    bomb = data_url(encoded(Image.new("1", (3000, 3000))))
    found = annotate(endpoint, images=[bomb], tasks=["ocr"])
    assert (found.status_code, found.json()["error"]["code"]) == (413, "too_many_pixels")
    large = data_url(b"\0" * (CONFIG.images.max_bytes + 1))
    assert annotate(endpoint, images=[large], tasks=["ocr"]).json()["error"]["code"] == "too_large"
    prompt = annotate(endpoint, images=[bomb], tasks=["caption en " * 300])
    assert prompt.status_code in (400, 413)
