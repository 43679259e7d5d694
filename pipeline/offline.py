"""The driver's side of orders: batches and jobs that were asked for over HTTP, each an ordinary run.

One deployment, `Drivers`, sees to them all. Each is worked on by a task in a process of its own, whose main thread is
the run's driver as it is under `paliscribe annotate`: cancelling the task interrupts it as Ctrl-C would. What a task
does depends on what is stored alone, so one that was lost with its node, or with the deployment, is begun again and
goes on from the last committed shard.
"""

import contextlib
import logging
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayError

from pipeline import manifest, results
from pipeline.batch import run_batch
from pipeline.config import JobConfig, ModelSpec, PoolConfig, ServeConfig
from pipeline.driver import Stopped
from pipeline.errors import PassingError, RunError
from pipeline.gateway import lines
from pipeline.orders import OVER, FileFacts, Order, Orders
from pipeline.pictures import Pictures
from pipeline.progress import Progress
from pipeline.storage import StorageError, Store, open_store

log = logging.getLogger(__name__)
LINES_A_SHARD = 64  # of a batch: what a cancelled one loses at most, for each stage process
AT_A_TIME = 4  # orders
ATTEMPTS = 5  # drivers that an order gets which neither end it nor are told to stop
PAUSE = 5.0  # seconds before a run that failed for what may pass is tried again
RESCAN = 60.0  # seconds between two looks for orders that nobody has told of
LOOK = 0.5  # seconds between two looks at the drivers
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
    _said: float = 0.0

    def say(self, status: str, **more: Any) -> None:
        """Enter a state, and note when."""
        self.state |= {"status": status, f"{status}_at": self.state.get(f"{status}_at", int(time.time()))} | more
        self.orders.set_state(self.order, self.state)

    def progress(self, progress: Progress) -> None:
        """Report a run's progress, now and then."""
        if time.monotonic() - self._said < SAID_EVERY or progress.stage == "finished":
            return
        self._said = time.monotonic()
        statuses = progress.statuses
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


def drive(config: ServeConfig, models: Mapping[str, Pooled], order: Order) -> None:
    """Work on an order until it is over, or until it is interrupted: then it is for the next call to go on."""
    assert config.files is not None
    orders = Orders(open_store(config.files))
    work = Work(config, models, orders, order, orders.state(order))
    try:
        if order.kind == "batch":
            _drive_batch(work)
        else:
            _drive_job(work)
    except Stopped:
        return
    except PassingError as error:
        orders.set_state(order, work.state | {"passing": str(error)})
        time.sleep(PAUSE)
    except RunError as error:
        work.say("failed", problems=[{"code": "run_failed", "message": str(error), "param": None, "line": None}])
        _tidy(work)


def _drive_job(work: Work) -> None:
    if work.given_up:
        work.say("cancelled")
        return
    work.say("in_progress")
    asked = dict(work.order.asked)
    job = JobConfig(**asked | work.models[asked["model"]].settings())
    summary = run_batch(job, work.progress, work.config.images)
    work.say("completed", summary={key: value for key, value in summary.items() if key != "files"})


def _drive_batch(work: Work) -> None:
    """validating -> in_progress -> finalizing -> completed, expired or cancelled; or failed."""
    if work.state.get("status", "validating") == "validating":
        if work.given_up:
            work.say("expired" if work.expired else "cancelled")
            return
        work.say("validating")
        found = _validated(work)
        if found.problems:
            work.say("failed", problems=found.problems)
            return
        counts = {"total": len(found.rows), "completed": 0, "failed": 0}
        work.say("in_progress", counts=counts, model=found.model)
    if work.state["status"] == "in_progress":
        if not work.given_up:
            job = JobConfig(
                manifest=f"{work.orders.store.uri}/{Orders.key(work.order, 'lines.parquet')}",
                tasks=("{ask}",),
                output=work.output,
                options_column="options",
                partition_by=(),
                shard_rows=LINES_A_SHARD,
                max_error_rate=1.0,
                **work.models[work.state["model"]].settings(),
            )
            run_batch(job, work.progress, work.config.images)
        work.say("finalizing")
    _finalize(work)


def _validated(work: Work) -> lines.Lines:
    """Check the lines, and write those that can be asked as a manifest."""
    owner, name = work.order.owner, work.order.asked["input_file_id"]
    if work.orders.file(owner, name) is None:
        problem = {"code": "file_not_found", "message": "the input file is gone", "param": None, "line": None}
        return lines.Lines(problems=[problem])
    with work.orders.open_file(owner, name) as file:
        config = work.config
        found = lines.read_lines(file, list(work.models), Pictures(config.images), config.max_prompt)
    if found.problems:
        return found
    columns = {"id": "id", "image": "image", "ask": "ask", "options": "options"}
    table = {column: [getattr(row, part) for row in found.rows] for column, part in columns.items()}
    with tempfile.NamedTemporaryFile(prefix="paliscribe-") as copy:
        pq.write_table(pa.table(table), copy.name, compression="zstd")
        work.orders.store.put_file(Orders.key(work.order, "lines.parquet"), Path(copy.name))
    return found


def _finalize(work: Work) -> None:
    """Write the files of answers and of errors from what is committed, then say how it ended."""
    run = open_store(work.output)
    counts, now, seen = Counter[str](), work.state["finalizing_at"], set[int]()
    whole = results.read_summary(run) is not None
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="paliscribe-")) for _ in range(2)]
        for record in _records(run):
            answered, line = lines.answer(work.order.id, record, work.state["model"], now)
            files[0 if answered else 1].write(f"{line}\n")
            counts["completed" if answered else "failed"] += 1
            seen.add(record["row"])
        if not whole and work.expired:
            for line in lines.expired(work.order.id, _unanswered(work, seen)):
                files[1].write(f"{line}\n")
                counts["failed"] += 1
        names = [
            _keep(work, file, kind, number) if counts[kind] else None
            for number, (kind, file) in enumerate(zip(("completed", "failed"), files, strict=True))
        ]
    done = {name: counts[name] for name in ("completed", "failed")}
    made = {"counts": work.state["counts"] | done, "output_file_id": names[0], "error_file_id": names[1]}
    work.say("completed" if whole else "expired" if work.expired else "cancelled", **made)
    _tidy(work)


def _records(run: Store) -> Iterator[dict[str, Any]]:
    """What of a run is answered: of a finished one the published files, else what its shards have committed."""
    summary = results.read_summary(run)
    if summary is not None:
        for key in summary["files"]:
            with run.open(key) as file:
                for batch in pq.ParquetFile(file).iter_batches():
                    yield from batch.to_pylist()
        return
    for shard in sorted(results.done(run)):
        yield from results.read_committed(run, results.read_marker(run, shard)).to_pylist()


def _unanswered(work: Work, seen: set[int]) -> Iterator[tuple[int, str]]:
    source = f"{work.orders.store.uri}/{Orders.key(work.order, 'lines.parquet')}"
    for row in manifest.read(source):
        if row.row not in seen:
            yield row.row, row.id


def _keep(work: Work, file: IO[str], kind: str, number: int) -> str:
    """Keep a file of lines for the caller: under the same name, should this be done again."""
    file.flush()
    path, name = Path(file.name), f"file-{work.order.id.removeprefix('batch_')}{number:02x}"
    words = f"{work.order.id}_{'output' if kind == 'completed' else 'error'}.jsonl"
    facts = FileFacts(name, words, "batch_output", path.stat().st_size, work.state["finalizing_at"])
    work.orders.add_file(work.order.owner, facts, path)
    return name


def _tidy(work: Work) -> None:
    """Remove the run of a batch that is over: what came of it is in its files."""
    if work.order.kind == "batch":
        store, base = work.orders.store, Orders.key(work.order, "")
        keys = [found.key for found in store.list(base)]
        parts = ("order.json", "state.json", "cancel.json")
        store.delete_many([key for key in keys if key.removeprefix(base) not in parts])


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
            lost = f"{ATTEMPTS} drivers were lost while they worked on this; see the log of the cluster"
            words = state.get("passing", lost)
            work = Work(self._config, self._models, self._orders, order, state)
            work.say("failed", problems=[{"code": "internal_error", "message": words, "param": None, "line": None}])
            return
        with self._lock:
            self._waiting.appendleft(order)
