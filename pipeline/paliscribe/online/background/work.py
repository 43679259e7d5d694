"""One background job while its driver works on it: its pool, its status, its progress."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paliscribe.batch.progress import Progress
from paliscribe.config import ModelSpec, ServeConfig
from paliscribe.errors import RunError
from paliscribe.online.background.store import BackgroundJob, BackgroundStore
from paliscribe.pool.address import PoolAddress
from paliscribe.storage import StorageError

log = logging.getLogger(__name__)
REPORT_EVERY = 2.0  # seconds between two progress writes


@dataclass(frozen=True, slots=True)
class ServedPool:
    """A served model and the Serve deployment of its replicas."""

    spec: ModelSpec
    deployment: str


@dataclass(slots=True)
class Work:
    """One background job under its driver. `models`: client-facing name -> pool in the Serve app `application`."""

    config: ServeConfig
    models: Mapping[str, ServedPool]
    application: str
    store: BackgroundStore
    job: BackgroundJob
    state: dict[str, Any] = field(default_factory=dict)
    committed: Counter[str] = field(default_factory=Counter)  # record statuses committed by earlier drivers
    _reported: float = 0.0  # monotonic time of the last progress write

    def model(self, name: str) -> tuple[ModelSpec, PoolAddress]:
        """A model and the address of its pool. Raises RunError if it is no longer served."""
        if name not in self.models:
            raise RunError(f"model {name} is no longer served")
        served = self.models[name]
        return served.spec, PoolAddress(self.application, served.deployment, 1)

    def set_status(self, status: str, **more: Any) -> None:
        """Write a status with the time at which it was first entered."""
        self.state |= {"status": status, f"{status}_at": self.state.get(f"{status}_at", int(time.time()))} | more
        self.store.set_state(self.job, self.state)

    def fail(self, words: str, **more: Any) -> None:
        """Set the status to failed.

        Callers of a job see `words`, which are about what they submitted. Callers of a batch do not: they may expose
        internals, so they only go to the log.
        """
        log.error("background job %s: %s", self.job.id, words)
        shown = words if self.job.kind == "job" else "the batch failed; contact the endpoint's operator"
        problem = {"code": "run_failed", "message": shown, "param": None, "line": None}
        self.set_status("failed", problems=[problem], **more)

    def progress(self, progress: Progress) -> None:
        """Write a run's progress, at most every `REPORT_EVERY` seconds."""
        if time.monotonic() - self._reported < REPORT_EVERY or progress.stage == "finished":
            return
        self._reported = time.monotonic()
        statuses = self.committed + progress.statuses
        if self.job.kind == "batch":
            done = {"completed": statuses["ok"] + statuses["invalid"], "failed": statuses["error"]}
            self.state["counts"] = self.state["counts"] | done
        else:
            done = {"rows_done": progress.rows_before + progress.rows_done, "rows": progress.rows}
            self.state["progress"] = {"stage": progress.stage, **done, "images_per_second": progress.images_per_second}
        try:
            self.store.set_state(self.job, self.state)
        except StorageError as error:  # temporary; the next write may succeed
            log.warning("background job %s: %s", self.job.id, error)

    @property
    def stop_status(self) -> str | None:
        """`expired` or `cancelled`, whichever happened first; None if the job may continue."""
        cancelled, end = self.store.cancelled_at(self.job), self.job.expires_at
        if end is not None and time.time() >= end and (cancelled is None or cancelled >= end):
            return "expired"
        return "cancelled" if cancelled is not None else None

    @property
    def output(self) -> str:
        """Address of a batch's run."""
        return f"{self.store.objects.uri}/{BackgroundStore.key(self.job, 'run')}"

    def delete_run(self) -> None:
        """Delete the run of a finished batch; its results are in its files. Jobs keep theirs."""
        if self.job.kind == "batch":
            objects, base = self.store.objects, BackgroundStore.key(self.job, "")
            keys = [found.key for found in objects.list(base)]
            parts = ("order.json", "state.json", "cancel.json")
            objects.delete_many([key for key in keys if key.removeprefix(base) not in parts])
