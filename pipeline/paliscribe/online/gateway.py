"""The gateway deployment: the HTTP endpoint as a Serve replica."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from paliscribe.config import ServeConfig
from paliscribe.errors import TemporaryError
from paliscribe.grammar.masks import MaskDecoder
from paliscribe.model.abilities import Abilities
from paliscribe.online.app import create_app
from paliscribe.online.background.store import BackgroundJob, BackgroundStore
from paliscribe.online.key_file import KeyFile
from paliscribe.online.keys import Keys, KeySource
from paliscribe.online.limits import Counts, Limit, LocalLimit, SharedLimit
from paliscribe.online.service import Served, Service
from paliscribe.pool.client import GRACE, PoolBackend
from paliscribe.pool.draining import drain_at_notice
from paliscribe.pool.metrics import GatewayMetrics
from paliscribe.storage import open_store


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model as the gateway needs it. `image_size`: pixels a side."""

    name: str
    revision: str
    image_size: int
    abilities: Abilities
    masks: MaskDecoder | None = None


class DriversLauncher:
    """Calls the drivers deployment through its handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def start(self, job: BackgroundJob) -> None:
        """See `Launcher`."""
        await self._call(self._handle.start, job)

    async def cancel(self, job: BackgroundJob) -> None:
        """See `Launcher`."""
        await self._call(self._handle.cancel, job)

    async def _call(self, method: Any, job: BackgroundJob) -> None:
        """Call the drivers. Failures are ignored: the drivers scan the store and find the job there."""
        with contextlib.suppress(RayError, RayServeException, TimeoutError):
            await asyncio.wait_for(method.remote(job), GRACE)


class SharedCounts:
    """The deployment that counts the calls of all gateways. One replica; if it is lost, Serve starts another."""

    def __init__(self, rate: float) -> None:
        self._counts = Counts(rate)

    async def take(self, key: str, wanted: int, known: float | None, alone: bool) -> tuple[int, float]:
        """See `Counts`. On the event loop, so that one question is answered at a time."""
        return self._counts.take(key, wanted, known, alone)


def _limit(config: ServeConfig, counts: Any) -> Limit | None:
    """The rate limit of a gateway. `counts`: the handle of `SharedCounts`; None where there is one gateway."""
    if config.rate is None:
        return None
    if counts is None:
        return LocalLimit(config.rate)

    async def ask(*question: Any) -> tuple[int, float]:
        try:
            answer: tuple[int, float] = await counts.take.remote(*question)
        except (RayError, RayServeException) as error:
            raise TemporaryError(f"the count of calls is lost: {error}") from error
        return answer

    return SharedLimit(config.rate, config.gateways, ask)


class Gateway:
    """The HTTP deployment. It decodes images on CPUs and sends pixels to the replicas."""

    def __init__(
        self,
        config: ServeConfig,
        infos: Sequence[ModelInfo],
        keys: KeySource,
        drivers: Any,
        counts: Any,
        *handles: Any,
    ) -> None:
        drain_at_notice()
        access = logging.getLogger("paliscribe.access")
        access.setLevel(logging.INFO)
        for handler in logging.getLogger("ray.serve").handlers:  # the log file of this Serve replica
            access.addHandler(handler)
        models = [
            Served(
                info.name,
                info.revision,
                info.image_size,
                PoolBackend(handle, config.timeout),
                info.abilities,
                info.masks,
            )
            for info, handle in zip(infos, handles, strict=True)
        ]
        self._service, self._keys = Service(config, models), Keys(keys.found, _limit(config, counts))
        self._store = BackgroundStore(open_store(config.files)) if config.files is not None else None
        self._launcher = DriversLauncher(drivers) if drivers is not None else None
        self._metrics = GatewayMetrics()
        if keys.file is not None:
            KeyFile(keys, self._keys, self._store).watch(self._metrics.keys)

    def __serve_build_asgi_app__(self) -> Any:
        """The ASGI application that Serve's proxy calls."""
        observe = self._metrics.call
        return create_app(self._service, self._keys, observe, label=False, store=self._store, launcher=self._launcher)
