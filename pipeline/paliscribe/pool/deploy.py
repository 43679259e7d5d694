"""Pools as Serve applications: start one for a run, or find an existing one."""

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ray import serve
from ray.serve.schema import ApplicationStatusOverview

from paliscribe.config import ModelSpec, PoolConfig
from paliscribe.errors import RunError, TemporaryError, UsageError
from paliscribe.pool.address import TEMPORARY, PoolAddress, temporary_name
from paliscribe.pool.autoscaling import autoscaling
from paliscribe.pool.placement import (
    actor_options,
    has_gpus,
    live_nodes,
    replica_resources,
    replicas_that_fit,
    require_feasible,
)
from paliscribe.pool.replica import Replica
from paliscribe.pool.serving import runs, start_serve
from paliscribe.pool.temporary import ends_with_driver

DRAIN = 90.0  # seconds for a removed replica to finish its calls; the timeout of a call is 60
DEPLOY_TIMEOUT = 300.0  # seconds for a driver to deploy its temporary pool
FIRST_STARTS = 8  # replicas of a pool without nodes that may be started before one of them has succeeded
CONTROLLER_TIMEOUT = 60.0  # seconds for Ray to restart Serve's controller
_ALIVE = ("RUNNING", "RECOVERING")  # states of replicas that have started
TICK = 0.2  # seconds between two looks at whether an application runs

log = logging.getLogger(__name__)


def deployment_name(spec: ModelSpec, pool: str | None = None) -> str:
    """The deployment name of a spec in a pool: equal specs share replicas, different ones never do."""
    name = "replica-" + hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:12]
    return name if pool is None else f"{name}-{pool}"


@contextmanager
def open_pool(spec: ModelSpec, config: PoolConfig, run: str) -> Iterator[PoolAddress]:
    """Attach to a running pool of `spec`, or begin a temporary one that ends with the block or with this driver.

    A temporary pool may still be starting: see `wait_until_ready`. Raises UsageError if the configured pool name is not
    served, or as `replicas` does.
    """
    if (served := served_pool(spec, config.name)) is not None:
        yield served
        return
    if config.name is not None:
        raise not_served(spec, config.name)
    application = temporary_name(run)
    deployment, count = replicas(spec, config)
    with ends_with_driver(application):
        _begin(deployment, application)
        yield PoolAddress(application, deployment_name(spec, config.name), count)


def start_pool(spec: ModelSpec, config: PoolConfig, application: str) -> PoolAddress:
    """Start the replicas of `spec` as a Serve application and wait until they are ready.

    Raises RunError with a replica's error if none starts, and UsageError as `replicas` does.
    """
    deployment, count = replicas(spec, config)
    _begin(deployment, application)
    _wait(application)
    return PoolAddress(application, deployment_name(spec, config.name), count)


def _begin(deployment: serve.Application, application: str) -> None:
    start_serve()
    _deploy(deployment, application, None)


def replicas(spec: ModelSpec, config: PoolConfig, *, lasting: bool = False) -> tuple[serve.Application, int]:
    """The deployment of a spec's replicas on the current cluster, and their number (the maximum if autoscaled).

    `lasting`: other clients than one run use it. A removed replica then finishes its calls, and a single replica is
    replaced only once its successor is ready. Raises UsageError if Ray was started here, on one machine that lacks the
    resources of a replica.
    """
    config = config.model_copy(update={"gpus_per_replica": config.gpus(available=has_gpus())})
    each = config.gpus_per_replica or 0
    wanted = replica_resources(config, each)
    require_feasible(wanted)
    fitting = replicas_that_fit(live_nodes(), wanted)
    count = config.replicas or config.max_replicas or fitting
    scaling = autoscaling(config, count)
    deployment = serve.deployment(
        name=deployment_name(spec, config.name),
        num_replicas=count if scaling is None else None,
        autoscaling_config=scaling,
        max_ongoing_requests=1024,  # the engine queues; batch callers limit themselves
        ray_actor_options=actor_options(config, each),
        # A single replica stays until its successor is ready.
        max_surge_percent=100 if lasting and (scaling is not None or count == 1) else 0,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=DRAIN if scaling is not None or lasting else 5,
        max_constructor_retry_count=failed_starts(count, fitting),
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(Replica)
    threads = config.threads or (max(1, (os.cpu_count() or 2) - 1) if not each else None)
    return deployment.bind(spec, threads, config), count


def failed_starts(replicas: int, fitting: int) -> int:
    """Failed starts before the first success at which a pool fails. `fitting`: replicas that fit the nodes now.

    As many as are started at once: a few bad nodes do not fail a large pool, a model that fails everywhere does soon.
    """
    return max(2, min(replicas, max(fitting, FIRST_STARTS)))


def run_application(application: serve.Application, name: str, route_prefix: str | None = None) -> None:
    """Deploy an application and wait until it runs. Raises RunError with its replicas' error."""
    _deploy(application, name, route_prefix)
    _wait(name)


def _wait(name: str) -> None:
    while not _runs(name):
        time.sleep(TICK)


def is_ready(pool: PoolAddress) -> bool:
    """Whether a replica of a pool is up; True for pools that are not temporary. Raises RunError if it failed to start.

    Others may still be starting, wait for nodes, or have been lost with theirs.
    """
    return not pool.is_temporary or _has_replica(pool) or _runs(pool.application)


def wait_until_ready(pool: PoolAddress) -> None:
    """Wait until a replica of a pool is up. Raises RunError with a replica's error if none starts."""
    begun = time.monotonic()
    while not is_ready(pool):
        if time.monotonic() - begun > DEPLOY_TIMEOUT and pool.application not in _applications():
            raise RunError(f"no replica came up: nobody has deployed {pool.application}")
        time.sleep(TICK)


def _deploy(application: serve.Application, name: str, route_prefix: str | None) -> None:
    target = serve.RunTarget(application, name=name, route_prefix=route_prefix)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _runs(name: str) -> bool:
    """Whether an application runs. Raises RunError with its replicas' error if it failed to start."""
    application = _applications().get(name)
    if application is None or application.status != "DEPLOY_FAILED":
        return application is not None and application.status == "RUNNING"
    said = [deployment.message for deployment in application.deployments.values()]
    lines = [line.strip() for words in [*said, application.message] for line in words.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("paliscribe.errors.")] or lines or ["no reason is known"]
    raise RunError(f"no replica came up: {telling[-1].removeprefix('paliscribe.errors.')}")


def _has_replica(pool: PoolAddress) -> bool:
    """Whether a replica of a pool runs."""
    application = _applications().get(pool.application)
    deployment = application.deployments.get(pool.deployment) if application is not None else None
    return deployment is not None and deployment.replica_states.get("RUNNING", 0) > 0


def _applications() -> dict[str, ApplicationStatusOverview]:
    """Serve's applications by name; none if Serve is not running.

    Waits for a controller that is being restarted: the applications go on without it. Raises TemporaryError if that
    takes longer than `CONTROLLER_TIMEOUT`.
    """
    begun = time.monotonic()
    while True:
        try:
            found: dict[str, ApplicationStatusOverview] = serve.status().applications
            return found
        except Exception as error:  # the exception types are private to Ray
            if not runs():
                return {}
            if time.monotonic() - begun > CONTROLLER_TIMEOUT:
                words = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise TemporaryError(
                    f"Serve's controller does not answer ({words}); run the same command again when it does"
                ) from error
            time.sleep(TICK)


def served_pool(spec: ModelSpec, name: str | None = None) -> PoolAddress | None:
    """An existing pool of this spec, or None. With a name: that pool, even if still starting.

    Temporary pools of other runs are ignored: they end with their run.
    """
    for application, deployment, replicas in _served(starting=name is not None):
        if deployment.startswith(deployment_name(spec)) and name in (None, _pool_of(deployment)):
            return PoolAddress(application, deployment, max(1, replicas))
    return None


def not_served(spec: ModelSpec, name: str) -> UsageError:
    """The error for a pool name that is not served: lists the pools that are."""
    found = [deployment for _, deployment, _ in _served()]
    of_spec = [deployment for deployment in found if deployment.startswith(deployment_name(spec))]
    of_others = [deployment for deployment in found if deployment not in of_spec]
    model = f"{spec.id} in {spec.precision}"
    lines = [f"no pool {name!r} of {model} is served"]
    lines.append(f"pools of this model: {_listed(of_spec)}" if of_spec else "no pool of this model is served")
    if of_others:
        lines.append(f"pools of other models, revisions or precisions: {_listed(of_others)}")
    return UsageError("; ".join(lines))


def _pool_of(deployment: str) -> str | None:
    """The pool name in a deployment name, the part after `replica-HASH-`; None if unnamed."""
    return deployment.split("-", 2)[2] if deployment.count("-") > 1 else None


def _listed(deployments: Sequence[str]) -> str:
    return ", ".join(repr(name) if (name := _pool_of(found)) else "an unnamed one" for found in deployments)


def _served(*, starting: bool = True) -> list[tuple[str, str, int]]:
    """Application, deployment and number of replicas of each pool, except temporary pools.

    `starting`: also pools without a replica that runs. A controller that was restarted finds its replicas again, and
    until then calls them recovering and their application deploying.
    """
    return [
        (name, deployment, sum(status.replica_states.values()))
        for name, application in _applications().items()
        for deployment, status in application.deployments.items()
        if deployment.startswith("replica-") and not name.startswith(TEMPORARY)
        if application.status == "RUNNING"
        or (application.status == "DEPLOYING" and starting)
        or (application.status in ("DEPLOYING", "UNHEALTHY") and any(map(status.replica_states.get, _ALIVE)))
    ]
