"""Room for replicas and stage processes, from numbers: no cluster is asked."""

import pytest

from paliscribe.config import FetchConfig, PoolConfig
from paliscribe.pool.placement import (
    actor_options,
    fits,
    missing_resources,
    replica_resources,
    replicas_that_fit,
    stage_size,
)

L4 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}
A100S = {"CPU": 96.0, "GPU": 8.0, "accelerator_type:A100": 1.0, "disk": 3.0}
PLAIN = {"CPU": 16.0}


def wanted(**pool: object) -> dict[str, float]:
    config = PoolConfig.model_validate(pool)
    return replica_resources(config, config.gpus(available=True))


def test_what_a_replica_asks_of_ray() -> None:
    config = PoolConfig(gpus_per_replica=0.5, accelerator_type="L4", resources={"disk": 2}, cpus_per_replica=1)
    assert actor_options(config, 0.5) == {
        "num_cpus": 1,
        "num_gpus": 0.5,
        "accelerator_type": "L4",
        "resources": {"disk": 2},
    }
    assert actor_options(PoolConfig(), 0.0) == {"num_cpus": 0.5, "num_gpus": 0.0}
    assert replica_resources(config, 0.5) == {"CPU": 1, "GPU": 0.5, "disk": 2, "accelerator_type:L4": 0.001}
    assert replica_resources(PoolConfig(), 0.0) == {"CPU": 0.5}


@pytest.mark.parametrize(
    ("pool", "replicas"),
    [
        ({}, 1 + 8 + 1),
        ({"gpus_per_replica": 0}, 1),
        ({"accelerator_type": "A100"}, 8),
        ({"accelerator_type": "H100"}, 1),  # none is there yet
        ({"gpus_per_replica": 2}, 4),
        ({"gpus_per_replica": 0.5}, 20),
        ({"gpus_per_replica": 0.4}, 20),  # a share lies on one GPU: two of each, not 2.5
        ({"gpus_per_replica": 0.1}, 100),
        ({"gpus_per_replica": 0, "resources": {"disk": 1}}, 3),
        ({"resources": {"disk": 1.5}}, 2),
    ],
)
def test_replicas_by_default(pool: dict[str, object], replicas: int) -> None:
    assert replicas_that_fit([L4, A100S, PLAIN, L4], wanted(**pool)) == replicas
    assert replicas_that_fit([], wanted(**pool)) == 1


def test_what_no_node_has_is_named() -> None:
    nodes = [L4, PLAIN]
    assert fits(L4, wanted(accelerator_type="L4")) and missing_resources(nodes, wanted(accelerator_type="L4")) is None
    assert missing_resources(nodes, wanted(accelerator_type="A100", gpus_per_replica=0.5)) == (
        "a node with 0.5 CPU, 0.5 GPU, accelerator type A100"
    )
    # Each of them is there, and not on one node.
    assert missing_resources(nodes, wanted(cpus_per_replica=16)) == "a node with 16 CPU, 1 GPU"
    assert missing_resources([], wanted(gpus_per_replica=0, resources={"disk": 2})) == "a node with 0.5 CPU, 2 disk"


@pytest.mark.parametrize(
    ("fetch", "total", "free", "replicas", "size"),
    [
        ({}, 2, 1.5, 0.5, (1.0, 1)),
        ({}, 1, 0.5, 0.5, (0.25, 1)),
        ({}, 0, 0, 0.5, (0.25, 1)),
        ({}, 96, 92, 4, (1.0, 64)),
        ({}, 16, 15.5, 0.5, (1.0, 15)),
        ({}, 16, 0.5, 0.5, (0.25, 15)),  # others hold the rest now
        ({"workers": 30}, 16, 15.5, 0.5, (15.25 / 30, 30)),
        ({"workers": 30, "cpus_per_worker": 1}, 16, 15.5, 0.5, (1.0, 30)),  # nodes for them may come
        ({"cpus_per_worker": 2}, 16, 15.5, 0.5, (2.0, 7)),
    ],
)
def test_stage_processes(
    fetch: dict[str, float], total: float, free: float, replicas: float, size: tuple[float, int]
) -> None:
    assert stage_size(FetchConfig.model_validate(fetch), total=total, free=free, replicas=replicas) == size
