"""Calls that share a replica, and calls that have it alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Company:
    """Admits any number of calls together, or one alone; in the order in which they come. Of one event loop."""

    def __init__(self) -> None:
        self._door = asyncio.Lock()  # fair: held by the call that is alone, or waits to be
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Work beside others."""
        async with self._door:
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Wait until those inside are done, and let nobody in until then."""
        async with self._door:
            await self._empty.wait()
            yield
