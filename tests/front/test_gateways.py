"""Two gateways of one endpoint, one of them killed under load: what is lost, and whose limit holds."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import ray
from front.conftest import replicas
from online.conftest import data_url, encoded
from PIL import Image
from ray import serve

from paliscribe.config import ServeConfig
from paliscribe.model.abilities import Abilities
from paliscribe.online.application import counts, gateways
from paliscribe.online.gateway import ModelInfo
from paliscribe.online.keys import read_keys
from paliscribe.pool.deploy import run_application
from paliscribe.records import Prediction, Request

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import test modules
pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.usefixtures("served")]
APPLICATION, PREFIX = "two-gateways", "/two"
FAST, SLOW, FILES = ("a-key-whose-calls-are-fast", "a-key-whose-calls-are-slow", "a-key-with-files")
RATE = 15.0  # calls/s and key; a portion is two calls
ANSWER = 1.0  # seconds of the model's answer
PICTURE = encoded(Image.fromarray(np.zeros((8, 8, 3), np.uint8)))


class Slow:
    """A model of one answer, which takes its time."""

    async def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        import asyncio

        await asyncio.sleep(ANSWER)
        return [Prediction(request.id, "fine", (1,), (-0.1,), "stop", ends=(4,)) for request in requests]


@dataclass(frozen=True)
class Called:
    """A call: when it began and ended, its status, or the name of the error of its connection."""

    begun: float
    ended: float
    status: str


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"{FAST}\n{SLOW}\nacme:{FILES}\n")
    return file


@pytest.fixture(scope="module")
def address(served: str, keys_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    files = tmp_path_factory.mktemp("gateways")
    config = ServeConfig(gateways=2, rate=RATE, files=str(files))
    keys = read_keys(str(keys_file))
    model = serve.deployment(name="slow", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})(Slow).bind()
    info = ModelInfo("slow", "1", 112, Abilities())
    bound = gateways(config, gpus=False).bind(config, [info], keys, None, counts(config), model)
    run_application(bound, APPLICATION, PREFIX)
    yield served + PREFIX
    serve.delete(APPLICATION)


def processes(deployment: str) -> list[psutil.Process]:
    return replicas(f"{APPLICATION}:{deployment}")


class Callers:
    """Threads that call again and again until they are stopped."""

    def __init__(self, count: int, call: Callable[[httpx.Client], httpx.Response]) -> None:
        self.calls: list[Called] = []
        self._ended, self._call = threading.Event(), call
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not self._ended.is_set():
                begun = time.monotonic()
                try:
                    status = str(self._call(client).status_code)
                except httpx.TransportError as error:
                    status = type(error).__name__
                self.calls.append(Called(begun, time.monotonic(), status))
                if status == "429":
                    time.sleep(0.02)

    def stop(self) -> list[Called]:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        return self.calls


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_files_are_seen_by_every_gateway(address: str) -> None:
    file = {"file": ("lines.jsonl", b'{"custom_id": "1"}\n')}
    with httpx.Client(base_url=address, headers=bearer(FILES), timeout=60, trust_env=False) as client:
        name = client.post("/v1/files", data={"purpose": "batch"}, files=file).json()["id"]
        with ThreadPoolExecutor(8) as threads:
            replies = list(threads.map(lambda _: client.get(f"/v1/files/{name}/content"), range(24)))
    assert {(reply.status_code, reply.text) for reply in replies} == {(200, '{"custom_id": "1"}\n')}
    assert all(lines(process, name) for process in processes("gateway")), "both have answered"


def lines(gateway: psutil.Process, words: str) -> list[str]:
    """Lines of a gateway's log that contain these words."""
    [log] = {found.path for found in gateway.open_files() if "/logs/serve/" in found.path}
    return [line for line in Path(log).read_text().splitlines() if words in line]


def test_keys_that_are_replaced_work_at_every_gateway(address: str, keys_file: Path) -> None:
    new, before = "a-key-that-came-later", keys_file.read_text()
    keys_file.write_text(before.replace(f"acme:{FILES}", f"acme:{new}"))
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:

        def statuses(key: str) -> set[int]:
            return {client.get("/v1/models", headers=bearer(key)).status_code for _ in range(12)}

        until = time.monotonic() + 60
        while statuses(FILES) != {401} or statuses(new) != {200}:
            assert time.monotonic() < until
            time.sleep(0.2)
    keys_file.write_text(before)


def test_a_killed_gateway_loses_what_it_held_and_no_limit(address: str) -> None:
    image = {"images": [data_url(PICTURE)], "tasks": ["caption en"]}
    begun = time.monotonic()
    fast = Callers(10, lambda client: client.get(f"{address}/v1/models", headers=bearer(FAST)))
    slow = Callers(8, lambda client: client.post(f"{address}/v1/annotate", json=image, headers=bearer(SLOW)))
    try:
        until(lambda: any(call.status == "429" for call in fast.calls), "the burst is used up")
        time.sleep(4)
        victim, other = processes("gateway")
        killed = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        dead = time.monotonic()
        time.sleep(5)
        uncounted = time.monotonic()
        os.kill(processes("counts")[0].pid, signal.SIGKILL)  # then the count too, which Serve starts again
        time.sleep(5)
        assert other.is_running()
    finally:
        asked, answered = fast.stop(), slow.stop()
    ended = time.monotonic()
    lost = [call for call in asked + answered if call.status not in ("200", "429")]
    assert all(call.begun < dead and call.ended > killed for call in lost), "only calls in its hands"
    assert len(lost) <= 10 + 8 and sum(call.status == "200" for call in answered if call.begun > dead) > 20
    allowed = [call.ended for call in asked if call.status != "429"]
    for moment in (killed, uncounted):  # a bucket is full at first
        assert sum(call < moment for call in allowed) == pytest.approx((10 + moment - begun) * RATE, rel=0.1)
    assert of_rate(allowed, dead, uncounted) > 0.7, "the other gateway has the whole rate, not its part"
    assert 0.3 < of_rate(allowed, uncounted, ended) < 1.1, "without the count it allows its part"
    until(lambda: len(processes("gateway")) == 2 and len(processes("counts")) == 1, "Serve replaces both")


def of_rate(moments: Sequence[float], since: float, to: float) -> float:
    """The share of the rate that calls at these moments had."""
    return sum(since < moment < to for moment in moments) / (to - since) / RATE


def until(reached: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 90
    while not reached():
        assert time.monotonic() < end, what
        time.sleep(0.1)
