"""Batches and jobs over HTTP as users make them: `paliscribe serve`, OpenAI's client, a pool of live calls."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from front.conftest import read_rows, write_rows
from front.test_resume import wait_until_gone
from online.conftest import data_url, encoded
from ports import free_ports

from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS, Scene

pytestmark = [pytest.mark.cluster, pytest.mark.long]
KEY = "a-key-for-the-offline-tests"
OVER = {"completed", "failed", "expired", "cancelled"}
CALL: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


@dataclass(frozen=True)
class Serving:
    """A running endpoint that keeps files, its driver's process, and the bucket that it may read and write."""

    process: psutil.Process
    client: openai.OpenAI
    files: Path
    bucket: str

    @property
    def address(self) -> str:
        return str(self.client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, s3_server: Any) -> Iterator[Serving]:
    [port] = free_ports(1)
    folder, bucket = tmp_path_factory.mktemp("offline"), "offline-jobs"
    s3_server.client().create_bucket(Bucket=bucket)
    (folder / "keys").write_text(KEY)
    settings = {
        "port": port,
        "keys": str(folder / "keys"),
        "files": str(folder / "files"),
        "outputs": f"s3://{bucket}/runs/",
        "images": {"addresses": f"s3://{bucket}/in/"},
        "models": [{"pool": {"threads": 1}}],
    }
    (folder / "endpoint.yaml").write_text(json.dumps(settings))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | s3_server.environment()
    command = [sys.executable, "-m", "paliscribe", "serve", str(folder / "endpoint.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving demo at"), process.communicate()[1]
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0, timeout=120)
        yield Serving(psutil.Process(process.pid), client, folder / "files", bucket)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        children = [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        wait_until_gone(children)


def line(name: str, scene: Scene, prompt: str = "caption en", **body: Any) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": data_url(encoded(draw(scene), "JPEG"), "image/jpeg")}}
    content = [image, {"type": "text", "text": prompt}]
    call = {"model": "demo", "messages": [{"role": "user", "content": content}]} | body
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": call}


def placed(client: openai.OpenAI, lines: Sequence[Any], **call: Any) -> Any:
    data = "".join(json.dumps(one) + "\n" for one in lines).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    return client.batches.create(input_file_id=file.id, **(CALL | call))


def until(
    client: openai.OpenAI, name: str, reached: Any = lambda batch: batch.status in OVER, seconds: int = 180
) -> Any:
    """The batch once it has come so far."""
    end, answered = time.monotonic() + seconds, 0
    while True:
        batch = client.batches.retrieve(name)
        counts = batch.request_counts
        assert counts is not None and counts.completed >= answered, "what is answered stays so"
        answered = counts.completed
        if reached(batch):
            return batch
        assert batch.status not in OVER and time.monotonic() < end, batch
        time.sleep(0.1)


def lines_of(client: openai.OpenAI, name: str | None) -> list[Any]:
    return [] if name is None else [json.loads(text) for text in client.files.content(name).text.splitlines()]


SCENES = [sample_scene(TEST_SEEDS + 700_000_000 + number) for number in range(12)]


def test_a_batch_is_answered_as_live_calls_are(serving: Serving) -> None:
    client = serving.client
    asked = [line(f"c{number}", scene) for number, scene in enumerate(SCENES)]
    asked += [line(f"d{number}", scene, "detect circle", max_tokens=3) for number, scene in enumerate(SCENES[:4])]
    broken = line("broken", SCENES[0])
    broken["body"]["messages"][0]["content"][0]["image_url"]["url"] = data_url(b"no image at all")
    batch = until(client, placed(client, [*asked, broken], metadata={"who": "tests"}).id)
    assert batch.status == "completed" and batch.metadata == {"who": "tests"}
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (17, 16, 1)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    found = {one["custom_id"]: one["response"] for one in lines_of(client, batch.output_file_id)}
    assert found.keys() == {one["custom_id"] for one in asked}
    for one in asked:
        live = client.chat.completions.create(**one["body"])
        told = found[one["custom_id"]]
        assert told["status_code"] == 200
        assert told["body"]["choices"][0]["message"]["content"] == live.choices[0].message.content
        assert told["body"]["choices"][0]["finish_reason"] == live.choices[0].finish_reason
        assert live.usage is not None and told["body"]["usage"] == live.usage.model_dump(exclude_unset=True)
    [failed] = lines_of(client, batch.error_file_id)
    assert failed["custom_id"] == "broken" and failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["code"] == "not_an_image"
    left = {path.name for path in (serving.files).rglob(f"{batch.id}/*") if path.is_file()} - {".tmp-state.json.lock"}
    assert left == {"order.json", "state.json"}, "what is over leaves no run behind"


def test_a_cancelled_batch_keeps_what_is_answered(serving: Serving) -> None:
    client = serving.client
    bodies = [line("", scene) for scene in SCENES]
    asked = [bodies[number % 12] | {"custom_id": f"r{number}"} for number in range(6000)]
    batch = placed(client, asked)
    until(client, batch.id, lambda found: found.request_counts.completed > 0)
    cancelling = client.batches.cancel(batch.id)
    assert cancelling.status in ("cancelling", "cancelled") and cancelling.cancelling_at
    batch = until(client, batch.id)
    assert batch.status == "cancelled" and batch.cancelled_at >= batch.cancelling_at
    found = lines_of(client, batch.output_file_id)
    assert 0 < len(found) == batch.request_counts.completed < batch.request_counts.total == 6000
    assert len({one["custom_id"] for one in found}) == len(found)
    captions = [next(item.answer for item in scene_items(scene) if item.task == "caption") for scene in SCENES]
    right = [
        one["response"]["body"]["choices"][0]["message"]["content"] == captions[int(one["custom_id"][1:]) % 12]
        for one in found
    ]
    assert sum(right) >= 0.9 * len(right)


def test_a_batch_whose_window_closes_names_what_is_missing(serving: Serving) -> None:
    client = serving.client
    bodies = [line("", scene) for scene in SCENES]
    asked = [bodies[number % 12] | {"custom_id": f"r{number}"} for number in range(6000)]
    batch = until(client, placed(client, asked, completion_window="8s").id)
    assert batch.status == "expired", batch
    assert batch.expired_at >= batch.expires_at
    answered, failed = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
    assert {one["error"]["code"] for one in failed} == {"batch_expired"} and failed[0]["response"] is None
    assert len(answered) + len(failed) == 6000
    assert {one["custom_id"] for one in [*answered, *failed]} == {one["custom_id"] for one in asked}
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(answered), len(failed))


def test_a_file_with_a_fault_is_not_asked_at_all(serving: Serving) -> None:
    batch = until(serving.client, placed(serving.client, [line("a", SCENES[0]), line("a", SCENES[1]), {}]).id)
    assert batch.status == "failed" and batch.failed_at and batch.output_file_id is None
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (2, "duplicate_custom_id"),
        (3, "missing_required_parameter"),
    ]


def named(serving: Serving, words: str) -> list[psutil.Process]:
    found = []
    for process in serving.process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(process.cmdline()).startswith(words):
                found.append(process)
    return found


@pytest.mark.parametrize("killed", ["ray::drive", "ray::ServeReplica:paliscribe:drivers"])
def test_a_batch_outlives_whoever_works_on_it(serving: Serving, killed: str) -> None:
    client = serving.client
    bodies = [line("", scene) for scene in SCENES]
    asked = [bodies[number % 12] | {"custom_id": f"r{number}"} for number in range(600)]
    batch = placed(client, asked)
    until(client, batch.id, lambda found: found.request_counts.completed > 0)
    [victim] = named(serving, killed)
    victim.kill()
    batch = until(client, batch.id)
    assert batch.status == "completed" and batch.request_counts.completed == 600
    assert sorted(one["custom_id"] for one in lines_of(client, batch.output_file_id)) == sorted(
        one["custom_id"] for one in asked
    )


def test_a_job_of_ours_runs_on_the_served_pool(
    serving: Serving, s3_server: Any, collection: Path, tmp_path: Path
) -> None:
    client, bucket = s3_server.client(), serving.bucket
    for path in (collection.parent / "images").iterdir():
        client.upload_file(str(path), bucket, f"in/{path.name}")
    rows = [row | {"image": row["image"].rpartition("/")[2]} for row in read_rows(collection)]
    client.upload_file(str(write_rows(tmp_path / "m.jsonl", rows)), bucket, "in/manifest.jsonl")
    job = {
        "manifest": f"s3://{bucket}/in/manifest.jsonl",
        "tasks": ["caption en", "ocr"],
        "output": f"s3://{bucket}/runs/a",
    }
    headers, jobs = {"Authorization": f"Bearer {KEY}"}, f"{serving.address}/jobs"
    reply = httpx.post(jobs, json=job, headers=headers, timeout=30)
    assert reply.status_code == 200, reply.text
    name, end = reply.json()["id"], time.monotonic() + 180
    while (found := httpx.get(f"{jobs}/{name}", headers=headers, timeout=30).json())["status"] not in OVER:
        assert time.monotonic() < end, found
        time.sleep(0.2)
    assert found["status"] == "completed", found
    assert found["summary"]["records"] == found["summary"]["ok"] == 48
    for key in open_in(s3_server, f"s3://{bucket}/runs/a"):
        assert key in ("_SUCCESS", "_summary.json") or key.startswith(("_run/", "annotations/"))
    marker = json.loads(client.get_object(Bucket=bucket, Key="runs/a/_run/done/shard-00000.json")["Body"].read())
    assert set(marker["replicas"]) <= replicas_of(serving), "no pool of its own"


def open_in(s3_server: Any, uri: str) -> list[str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    found = s3_server.client().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")
    return [entry["Key"].removeprefix(f"{prefix}/") for entry in found["Contents"]]


def replicas_of(serving: Serving) -> set[str]:
    """The replicas that answer live calls now."""
    form: Any = {"files": {"image": encoded(draw(SCENES[0]))}, "data": {"task": "ocr"}}
    headers = {"Authorization": f"Bearer {KEY}"}
    reply = httpx.post(f"{serving.address}/annotate/upload", headers=headers, timeout=60, **form)
    return {record["replica"] for record in reply.json()["annotations"]}
