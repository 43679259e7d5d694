"""A replica: a Serve actor that holds one model."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ray import serve

from paliscribe.config import ModelSpec, PoolConfig
from paliscribe.errors import ReplicaError, RequestError
from paliscribe.pool.autoscaling import ROWS, SLOTS
from paliscribe.pool.company import Company
from paliscribe.pool.draining import drain_at_notice
from paliscribe.pool.watch import watch
from paliscribe.records import ONLINE, Piece, Prediction, Request

if TYPE_CHECKING:  # it loads torch
    from paliscribe.engine import EngineStats

COMPILING = 10  # by how much longer a step may last that may compile
DELIVERY = 0.05  # seconds for an answer to leave the process


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """Identity and configuration of a replica."""

    replica: str
    image_size: int
    revision: str
    precision: str
    slots: int


class Replica:
    """The actor class that Serve deploys: one model and its engine."""

    def __init__(self, spec: ModelSpec, threads: int | None, config: PoolConfig) -> None:
        from paliscribe.model.weights import locate

        drain_at_notice()
        locate(spec)  # what is wrong with a model is said before torch is loaded, which takes seconds

        import torch

        from paliscribe.engine import aio
        from paliscribe.pool.metrics import PERIOD, ReplicaMetrics
        from paliscribe.pool.ready import ready_engine

        begun = time.monotonic()
        self._aio, self._metrics, self._period = aio, ReplicaMetrics(), PERIOD
        self._name = serve.get_replica_context().replica_tag
        if threads is not None:
            torch.set_num_threads(threads)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # else it logs a line per call
        self.engine = ready_engine(spec, config)
        self.model = self.engine.model
        self._load_seconds = time.monotonic() - begun
        threading.Thread(target=self._export_metrics, name="metrics", daemon=True).start()
        self._company = Company()
        watch(self.engine, config.step_timeout * (COMPILING if config.compile else 1))

    async def predict(self, requests: list[Request]) -> list[Prediction]:
        """Answer one call's requests, in order."""
        if all(request.priority == ONLINE for request in requests):
            return await self._answers(requests)
        async with self._company.together():
            return await self._answers(requests)

    async def predict_apart(self, requests: list[Request], size: int) -> AsyncIterator[list[Prediction]]:
        """Answer requests of a call that was lost with a replica, `size` at a time, without other calls of runs.

        Yields an empty list first, when it begins, then the answers of each piece: so the caller knows which piece was
        in hand if this replica is lost too. Live calls do not wait.
        """
        async with self._company.alone():
            self.check_health()  # else a replica that is about to end would count as lost with these requests
            yield []
            for start in range(0, len(requests), size):
                await asyncio.sleep(DELIVERY)
                yield await self._answers(requests[start : start + size])

    async def _answers(self, requests: list[Request]) -> list[Prediction]:
        with self._counting_refusals(requests):
            predictions = await self._aio.predict(self.engine, requests)
        self._metrics.answered(requests, predictions)
        return [replace(prediction, replica=self._name) for prediction in predictions]

    async def stream(self, request: Request) -> AsyncIterator[Piece | Prediction]:
        """Stream an answer's pieces, then its prediction."""
        with self._counting_refusals([request]):
            async for part in self._aio.stream(self.engine, request):
                if isinstance(part, Prediction):
                    self._metrics.answered([request], [part])
                    part = replace(part, replica=self._name)
                yield part

    async def facts(self) -> ReplicaFacts:
        """Identity and configuration of this replica."""
        context = serve.get_replica_context()
        located, spec = self.model.located, self.model.spec
        slots = self.engine.sizes.limits.slots
        return ReplicaFacts(context.replica_tag, located.image_size, located.revision, spec.precision, slots)

    async def stats(self) -> "EngineStats":
        """Counters and queue sizes of this replica's engine."""
        return self.engine.stats()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Metrics for Serve's autoscaler: queued and running requests, and slots."""
        stats = self.engine.stats()
        return {ROWS: stats.waiting + stats.live, SLOTS: self.engine.sizes.limits.slots}

    def check_health(self) -> None:
        """Serve's health check. Raises ReplicaError if the engine has failed; `watch` then ends the process."""
        if not self.engine.alive:
            raise ReplicaError("the engine has failed")

    @contextmanager
    def _counting_refusals(self, requests: Sequence[Request]) -> Iterator[None]:
        try:
            yield
        except RequestError as error:
            self._metrics.refused(requests, error.code)
            raise

    def _export_metrics(self) -> None:
        while self.engine.alive:
            self._metrics.update(self.engine.stats(), self.engine.step_seconds(), self._load_seconds)
            time.sleep(self._period)
