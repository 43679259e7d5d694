"""One background job while its driver works on it: its pool, its status, its progress."""

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paliscribe.batch.progress import Progress
from paliscribe.config import ModelSpec, ServeConfig
from paliscribe.errors import RunError, TemporaryError
from paliscribe.online.background.store import TERMINAL, BackgroundJob, BackgroundStore
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
    """One background job under its driver. `models`: client-facing name -> pool in the Serve app `application`.

    A driver claims the job before it works: it writes its token and the next number of a claim into the state. From
    then on the state is written only over what this driver wrote, so one that was stopped and replaced writes nothing.
    """

    config: ServeConfig
    models: Mapping[str, ServedPool]
    application: str
    store: BackgroundStore
    job: BackgroundJob
    interrupt: Callable[[], None] = lambda: None  # stops the work from another thread
    state: dict[str, Any] = field(default_factory=dict)
    committed: Counter[str] = field(default_factory=Counter)  # record statuses committed by earlier drivers
    _token: str = field(default_factory=lambda: uuid.uuid4().hex)
    _reported: float = 0.0  # monotonic time of the last progress write

    def claim(self) -> bool:
        """Read the state and make this driver the only one that can write it. False if the job is finished."""
        while True:
            state, etag = self.store.state_version(self.job)
            if state.get("status") in TERMINAL:
                return False
            self.state = state | {"driver": self._token, "claim": state.get("claim", 0) + 1}
            if self.store.set_state(self.job, self.state, etag):
                return True

    def write(self) -> None:
        """Write the state. Raises TemporaryError if another driver has claimed the job."""
        while True:
            # Read anew each time: an earlier write may have succeeded although its response was an error.
            state, etag = self.store.state_version(self.job)
            if state.get("driver") != self._token or (state.get("status") in TERMINAL and state != self.state):
                raise TemporaryError(f"another driver has taken over background job {self.job.id}")
            if self.store.set_state(self.job, self.state, etag):
                return

    def model(self, name: str) -> tuple[ModelSpec, PoolAddress]:
        """A model and the address of its pool. Raises RunError if it is no longer served."""
        if name not in self.models:
            raise RunError(f"model {name} is no longer served")
        served = self.models[name]
        return served.spec, PoolAddress(self.application, served.deployment, 1)

    def set_status(self, status: str, **more: Any) -> None:
        """Write a status with the time at which it was first entered."""
        self.state |= {"status": status, f"{status}_at": self.state.get(f"{status}_at", int(time.time()))} | more
        self.write()

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
            self.write()
            if self.stop_status is not None:  # the call may have reached other drivers than these
                self.interrupt()
        except TemporaryError:
            self.interrupt()
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
            parts = ("order.json", "state.json", "cancel.json", "_run/lease.json")
            objects.delete_many([key for key in keys if key.removeprefix(base) not in parts])


def requests_done(state: Mapping[str, Any]) -> int:
    """How far a background job has come, by its state: requests of a batch, rows of a job."""
    counts = state.get("counts", {})
    done: int = counts.get("completed", 0) + counts.get("failed", 0)
    return done + int((state.get("progress") or {}).get("rows_done", 0))
