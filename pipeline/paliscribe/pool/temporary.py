"""Temporary pools: deleted when their driver ends, even if it is killed.

Serve applications are detached and outlive their driver, and a killed driver cannot delete its pool. So a detached
actor, the reaper, waits for the driver's sentinel, an actor that Ray ends with the driver, and then deletes the
application.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from paliscribe.pool.ray_cluster import ends_soon, started_here

DELETE_ATTEMPTS = 5  # the driver may have been killed during a deployment
PAUSE = 2.0  # seconds between attempts
NAMESPACE = "paliscribe"  # of reapers

log = logging.getLogger(__name__)


@contextmanager
def ends_with_driver(application: str) -> Iterator[None]:
    """Delete an application when the block ends or, on a cluster that was joined, when this driver ends.

    On a signal the reaper deletes it: a stopped job is killed within seconds, too soon to wait for Serve. It also does
    if Serve's controller is being restarted. If Ray itself ends after the block, nothing is deleted.
    """
    reaper = _start_reaper(application) if not started_here() else None
    left = False
    try:
        yield
    except KeyboardInterrupt:
        left = reaper is not None
        raise
    finally:
        if not left and ray.is_initialized() and not ends_soon():
            _delete(application, reaper)


def _delete(application: str, reaper: tuple[Any, Any] | None) -> None:
    try:
        serve.delete(application)
    except Exception as error:  # see `_reap`, which will try again
        log.warning("deleting %s: %s", application, error)
        return
    for actor in reaper or ():
        ray.kill(actor)


def is_watched(application: str) -> bool:
    """Whether an application ends with a driver that runs, or that has just ended."""
    try:
        ray.get_actor(_name(application), namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def _name(application: str) -> str:
    return f"reaper of {application}"


def _start_reaper(application: str) -> tuple[Any, Any]:
    """Start the reaper and the sentinel that it watches. Both run on the driver's node and take no resources."""
    here = ray.get_runtime_context().get_node_id()
    sentinel = _DriverSentinel.options(  # type: ignore[attr-defined]
        num_cpus=0, max_restarts=3, scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)
    ).remote()
    reaper = _Reaper.options(  # type: ignore[attr-defined]
        num_cpus=0,
        max_restarts=3,
        lifetime="detached",
        name=_name(application),
        namespace=NAMESPACE,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
    ).remote(application, sentinel)
    return reaper, sentinel


@ray.remote
class _DriverSentinel:
    """Lives as long as its driver: Ray ends it with the driver."""

    async def end(self) -> None:
        """Never returns."""
        await asyncio.Event().wait()


@ray.remote
class _Reaper:
    """Waits for the sentinel's end, deletes the application, and exits.

    It works in a thread started by the constructor, which a restart repeats: a call would be lost with its node or
    driver.
    """

    def __init__(self, application: str, sentinel: Any) -> None:
        me = ray.get_runtime_context().current_actor
        threading.Thread(target=_reap, args=(application, sentinel, me), name="reaper", daemon=True).start()


def _reap(application: str, sentinel: Any, me: Any) -> None:
    while True:
        try:
            ray.get(sentinel.end.remote())
        except ActorUnavailableError:  # restarting, or its node is unreachable for now
            time.sleep(PAUSE)
        except RayActorError:
            break
    for _ in range(DELETE_ATTEMPTS):
        try:
            serve.delete(application)
        except Exception as error:  # Serve is down or restarting; the exception types are private to Ray
            log.warning("deleting %s: %s", application, error)
        time.sleep(PAUSE)
    ray.kill(me)
