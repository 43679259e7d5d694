"""A pool that grows with the work and shrinks to nothing, on a real cluster."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from ray import serve

from paliscribe.config import ModelSpec, PoolConfig
from paliscribe.model.weights import locate
from paliscribe.pool.address import PoolAddress
from paliscribe.pool.client import PoolClient
from paliscribe.pool.deploy import start_pool
from paliscribe.records import Prediction, Request

pytestmark = [pytest.mark.cluster, pytest.mark.full, pytest.mark.usefixtures("served")]
APPLICATION = "scaled-demo"
SCALED = PoolConfig(
    threads=1,
    cpus_per_replica=0.25,
    min_replicas=0,
    max_replicas=2,
    rows_per_replica=24,
    scale_up_after=0,
    scale_down_after=2,
)


@pytest.fixture
def pool() -> Iterator[PoolAddress]:
    spec = ModelSpec().resolved(gpu=False)
    yield start_pool(locate(spec).pin(spec), SCALED, APPLICATION)
    serve.delete(APPLICATION)


def running(pool: PoolAddress) -> int:
    states = serve.status().applications[APPLICATION].deployments[pool.deployment].replica_states
    return states.get("RUNNING", 0)


def until(true: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        meanwhile()
        time.sleep(0.2)


def requests(count: int, max_tokens: int) -> list[Request]:
    pixels = np.random.default_rng(5).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    return [Request(str(number), "detect circle", pixels, "key", max_tokens) for number in range(count)]


def test_from_nothing_to_the_most_and_back(pool: PoolAddress) -> None:
    client = PoolClient(pool, timeout=120)
    assert running(pool) == 0
    [alone] = client.predict(requests(1, 20))
    assert alone.error_kind is None, "the first call waits for a replica and is answered"
    answers: list[Prediction] = []

    def ask(count: int) -> None:
        calls = [client.send(requests(count, 20)) for _ in range(4)]
        answers.extend(answer for call in calls for answer in call.result())

    until(lambda: running(pool) == 2, lambda: ask(200))
    until(lambda: running(pool) == 1, lambda: ask(1))
    assert {answer.tokens for answer in answers} == {alone.tokens}, "nobody is lost or answered otherwise"
    until(lambda: running(pool) == 0)
    [again] = client.predict(requests(1, 20))
    assert again == alone
