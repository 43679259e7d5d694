"""Ray Serve on a cluster: what needs it first starts it, always with the same options; its HTTP is opened on demand.

Serve keeps the HTTP options that it was started with, and ignores later ones without a word. A run starts it without
HTTP, since no port is its to take.
"""

import logging
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from paliscribe.errors import RunError, UsageError
from paliscribe.pool.ray_cluster import PROXIES, started_here

log = logging.getLogger(__name__)
CLOSED, HEAD_ONLY, EVERY_NODE = "Disabled", "HeadOnly", "EveryNode"  # proxy locations


@dataclass(frozen=True, slots=True)
class Listening:
    """Where Serve takes HTTP. `location`: one of Serve's proxy locations."""

    location: str
    host: str
    port: int

    @property
    def is_open(self) -> bool:
        """Whether there are proxies at all."""
        return self.location != CLOSED


def start_serve(http: Listening | None = None) -> None:
    """Start Serve if it does not run; None: without HTTP. Serve that runs is left as it is.

    A proxy may still be starting afterwards, or fail to: only an answer shows that it listens.
    """
    env_vars = {} if started_here() else PROXIES  # all processes of a Ray of ours have them
    try:
        serve.start(
            proxy_location=http.location if http else CLOSED,
            http_options=_http_options(http) if http else None,
            logging_config={"log_level": "WARNING"},
            controller_options={"runtime_env": {"env_vars": env_vars}} if env_vars else None,
        )
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        if http is None:
            raise
        log.info("Serve starts its proxy again: %s", error)  # one that takes seconds to start is killed at first


def listening() -> Listening | None:
    """Where the cluster's Serve takes HTTP; None if Serve does not run."""
    controller = _controller()
    if controller is None:
        return None
    options: HTTPOptions = ray.get(controller.get_http_config.remote())
    location: ProxyLocation = ray.get(controller.get_proxy_location.remote())
    return Listening(ProxyLocation(location).value, options.host or "", options.port)


def runs() -> bool:
    """Whether Serve runs on the cluster; also while its controller is being restarted."""
    return _controller() is not None


def applications() -> list[str]:
    """Names of Serve's applications; none if Serve does not run."""
    return sorted(serve.status().applications) if runs() else []


def open_http(wanted: Listening) -> None:
    """Let Serve take HTTP at an address: start it, open it, or restart it if it has nothing to do.

    Raises UsageError if it takes HTTP elsewhere, and serves; RunError if it cannot be opened.
    """
    now = listening()
    if now is None:
        start_serve(wanted)
    elif not now.is_open:
        _open(wanted)
    elif (now.host, now.port) != (wanted.host, wanted.port):
        if served := applications():
            raise UsageError(
                f"Serve on this cluster takes HTTP at {now.host}:{now.port} and serves {', '.join(served)[:100]}; use "
                "that address (`host`, `port`), or end them all with `serve shutdown -y` and start again"
            )
        serve.shutdown()
        start_serve(wanted)


def _open(wanted: Listening) -> None:
    """Start proxies of a Serve that runs without. Its applications, such as pools of runs, go on.

    Serve has no call for it. Its controller compares the nodes that should have a proxy with those that have one, again
    and again; so it is enough to change what it compares.
    """

    def change(controller: Any) -> None:  # within a function: sent by value, the head may not have this package
        manager = controller.proxy_state_manager
        options = manager._http_options.model_copy(update=_http_options(wanted) | {"location": None})
        manager._http_options, manager._proxy_location = options, ProxyLocation(wanted.location)

    try:
        ray.get(_controller().__ray_call__.remote(change))
    except ray.exceptions.RayError as error:  # another release of Ray
        raise RunError(
            "Serve on this cluster was started without HTTP and cannot be opened; end it and what it serves "
            f"({', '.join(applications())[:100]}) with `serve shutdown -y` and start again"
        ) from error


def _http_options(http: Listening) -> dict[str, Any]:
    return {"host": http.host, "port": http.port, "request_timeout_s": None}  # the endpoint has a `timeout` of its own


def _controller() -> Any:
    try:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return None
