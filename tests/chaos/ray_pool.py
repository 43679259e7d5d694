"""What runs on the cluster of a disturbed run beside the product: replicas with a scripted engine, and small parts."""

import time
from dataclasses import dataclass
from typing import Any

import pytest
import ray
from batch.answers import Answers
from chaos.notes import Notes, small_parts

from bench.poison import ScriptedEngine, Silent
from paliscribe import results
from paliscribe.pool.company import Company
from paliscribe.pool.replica import Replica, ReplicaFacts
from paliscribe.pool.watch import watch
from paliscribe.records import Prediction, Request
from paliscribe.results import Layout
from paliscribe.storage import open_store

SLOTS = 2  # a call has as many rows under two tasks
STEP_TIMEOUT = 6.0  # seconds after which a replica that was stopped in a step ends itself


@dataclass(frozen=True, slots=True)
class Counts:
    """What a run asks of `EngineStats`."""

    steps: int
    embedded: int = 0


class Engine(ScriptedEngine):
    """Answers each call after a pause as `Answers` does, and notes how many requests it had."""

    def __init__(self, log: str, pause: float) -> None:
        super().__init__()
        self._log, self._pause, self.steps = log, pause, 0

    def _step(self, requests: list[Request]) -> list[Prediction]:
        key = object()
        self._begun[key] = time.monotonic()
        Notes(self._log).add(asked=len(requests))
        time.sleep(self._pause)
        self.steps += 1
        del self._begun[key]
        return Answers(requests).result()


class Scripted(Replica):
    """A replica with a scripted engine, and the calls, company and watch of a real one."""

    def __init__(self, log: str, pause: float) -> None:
        self._name, self._metrics, self._company = "", Silent(), Company()  # type: ignore[assignment]
        self.engine: Any = Engine(log, pause)
        self._aio = self.engine  # type: ignore[assignment]
        watch(self.engine, STEP_TIMEOUT)

    async def facts(self) -> ReplicaFacts:
        """See `Replica`."""
        return ReplicaFacts("", 28, "", "float32", SLOTS)

    async def stats(self) -> Any:
        """See `Replica`."""
        return Counts(self.engine.steps)


@ray.remote(num_cpus=0.1, max_retries=2)  # type: ignore[untyped-decorator]
def publish_small(uri: str, whole: Layout, part: int, generation: int) -> None:
    """`paliscribe.batch.parts._publish`, with parts of two shards as in the driver."""
    with pytest.MonkeyPatch.context() as patch:
        small_parts(patch)
        results.publish_part(open_store(uri), whole, part, generation)
