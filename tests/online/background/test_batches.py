"""Files, batches and jobs over HTTP, with OpenAI's client. Running them is tested in `front/test_offline.py`."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from online.conftest import CONFIG, listen
from online.scripted import Scripted

from paliscribe.config import ImagesConfig
from paliscribe.errors import RequestError
from paliscribe.images.untrusted import UntrustedImages
from paliscribe.online.background.batches import read_job
from paliscribe.online.background.store import BackgroundJob, BackgroundStore, FileInfo, new_id
from paliscribe.online.keys import Keys, own_id
from paliscribe.online.service import Served, Service
from paliscribe.storage import open_store

ONE, TWO = "a-first-key-0123456789", "a-second-key-0123456789"
EXPIRE_AFTER = 864_000  # seconds
AGED = "file-" + "0" * 36  # an id of 1970


def owner_of(key: str) -> str:
    return own_id(hashlib.sha256(key.encode()).hexdigest())


@dataclass
class FakeLauncher:
    """Records the ids of started and cancelled jobs; runs nothing."""

    started: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def start(self, job: BackgroundJob) -> None:
        self.started.append(job.id)

    async def cancel(self, job: BackgroundJob) -> None:
        self.cancelled.append(job.id)


@dataclass(frozen=True)
class Serving:
    address: str
    store: BackgroundStore
    launcher: FakeLauncher

    def client(self, key: str = ONE) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=30)

    def job(self, name: str) -> BackgroundJob:
        [found] = [job for job in self.store.open_jobs() if job.id == name]
        return found


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serving")
    allowed = ImagesConfig(addresses=("s3://images/in/",))
    places = {
        "files": str(folder),
        "max_file": 5_000_000,
        "expire_after": EXPIRE_AFTER,
        "outputs": ("s3://runs/ours/", str(folder)),
    }
    config = CONFIG.model_copy(update={"max_body": 100_000, "images": allowed, **places})
    store, launcher = BackgroundStore(open_store(str(folder))), FakeLauncher()
    keys = Keys({hashlib.sha256(key.encode()).hexdigest(): "" for key in (ONE, TWO)})
    service = Service(config, [Served("demo", "r1", 112, Scripted())])
    server, thread = listen(service, keys, store=store, launcher=launcher)
    yield Serving(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", store, launcher)
    server.should_exit = True
    thread.join(10)


def upload(client: openai.OpenAI, data: bytes = b"{}\n", name: str = "in.jsonl") -> str:
    return client.files.create(file=(name, data), purpose="batch").id


def test_files_round_trip(serving: Serving) -> None:
    client, data = serving.client(), b"x" * 3_000_000  # larger than max_body
    made = client.files.create(file=("in.jsonl", data), purpose="batch")
    assert (made.bytes, made.filename, made.purpose, made.object) == (3_000_000, "in.jsonl", "batch", "file")
    assert client.files.retrieve(made.id) == made and client.files.content(made.id).content == data
    assert made.id in [file.id for file in client.files.list(purpose="batch")]
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)


def test_files_expire_as_their_caller_and_the_operator_say(serving: Serving) -> None:
    client, hour = serving.client(), {"anchor": "created_at", "seconds": 3600}
    call = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = client.files.create(file=("in.jsonl", b"{}"), purpose="batch", expires_after=hour)  # type: ignore[arg-type]
    assert made.expires_at == made.created_at + 3600 and client.files.retrieve(made.id) == made
    longer = client.files.create(
        file=("in.jsonl", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 2_592_000}
    )
    assert longer.expires_at == longer.created_at + EXPIRE_AFTER, "the earlier one counts"
    old = FileInfo(AGED, "in.jsonl", "batch", 2, 17)
    path = Path(serving.store.objects.uri) / "content"
    path.write_bytes(b"{}")
    serving.store.add_file(owner_of(ONE), old, path)
    with pytest.raises(openai.NotFoundError, match="has expired"):  # it may be deleted at any moment
        client.batches.create(input_file_id=AGED, **call)  # type: ignore[arg-type]
    serving.store.delete_file(owner_of(ONE), AGED)
    with pytest.raises(openai.NotFoundError, match="any more: here files expire 864,000 seconds"):
        client.files.retrieve(AGED)
    with pytest.raises(openai.NotFoundError, match="any more: here batches and jobs expire"):
        client.batches.retrieve(AGED.replace("file-", "batch_"))
    with pytest.raises(openai.NotFoundError) as plain:
        client.files.retrieve(new_id("file-"))
    assert "any more" not in str(plain.value)


def test_callers_cannot_access_files_and_batches_of_others(serving: Serving) -> None:
    mine, other = serving.client(), serving.client(TWO)
    name = upload(mine)
    batch = mine.batches.create(input_file_id=name, endpoint="/v1/chat/completions", completion_window="24h")
    for refused in (
        lambda: other.files.retrieve(name),
        lambda: other.files.delete(name),
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
        lambda: other.batches.create(input_file_id=name, endpoint="/v1/chat/completions", completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            refused()
    assert list(other.files.list()) == [] and list(other.batches.list()) == []


def test_lists_are_paginated(serving: Serving) -> None:
    client = serving.client(TWO)
    made = [upload(client, name=f"{number}.jsonl") for number in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == made[::-1], "the client follows the pages"
    assert [file.id for file in client.files.list(limit=2, order="asc")] == made
    call = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    placed = [client.batches.create(input_file_id=made[0], **call).id for _ in range(5)]  # type: ignore[arg-type]
    assert [batch.id for batch in client.batches.list(limit=2)] == placed[::-1]


def test_a_batch_shows_the_state_that_its_driver_stores(serving: Serving) -> None:
    client = serving.client()
    name = upload(client)
    batch = client.batches.create(
        input_file_id=name,
        endpoint="/v1/chat/completions",
        completion_window="90m",  # type: ignore[arg-type]
        metadata={"for": "tests"},
    )
    assert batch.status == "validating" and batch.metadata == {"for": "tests"} and batch.input_file_id == name
    assert batch.expires_at == batch.created_at + 5400 and serving.launcher.started[-1] == batch.id
    job = serving.job(batch.id)
    serving.store.set_state(
        job, {"status": "in_progress", "in_progress_at": 5, "counts": {"total": 9, "completed": 4, "failed": 1}}
    )
    found = client.batches.retrieve(batch.id)
    assert found.status == "in_progress" and found.in_progress_at == 5 and found.request_counts is not None
    assert (found.request_counts.total, found.request_counts.completed, found.request_counts.failed) == (9, 4, 1)
    cancelling = client.batches.cancel(batch.id)
    assert cancelling.status == "cancelling" and cancelling.cancelling_at and serving.launcher.cancelled[-1] == batch.id
    cancelled = {"status": "cancelled", "cancelled_at": 8, "output_file_id": name}
    assert serving.store.set_state(job, cancelled, serving.store.state_version(job)[1])
    over = client.batches.retrieve(batch.id)
    assert over.status == "cancelled" and over.cancelling_at == cancelling.cancelling_at and over.output_file_id == name
    with pytest.raises(openai.ConflictError, match="already cancelled"):
        client.batches.cancel(batch.id)


def test_a_failed_batch_reports_its_invalid_lines(serving: Serving) -> None:
    client = serving.client()
    call = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = client.batches.create(input_file_id=upload(client), **call)  # type: ignore[arg-type]
    problem = {"code": "invalid_json_line", "message": "the line is not JSON", "param": None, "line": 3}
    serving.store.set_state(serving.job(batch.id), {"status": "failed", "failed_at": 5, "problems": [problem]})
    found = client.batches.retrieve(batch.id)
    assert found.status == "failed" and found.errors is not None and found.errors.data is not None
    assert (found.errors.data[0].line, found.errors.data[0].code) == (3, "invalid_json_line")


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ({"input_file_id": "file-none"}, None),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"k": "x" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3600}}, "output_expires_after"),
    ],
)
def test_unsupported_parameters_of_a_batch_are_rejected(
    serving: Serving, call: dict[str, Any], field: str | None
) -> None:
    client = serving.client()
    whole = {"input_file_id": upload(client), "endpoint": "/v1/chat/completions", "completion_window": "24h"} | call
    headers = {"Authorization": f"Bearer {ONE}"}
    reply = httpx.post(f"{serving.address}/v1/batches", json=whole, headers=headers)
    assert reply.status_code in (400, 404), reply.text
    assert reply.json()["error"]["param"] == field


def test_files_that_are_rejected(serving: Serving) -> None:
    headers = {"Authorization": f"Bearer {ONE}"}
    url = f"{serving.address}/v1/files"

    def send(data: dict[str, str], content: bytes = b"{}") -> int:
        return httpx.post(url, files={"file": ("x", content)}, data=data, headers=headers).status_code

    assert send({"purpose": "fine-tune"}) == 400
    assert send({"purpose": "batch", "expires_after[seconds]": "3600"}) == 400, "without the anchor"
    assert send({"purpose": "batch", "expires_after[anchor]": "created_at"}) == 400
    assert send({"purpose": "batch", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"}) == 400
    assert send({"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "9"}) == 400
    assert send({"purpose": "batch", "expires_after[days]": "9"}) == 400
    assert send({"purpose": "batch"}, b"x" * 5_100_000) == 413
    assert httpx.post(url, files={"file": ("x", b"x")}, data={"purpose": "batch"}).status_code == 401
    big = httpx.post(f"{serving.address}/v1/batches", content=b"x" * 200_000, headers=headers)
    assert big.status_code == 413, "only files may exceed max_body"


def test_without_storage_the_routes_answer_404(endpoint: Any) -> None:
    from online.conftest import KEY

    headers = {"Authorization": f"Bearer {KEY}"}
    for method, path in (("GET", "/v1/files"), ("GET", "/v1/batches"), ("GET", "/v1/jobs"), ("POST", "/v1/jobs")):
        reply = httpx.request(method, endpoint.address + path, headers=headers)
        assert reply.status_code == 404 and "`files` is not configured" in reply.json()["error"]["message"]


JOB = {"manifest": "s3://images/in/m.jsonl", "tasks": ["caption en"], "output": "s3://runs/ours/first"}


def test_a_job_is_created_listed_and_cancelled(serving: Serving) -> None:
    headers = {"Authorization": f"Bearer {ONE}"}
    jobs = f"{serving.address}/v1/jobs"
    placed = httpx.post(jobs, json=JOB, headers=headers)
    assert placed.status_code == 200, placed.text
    made = placed.json()
    assert made["status"] == "queued" and made["object"] == "job" and serving.launcher.started[-1] == made["id"]
    assert made["job"]["model"] == "demo" and made["job"]["shard_rows"] is None
    text = "manifest: s3://images/in/m.jsonl\ntasks: caption en\noutput: s3://runs/ours/second\n"
    again = httpx.post(jobs, content=text, headers=headers | {"content-type": "application/yaml"}).json()
    assert again["job"]["tasks"] == ["caption en"]
    found = httpx.get(jobs, params={"limit": 1}, headers=headers).json()
    assert [job["id"] for job in found["data"]] == [again["id"]] and found["has_more"]
    progress = {"stage": "annotating", "rows": 9, "rows_done": 4, "images_per_second": 2.5}
    serving.store.set_state(serving.job(made["id"]), {"status": "in_progress", "progress": progress})
    assert httpx.get(f"{jobs}/{made['id']}", headers=headers).json()["progress"] == progress
    assert httpx.post(f"{jobs}/{made['id']}/cancel", headers=headers).json()["status"] == "cancelling"
    assert httpx.get(f"{serving.address}/v1/batches/{made['id']}", headers=headers).status_code == 404


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"manifest": "s3://images/elsewhere/m.jsonl"}, 403, "manifest"),
        ({"manifest": "/etc/passwd"}, 400, "manifest"),
        ({"manifest": "https://images/in/m.jsonl"}, 400, "manifest"),
        ({"manifest": "s3://images/in/../out/m.jsonl"}, 403, "manifest"),
        ({"output": "s3://runs/theirs/x"}, 403, "output"),
        ({"output": "s3://runs/ours/../theirs"}, 403, "output"),
        ({"output": "s3://runs/ours/"}, 403, "output"),
        ({"output": "/tmp/x"}, 403, "output"),
        ({"output": "relative"}, 403, "output"),
        ({"model": "google/paligemma-3b-mix-224"}, 404, "model"),
        ({"pool": {"replicas": 99}}, 400, "pool"),
        ({"fetch": {"workers": 99}}, 400, "fetch"),
        ({"mask_decoder": "/etc/passwd"}, 400, "mask_decoder"),
        ({"tasks": []}, 400, "tasks"),
        ({"shard_rows": 0}, 400, "shard_rows"),
        ({"mainfest": "x"}, 400, "mainfest"),
    ],
)
def test_jobs_are_restricted_to_what_the_operator_allows(
    serving: Serving, change: dict[str, Any], status: int, field: str
) -> None:
    reply = httpx.post(f"{serving.address}/v1/jobs", json=JOB | change, headers={"Authorization": f"Bearer {ONE}"})
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["param"] == field


def test_outputs_cannot_escape_their_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path)
    images = ImagesConfig(addresses=("s3://images/in/",))
    places = (str(tmp_path / "runs"), f"file://{tmp_path}/runs")
    config = CONFIG.model_copy(update={"outputs": places, "images": images})

    def read(output: str) -> dict[str, Any]:
        return read_job(json.dumps(JOB | {"output": output}).encode(), config, ["demo"], UntrustedImages(images))

    assert read(f"{tmp_path}/runs/one")["output"] == f"{tmp_path}/runs/one"
    escaping = ("runs/../x", "runs/link/x", "other", "runs-2/x")
    spelled = (f"file://{tmp_path}/runs/%2e%2e/x", f"file://{tmp_path}/runs/x")
    for output in (*(f"{tmp_path}/{name}" for name in escaping), *spelled):
        with pytest.raises(RequestError, match="output"):
            read(output)


@pytest.mark.parametrize(
    "body", [b"{", b"- 1\n- 2", b"\xff", b"a: &x [1]\nb: *x\n", b"!!python/object:os.system {}", b"[" * 5000]
)
def test_invalid_job_files_are_rejected(serving: Serving, body: bytes) -> None:
    reply = httpx.post(f"{serving.address}/v1/jobs", content=body, headers={"Authorization": f"Bearer {ONE}"})
    assert reply.status_code == 400, reply.text


def test_a_large_job_file_is_rejected_before_parsing(serving: Serving) -> None:
    body = b"[" + b"1, " * 33_000 + b"1]"
    assert len(body) < 100_000, "below max_body"
    with pytest.raises(RequestError, match="at most 262,144 bytes") as caught:
        read_job(body * 3, CONFIG, ["demo"], UntrustedImages(ImagesConfig()))
    assert caught.value.status == 413
