"""The endpoint on a cluster: a gateway in front of the replicas, as one Serve application.

A batch that names a served model finds its replicas by the deployment's name and uses them: see `pool`.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from pipeline.addresses import Addresses
from pipeline.cluster import cluster
from pipeline.config import ServeConfig, parse_serve
from pipeline.driver import signals
from pipeline.errors import ReplicaError, RequestError, RunError, Stopped, UsageError
from pipeline.gateway import Served, Service, create_app
from pipeline.gateway.keys import Keys, read_keys
from pipeline.masks import MaskDecoder
from pipeline.metrics import GatewayMetrics
from pipeline.offline import Drivers, Pooled
from pipeline.orders import Order, Orders
from pipeline.placement import has_gpus
from pipeline.pool import LOSSES, deployment_name, replicas, run_application
from pipeline.records import Piece, Prediction, Request
from pipeline.stage import load_mask_decoder
from pipeline.storage import StorageError, check_writable, open_store
from pipeline.weights import locate

APPLICATION = "paliscribe"
GRACE = 5.0  # seconds that an engine gets to say itself that a request has expired


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the gateway needs to know of a model."""

    name: str
    revision: str
    image_size: int


class PoolBackend:
    """Replicas behind a Serve handle. A plain call that is lost with its replica is repeated on another one."""

    def __init__(self, handle: Any, timeout: float) -> None:
        self._handle, self._timeout = handle, timeout

    async def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        """See `Backend`."""
        for _ in range(LOSSES):
            with _translated():
                answers: list[Prediction] = await asyncio.wait_for(
                    self._handle.predict.remote(list(requests)), self._timeout + GRACE
                )
                return answers
        raise RequestError(503, "replica_lost", f"{LOSSES} replicas were lost while they worked on this call")

    async def stream(self, request: Request) -> AsyncIterator[Piece | Prediction]:
        """See `Backend`. A stream that had begun is not repeated: its beginning may have been shown."""
        for _ in range(LOSSES):
            begun = False
            parts = self._handle.options(stream=True).stream.remote(request)
            try:
                with _translated():
                    while True:
                        try:
                            part = await asyncio.wait_for(anext(parts), self._timeout + GRACE)
                        except StopAsyncIteration:
                            return
                        begun = True
                        yield part
            finally:
                parts.cancel()
            if begun:
                raise RequestError(503, "replica_lost", "the replica was lost in mid-answer; ask again")
        raise RequestError(503, "replica_lost", f"{LOSSES} replicas were lost while they worked on this call")


class DriversLauncher:
    """The deployment of drivers behind its handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def begin(self, order: Order) -> None:
        """See `Launcher`."""
        await self._call(self._handle.begin, order)

    async def cancel(self, order: Order) -> None:
        """See `Launcher`."""
        await self._call(self._handle.cancel, order)

    async def _call(self, method: Any, order: Order) -> None:
        """Tell the drivers; where that fails, they read of it in the store when they are back."""
        with contextlib.suppress(RayError, RayServeException, TimeoutError):
            await asyncio.wait_for(method.remote(order), GRACE)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Ray's errors as ours; the loss of a replica ends the block without an error."""
    try:
        yield
    except (RayActorError, ActorUnavailableError):
        return
    except TimeoutError:
        raise RequestError(504, "expired", "no replica answered in time") from None
    except RayTaskError as error:
        if isinstance(error.cause, ReplicaError):
            return
        if isinstance(error.cause, RequestError):
            raise error.cause from None
        raise RequestError(500, "internal_error", "a replica failed on this call") from error


class Gateway:
    """The deployment that speaks HTTP. It decodes pictures; the replicas see pixels."""

    def __init__(
        self,
        config: ServeConfig,
        facts: Sequence[ModelFacts],
        keys: Sequence[str],
        masks: MaskDecoder | None,
        drivers: Any,
        *handles: Any,
    ) -> None:
        access = logging.getLogger("paliscribe.access")
        access.setLevel(logging.INFO)
        for handler in logging.getLogger("ray.serve").handlers:  # Serve's file of this replica
            access.addHandler(handler)
        models = [
            Served(known.name, known.revision, known.image_size, PoolBackend(handle, config.timeout))
            for known, handle in zip(facts, handles, strict=True)
        ]
        self._service, self._keys = Service(config, models, masks), Keys(keys, config.rate)
        self._orders = Orders(open_store(config.files)) if config.files is not None else None
        self._launcher = DriversLauncher(drivers) if drivers is not None else None

    def __serve_build_asgi_app__(self) -> Any:
        """The application that Serve's proxy calls."""
        observe = GatewayMetrics().call
        return create_app(self._service, self._keys, observe, label=False, orders=self._orders, launcher=self._launcher)


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
        facts.append(ModelFacts(served.called, located.revision, located.image_size))
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
