"""The address of an endpoint on a cluster: free before Serve takes it, announced once it has answered."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import ray

from paliscribe.config import ServeConfig
from paliscribe.errors import RunError, UsageError
from paliscribe.online.checks import check_port, is_loopback
from paliscribe.pool.ray_cluster import started_here, translating
from paliscribe.pool.serving import EVERY_NODE, HEAD_ONLY, Listening, applications, listening, open_http
from paliscribe.pool.temporary import is_watched

ANSWER = 60.0  # seconds for a proxy to start and to learn its routes
PAUSE = 0.1  # seconds between two calls
HEAD = {"node:__internal_head__": 0.001}  # the resource by which Ray names the head, where Serve's proxy is


def listen(config: ServeConfig, application: str) -> None:
    """Let Serve take HTTP for `paliscribe serve`. Raises UsageError, also if the application is there; RunError."""
    if application in applications() or is_watched(application):
        raise UsageError(
            f"this cluster serves an endpoint already ({application}); stop it first, or use another cluster "
            "(`serve shutdown -y` ends all that Serve runs; one that was killed ends within seconds)"
        )
    if (now := listening()) is None or not now.is_open:
        _on_head(check_port, config.host, config.port)
    open_http(Listening(HEAD_ONLY, config.host, config.port))


def listen_deployed(config: ServeConfig, application: str) -> None:
    """The same for `serve deploy`, whose file has started Serve, unless a run or `paliscribe serve` did.

    Raises UsageError if Serve takes HTTP elsewhere, or if `paliscribe serve` runs.
    """
    if is_watched(application):
        raise UsageError("`paliscribe serve` runs on this cluster; stop it, then deploy again")
    if (now := listening()) is None:
        return
    if not now.is_open:
        _on_head(check_port, config.host, config.port)
        open_http(Listening(HEAD_ONLY if is_loopback(config.host) else EVERY_NODE, config.host, config.port))
    elif "port" in config.model_fields_set and now.port != config.port:
        raise UsageError(
            f"`port` is {config.port}, and Serve on this cluster takes HTTP at {now.host}:{now.port}; write that one, "
            "or end all that Serve runs with `serve shutdown -y` and deploy again"
        )


def address(config: ServeConfig) -> str:
    """The endpoint's URL."""
    return f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{config.port}"


def wait_until_answered(config: ServeConfig) -> bool:
    """Wait until the endpoint answers a call at its address; returns whether Serve's proxy has our middleware.

    Raises RunError if it does not answer.
    """
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    called = address(config.model_copy(update={"host": anywhere.get(config.host, config.host)}))
    return bool(_on_head(_answered, called))


def _answered(url: str) -> bool:
    until, said = time.monotonic() + ANSWER, "nothing"
    with httpx.Client(base_url=url, timeout=10, trust_env=False) as client:
        while time.monotonic() < until:
            try:
                reply = client.get("/health")
                if reply.status_code == 200 and reply.json() == {"status": "ok"}:
                    return client.get("/-/routes").status_code != 200
                said = f"status {reply.status_code}"
            except (httpx.HTTPError, ValueError) as error:
                said = str(error) or type(error).__name__
            time.sleep(PAUSE)
    raise RunError(
        f"no endpoint answers at {url} ({said[:100]}); does another program listen there, or was Serve started by "
        "another program? `serve status` shows its proxies; `serve shutdown -y` ends it"
    )


def _on_head(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on the head, where Serve's proxy listens."""
    if started_here():
        return work(*arguments)
    with translating():
        return ray.get(ray.remote(num_cpus=0, resources=HEAD, max_retries=0)(work).remote(*arguments))
