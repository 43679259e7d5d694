"""A program: two requests take all memory that a node has left, until Ray's memory monitor ends their replica.

Prints one JSON object: the error kind and message of each answer, and how many answers to good requests are wrong.
"""

import json
import os
import sys
from typing import Any

from ray import cloudpickle, serve
from ray._common.utils import get_system_memory
from ray._private.utils import get_used_memory

from bench import poison
from paliscribe.pool.address import PoolAddress
from paliscribe.pool.client import PoolClient
from paliscribe.pool.ray_cluster import cluster

ROOM = 6 * 2**30  # bytes that the processes may take together, with what other programs take more than before
MOST = 9 * 2**30  # bytes at which this program's own guard ends a replica: the monitor has failed then
PLACES = (3, 12)  # of the poisoned requests in the first call


class Poisonable(poison.LightReplica):
    """A replica without a model whose steps may last long, so that memory ends it and not the watch."""

    def __init__(self) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MOST, MOST))  # a MemoryError then, and a failed test
        super().__init__(120.0, "light")


def outcome() -> dict[str, Any]:
    """Deploy, call, and compare."""
    deployment = serve.deployment(
        name="poisonable",
        num_replicas=2,
        ray_actor_options={"num_cpus": 0.1},
        health_check_period_s=1,
        graceful_shutdown_timeout_s=1,
    )(Poisonable)
    serve.run(deployment.bind(), name="poisonable", route_prefix=None)
    client = PoolClient(PoolAddress("poisonable", "poisonable", 2), timeout=240)
    calls = [[poison.request(100 * call + number) for number in range(20)] for call in range(3)]
    for place in PLACES:
        calls[0][place].prompt = "memory"
    pending = [client.send(call) for call in calls]
    answers = [answer for call in pending for answer in call.result()]
    asked = [each for call in calls for each in call]
    good = [(each, found) for each, found in zip(asked, answers, strict=True) if each.prompt not in poison.KINDS]
    return {
        "errors": {found.id: [found.error_kind, found.error_message] for found in answers if found.error_kind},
        "wrong": sum(found != poison.expected(each) for each, found in good),
        "good": len(good),
    }


if __name__ == "__main__":
    used, whole = get_used_memory(), get_system_memory()
    os.environ |= {
        "RAY_memory_usage_threshold": f"{(used + ROOM) / whole:.4f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    cloudpickle.register_pickle_by_value(poison)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with cluster(num_cpus=2):
        found = outcome()
        serve.shutdown()
    print(json.dumps(found))
