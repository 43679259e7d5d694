"""Nodes that will be taken away: drained when their cloud gives notice, and left by stage processes.

A thread of each replica, gateway and stage process would watch, and the one that holds a lock of the node's does: an
actor a node would be one more process, to be placed on each node that comes.
"""

import contextlib
import fcntl
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

from paliscribe.pool.notices import Notice, Service, Silent, find_service

PERIOD = 5.0  # seconds between two looks for a notice
ADVICE_EVERY = 12  # looks between two for advice
ATTEMPTS = 3  # to find a metadata service, a period apart
EARLIER = (
    5.0  # seconds: Ray takes what is lost after the deadline for preempted, before it for failed, which is counted
)
FRESH = 2.0  # seconds for which an answer of the cluster holds
ANSWER = 2.0  # seconds for the cluster to answer

log = logging.getLogger(__name__)


def drain_at_notice() -> None:
    """Watch for notices that this node will be taken away, from a thread, and drain it then.

    Nothing is watched without Ray, on the head, whose end cannot be helped, and where no metadata service answers.
    """
    if ray.is_initialized():
        threading.Thread(target=_watch, name="notices", daemon=True).start()


class Draining:
    """Whether the node of this process is being drained, for whatever reason; asks the cluster from time to time."""

    def __init__(self) -> None:
        self._node = ray.get_runtime_context().get_node_id()
        self._gcs = _gcs()
        self._known, self._until = False, 0.0

    def __call__(self) -> bool:
        """The answer of the last seconds, or a new one. If the cluster does not answer, the last one holds."""
        if time.monotonic() >= self._until:
            with contextlib.suppress(Exception):  # the exception types are private to Ray
                self._known = self._node in self._gcs.get_draining_nodes(timeout=ANSWER)
            self._until = time.monotonic() + FRESH
        return self._known


def _gcs() -> GcsClient:
    return GcsClient(address=ray.get_runtime_context().gcs_address)


def _watch() -> None:
    try:
        context = ray.get_runtime_context()
        node = context.get_node_id()
        if _is_head(node):
            return
        session = ray._private.worker.global_worker.node.get_session_dir_path()  # Ray has no public name
        with (Path(session) / f"paliscribe-notices-{node}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the process that watches has ended
            if (service := _found()) is not None:
                obey(service, lambda notice: _drain(node, notice))
    except Exception:  # the node is used as if there were no notices
        log.warning("notices that this node will be taken away are not watched", exc_info=True)


def _is_head(node: str) -> bool:
    return any(each["NodeID"] == node and "node:__internal_head__" in each["Resources"] for each in ray.nodes())


def _found() -> Service | None:
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PERIOD)
        if (service := find_service()) is not None:
            return service
    return None


def obey(service: Service, drain: Callable[[Notice], None], pause: Callable[[float], object] = time.sleep) -> None:
    """Look for a notice every `PERIOD` seconds, and call `drain` once with it; again if that fails. Never returns."""
    looks, drained, advised = 0, False, ""
    while True:
        try:
            if not drained and (notice := service.ask()) is not None:
                drain(notice)
                drained = True
            if looks % ADVICE_EVERY == 0 and (advice := service.advice()) != advised:
                advised = advice
                log.warning("%s", advice or "EC2 no longer recommends to replace this machine")
        except Silent as error:
            log.debug("the metadata service: %s", error)
        except Exception as error:  # the cluster does not answer, or refuses; the exception types are private to Ray
            log.warning("this node will be taken away and cannot be drained: %s", error)
        looks += 1
        pause(PERIOD)


def _drain(node: str, notice: Notice) -> None:
    """Tell the cluster that this node will end, as `ray drain-node` does. Raises RuntimeError if it refuses."""
    deadline = time.time() + max(0.0, notice.seconds - EARLIER)
    accepted, refusal = _gcs().drain_node(node, DRAIN_NODE_REASON_PREEMPTION, notice.words, int(deadline * 1000))
    if not accepted:
        raise RuntimeError(refusal)
    log.warning("%s, in %.0f s: node %s is drained", notice.words, notice.seconds, node)
