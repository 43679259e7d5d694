"""Pools as Serve applications: deployed for a run, or found where they are served already."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ray import serve

from paliscribe.config import ModelSpec, PoolConfig
from paliscribe.errors import RunError, UsageError
from paliscribe.pool.autoscaling import autoscaling
from paliscribe.pool.placement import actor_options, asked, has_gpus, live_nodes, refuse_what_cannot_come, room
from paliscribe.pool.replica import Replica
from paliscribe.pool.temporary import HEADLESS, ends_with_driver, headless_name

DRAIN = 90.0  # seconds that a replica which is taken out gets to answer what it has begun; a call's limit is 60


@dataclass(frozen=True, slots=True)
class PoolAddress:
    """Where a pool is: enough for any process of the cluster to call it."""

    application: str
    deployment: str
    replicas: int


def deployment_name(spec: ModelSpec, pool: str | None = None) -> str:
    """The deployment of this very spec, in a pool of this name: equal specs share replicas, unequal ones never do."""
    name = "replica-" + hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:12]
    return name if pool is None else f"{name}-{pool}"


@contextmanager
def open_pool(spec: ModelSpec, config: PoolConfig, run: str) -> Iterator[PoolAddress]:
    """Attach to a running pool of `spec`, or start one for this run, which ends with the block or with this driver.

    Raises RunError as `start_pool` does, and UsageError if the configuration names a pool that is not served.
    """
    if (served := served_pool(spec, config.name)) is not None:
        yield served
        return
    if config.name is not None:
        raise not_served(spec, config.name)
    application = headless_name(run)
    with ends_with_driver(application):
        yield start_pool(spec, config, application)


def start_pool(spec: ModelSpec, config: PoolConfig, application: str) -> PoolAddress:
    """Start the replicas of `spec` as a Serve application and wait until they have loaded their weights.

    Raises RunError if none comes up, with the replica's own last words, and UsageError as `replicas` does.
    """
    deployment, count = replicas(spec, config)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
    run_application(deployment, application)
    return PoolAddress(application, deployment_name(spec, config.name), count)


def replicas(spec: ModelSpec, config: PoolConfig, *, lasting: bool = False) -> tuple[serve.Application, int]:
    """The deployment of a spec's replicas on the cluster that is joined, and their number, of a scaled one the most.

    `lasting`: others than one run call it, so a replica that is taken out answers first what it has begun, and one that
    may be the only one is replaced only once its successor has loaded.
    Raises UsageError if Ray was started here, on one machine that does not have what a replica asks for.
    """
    config = config.model_copy(update={"gpus_per_replica": config.gpus(there=has_gpus())})
    each = config.gpus_per_replica or 0
    wanted = asked(config, each)
    refuse_what_cannot_come(wanted)
    count = config.replicas or config.max_replicas or room(live_nodes(), wanted)
    scaling = autoscaling(config, count)
    deployment = serve.deployment(
        name=deployment_name(spec, config.name),
        num_replicas=count if scaling is None else None,
        autoscaling_config=scaling,
        max_ongoing_requests=1024,  # the engine queues; batch callers bound themselves
        ray_actor_options=actor_options(config, each),
        max_surge_percent=100 if lasting and (scaling is not None or count == 1) else 0,  # its only replica answers on
        health_check_period_s=5,
        graceful_shutdown_timeout_s=DRAIN if scaling is not None or lasting else 5,
        max_constructor_retry_count=2,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(Replica)
    threads = config.threads or (max(1, (os.cpu_count() or 2) - 1) if not each else None)
    return deployment.bind(spec, threads, config), count


def run_application(application: serve.Application, name: str, route_prefix: str | None = None) -> None:
    """Deploy an application and wait until it runs. Raises RunError with its replicas' own last words."""
    try:
        serve.run(application, name=name, route_prefix=route_prefix, _local_testing_mode=False)
    except RuntimeError as error:
        status = serve.status().applications.get(name)
        said = [d.message for d in status.deployments.values()] if status else []
        lines = [line.strip() for message in [*said, str(error)] for line in message.splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith("paliscribe.errors.")] or lines
        raise RunError(f"no replica came up: {telling[-1].removeprefix('paliscribe.errors.')}") from None


def served_pool(spec: ModelSpec, name: str | None = None) -> PoolAddress | None:
    """A pool of this spec that somebody serves: the one of this name, if one is given, be it up or being brought up.

    A headless one of another run is left alone: it ends with it.
    """
    for application, deployment, replicas in _served(starting=name is not None):
        if deployment.startswith(deployment_name(spec)) and name in (None, _pool_of(deployment)):
            return PoolAddress(application, deployment, max(1, replicas))
    return None


def not_served(spec: ModelSpec, name: str) -> UsageError:
    """What to say where no pool of this name serves this spec: which pools there are."""
    found = [deployment for _, deployment, _ in _served()]
    of_spec = [deployment for deployment in found if deployment.startswith(deployment_name(spec))]
    of_others = [deployment for deployment in found if deployment not in of_spec]
    model = f"{spec.id} in {spec.precision}"
    lines = [f"no pool {name!r} of {model} is served here"]
    lines.append(f"of this model there is {_listed(of_spec)}" if of_spec else "of this model there is none")
    if of_others:
        lines.append(f"of other models, revisions or precisions {_listed(of_others)}")
    return UsageError("; ".join(lines))


def _pool_of(deployment: str) -> str | None:
    """The name of the pool whose deployment this is: what follows `replica-HASH-`."""
    return deployment.split("-", 2)[2] if deployment.count("-") > 1 else None


def _listed(deployments: Sequence[str]) -> str:
    return ", ".join(repr(name) if (name := _pool_of(found)) else "one without a name" for found in deployments)


def _served(*, starting: bool = True) -> list[tuple[str, str, int]]:
    """Application, deployment and number of replicas of every pool that somebody serves, or has begun to."""
    states = ("RUNNING", "DEPLOYING") if starting else ("RUNNING",)
    try:
        applications = serve.status().applications
    except Exception as error:  # no Serve instance on this cluster; the type is private to Ray
        logging.getLogger(__name__).debug("no running pools: %s", error)
        return []
    return [
        (name, deployment, sum(status.replica_states.values()))
        for name, application in applications.items()
        for deployment, status in application.deployments.items()
        if deployment.startswith("replica-") and application.status in states and not name.startswith(HEADLESS)
    ]
