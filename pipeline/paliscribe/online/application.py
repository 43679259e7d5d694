"""The endpoint on a cluster: a gateway in front of the replicas, as one Serve application.

A batch that names a served model finds its replicas by the deployment's name and uses them: see `pool`.
"""

import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any

from ray import serve

from paliscribe.batch.session import signals
from paliscribe.config import ServeConfig, parse_serve
from paliscribe.errors import RunError, Stopped, UsageError
from paliscribe.images.allowed import Addresses
from paliscribe.model.weights import locate
from paliscribe.online.background.drivers import Drivers
from paliscribe.online.background.work import Pooled
from paliscribe.online.gateway import Gateway, ModelInfo
from paliscribe.online.keys import read_keys
from paliscribe.pool.deploy import deployment_name, replicas, run_application
from paliscribe.pool.placement import has_gpus
from paliscribe.pool.ray_cluster import cluster
from paliscribe.results.record import load_mask_decoder
from paliscribe.storage import StorageError, check_writable, open_store

APPLICATION = "paliscribe"


def application(config: ServeConfig) -> serve.Application:
    """The endpoint for the cluster that is joined. Raises UsageError for what is wrong with models or keys."""
    Addresses(config.images)  # raises for an entry that is no address
    keys = read_keys(config.keys)
    if not keys and not config.open and not _is_loopback(config.host):
        words = "needs API keys (`keys`, PALISCRIBE_API_KEYS), or `open: true` if whoever reaches it may call"
        raise UsageError(f"listening on {config.host} {words}")
    gpu = has_gpus()
    facts, pools, pooled = [], {}, {}
    for served in config.models:
        spec = served.model.resolved(gpu=served.pool.gpus(there=gpu) > 0)
        located = locate(spec)
        facts.append(ModelInfo(served.called, located.revision, located.image_size))
        name = deployment_name(located.pin(spec), served.pool.name)
        if name in pools:
            raise UsageError(f"model {served.called}: another entry is the same model; give its pool another `name`")
        pools[name] = replicas(located.pin(spec), served.pool, lasting=True)[0]
        pooled[served.called] = Pooled(spec, name)
    gateway = serve.deployment(
        name="gateway",
        max_ongoing_requests=1000,
        max_surge_percent=100,  # a new deploy starts the next one before this one goes
        ray_actor_options={"num_cpus": 0.25},
        logging_config={"enable_access_log": False, "log_level": "INFO"},
    )(serve.ingress()(Gateway))
    bound: serve.Application = gateway.bind(
        config, facts, keys, load_mask_decoder(config.mask_decoder), _drivers(config, pooled), *pools.values()
    )
    return bound


def _drivers(config: ServeConfig, models: dict[str, Pooled]) -> serve.Application | None:
    """What works on batches and jobs, if the endpoint has a place for them. Raises UsageError."""
    if config.files is None:
        return None
    try:
        check_writable(open_store(config.files))
    except StorageError as error:
        raise UsageError(f"files {error}") from None
    deployment = serve.deployment(
        name="drivers",
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=5,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(Drivers)
    return deployment.bind(config, models)


def build(settings: dict[str, Any]) -> serve.Application:
    """The endpoint for a Serve config file, whose `args` are its settings. Raises UsageError."""
    return application(parse_serve(settings, source="args"))


def serve_forever(config: ServeConfig, ready: Callable[[str], None]) -> None:
    """Run the endpoint until SIGINT or SIGTERM. `ready` is given its address. Raises UsageError, RunError."""
    _check_free(config.host, config.port)
    with cluster():
        made = application(config)
        options = {"host": config.host, "port": config.port, "request_timeout_s": None}
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config={"log_level": "WARNING"})
        try:
            with signals():
                run_application(made, APPLICATION, "/")
                ready(f"http://{config.host}:{config.port}")
                threading.Event().wait()
        except Stopped:
            return
        finally:
            serve.delete(APPLICATION)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_free(host: str, port: int) -> None:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise RunError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
