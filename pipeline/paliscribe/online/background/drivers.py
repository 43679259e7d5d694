"""Runs background jobs: one deployment schedules them all, and each runs in a Ray task, in a process of its own.

The main thread of a task is the run's driver, as under `paliscribe annotate`: cancelling the task interrupts it like
Ctrl-C. A task depends only on stored state, so one that is lost with its node, or with the deployment, is started again
and resumes from the last committed shard.

Several deployments may share the stored jobs, as during an upgrade of a cluster. A task holds the lease of its job.
"""

import logging
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from paliscribe import results
from paliscribe.batch.run import run_batch
from paliscribe.config import JobConfig, ServeConfig
from paliscribe.errors import RunError, Stopped, TemporaryError
from paliscribe.online.background.drive_batch import drive_batch, finalize
from paliscribe.online.background.expiring import Janitor
from paliscribe.online.background.store import TERMINAL, BackgroundJob, BackgroundStore
from paliscribe.online.background.work import ServedPool, Work, requests_done
from paliscribe.signals import stop_on_signals
from paliscribe.storage import StorageError, open_store

log = logging.getLogger(__name__)
MAX_RUNNING = 4  # jobs that run at a time; expired and cancelled ones are not counted, they only have to be finalized
MAX_CALLERS = 16  # callers of whom one job runs at a time even beyond `MAX_RUNNING`, so that nobody shuts others out
MAX_ATTEMPTS = 10  # drivers in a row that make no progress before a job fails
BACKOFF = 5.0  # seconds before the third attempt without progress; grows by as much with each further one
RESCAN_EVERY = 120.0  # seconds between two scans of the store for jobs that no gateway announced
HELD = 20.0  # seconds before the next attempt at a job on which other drivers work
LEASE = 60.0  # seconds without a renewal after which a driver counts as lost
POLL = 0.5  # seconds between two checks of the running tasks


def drive(
    config: ServeConfig,
    models: Mapping[str, ServedPool],
    application: str,
    job: BackgroundJob,
    give_up_at: int | None = None,
    lease: float = LEASE,
) -> bool:
    """Run a background job until it is finished or interrupted. After an interruption the next call resumes it.

    `give_up_at`: fail the job unless it has more requests done than these. `lease`: see `LEASE`. Returns False if
    another driver works on the job.
    """
    assert config.files is not None
    store, held = BackgroundStore(open_store(config.files)), False
    main, told = threading.main_thread().ident or 0, threading.Event()

    def interrupt() -> None:
        if not told.is_set():
            told.set()
            signal.pthread_kill(main, signal.SIGINT)

    try:
        if store.state(job).get("status") in TERMINAL:
            return True
        # Ray's worker processes outlive their tasks, so a living one says nothing about its lease.
        with stop_on_signals(), results.hold(store.folder(job), ttl=lease, on_lost=interrupt, trust_local=False):
            held = True
            work = Work(config, models, application, store, job, interrupt)
            if work.claim():
                _work_on(work, give_up_at)
    except (Stopped, TemporaryError, StorageError) as error:
        log.warning("background job %s: interrupted, will be resumed: %s", job.id, error)
    finally:
        told.set()  # a thread that ends late interrupts nothing else in this process
    return held


def _work_on(work: Work, give_up_at: int | None) -> None:
    try:
        if give_up_at is not None and requests_done(work.state) <= give_up_at and work.stop_status is None:
            raise RunError("storage or the cluster kept the job from running; see the endpoint's log")
        if work.job.kind == "batch":
            drive_batch(work)
        else:
            _drive_job(work)
    except TemporaryError:
        raise
    except RunError as error:
        if work.state.get("status") in ("in_progress", "finalizing") and work.job.kind == "batch":
            finalize(work, failed=str(error))
        else:
            work.fail(str(error))


def _drive_job(work: Work) -> None:
    if (stop_status := work.stop_status) is not None:
        work.set_status(stop_status)
        return
    work.set_status("in_progress")
    settings = dict(work.job.asked)
    spec, pool = work.model(settings["model"])
    summary = run_batch(JobConfig(**settings | {"model": spec}), work.progress, work.config.images, pool)
    work.set_status("completed", summary={key: value for key, value in summary.items() if key != "files"})


@dataclass(slots=True)
class _Attempts:
    """Attempts at a job: drivers in a row without progress, earliest next start (monotonic), requests done so far."""

    count: int = 0
    not_before: float = 0.0
    done: int = 0


class Drivers:
    """Schedules the background jobs of an endpoint: the deployment behind `Launcher`."""

    def __init__(self, config: ServeConfig, models: Mapping[str, ServedPool]) -> None:
        assert config.files is not None
        self._config, self._models, self._store = config, dict(models), BackgroundStore(open_store(config.files))
        self._application = serve.get_replica_context().app_name
        self._drive = ray.remote(num_cpus=0, max_retries=0)(drive)
        self._waiting: dict[str, BackgroundJob] = {}
        self._running: dict[str, tuple[BackgroundJob, Any]] = {}
        self._attempts: defaultdict[str, _Attempts] = defaultdict(_Attempts)
        self._served: dict[str, float] = {}  # caller -> when one of their jobs was last started (monotonic)
        self._cancelled: set[str] = set()
        self._interrupted: set[str] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="drivers", daemon=True)
        self._thread.start()
        janitor = Janitor(self._store, config.expire_after)
        threading.Thread(target=janitor.run, name="janitor", daemon=True).start()

    async def start(self, job: BackgroundJob) -> None:
        """See `Launcher`."""
        self._enqueue([job])

    async def cancel(self, job: BackgroundJob) -> None:
        """See `Launcher`. The cancel request is stored already; this interrupts the running task."""
        with self._lock:
            self._cancelled.add(job.id)
        self._interrupt(job)

    def check_health(self) -> None:
        """Serve's health check. Raises RunError if the scheduler thread has died."""
        if not self._thread.is_alive():
            raise RunError("the scheduler thread of background jobs has died")

    def _enqueue(self, jobs: Sequence[BackgroundJob]) -> None:
        with self._lock:
            for job in jobs:
                if job.id not in self._running:
                    self._waiting.setdefault(job.id, job)

    def _interrupt(self, job: BackgroundJob) -> None:
        """Interrupt the running task; once only, since the next task of a stopped job just finalizes it."""
        with self._lock:
            if job.id in self._running and job.id not in self._interrupted:
                self._interrupted.add(job.id)
                ray.cancel(self._running[job.id][1], recursive=False)

    def _loop(self) -> None:
        scanned = -RESCAN_EVERY  # scan at once: resume what an earlier process left
        while True:
            try:
                if time.monotonic() - scanned > RESCAN_EVERY:
                    scanned = time.monotonic()
                    self._enqueue(self._store.open_jobs())
                for job, task in list(self._running.values()):
                    if ray.wait([task], timeout=0)[0]:
                        self._finish(job, task)
                    elif self._should_stop(job):
                        self._interrupt(job)
                self._start_waiting()
            except Exception:  # storage, or a foreign object in it; the next pass may succeed
                log.exception("cannot schedule background jobs")
            time.sleep(POLL)

    def _should_stop(self, job: BackgroundJob) -> bool:
        """Whether a job is cancelled or expired."""
        return job.id in self._cancelled or (job.expires_at is not None and time.time() >= job.expires_at)

    def _start_waiting(self) -> None:
        """Start tasks for waiting jobs: those to be stopped, then those of the caller with fewest running, in turns."""
        with self._lock:
            while True:
                now = time.monotonic()
                ready = [job for job in self._waiting.values() if self._attempts[job.id].not_before <= now]
                chosen = [job for job in ready if self._should_stop(job)]
                if not chosen:
                    chosen = next_jobs(ready, [job for job, _ in self._running.values()], self._served)
                if not chosen:
                    return
                for job in chosen:
                    attempts = self._attempts[job.id]
                    give_up_at = attempts.done if attempts.count >= MAX_ATTEMPTS else None
                    task = self._drive.remote(self._config, self._models, self._application, job, give_up_at)
                    self._served[job.owner] = now
                    self._running[job.id] = (self._waiting.pop(job.id), task)

    def _finish(self, job: BackgroundJob, task: Any) -> None:
        """Handle a task that has ended: retry an unfinished job with backoff; after `MAX_ATTEMPTS` it is to fail."""
        try:
            held = ray.get(task)
        except RayError:  # the task was killed, or interrupted before it began
            held = True
        state, attempts = self._store.state(job), self._attempts[job.id]
        done = requests_done(state)
        if not held or done > attempts.done:
            attempts.count = 0
        attempts.count += held
        attempts.done = max(done, attempts.done)
        attempts.not_before = time.monotonic() + (BACKOFF * (attempts.count - 1) if held else HELD)
        with self._lock:
            del self._running[job.id]
            if not held:
                self._interrupted.discard(job.id)
            if state.get("status") in TERMINAL:
                self._attempts.pop(job.id)
            else:
                self._waiting[job.id] = job


def next_jobs(
    ready: Sequence[BackgroundJob], running: Sequence[BackgroundJob], served: Mapping[str, float]
) -> list[BackgroundJob]:
    """The next of the `ready` jobs to start, or none: of the caller with fewest running, who was served longest ago.

    Jobs of one caller start by age. `served`: when a job of each caller was last started.
    """
    callers = Counter(job.owner for job in running)
    if len(running) >= MAX_RUNNING:
        ready = [job for job in ready if not callers[job.owner]] if len(callers) < MAX_CALLERS else []
    return sorted(ready, key=lambda job: (callers[job.owner], served.get(job.owner, 0.0), job.created_at))[:1]
