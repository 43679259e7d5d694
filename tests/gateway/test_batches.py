"""Files, batches and jobs over HTTP, with OpenAI's client; what works on them is in `front/test_offline.py`."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from gateway.conftest import CONFIG, listen
from gateway.scripted import Scripted

from paliscribe.config import ImagesConfig
from paliscribe.errors import RequestError
from paliscribe.images.untrusted import Pictures
from paliscribe.online.background.batches import read_job
from paliscribe.online.background.store import Order, Orders
from paliscribe.online.keys import Keys
from paliscribe.online.service import Served, Service
from paliscribe.storage import open_store

ONE, TWO = "a-first-key-0123456789", "a-second-key-0123456789"


@dataclass
class Told:
    """Works on nothing, and keeps what it was told."""

    begun: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def begin(self, order: Order) -> None:
        self.begun.append(order.id)

    async def cancel(self, order: Order) -> None:
        self.cancelled.append(order.id)


@dataclass(frozen=True)
class Desk:
    address: str
    orders: Orders
    told: Told

    def client(self, key: str = ONE) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=30)

    def order(self, name: str) -> Order:
        [found] = [order for order in self.orders.open_orders() if order.id == name]
        return found


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    allowed = ImagesConfig(addresses=("s3://images/in/",))
    places = {"files": str(folder), "max_file": 5_000_000, "outputs": ("s3://runs/ours/", str(folder))}
    config = CONFIG.model_copy(update={"max_body": 100_000, "images": allowed, **places})
    orders, told = Orders(open_store(str(folder))), Told()
    keys = Keys([hashlib.sha256(key.encode()).hexdigest() for key in (ONE, TWO)])
    service = Service(config, [Served("demo", "r1", 112, Scripted())])
    server, thread = listen(service, keys, orders=orders, launcher=told)
    yield Desk(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", orders, told)
    server.should_exit = True
    thread.join(10)


def keep(client: openai.OpenAI, data: bytes = b"{}\n", name: str = "in.jsonl") -> str:
    return client.files.create(file=(name, data), purpose="batch").id


def test_a_file_comes_back_as_it_was(desk: Desk) -> None:
    client, data = desk.client(), b"x" * 3_000_000  # more than a body of another call may have
    made = client.files.create(file=("in.jsonl", data), purpose="batch")
    assert (made.bytes, made.filename, made.purpose, made.object) == (3_000_000, "in.jsonl", "batch", "file")
    assert client.files.retrieve(made.id) == made and client.files.content(made.id).content == data
    assert made.id in [file.id for file in client.files.list(purpose="batch")]
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)


def test_files_and_batches_are_the_callers_own(desk: Desk) -> None:
    mine, other = desk.client(), desk.client(TWO)
    name = keep(mine)
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


def test_lists_are_paged_through(desk: Desk) -> None:
    client = desk.client(TWO)
    made = [keep(client, name=f"{number}.jsonl") for number in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == made[::-1], "the client asks for page after page"
    assert [file.id for file in client.files.list(limit=2, order="asc")] == made
    call = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    placed = [client.batches.create(input_file_id=made[0], **call).id for _ in range(5)]  # type: ignore[arg-type]
    assert [batch.id for batch in client.batches.list(limit=2)] == placed[::-1]


def test_a_batch_shows_what_its_driver_says(desk: Desk) -> None:
    client = desk.client()
    name = keep(client)
    batch = client.batches.create(
        input_file_id=name, endpoint="/v1/chat/completions", completion_window="90m", metadata={"for": "tests"}
    )
    assert batch.status == "validating" and batch.metadata == {"for": "tests"} and batch.input_file_id == name
    assert batch.expires_at == batch.created_at + 5400 and desk.told.begun[-1] == batch.id
    order = desk.order(batch.id)
    desk.orders.set_state(
        order, {"status": "in_progress", "in_progress_at": 5, "counts": {"total": 9, "completed": 4, "failed": 1}}
    )
    found = client.batches.retrieve(batch.id)
    assert found.status == "in_progress" and found.in_progress_at == 5 and found.request_counts is not None
    assert (found.request_counts.total, found.request_counts.completed, found.request_counts.failed) == (9, 4, 1)
    cancelling = client.batches.cancel(batch.id)
    assert cancelling.status == "cancelling" and cancelling.cancelling_at and desk.told.cancelled[-1] == batch.id
    desk.orders.set_state(order, {"status": "cancelled", "cancelled_at": 8, "output_file_id": name})
    over = client.batches.retrieve(batch.id)
    assert over.status == "cancelled" and over.cancelling_at == cancelling.cancelling_at and over.output_file_id == name
    with pytest.raises(openai.ConflictError, match="cancelled already"):
        client.batches.cancel(batch.id)


def test_a_batch_that_failed_names_its_lines(desk: Desk) -> None:
    client = desk.client()
    call = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = client.batches.create(input_file_id=keep(client), **call)  # type: ignore[arg-type]
    problem = {"code": "invalid_json_line", "message": "the line is not JSON", "param": None, "line": 3}
    desk.orders.set_state(desk.order(batch.id), {"status": "failed", "failed_at": 5, "problems": [problem]})
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
def test_what_is_not_honoured_is_refused(desk: Desk, call: dict[str, Any], field: str | None) -> None:
    client = desk.client()
    whole = {"input_file_id": keep(client), "endpoint": "/v1/chat/completions", "completion_window": "24h"} | call
    headers = {"Authorization": f"Bearer {ONE}"}
    reply = httpx.post(f"{desk.address}/v1/batches", json=whole, headers=headers)
    assert reply.status_code in (400, 404), reply.text
    assert reply.json()["error"]["param"] == field


def test_files_that_are_not_taken(desk: Desk) -> None:
    headers = {"Authorization": f"Bearer {ONE}"}
    url = f"{desk.address}/v1/files"

    def send(data: dict[str, str], content: bytes = b"{}") -> int:
        return httpx.post(url, files={"file": ("x", content)}, data=data, headers=headers).status_code

    assert send({"purpose": "fine-tune"}) == 400
    assert send({"purpose": "batch", "expires_after[seconds]": "3600"}) == 400
    assert send({"purpose": "batch"}, b"x" * 5_100_000) == 413
    assert httpx.post(url, files={"file": ("x", b"x")}, data={"purpose": "batch"}).status_code == 401
    big = httpx.post(f"{desk.address}/v1/batches", content=b"x" * 200_000, headers=headers)
    assert big.status_code == 413, "only files may be large"


def test_an_endpoint_that_keeps_nothing_says_so(endpoint: Any) -> None:
    from gateway.conftest import KEY

    headers = {"Authorization": f"Bearer {KEY}"}
    for method, path in (("GET", "/v1/files"), ("GET", "/v1/batches"), ("GET", "/v1/jobs"), ("POST", "/v1/jobs")):
        reply = httpx.request(method, endpoint.address + path, headers=headers)
        assert reply.status_code == 404 and "has no `files`" in reply.json()["error"]["message"]


JOB = {"manifest": "s3://images/in/m.jsonl", "tasks": ["caption en"], "output": "s3://runs/ours/first"}


def test_a_job_is_placed_listed_and_cancelled(desk: Desk) -> None:
    headers = {"Authorization": f"Bearer {ONE}"}
    jobs = f"{desk.address}/v1/jobs"
    placed = httpx.post(jobs, json=JOB, headers=headers)
    assert placed.status_code == 200, placed.text
    made = placed.json()
    assert made["status"] == "queued" and made["object"] == "job" and desk.told.begun[-1] == made["id"]
    assert made["job"]["model"] == "demo" and made["job"]["shard_rows"] == 256
    text = "manifest: s3://images/in/m.jsonl\ntasks: caption en\noutput: s3://runs/ours/second\n"
    again = httpx.post(jobs, content=text, headers=headers | {"content-type": "application/yaml"}).json()
    assert again["job"]["tasks"] == ["caption en"]
    found = httpx.get(jobs, params={"limit": 1}, headers=headers).json()
    assert [job["id"] for job in found["data"]] == [again["id"]] and found["has_more"]
    progress = {"stage": "annotating", "rows": 9, "rows_done": 4, "images_per_second": 2.5}
    desk.orders.set_state(desk.order(made["id"]), {"status": "in_progress", "progress": progress})
    assert httpx.get(f"{jobs}/{made['id']}", headers=headers).json()["progress"] == progress
    assert httpx.post(f"{jobs}/{made['id']}/cancel", headers=headers).json()["status"] == "cancelling"
    assert httpx.get(f"{desk.address}/v1/batches/{made['id']}", headers=headers).status_code == 404


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
def test_jobs_reach_what_the_operator_allows(desk: Desk, change: dict[str, Any], status: int, field: str) -> None:
    reply = httpx.post(f"{desk.address}/v1/jobs", json=JOB | change, headers={"Authorization": f"Bearer {ONE}"})
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["param"] == field


def test_outputs_in_folders_may_not_climb_out(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path)
    images = ImagesConfig(addresses=("s3://images/in/",))
    places = (str(tmp_path / "runs"), f"file://{tmp_path}/runs")
    config = CONFIG.model_copy(update={"outputs": places, "images": images})

    def read(output: str) -> dict[str, Any]:
        return read_job(json.dumps(JOB | {"output": output}).encode(), config, ["demo"], Pictures(images))

    assert read(f"{tmp_path}/runs/one")["output"] == f"{tmp_path}/runs/one"
    climbing = ("runs/../x", "runs/link/x", "other", "runs-2/x")
    spelled = (f"file://{tmp_path}/runs/%2e%2e/x", f"file://{tmp_path}/runs/x")
    for output in (*(f"{tmp_path}/{name}" for name in climbing), *spelled):
        with pytest.raises(RequestError, match="output"):
            read(output)


@pytest.mark.parametrize(
    "body", [b"{", b"- 1\n- 2", b"\xff", b"a: &x [1]\nb: *x\n", b"!!python/object:os.system {}", b"[" * 5000]
)
def test_what_is_no_job_file_is_refused(desk: Desk, body: bytes) -> None:
    reply = httpx.post(f"{desk.address}/v1/jobs", content=body, headers={"Authorization": f"Bearer {ONE}"})
    assert reply.status_code == 400, reply.text


def test_a_large_job_file_is_refused_unread(desk: Desk) -> None:
    body = b"[" + b"1, " * 33_000 + b"1]"
    assert len(body) < 100_000, "what this endpoint takes at all"
    with pytest.raises(RequestError, match="at most 262,144 bytes") as caught:
        read_job(body * 3, CONFIG, ["demo"], Pictures(ImagesConfig()))
    assert caught.value.status == 413
