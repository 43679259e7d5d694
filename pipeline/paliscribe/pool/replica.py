"""A replica: one actor that holds the model, as Serve runs it."""

import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ray import serve

from paliscribe.config import ModelSpec, PoolConfig
from paliscribe.errors import ReplicaError, RequestError
from paliscribe.pool.autoscaling import ROWS, SLOTS
from paliscribe.records import Piece, Prediction, Request

STUCK = 120.0  # seconds of one step of the engine after which its device is taken to be broken


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """What a replica says of itself."""

    replica: str
    image_size: int
    revision: str
    precision: str
    slots: int


class Replica:
    """One actor that holds the model. Serve wraps it into the deployment."""

    def __init__(self, spec: ModelSpec, threads: int | None, config: PoolConfig) -> None:
        import torch

        from paliscribe.engine import aio
        from paliscribe.pool.metrics import PERIOD, ReplicaMetrics
        from paliscribe.pool.ready import ready_engine

        begun = time.monotonic()
        self._aio, self._metrics, self._period = aio, ReplicaMetrics(), PERIOD
        self._name = serve.get_replica_context().replica_tag
        if threads is not None:
            torch.set_num_threads(threads)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # a line a call otherwise
        self.engine = ready_engine(spec, config)
        self.model = self.engine.model
        self._load_seconds = time.monotonic() - begun
        threading.Thread(target=self._watch, name="metrics", daemon=True).start()

    async def predict(self, requests: list[Request]) -> list[Prediction]:
        """Answer requests that arrive together, in their order."""
        with self._counting(requests):
            predictions = await self._aio.predict(self.engine, requests)
        self._metrics.answered(requests, predictions)
        return [replace(prediction, replica=self._name) for prediction in predictions]

    async def stream(self, request: Request) -> AsyncIterator[Piece | Prediction]:
        """The pieces of one answer as they come, then its prediction."""
        with self._counting([request]):
            async for part in self._aio.stream(self.engine, request):
                if isinstance(part, Prediction):
                    self._metrics.answered([request], [part])
                    part = replace(part, replica=self._name)
                yield part

    async def facts(self) -> ReplicaFacts:
        """Which replica this is and what it runs."""
        context = serve.get_replica_context()
        located, spec = self.model.located, self.model.spec
        slots = self.engine.sizes.limits.slots
        return ReplicaFacts(context.replica_tag, located.image_size, located.revision, spec.precision, slots)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's autoscaler goes by: requests that wait or are under way, and slots for them."""
        stats = self.engine.stats()
        return {ROWS: stats.waiting + stats.live, SLOTS: self.engine.sizes.limits.slots}

    def check_health(self) -> None:
        """Serve's probe: an engine that no longer answers has its replica replaced."""
        if not self.engine.alive:
            raise ReplicaError("the engine thread has died")
        if self.engine.step_seconds() > STUCK:
            raise ReplicaError(f"a step of the engine has lasted more than {STUCK:g} s: its device does not answer")

    @contextmanager
    def _counting(self, requests: Sequence[Request]) -> Iterator[None]:
        try:
            yield
        except RequestError as error:
            self._metrics.refused(requests, error.code)
            raise

    def _watch(self) -> None:
        while self.engine.alive:
            self._metrics.look(self.engine.stats(), self.engine.step_seconds(), self._load_seconds)
            time.sleep(self._period)
