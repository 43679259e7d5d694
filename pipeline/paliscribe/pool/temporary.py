"""A headless pool ends with its driver, however the driver ends.

Serve's applications are detached: one outlives the driver that started it. A driver that is killed cannot remove its
pool, so a reaper does, an actor that outlives the driver as well and waits for another one, the sign, that does not.
"""

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from paliscribe.errors import Stopped
from paliscribe.pool.ray_cluster import is_own

HEADLESS = "paliscribe-batch-"  # applications with this prefix belong to one attempt at a run each
TRIES = 5  # a driver may have been killed while it deployed
PAUSE = 2.0  # seconds between them

log = logging.getLogger(__name__)


def headless_name(run: str) -> str:
    """A name for the pool of an attempt at a run: a late reaper cannot delete the pool of a newer one."""
    return f"{HEADLESS}{run}-{uuid.uuid4().hex[:6]}"


@contextmanager
def ends_with_driver(application: str) -> Iterator[None]:
    """Delete an application when the block ends or, on a cluster that outlives it, when this driver does.

    A driver that is told to stop leaves it to the reaper: whoever stops jobs kills what does not end within seconds.
    """
    reaper = _begin(application) if not is_own() else None
    left = False
    try:
        yield
    except Stopped:
        left = reaper is not None
        raise
    finally:
        if not left and ray.is_initialized():
            serve.delete(application)
            for actor in reaper or ():
                ray.kill(actor)


def _begin(application: str) -> tuple[Any, Any]:
    """The reaper and the sign of this driver that it watches; both beside the driver, and neither takes resources."""
    here = ray.get_runtime_context().get_node_id()
    sign = _Sign.options(  # type: ignore[attr-defined]
        num_cpus=0, max_restarts=3, scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)
    ).remote()
    reaper = _Reaper.options(  # type: ignore[attr-defined]
        num_cpus=0,
        max_restarts=3,
        lifetime="detached",
        name=f"reaper of {application}",
        namespace="paliscribe",
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
    ).remote(application, sign)
    return reaper, sign


@ray.remote
class _Sign:
    """Lives as long as the driver that made it: Ray ends it with that."""

    async def end(self) -> None:
        """Never returns."""
        await asyncio.Event().wait()


@ray.remote
class _Reaper:
    """Waits for the end of a sign, deletes an application, and ends itself.

    It works in a thread that its construction starts, since a call would be lost with its node or its driver.
    """

    def __init__(self, application: str, sign: Any) -> None:
        me = ray.get_runtime_context().current_actor
        threading.Thread(target=_reap, args=(application, sign, me), name="reaper", daemon=True).start()


def _reap(application: str, sign: Any, me: Any) -> None:
    while True:
        try:
            ray.get(sign.end.remote())
        except ActorUnavailableError:  # it is restarted, or its node is out of reach for now
            time.sleep(PAUSE)
        except RayActorError:
            break
    for _ in range(TRIES):
        try:
            serve.delete(application)
        except Exception as error:  # no Serve instance, or one that is being replaced; the types are private to Ray
            log.warning("deleting %s: %s", application, error)
        time.sleep(PAUSE)
    ray.kill(me)
