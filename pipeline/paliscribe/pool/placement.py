"""Placement: resources of replicas and stage processes, and whether the cluster's nodes have them.

Ray lists existing nodes, not those that its autoscaler could add. So a pool that requests a GPU is a GPU pool even if
there is none yet, and resources that fit no node are waited for, unless Ray was started here and cannot grow.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.accelerators import accelerators

from paliscribe.config import FetchConfig, PoolConfig
from paliscribe.errors import UsageError
from paliscribe.pool.ray_cluster import started_here

MAX_WORKERS = 64  # maximum number of stage processes unless the job sets one
SPARE_CPUS = 0.25  # CPUs left for Ray Data's own tasks and for publishing parts
ACCELERATOR_PREFIX = "accelerator_type:"  # Ray's resource for an accelerator type; every node with it has 1
ACCELERATOR_AMOUNT = 0.001  # what an actor with this accelerator type takes of it
ACCELERATOR_LABEL = "ray.io/accelerator-type"  # Ray's label of nodes that have one

Resources = Mapping[str, float]


def has_gpus() -> bool:
    """Whether the current cluster has GPUs now."""
    return float(ray.cluster_resources().get("GPU", 0)) > 0


def live_nodes() -> list[Resources]:
    """The resources of every live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def actor_options(config: PoolConfig, gpus: float) -> dict[str, Any]:
    """A replica's resources as Ray actor options. `gpus`: as resolved by `PoolConfig.gpus`."""
    options: dict[str, Any] = {"num_cpus": config.cpus_per_replica, "num_gpus": gpus}
    if config.accelerator_type is not None:
        options["accelerator_type"] = config.accelerator_type
    if config.resources:
        options["resources"] = dict(config.resources)
    return options


def on_cpu_nodes() -> dict[str, Any]:
    """Actor options for nodes without accelerators; for any node where no such node has the resources."""
    kinds = sorted({kind for name, kind in vars(accelerators).items() if name.isupper() and isinstance(kind, str)})
    selector = {ACCELERATOR_LABEL: f"!in({','.join(kinds)})"}
    return {"label_selector": selector, "fallback_strategy": [{"label_selector": {}}]}


def per_node(count: int, cpus: float) -> int | None:
    """The most of `count` actors that a node may hold, so that not all are on one; None: all, as no two nodes fit."""
    fitting = [node for node in live_nodes() if node.get("CPU", 0) >= cpus]
    nodes = [node for node in fitting if not node.get("GPU")] or fitting
    return count - 1 if count > 1 and len(nodes) > 1 else None


def replica_resources(config: PoolConfig, gpus: float) -> dict[str, float]:
    """A replica's resources by Ray resource name, zeros left out."""
    wanted = {"CPU": config.cpus_per_replica, "GPU": gpus, **config.resources}
    if config.accelerator_type is not None:
        wanted[ACCELERATOR_PREFIX + config.accelerator_type] = ACCELERATOR_AMOUNT
    return {name: amount for name, amount in wanted.items() if amount}


def fits(node: Resources, wanted: Resources) -> bool:
    """Whether an otherwise empty node with these resources could hold a replica."""
    return all(node.get(name, 0) >= amount for name, amount in wanted.items())


def replicas_that_fit(nodes: Sequence[Resources], wanted: Resources) -> int:
    """Number of replicas that fit by the nodes' GPUs and custom resources; at least 1, and 1 if neither is requested.

    CPUs are not counted, as stage processes share them. A fractional GPU lies on one device.
    """
    devices = {
        name: amount for name, amount in wanted.items() if name != "CPU" and not name.startswith(ACCELERATOR_PREFIX)
    }
    if not devices:
        return 1
    return max(1, sum(_replicas_on(node, devices) for node in nodes if fits(node, wanted)))


def _replicas_on(node: Resources, devices: Resources) -> int:
    counts = []
    for name, amount in devices.items():
        if name == "GPU" and amount < 1:
            counts.append(int(node.get(name, 0)) * math.floor(1 / amount + 1e-9))
        else:
            counts.append(math.floor(node.get(name, 0) / amount + 1e-9))
    return min(counts)


def missing_resources(nodes: Sequence[Resources], wanted: Resources) -> str | None:
    """The resources of one replica in words if no single node has them all, else None."""
    if any(fits(node, wanted) for node in nodes):
        return None
    return "a node with " + ", ".join(
        f"accelerator type {name.removeprefix(ACCELERATOR_PREFIX)}"
        if name.startswith(ACCELERATOR_PREFIX)
        else f"{amount:g} {name}"
        for name, amount in sorted(wanted.items())
    )


def require_feasible(wanted: Resources) -> None:
    """Raise UsageError if Ray was started here, on one machine that lacks the resources of a replica."""
    if started_here() and (lack := missing_resources(live_nodes(), wanted)) is not None:
        raise UsageError(f"a replica needs {lack}; this machine lacks it (`pool` in the settings)")


def stage_size(fetch: FetchConfig, *, total: float, free: float, replicas: float) -> tuple[float, int]:
    """CPUs per stage process, and the maximum number of processes.

    `total`, `free`: CPUs of the cluster, and those unused now; `replicas`: CPUs that the pool's replicas take of the
    total. If no whole CPU is free, a process requests a fraction instead of waiting.
    """
    left = max(SPARE_CPUS, total - replicas - SPARE_CPUS)
    now = max(SPARE_CPUS, free - SPARE_CPUS)
    workers = fetch.workers or min(MAX_WORKERS, max(1, int(left / (fetch.cpus_per_worker or 1.0))))
    if fetch.cpus_per_worker is not None:
        return fetch.cpus_per_worker, workers
    return min(1.0, now, left / workers), workers
