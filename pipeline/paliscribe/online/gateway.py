"""The deployment that speaks HTTP."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from paliscribe.config import ServeConfig
from paliscribe.grammar.masks import MaskDecoder
from paliscribe.online.app import create_app
from paliscribe.online.background.store import Order, Orders
from paliscribe.online.keys import Keys
from paliscribe.online.service import Served, Service
from paliscribe.pool.client import GRACE, PoolBackend
from paliscribe.pool.metrics import GatewayMetrics
from paliscribe.storage import open_store


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the gateway needs to know of a model."""

    name: str
    revision: str
    image_size: int


class DriversLauncher:
    """The deployment of drivers behind its handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def begin(self, order: Order) -> None:
        """See `Launcher`."""
        await self._call(self._handle.begin, order)

    async def cancel(self, order: Order) -> None:
        """See `Launcher`."""
        await self._call(self._handle.cancel, order)

    async def _call(self, method: Any, order: Order) -> None:
        """Tell the drivers; where that fails, they read of it in the store when they are back."""
        with contextlib.suppress(RayError, RayServeException, TimeoutError):
            await asyncio.wait_for(method.remote(order), GRACE)


class Gateway:
    """The deployment that speaks HTTP. It decodes pictures; the replicas see pixels."""

    def __init__(
        self,
        config: ServeConfig,
        facts: Sequence[ModelInfo],
        keys: Sequence[str],
        masks: MaskDecoder | None,
        drivers: Any,
        *handles: Any,
    ) -> None:
        access = logging.getLogger("paliscribe.access")
        access.setLevel(logging.INFO)
        for handler in logging.getLogger("ray.serve").handlers:  # Serve's file of this replica
            access.addHandler(handler)
        models = [
            Served(known.name, known.revision, known.image_size, PoolBackend(handle, config.timeout))
            for known, handle in zip(facts, handles, strict=True)
        ]
        self._service, self._keys = Service(config, models, masks), Keys(keys, config.rate)
        self._orders = Orders(open_store(config.files)) if config.files is not None else None
        self._launcher = DriversLauncher(drivers) if drivers is not None else None

    def __serve_build_asgi_app__(self) -> Any:
        """The application that Serve's proxy calls."""
        observe = GatewayMetrics().call
        return create_app(self._service, self._keys, observe, label=False, orders=self._orders, launcher=self._launcher)
