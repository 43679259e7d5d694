"""Replicas that die while they work, requests that kill them, and pools that do not come up."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from front.conftest import replicas
from pool.test_replica import broken_checkpoint
from ray import serve

from paliscribe.config import ModelSpec, PoolConfig
from paliscribe.errors import RunError, UsageError
from paliscribe.model.weights import locate
from paliscribe.pool.address import TEMPORARY, PoolAddress
from paliscribe.pool.client import PoolClient
from paliscribe.pool.deploy import open_pool, start_pool, wait_until_ready
from paliscribe.pool.ray_cluster import cluster
from paliscribe.records import Prediction, Request

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


class Poisonable:
    """A replica without a model, so that it is soon replaced. It dies, as a process, of one prompt."""

    async def predict(self, requests: list[Request]) -> list[Prediction]:
        if any(request.prompt == "poison" for request in requests):
            os._exit(1)
        return [Prediction(request.id, "", (), (), None) for request in requests]


def test_a_request_that_kills_replicas_is_isolated() -> None:
    deployment = serve.deployment(
        name="poisonable", ray_actor_options={"num_cpus": 0.1}, health_check_period_s=1, graceful_shutdown_timeout_s=1
    )(Poisonable)
    serve.run(deployment.bind(), name="poisonable", route_prefix=None)
    try:
        wanted = requests(4, 10)
        wanted[2].prompt = "poison"
        answers = PoolClient(PoolAddress("poisonable", "poisonable", 1)).predict(wanted)
    finally:
        serve.delete("poisonable")
    assert [answer.error_kind for answer in answers] == [None, None, "replica_lost", None]
    assert "replicas were lost" in str(answers[2].error_message)
