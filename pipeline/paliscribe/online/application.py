"""The endpoint on a Ray cluster: one Serve application with the gateway, the replicas and the background drivers.

A run that names a served model finds its replicas by deployment name and shares them: see `pool`.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from ray import serve

from paliscribe.config import ServeConfig, parse_serve
from paliscribe.errors import Stopped, UsageError
from paliscribe.model.abilities import abilities
from paliscribe.model.masks import decoder_of
from paliscribe.model.weights import locate
from paliscribe.online.background.drivers import Drivers
from paliscribe.online.background.work import ServedPool
from paliscribe.online.checks import check
from paliscribe.online.gateway import Gateway, ModelInfo, SharedCounts
from paliscribe.online.listening import address, listen, listen_deployed, wait_until_answered
from paliscribe.pool.deploy import deployment_name, replicas, run_application
from paliscribe.pool.placement import has_gpus, on_cpu_nodes, per_node
from paliscribe.pool.ray_cluster import cluster, make_private, started_here
from paliscribe.pool.serving import applications
from paliscribe.pool.temporary import ends_with_driver
from paliscribe.signals import stop_on_signals

APPLICATION = "paliscribe"
GATEWAY_CPUS = 0.25
UNGUARDED = "its proxy passes callers' headers on as they are, and answers /-/routes to everybody"

log = logging.getLogger(__name__)


def application(config: ServeConfig) -> serve.Application:
    """The Serve application for the connected cluster. Raises UsageError: invalid models, keys, addresses, storage."""
    keys = check(config)
    gpu = has_gpus()
    infos, pools, served_pools = [], {}, {}
    for served in config.models:
        spec = served.model.resolved(gpu=served.pool.gpus(available=gpu) > 0)
        located = locate(spec)
        masks = decoder_of(spec.id, config.mask_decoder)
        infos.append(ModelInfo(served.called, located.revision, located.image_size, abilities(spec), masks))
        name = deployment_name(located.pin(spec), served.pool.name)
        if name in pools:
            raise UsageError(f"model {served.called}: duplicate of another entry; give its pool another `name`")
        pools[name] = replicas(located.pin(spec), served.pool, lasting=True)[0]
        served_pools[served.called] = ServedPool(spec, name)
    wants_gpus = gpu or any(served.pool.gpus(available=gpu) > 0 for served in config.models)
    bound: serve.Application = gateways(config, wants_gpus).bind(
        config,
        infos,
        keys,
        _drivers(config, served_pools),
        counts(config),
        *pools.values(),
    )
    return bound


def gateways(config: ServeConfig, gpus: bool) -> serve.Deployment:
    """The deployment of the gateways, on several nodes if possible. `gpus`: whether to avoid nodes with GPUs."""
    each = per_node(config.gateways, GATEWAY_CPUS)
    return serve.deployment(
        name="gateway",
        num_replicas=config.gateways,
        max_replicas_per_node=each,
        max_ongoing_requests=1000,
        # A redeploy starts new gateways before it stops old ones, unless the nodes have no place for both.
        max_surge_percent=100 if each is None else 0,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": GATEWAY_CPUS} | (on_cpu_nodes() if gpus else {}),
        logging_config={"enable_access_log": False, "log_level": "INFO"},
    )(serve.ingress()(Gateway))


def counts(config: ServeConfig) -> serve.Application | None:
    """The deployment that counts the calls of all gateways; None if there is one, or no limit."""
    if config.rate is None or config.gateways == 1:
        return None
    deployment = serve.deployment(
        name="counts",
        max_ongoing_requests=1000,
        max_surge_percent=100,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(SharedCounts)
    return deployment.bind(config.rate)


def _drivers(config: ServeConfig, models: dict[str, ServedPool]) -> serve.Application | None:
    """The deployment that runs background jobs; None without `files`."""
    if config.files is None:
        return None
    deployment = serve.deployment(
        name="drivers",
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=5,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(Drivers)
    return deployment.bind(config, models)


def build(settings: dict[str, Any]) -> serve.Application:
    """The application for a Serve config file; `settings` are its `args`. Raises UsageError, RunError."""
    config = parse_serve(settings, source="args")
    made = application(config)
    listen_deployed(config, APPLICATION)
    return made


def serve_forever(
    config: ServeConfig, ready: Callable[[str], None], tell: Callable[[str], None] = lambda words: None
) -> None:
    """Run the endpoint until SIGINT or SIGTERM. Calls `ready` with its URL. Raises UsageError, RunError.

    `tell`: gets a line about what is waited for.
    `checks.check` and `checks.check_port` say earlier, without Ray, what is wrong.
    """
    with cluster():
        made = application(config)
        listen(config, APPLICATION)
        tell("loading the models; waiting for the first answer of each replica")
        with ends_with_driver(APPLICATION):
            try:
                with stop_on_signals():
                    run_application(made, APPLICATION, "/")
                    if not wait_until_answered(config):
                        log.warning("Serve was started by another program: %s", UNGUARDED)
                    make_private()
                    ready(address(config))
                    threading.Event().wait()
            except Stopped:
                pass
        if not started_here() and not applications():
            serve.shutdown()  # the next one may want another address
