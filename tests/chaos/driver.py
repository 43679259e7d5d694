"""A driver of a run in a process of its own that is told where it ends; its writes are noted."""

import contextlib
import functools
import os
import random
import re
import signal
import time
import traceback
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import pytest
from batch.alone import Pool, alone
from batch.answers import Answers
from chaos.notes import Notes, small_parts

from paliscribe import results
from paliscribe.batch import checks, parts
from paliscribe.batch import run as run_module
from paliscribe.batch.progress import Progress, Report
from paliscribe.config import JobConfig
from paliscribe.errors import RunError
from paliscribe.records import Prediction, Request
from paliscribe.results import lease
from paliscribe.storage import s3_client

Moment = Literal["before", "during", "after"]
MOMENTS: Final[tuple[Moment, ...]] = ("before", "during", "after")
STEPS: Final = {  # of a run, in their order, by what is written or deleted
    "the lease": r"put\w* _run/lease\.json",
    "freezing": r"put\w* _run/manifest/rows-",
    "the frozen manifest's index": r"put\w* _run/manifest/manifest\.json",
    "the run file": r"put\w* _run/run\.json",
    "the rows of a retry": r"put\w* _run/retry-\d+/rows/",
    "the begin of a retry": r"put\w* _run/retry-\d+/begun\.json",
    "the data of a shard": r"put\w* _run/(retry-\d+/)?shards/",
    "the commit of a shard": r"put\w* _run/(retry-\d+/)?done/",
    "deleting dead letters": r"delete\w* errors/",
    "publishing dead letters": r"put\w* errors/",
    "publishing annotations": r"put\w* annotations/",
    "a part's marker": r"put\w* _run/(retry-\d+/)?parts/",
    "the summary": r"put\w* _summary\.json",
    "_SUCCESS": r"put\w* _SUCCESS",
    "deleting _SUCCESS": r"delete\w* _SUCCESS",
    "the sweep": r"delete\w* _run/shards/",
}
WRITES: Final = ("put", "put_file", "put_if_absent", "put_if_match", "delete", "delete_many")


@dataclass(frozen=True, slots=True)
class Point:
    """Where a driver gets a signal, by which it ends: at a step's n-th write, from 1. SIGSTOP only before or after."""

    step: str
    number: int
    moment: Moment
    signal: int = signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Order:
    """What a driver does. `job`: settings; None: a retry of `output`. `log`: file of its notes.

    `boot`, `ttl`: as if on another machine, with a lease of so many seconds. `pause`: seconds before each answer.
    `clock`: seed of the jumps of its clock. `environment`: settings of its object store. `ray`: address of the cluster
    that it joins; empty: it works without Ray.
    """

    output: str
    log: str
    job: dict[str, Any] | None
    append: bool = False
    point: Point | None = None
    boot: str = ""
    ttl: float = lease.TTL
    pause: float = 0.0
    clock: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    ray: str = ""


def step_of(method: str, key: str) -> str | None:
    """The step that this write belongs to."""
    return next((name for name, pattern in STEPS.items() if re.match(pattern, f"{method} {key}")), None)


class Watched:
    """A store that notes writes, and ends the process at a point."""

    def __init__(self, store: Any, notes: Notes, point: Point | None) -> None:
        self._store, self._notes, self._point, self._seen = store, notes, point, 0
        self.uri = store.uri

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        return functools.partial(self._write, name, method) if name in WRITES else method

    def _write(self, name: str, method: Any, key: Any, *arguments: Any) -> Any:
        keys = list(key) if name == "delete_many" else [key]
        step = step_of(name, keys[0]) if keys else None
        is_here = False
        if step and self._point is not None and step == self._point.step:
            self._seen += 1
            is_here = self._seen == self._point.number
        moment = self._point.moment if is_here and self._point else None
        if self._point is not None and moment == "before":
            end(self._point.signal)
        if name == "delete_many":
            key = keys
        if moment == "during" and name == "delete_many" and not self.uri.startswith("s3://"):
            key = _half(keys)
        elif moment == "during":
            self._end_during()
        found = method(key, *arguments)
        if step:
            self._notes.add(step=step, key=keys[0], won=found is not False and found is not None)
        if self._point is not None and is_here and moment != "before":
            end(self._point.signal)
        return found

    def _end_during(self) -> None:
        """End within the next write: on a disk before the file gets its name, else when the store has it already."""
        if not self.uri.startswith("s3://"):
            fsync = os.fsync

            def ending(fd: Any) -> None:
                fsync(fd)
                end()

            os.fsync = ending
            return
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{os.environ['AWS_ENDPOINT_URL']}/-/end-after-next-write/{os.getpid()}", timeout=5)


class Counted(Pool):
    """Answers every request, and notes how many there were."""

    def __init__(self, notes: Notes, pause: float) -> None:
        self._notes, self._pause = notes, pause

    def send(self, requests: Sequence[Request]) -> Answers:
        self._notes.add(asked=len(requests))
        return Late(requests, self._pause)


class Late(Answers):
    """Answers after a pause."""

    def __init__(self, requests: Sequence[Request], pause: float) -> None:
        super().__init__(requests)
        self._pause = pause

    def result(self) -> list[Prediction]:
        time.sleep(self._pause)
        return super().result()


def end(number: int = signal.SIGKILL) -> None:
    """End this process as `kill -9` does, or by another signal."""
    os.kill(os.getpid(), number)


def drive(order: Order) -> None:
    """Do what is ordered, and note how it ended."""
    os.environ.update(order.environment)
    s3_client.client.__defaults__ = (32, 2.0)  # seconds until a store that is silent is asked again: 30 in a real run
    notes = Notes(order.log)
    notes.add(begun=True)
    try:
        with pytest.MonkeyPatch.context() as patch, _place(patch, order, notes):
            _prepare(patch, order, notes)
            if order.job is None:
                run_module.run_retry(order.output, told(notes))
            else:
                job = JobConfig.model_validate(order.job | {"output": order.output})
                (run_module.run_append if order.append else run_module.run_batch)(job, told(notes))
        notes.add(end=0, said="")
    except RunError as error:
        notes.add(end=error.exit_code, said=str(error))
    except BaseException:
        notes.add(end=99, said=traceback.format_exc())


def told(notes: Notes) -> Report:
    """A report that notes what the user is told."""
    seen: list[str] = []

    def report(progress: Progress) -> None:
        for words in progress.notes[len(seen) :]:
            seen.append(words)
            notes.add(told=words)

    return report


@contextlib.contextmanager
def _place(patch: pytest.MonkeyPatch, order: Order, notes: Notes) -> Iterator[None]:
    """Where the run works: in this process, or on a cluster."""
    if not order.ray:
        with alone(patch, pool=Counted(notes, order.pause)):
            yield
        return
    from chaos.ray_pool import publish_small  # it imports Ray

    patch.setenv("RAY_ADDRESS", order.ray)
    patch.setattr(parts, "_publish", publish_small)
    yield


def _prepare(patch: pytest.MonkeyPatch, order: Order, notes: Notes) -> None:
    patch.setattr(run_module, "writable", lambda output: Watched(checks.writable(output), notes, order.point))
    small_parts(patch)
    patch.setattr(results, "hold", functools.partial(results.hold, ttl=order.ttl))
    if order.boot:
        patch.setattr(lease, "_boot", lambda: order.boot)
    if order.clock is not None:
        now = time.time
        patch.setattr(time, "time", lambda: now() + _jump(order.clock or 0, time.monotonic()))


def _jump(seed: int, moment: float) -> float:
    """How wrong a clock is, in seconds: up to a day, and another value every fifth of a second."""
    return random.Random(f"{seed}-{moment // 0.2}").uniform(-86_400, 86_400)


def _half(keys: Iterable[str]) -> Iterator[str]:
    """The first half of some keys; then the process ends."""
    keys = list(keys)
    yield from keys[: (len(keys) + 1) // 2]
    end()
