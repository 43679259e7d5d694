"""Replicas that die while they work, requests that kill them, and pools that do not come up."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from front.conftest import replicas
from pool.test_replica import broken_checkpoint
from ray import serve

from bench import poison
from paliscribe.config import ModelSpec, PoolConfig
from paliscribe.errors import RunError, UsageError
from paliscribe.model.weights import locate
from paliscribe.pool.address import TEMPORARY, PoolAddress
from paliscribe.pool.client import PoolClient
from paliscribe.pool.deploy import open_pool, start_pool, wait_until_ready
from paliscribe.pool.ray_cluster import cluster
from paliscribe.records import Request

ray.cloudpickle.register_pickle_by_value(poison)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import test modules
pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("served")]
SPEC = locate(ModelSpec()).pin(ModelSpec().resolved(gpu=False))


def requests(count: int, max_tokens: int = 200) -> list[Request]:
    pixels = np.random.default_rng(5).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    return [Request(str(number), "detect circle", pixels, "key", max_tokens) for number in range(count)]


def test_a_batch_attaches_to_a_served_pool() -> None:
    with open_pool(SPEC, PoolConfig(), "some-run") as pool:
        assert pool.application == "served-demo"
        assert PoolClient(pool).facts().image_size == 112
    assert not replicas(TEMPORARY + "some-run")
    assert len(replicas("served-demo")) == 1, "a served pool outlives the batches that use it"


def test_answers_in_order_and_the_same_from_every_call() -> None:
    with open_pool(SPEC, PoolConfig(), "some-run") as pool:
        client = PoolClient(pool)
        first, second = client.predict(requests(9, 20)), client.predict(requests(9, 20))
    assert [answer.id for answer in first] == [str(number) for number in range(9)]
    assert first == second


@pytest.mark.long
def test_a_call_that_was_lost_with_its_replica_is_repeated() -> None:
    with open_pool(SPEC, PoolConfig(), "some-run") as pool:
        client = PoolClient(pool)
        whole = client.predict(requests(6, 30))
        before = client.facts().replica
        call = client.send(requests(6, 30) + requests(200))
        time.sleep(0.3)
        for process in replicas("served-demo"):
            os.kill(process.pid, signal.SIGKILL)
        answers = call.result()
        assert [answer.tokens for answer in answers[:6]] == [answer.tokens for answer in whole]
        assert {answer.error_kind for answer in answers} == {None}
        assert client.facts().replica != before, "the pool healed by itself"


@pytest.mark.long
def test_pools_that_do_not_come_up_say_why(tmp_path: Path) -> None:
    """Of a model that is not there, and of one that loads and cannot answer; both at once, as each takes its time."""
    missing = ModelSpec(id=str(tmp_path / "nothing"), precision="float32")
    broken, config = broken_checkpoint(tmp_path / "model"), PoolConfig(threads=1, cpus_per_replica=0.1)
    words = r"^no replica came up: ReplicaError: the model cannot answer: RuntimeError: The size of tensor a"
    with (
        pytest.raises(RunError, match=words),
        cluster(),
        open_pool(missing, config, "x") as first,
        open_pool(broken, config, "y") as second,
    ):
        with pytest.raises(RunError, match=r"no replica came up: .*no such folder"):
            wait_until_ready(first)
        wait_until_ready(second)
    assert not replicas(TEMPORARY + "x") and not replicas(TEMPORARY + "y")


@pytest.mark.parametrize(
    ("pool", "lack"),
    [
        ({"gpus_per_replica": 1}, "a node with 0.5 CPU, 1 GPU"),
        ({"accelerator_type": "L4"}, "a node with 0.5 CPU, 1 GPU, accelerator type L4"),
        ({"resources": {"disk": 1}}, "a node with 0.5 CPU, 1 disk"),
        ({"cpus_per_replica": 64}, "a node with 64 CPU"),
    ],
)
def test_what_a_machine_alone_will_never_have_is_not_waited_for(pool: dict[str, object], lack: str) -> None:
    another = SPEC.model_copy(update={"precision": "float16"})  # nobody serves it
    with pytest.raises(UsageError, match=f"a replica needs {lack}; this machine lacks it"):
        start_pool(another, PoolConfig.model_validate(pool), "never")


class Poisonable(poison.LightReplica):
    """A replica without a model, so that it is soon replaced."""

    def __init__(self) -> None:
        super().__init__(2.0, "light")


@contextlib.contextmanager
def killing_large(application: str, limit: int) -> Iterator[None]:
    """Kill replicas that take more memory, as the kernel does."""

    def kill() -> None:
        while not done.wait(0.05):
            for process in replicas(application):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.memory_info().rss > limit:
                        process.kill()

    done = threading.Event()
    thread = threading.Thread(target=kill)
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.mark.long
def test_a_pool_that_half_its_nodes_can_hold_is_ready() -> None:
    application = TEMPORARY + "half"
    deployment = serve.deployment(name="light", num_replicas=2, ray_actor_options={"num_cpus": 1.2})(Poisonable)
    pool = PoolAddress(application, "light", 2)
    target = serve.RunTarget(deployment.bind(), name=application, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)
    try:
        wait_until_ready(pool)
        assert serve.status().applications[application].status == "DEPLOYING"
        asked = [poison.request(number) for number in range(10)]
        assert PoolClient(pool).predict(asked) == [poison.expected(each) for each in asked]
    finally:
        serve.delete(application)


@pytest.mark.long
def test_requests_that_no_replica_survives_are_isolated() -> None:
    deployment = serve.deployment(
        name="poisonable",
        num_replicas=2,
        ray_actor_options={"num_cpus": 0.1},
        health_check_period_s=1,
        graceful_shutdown_timeout_s=1,
    )(Poisonable)
    serve.run(deployment.bind(), name="poisonable", route_prefix=None)
    client = PoolClient(PoolAddress("poisonable", "poisonable", 2))
    good = [[poison.request(100 * call + number) for number in range(60)] for call in range(1, 4)]
    bad = [poison.request(number) for number in range(8)]
    bad[2].prompt, bad[3].prompt, bad[6].prompt = "crash", "hang", "memory"
    try:
        with killing_large("poisonable", 2**30):
            calls = [client.send(call) for call in (bad, *good)]
            answers = [call.result() for call in calls]
    finally:
        serve.delete("poisonable")
    kinds = ["replica_lost" if each.prompt in poison.KINDS else None for each in bad]
    assert [answer.error_kind for answer in answers[0]] == kinds
    for number in (2, 3, 6):
        assert "2 replicas were lost with this request alone in them; the last: " in str(
            answers[0][number].error_message
        )
    for asked, found in zip([bad, *good], answers, strict=True):
        assert all(a == poison.expected(r) for r, a in zip(asked, found, strict=True) if r.prompt not in poison.KINDS)
