"""One order under its driver: what it is run on, and where it says that it stands."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paliscribe.batch.progress import Progress
from paliscribe.config import ModelSpec, ServeConfig
from paliscribe.errors import RunError
from paliscribe.online.background.store import Order, Orders
from paliscribe.pool.deploy import PoolAddress
from paliscribe.storage import StorageError

log = logging.getLogger(__name__)
SAID_EVERY = 2.0  # seconds between two reports of progress


@dataclass(frozen=True, slots=True)
class Pooled:
    """A served model, and the deployment of the replicas that answer for it."""

    spec: ModelSpec
    deployment: str


@dataclass(slots=True)
class Work:
    """One order under its driver. `models`: by what clients call them, in the Serve application `application`."""

    config: ServeConfig
    models: Mapping[str, Pooled]
    application: str
    orders: Orders
    order: Order
    state: dict[str, Any] = field(default_factory=dict)
    before: Counter[str] = field(default_factory=Counter)  # statuses that drivers before this one have committed
    _said: float = 0.0

    def model(self, name: str) -> tuple[ModelSpec, PoolAddress]:
        """A model, and its pool in this endpoint. Raises RunError if it is served no more."""
        if name not in self.models:
            raise RunError(f"model {name} is not served any more")
        served = self.models[name]
        return served.spec, PoolAddress(self.application, served.deployment, 1)

    def say(self, status: str, **more: Any) -> None:
        """Enter a state, and note when."""
        self.state |= {"status": status, f"{status}_at": self.state.get(f"{status}_at", int(time.time()))} | more
        self.orders.set_state(self.order, self.state)

    def fail(self, words: str, **more: Any) -> None:
        """Give it up. The words of a job's failure are about what its caller named; a batch's are about our inside."""
        log.error("order %s: %s", self.order.id, words)
        said = words if self.order.kind == "job" else "the batch could not be run to its end; ask who runs the endpoint"
        self.say("failed", problems=[{"code": "run_failed", "message": said, "param": None, "line": None}], **more)

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
        try:
            self.orders.set_state(self.order, self.state)
        except StorageError as error:  # the next report may get through
            log.warning("order %s: %s", self.order.id, error)

    @property
    def given_up(self) -> str | None:
        """`expired` or `cancelled`, whichever came first, of an order of which nothing more is to be annotated."""
        cancelled, end = self.orders.cancelled_at(self.order), self.order.expires_at
        if end is not None and time.time() >= end and (cancelled is None or cancelled >= end):
            return "expired"
        return "cancelled" if cancelled is not None else None

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
