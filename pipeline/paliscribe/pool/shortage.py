"""What a pool or a stage process lacks, in words: replicas that are not ready, and resources that nobody has free."""

import ray
from ray import serve
from ray.serve.schema import DeploymentStatusOverview

from paliscribe.pool.address import PoolAddress
from paliscribe.pool.placement import Resources, live_nodes, missing_resources

READY, COMING = ("RUNNING", "PENDING_MIGRATION"), ("STARTING", "UPDATING", "RECOVERING")  # Serve's states of replicas


def shortage(pool: PoolAddress, model: str, wanted: Resources) -> str:
    """What is missing until the replicas of a pool are ready, in words; empty if none is missing.

    `wanted`: resources of a replica, if the pool is temporary; those of a served pool are not known here.
    """
    found = _deployment(pool)
    if found is None:
        return f"the pool of {model} is not deployed"
    ready = sum(found.replica_states.get(state, 0) for state in READY)
    coming = sum(found.replica_states.get(state, 0) for state in COMING)
    if ready and not coming:
        return ""
    words = f"{ready} of {max(ready + coming, 1)} replicas of {model} are ready"
    if not coming:
        return words
    if "to be scheduled" in found.message:  # Serve says so of replicas that take more than 30 seconds
        words += f", {coming} wait for resources"
        return f"{words}: {free(wanted)}" if pool.is_temporary else words
    words += f", {coming} are starting"
    return f"{words}, which takes long: image, weights or first answer" if "to initialize" in found.message else words


def free(wanted: Resources) -> str:
    """What one process wants, and how much of that the cluster has free, in words."""
    if (lack := missing_resources(live_nodes(), wanted)) is not None:
        return f"each needs {lack}, and there is none"
    total, unused = ray.cluster_resources(), ray.available_resources()
    each = ", ".join(f"{amount:g} {name}" for name, amount in sorted(wanted.items()))
    has = ", ".join(f"{unused.get(name, 0):g} of {total.get(name, 0):g} {name}" for name in sorted(wanted))
    return f"each needs {each}; free in the cluster: {has}"


def _deployment(pool: PoolAddress) -> DeploymentStatusOverview | None:
    application = serve.status().applications.get(pool.application)
    return application.deployments.get(pool.deployment) if application is not None else None
