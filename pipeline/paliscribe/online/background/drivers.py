"""Who works on orders: one deployment that sees to them all, and a task for each, in a process of its own.

A task's main thread is the run's driver as it is under `paliscribe annotate`: cancelling the task interrupts it as
Ctrl-C would. What a task does depends on what is stored alone, so one that was lost with its node, or with the
deployment, is begun again and goes on from the last committed shard.
"""

import contextlib
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from paliscribe.batch.run import run_batch
from paliscribe.config import JobConfig, ServeConfig
from paliscribe.errors import PassingError, RunError, Stopped
from paliscribe.online.background.drive_batch import drive_batch, finalize
from paliscribe.online.background.store import OVER, Order, Orders
from paliscribe.online.background.work import Pooled, Work
from paliscribe.storage import StorageError, open_store

log = logging.getLogger(__name__)
AT_A_TIME = 4  # orders, but for those that are given up: they only have to be finalized
ATTEMPTS = 10  # drivers that an order gets which neither end it nor bring it forward
PAUSE = 5.0  # seconds after the second of them, and so many more after each other
RESCAN = 120.0  # seconds between two looks for orders that nobody has told of
LOOK = 0.5  # seconds between two looks at the drivers


def drive(config: ServeConfig, models: Mapping[str, Pooled], application: str, order: Order) -> None:
    """Work on an order until it is over, or until it is interrupted: then it is for the next call to go on."""
    assert config.files is not None
    orders = Orders(open_store(config.files))
    work = Work(config, models, application, orders, order, orders.state(order))
    if work.state.get("status") in OVER:
        return
    try:
        if order.kind == "batch":
            drive_batch(work)
        else:
            _drive_job(work)
    except (Stopped, PassingError, StorageError) as error:
        log.warning("order %s: to be gone on with: %s", order.id, error)
    except RunError as error:
        if work.state.get("status") in ("in_progress", "finalizing") and order.kind == "batch":
            finalize(work, failed=str(error))
        else:
            work.fail(str(error))


def _drive_job(work: Work) -> None:
    if (why := work.given_up) is not None:
        work.say(why)
        return
    work.say("in_progress")
    asked = dict(work.order.asked)
    spec, pool = work.model(asked["model"])
    summary = run_batch(JobConfig(**asked | {"model": spec}), work.progress, work.config.images, pool)
    work.say("completed", summary={key: value for key, value in summary.items() if key != "files"})


@dataclass(slots=True)
class _Attempts:
    """How an order has fared: drivers in vain, when it may have another, and how much is done."""

    count: int = 0
    not_before: float = 0.0
    done: int = 0


class Drivers:
    """Sees to the orders of an endpoint: the deployment behind `gateway.batches.Launcher`."""

    def __init__(self, config: ServeConfig, models: Mapping[str, Pooled]) -> None:
        assert config.files is not None
        self._config, self._models, self._orders = config, dict(models), Orders(open_store(config.files))
        self._application = serve.get_replica_context().app_name
        self._drive = ray.remote(num_cpus=0, max_retries=0)(drive)
        self._waiting: dict[str, Order] = {}
        self._working: dict[str, tuple[Order, Any]] = {}
        self._attempts: defaultdict[str, _Attempts] = defaultdict(_Attempts)
        self._cancelled: set[str] = set()
        self._interrupted: set[str] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="drivers", daemon=True)
        self._thread.start()

    async def begin(self, order: Order) -> None:
        """See `Launcher`."""
        self._take([order])

    async def cancel(self, order: Order) -> None:
        """See `Launcher`. The wish is stored already; what works on it is interrupted."""
        with self._lock:
            self._cancelled.add(order.id)
        self._interrupt(order)

    def check_health(self) -> None:
        """Serve's probe: without its thread nothing would be worked on."""
        if not self._thread.is_alive():
            raise RunError("the thread that sees to orders has died")

    def _take(self, orders: Sequence[Order]) -> None:
        with self._lock:
            for order in orders:
                if order.id not in self._working:
                    self._waiting.setdefault(order.id, order)

    def _interrupt(self, order: Order) -> None:
        """Stop annotating; once, since the next driver of an order that is given up only finalizes it."""
        with self._lock:
            if order.id in self._working and order.id not in self._interrupted:
                self._interrupted.add(order.id)
                ray.cancel(self._working[order.id][1], recursive=False)

    def _watch(self) -> None:
        scanned = -RESCAN  # what an earlier process left is taken up at once
        while True:
            try:
                if time.monotonic() - scanned > RESCAN:
                    scanned = time.monotonic()
                    self._take(self._orders.open_orders())
                for order, task in list(self._working.values()):
                    if ray.wait([task], timeout=0)[0]:
                        self._ended(order, task)
                    elif self._given_up(order):
                        self._interrupt(order)
                self._begin()
            except Exception:  # of the store, or of an object in it that is none of ours: the next look may succeed
                log.exception("orders cannot be seen to")
            time.sleep(LOOK)

    def _given_up(self, order: Order) -> bool:
        return order.id in self._cancelled or (order.expires_at is not None and time.time() >= order.expires_at)

    def _begin(self) -> None:
        """Give drivers to orders that wait: to those that are given up, and to callers in turn."""
        with self._lock:
            while True:
                now = time.monotonic()
                ready = [order for order in self._waiting.values() if self._attempts[order.id].not_before <= now]
                chosen = [order for order in ready if self._given_up(order)]
                if not chosen and len(self._working) < AT_A_TIME:
                    owners = Counter(order.owner for order, _ in self._working.values())
                    chosen = sorted(ready, key=lambda order: (owners[order.owner], order.created_at))[:1]
                if not chosen:
                    return
                for order in chosen:
                    task = self._drive.remote(self._config, self._models, self._application, order)
                    self._working[order.id] = (self._waiting.pop(order.id), task)

    def _ended(self, order: Order, task: Any) -> None:
        """Book a driver that has ended; an order that is not over is driven again, unless nothing comes of it."""
        with contextlib.suppress(RayError):
            ray.get(task)
        state, tried = self._orders.state(order), self._attempts[order.id]
        if state.get("status") not in OVER:
            done = sum(state.get("counts", {}).values()) + (state.get("progress") or {}).get("rows_done", 0)
            tried.count, tried.done = (1 if done > tried.done else tried.count + 1), max(done, tried.done)
            tried.not_before = time.monotonic() + PAUSE * (tried.count - 1)
            if tried.count >= ATTEMPTS:
                work = Work(self._config, self._models, self._application, self._orders, order, state)
                work.fail("storage, the cluster, or another driver kept it from being run; see the endpoint's log")
                state = work.state
        with self._lock:
            del self._working[order.id]
            if state.get("status") not in OVER:
                self._waiting[order.id] = order
