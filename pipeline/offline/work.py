"""One order under its driver: what it is run on, and where it says that it stands."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import ModelSpec, PoolConfig, ServeConfig
from pipeline.orders import Order, Orders
from pipeline.progress import Progress

log = logging.getLogger(__name__)
SAID_EVERY = 2.0  # seconds between two reports of progress


@dataclass(frozen=True, slots=True)
class Pooled:
    """A served model, and the name of the pool that answers for it, if it has one."""

    spec: ModelSpec
    pool: str | None

    def settings(self) -> dict[str, Any]:
        """What of a job makes it run there."""
        return {"model": self.spec, "pool": PoolConfig(name=self.pool)}


@dataclass(slots=True)
class Work:
    """One order under its driver. `models`: by what clients call them."""

    config: ServeConfig
    models: Mapping[str, Pooled]
    orders: Orders
    order: Order
    state: dict[str, Any] = field(default_factory=dict)
    before: Counter[str] = field(default_factory=Counter)  # statuses that drivers before this one have committed
    _said: float = 0.0

    def say(self, status: str, **more: Any) -> None:
        """Enter a state, and note when."""
        self.state |= {"status": status, f"{status}_at": self.state.get(f"{status}_at", int(time.time()))} | more
        self.orders.set_state(self.order, self.state)

    def fail(self, code: str, words: str) -> None:
        """Give it up. The words of a job's failure are about what its caller named; a batch's are about our inside."""
        log.error("order %s: %s", self.order.id, words)
        said = words if self.order.kind == "job" else "the batch could not be run; the endpoint's log says why"
        self.say("failed", problems=[{"code": code, "message": said, "param": None, "line": None}])

    def progress(self, progress: Progress) -> None:
        """Report a run's progress, now and then."""
        if time.monotonic() - self._said < SAID_EVERY or progress.stage == "finished":
            return
        self._said = time.monotonic()
        statuses = self.before + progress.statuses
        if self.order.kind == "batch":
            done = {"completed": statuses["ok"] + statuses["invalid"], "failed": statuses["error"]}
            self.state["counts"] = self.state["counts"] | done
        else:
            done = {"rows_done": progress.rows_before + progress.rows_done, "rows": progress.rows}
            self.state["progress"] = {"stage": progress.stage, **done, "images_per_second": progress.images_per_second}
        self.orders.set_state(self.order, self.state)

    @property
    def given_up(self) -> bool:
        """Whether nothing more of it is to be annotated."""
        return self.expired or self.orders.cancelled_at(self.order) is not None

    @property
    def expired(self) -> bool:
        """Whether its window has closed."""
        return self.order.expires_at is not None and time.time() >= self.order.expires_at

    @property
    def output(self) -> str:
        """Where the run of a batch is."""
        return f"{self.orders.store.uri}/{Orders.key(self.order, 'run')}"

    def tidy(self) -> None:
        """Remove the run of a batch that is over: what came of it is in its files."""
        if self.order.kind == "batch":
            store, base = self.orders.store, Orders.key(self.order, "")
            keys = [found.key for found in store.list(base)]
            parts = ("order.json", "state.json", "cancel.json")
            store.delete_many([key for key in keys if key.removeprefix(base) not in parts])
