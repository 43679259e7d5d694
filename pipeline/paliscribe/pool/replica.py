"""A replica: a Serve actor that holds one model."""

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
from paliscribe.records import Piece, Prediction, Request

if TYPE_CHECKING:  # it loads torch
    from paliscribe.engine import EngineStats

STEP_TIMEOUT = 120.0  # seconds of one engine step after which the device counts as hung


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

    async def predict(self, requests: list[Request]) -> list[Prediction]:
        """Answer one call's requests, in order."""
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
        """Serve's health check. Raises ReplicaError if the engine is dead or hangs; Serve then replaces the replica."""
        if not self.engine.alive:
            raise ReplicaError("the engine thread has died")
        if self.engine.step_seconds() > STEP_TIMEOUT:
            raise ReplicaError(f"an engine step has lasted more than {STEP_TIMEOUT:g} s: the device hangs")

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
