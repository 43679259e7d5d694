"""Two drivers at once on one batch: stopped and continued while they hold its lease, with clocks that jump.

Each driver is a process, as if on a machine of its own. Its run is scripted: synthetic records, committed and published
as in `paliscribe.batch.run`, under the run's own lease, without Ray.
"""

import contextlib
import json
import os
import random
import signal
import threading
import time
import uuid
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from results.made import Job

from paliscribe import results
from paliscribe.batch.progress import Progress
from paliscribe.batch.session import repeating
from paliscribe.config import ModelSpec, ServeConfig
from paliscribe.online.background import drive_batch, drivers, work
from paliscribe.online.background.store import TERMINAL, BackgroundJob, BackgroundStore, new_id
from paliscribe.online.background.work import ServedPool
from paliscribe.results import lease
from paliscribe.signals import stop_on_signals
from paliscribe.storage import open_store

LEASE = 0.4  # seconds
STOPS = 10  # of a driver, in a trial; then the batch is left to finish
SECONDS = 90.0  # until a batch that does not finish is given up
ROWS = 12
MADE = Job([{}] * ROWS, by=(), tasks=("{ask}",), shard_rows=2)
MODELS = {"demo": ServedPool(ModelSpec(), "none")}


def scripted_run(config: Any, report: Any, images: Any, pool: Any) -> None:
    """In the place of `run_batch`: commits one shard after the other, slowly, and publishes."""
    store, progress, main = open_store(config.output), Progress(), threading.main_thread().ident or 0

    def lost() -> None:
        signal.pthread_kill(main, signal.SIGINT)

    with repeating(lambda: report(progress)), stop_on_signals(), results.hold(store, ttl=LEASE, on_lost=lost):
        for shard in sorted(set(range(MADE.layout.shards)) - set(results.committed(store))):
            time.sleep(0.1)
            table = MADE.table(MADE.shard(shard, lambda row, task: row == 7))
            results.commit(store, results.write_shard(store, shard, uuid.uuid4().hex, table))
            progress.committed(2, 2, {"ok": 2}, {})
        MADE.publish(store)


def run_driver(files: str, job: BackgroundJob, number: int, seed: int) -> None:
    """A process that drives the batch until it is finished, as a `Drivers` deployment does."""
    drawn, real = random.Random(seed), time.time
    time.time = lambda: real() + drawn.choice((-86_400.0, 0.0, 86_400.0))
    lease._boot = lambda: f"machine {number}"
    vars(drive_batch)["run_batch"] = scripted_run
    work.REPORT_EVERY = 0.0
    config, store = ServeConfig(files=files), BackgroundStore(open_store(files))
    while store.state(job).get("status") not in TERMINAL:
        with contextlib.suppress(KeyboardInterrupt):
            drivers.drive(config, MODELS, "none", job, lease=LEASE)
            time.sleep(drawn.uniform(0, 0.1))  # a lost lease may interrupt it, as Ray's next task in this process


class Watched:
    """What a reader sees of a batch's state while drivers work on it, and what was wrong with it."""

    def __init__(self, store: BackgroundStore, job: BackgroundJob) -> None:
        self.store, self.job = store, job
        self.wrong: list[str] = []
        self.state: dict[str, Any] = {}
        self.final = b""

    def look(self) -> None:
        """Compare the state with the one seen before."""
        body = self.store.objects.get(self.store.key(self.job, "state.json")) if self.store.state(self.job) else b"{}"
        state = json.loads(body)
        if self.final and body != self.final:
            self.wrong.append(f"a finished state was overwritten: {self.final!r} by {body!r}")
        if state.get("claim", 0) < self.state.get("claim", 0):
            self.wrong.append(f"an earlier driver wrote: {self.state} then {state}")
        self.state = state
        if state.get("status") in TERMINAL:
            self.final = self.final or body


def trial(folder: Path, seed: int) -> tuple[int, int, list[str]]:
    """One batch under two drivers. Returns stops of the holder, claims, and what was wrong."""
    drawn, store = random.Random(seed), BackgroundStore(open_store(str(folder)))
    body = {"input_file_id": "file-1", "completion_window": "24h", "metadata": None}
    job = BackgroundJob(new_id("batch_"), "one", "batch", body, 1)
    store.add_job(job)
    rows = {name: [f"id-{row}" for row in range(ROWS)] for name in ("id", "image", "ask", "options")}
    pq.write_table(pa.table(rows), folder / store.key(job, "lines.parquet"))
    counts = {"total": ROWS, "completed": 0, "failed": 0}
    store.set_state(job, {"status": "in_progress", "counts": counts, "model": "demo"})
    watched, stops, until = Watched(store, job), 0, time.monotonic() + SECONDS
    context = get_context("forkserver")
    context.set_forkserver_preload(["online.background.order_trial"])
    running = [context.Process(target=run_driver, args=(str(folder), job, n, drawn.randrange(9**9))) for n in (0, 1)]
    for process in running:
        process.start()
    while any(process.is_alive() for process in running) and time.monotonic() < until:
        if stops < STOPS:
            stops += _stop(running, drawn, watched, folder / store.key(job, "_run/lease.json"))
        else:
            time.sleep(0.02)
            watched.look()
    if alive := [process for process in running if process.is_alive()]:
        watched.wrong.append(f"not finished after {SECONDS:.0f} s")
        for process in alive:
            process.kill()
    for process in running:
        process.join()
    watched.look()
    return stops, watched.state.get("claim", 0), watched.wrong + _outcome(store, job)


def _stop(running: list[ForkServerProcess], drawn: random.Random, watched: Watched, held: Path) -> int:
    """Stop the lease's holder, if there is one, for up to three times the lease. The number of stops."""
    for _ in range(drawn.randrange(1, 15)):
        time.sleep(0.02)
        watched.look()
    pid = 0
    with contextlib.suppress(OSError, ValueError):
        pid = int(json.loads(held.read_bytes())["pid"])
    if pid not in [process.pid for process in running if process.is_alive()]:
        return 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + drawn.uniform(0, 3 * LEASE)
    while time.monotonic() < until:
        time.sleep(0.02)
        watched.look()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return 1


def _outcome(store: BackgroundStore, job: BackgroundJob) -> list[str]:
    """What is wrong with a finished batch."""
    state, wrong = store.state(job), []
    counts = {"total": ROWS, "completed": ROWS - 1, "failed": 1}
    if (state["status"], state["counts"]) != ("completed", counts):
        return [f"ended as {state}"]
    names = [state["output_file_id"], state["error_file_id"]]
    if store.files("one") != sorted(names):
        wrong.append(f"files {store.files('one')}, not {names}")
    expected = [[f"id-{row}" for row in range(ROWS) if row != 7], ["id-7"]]
    for name, ids in zip(names, expected, strict=True):
        with store.open_file("one", name) as file:
            found = sorted((json.loads(line)["custom_id"] for line in file), key=lambda one: int(one[3:]))
        if found != ids:
            wrong.append(f"{name} has {found}")
    if store.open_jobs():
        wrong.append("still indexed as open")
    return wrong
