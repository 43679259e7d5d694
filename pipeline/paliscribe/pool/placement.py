"""Where replicas and stage processes find room: what they ask of a node, and what the nodes have.

Ray knows the nodes that are there, and not those that its autoscaler could add. So a pool that asks for a GPU is a GPU
pool whatever is there now, and what fits into no node is waited for, unless Ray was started here and cannot grow.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from paliscribe.config import FetchConfig, PoolConfig
from paliscribe.errors import UsageError
from paliscribe.pool.ray_cluster import is_own

WORKERS = 64  # stage processes at most, unless the job says otherwise
SPARE = 0.25  # CPUs that are left to Ray Data's own tasks and to the publishing of parts
KIND = "accelerator_type:"  # Ray's resource for a kind of GPU, of which every node has 1
ASKED_OF_KIND = 0.001  # what Ray takes of it for an actor that asks for the kind

Resources = Mapping[str, float]


def has_gpus() -> bool:
    """Whether the cluster that is joined has GPUs now."""
    return float(ray.cluster_resources().get("GPU", 0)) > 0


def live_nodes() -> list[Resources]:
    """The resources of every node that is there."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def actor_options(config: PoolConfig, gpus: float) -> dict[str, Any]:
    """A replica's resources as Ray takes them. `gpus`: as `PoolConfig.gpus` settled them."""
    options: dict[str, Any] = {"num_cpus": config.cpus_per_replica, "num_gpus": gpus}
    if config.accelerator_type is not None:
        options["accelerator_type"] = config.accelerator_type
    if config.resources:
        options["resources"] = dict(config.resources)
    return options


def asked(config: PoolConfig, gpus: float) -> dict[str, float]:
    """A replica's resources as a node counts them."""
    wanted = {"CPU": config.cpus_per_replica, "GPU": gpus, **config.resources}
    if config.accelerator_type is not None:
        wanted[KIND + config.accelerator_type] = ASKED_OF_KIND
    return {name: amount for name, amount in wanted.items() if amount}


def fits(node: Resources, wanted: Resources) -> bool:
    """Whether a node of these resources could hold a replica, were nothing else on it."""
    return all(node.get(name, 0) >= amount for name, amount in wanted.items())


def room(nodes: Sequence[Resources], wanted: Resources) -> int:
    """How many replicas the nodes' GPUs and custom resources hold; 1 at least, and 1 where neither is asked for.

    CPUs are not counted: they are shared with stage processes, and a share of a GPU lies on one device.
    """
    devices = {name: amount for name, amount in wanted.items() if name != "CPU" and not name.startswith(KIND)}
    if not devices:
        return 1
    return max(1, sum(_held(node, devices) for node in nodes if fits(node, wanted)))


def _held(node: Resources, devices: Resources) -> int:
    counts = []
    for name, amount in devices.items():
        if name == "GPU" and amount < 1:
            counts.append(int(node.get(name, 0)) * math.floor(1 / amount + 1e-9))
        else:
            counts.append(math.floor(node.get(name, 0) / amount + 1e-9))
    return min(counts)


def missing(nodes: Sequence[Resources], wanted: Resources) -> str | None:
    """What no node has at once for one replica, in words; None where one has it."""
    if any(fits(node, wanted) for node in nodes):
        return None
    return "a node with " + ", ".join(
        f"GPUs of kind {name.removeprefix(KIND)}" if name.startswith(KIND) else f"{amount:g} {name}"
        for name, amount in sorted(wanted.items())
    )


def refuse_what_cannot_come(wanted: Resources) -> None:
    """Raise UsageError if Ray was started here, on one machine, and that does not have what a replica asks for."""
    if is_own() and (lack := missing(live_nodes(), wanted)) is not None:
        raise UsageError(f"a replica asks for {lack}, which this machine is not (`pool` in the settings)")


def stage_size(fetch: FetchConfig, *, total: float, free: float, replicas: float) -> tuple[float, int]:
    """CPUs of a stage process, and how many there may be.

    `total`, `free`: CPUs of the cluster, and those of them that nobody holds now; `replicas`: CPUs that a pool's
    replicas take of the total. Where no whole CPU is free, a process asks for less and does not wait for others.
    """
    left = max(SPARE, total - replicas - SPARE)
    now = max(SPARE, free - SPARE)
    workers = fetch.workers or min(WORKERS, max(1, int(left / (fetch.cpus_per_worker or 1.0))))
    if fetch.cpus_per_worker is not None:
        return fetch.cpus_per_worker, workers
    return min(1.0, now, left / workers), workers
