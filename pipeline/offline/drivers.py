"""Who works on orders: one deployment that sees to them all, and a task for each, in a process of its own.

A task's main thread is the run's driver as it is under `paliscribe annotate`: cancelling the task interrupts it as
Ctrl-C would. What a task does depends on what is stored alone, so one that was lost with its node, or with the
deployment, is begun again and goes on from the last committed shard.
"""

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.batch import run_batch
from pipeline.config import JobConfig, ServeConfig
from pipeline.driver import Stopped
from pipeline.errors import PassingError, RunError
from pipeline.offline.batch import drive_batch
from pipeline.offline.work import Pooled, Work
from pipeline.orders import OVER, Order, Orders
from pipeline.storage import StorageError, open_store

log = logging.getLogger(__name__)
AT_A_TIME = 4  # orders
ATTEMPTS = 5  # drivers that an order gets which neither end it nor are told to stop
PAUSE = 5.0  # seconds before a run that failed for what may pass is tried again
RESCAN = 60.0  # seconds between two looks for orders that nobody has told of
LOOK = 0.5  # seconds between two looks at the drivers


def drive(config: ServeConfig, models: Mapping[str, Pooled], order: Order) -> None:
    """Work on an order until it is over, or until it is interrupted: then it is for the next call to go on."""
    assert config.files is not None
    orders = Orders(open_store(config.files))
    work = Work(config, models, orders, order, orders.state(order))
    try:
        if order.kind == "batch":
            drive_batch(work)
        else:
            _drive_job(work)
    except Stopped:
        return
    except PassingError as error:
        orders.set_state(order, work.state | {"passing": str(error)})
        time.sleep(PAUSE)
    except RunError as error:
        work.fail("run_failed", str(error))
        work.tidy()


def _drive_job(work: Work) -> None:
    if work.given_up:
        work.say("cancelled")
        return
    work.say("in_progress")
    asked = dict(work.order.asked)
    job = JobConfig(**asked | work.models[asked["model"]].settings())
    summary = run_batch(job, work.progress, work.config.images)
    work.say("completed", summary={key: value for key, value in summary.items() if key != "files"})


class Drivers:
    """Sees to the orders of an endpoint: the deployment behind `gateway.batches.Launcher`."""

    def __init__(self, config: ServeConfig, models: Mapping[str, Pooled]) -> None:
        assert config.files is not None
        self._config, self._models, self._orders = config, dict(models), Orders(open_store(config.files))
        self._drive = ray.remote(num_cpus=0, max_retries=0)(drive)
        self._waiting: deque[Order] = deque(self._orders.open_orders())  # what an earlier process left
        self._working: dict[str, tuple[Order, Any]] = {}
        self._attempts: Counter[str] = Counter()
        self._interrupted: set[str] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="drivers", daemon=True)
        self._thread.start()

    async def begin(self, order: Order) -> None:
        """See `Launcher`."""
        with self._lock:
            self._waiting.append(order)

    async def cancel(self, order: Order) -> None:
        """See `Launcher`. The wish is stored already; what works on it is interrupted."""
        self._interrupt(order)

    def check_health(self) -> None:
        """Serve's probe: without its thread nothing would be worked on."""
        if not self._thread.is_alive():
            raise RunError("the thread that sees to orders has died")

    def _interrupt(self, order: Order) -> None:
        """Stop annotating; once, since the next driver of an order that is given up only finalizes it."""
        with self._lock:
            if order.id in self._working and order.id not in self._interrupted:
                self._interrupted.add(order.id)
                ray.cancel(self._working[order.id][1], recursive=False)

    def _watch(self) -> None:
        scanned = time.monotonic()
        while True:
            time.sleep(LOOK)
            if time.monotonic() - scanned > RESCAN:
                self._rescan()
                scanned = time.monotonic()
            with self._lock:
                working = list(self._working.values())
            for order, task in working:
                if ray.wait([task], timeout=0)[0]:
                    self._ended(order, task)
                elif order.expires_at is not None and time.time() >= order.expires_at:
                    self._interrupt(order)
            with self._lock:
                while self._waiting and len(self._working) < AT_A_TIME:
                    order = self._waiting.popleft()
                    task = self._drive.remote(self._config, self._models, order)
                    self._working[order.id] = (order, task)

    def _rescan(self) -> None:
        """Take up what was placed while this deployment could not be told."""
        try:
            found = self._orders.open_orders()
        except StorageError as error:
            log.warning("orders cannot be listed: %s", error)
            return
        with self._lock:
            known = {order.id for order in self._waiting} | set(self._working)
            self._waiting.extend(order for order in found if order.id not in known)

    def _ended(self, order: Order, task: Any) -> None:
        """Book a driver that has ended; an order that is not over is driven again, unless it keeps losing them."""
        with contextlib.suppress(RayError):
            ray.get(task)
        with self._lock:
            del self._working[order.id]
        state = self._orders.state(order)
        if state.get("status") in OVER:
            return
        self._attempts[order.id] += 1
        if self._attempts[order.id] >= ATTEMPTS:
            lost = f"{ATTEMPTS} drivers were lost while they worked on this"
            Work(self._config, self._models, self._orders, order, state).fail("run_failed", state.get("passing", lost))
            return
        with self._lock:
            self._waiting.appendleft(order)
