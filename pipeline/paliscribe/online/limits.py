"""Rate limits: the calls left of each caller, counted by one gateway, or for all gateways of an endpoint together.

Gateways that share a limit take calls from one count in portions, so that most calls cost no message. While the count
is lost, each gateway allows its part of the rate.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from paliscribe.errors import RequestError, TemporaryError

Clock = Callable[[], float]
BURST = 10.0  # seconds' worth of calls that may come at once
PORTION = 0.1  # seconds' worth of calls that a gateway takes at a time; what it holds when it is lost, is lost
PAUSE = 0.1  # seconds between two questions of a gateway when less is left than a portion
PATIENCE = 0.5  # seconds in which the count must answer
WITHOUT = 2.0  # seconds for which a gateway counts alone, until it asks again


class Limit(Protocol):
    """The rate limit of each caller: a tenant, or a key without one."""

    async def take(self, key: str) -> None:
        """Count a call. Raises RequestError 429 if the limit is reached."""


@dataclass(slots=True)
class Bucket:
    """Calls left at a time of the clock: `rate` more a second, up to a burst. `left` may be a fraction, or a debt."""

    rate: float
    left: float
    then: float

    def refill(self, now: float, most: float | None = None) -> float:
        """The calls left now. `most`: of a full bucket; default: the burst, at least one."""
        self.left = min(most or full(self.rate), self.left + (now - self.then) * self.rate)
        self.then = now
        return self.left


def full(rate: float) -> float:
    """Calls that may come at once."""
    return max(1.0, BURST * rate)


class LocalLimit:
    """The limits of an endpoint with one gateway. `rate`: calls a second and caller."""

    def __init__(self, rate: float, clock: Clock = time.monotonic) -> None:
        self._counts, self._rate = Counts(rate, clock), rate

    async def take(self, key: str) -> None:
        """See `Limit`."""
        taken, left = self._counts.take(key, 1)
        if not taken:
            raise limited(key, self._rate, left)


class Counts:
    """The calls left of each caller. `rate`: calls a second and caller."""

    def __init__(self, rate: float, clock: Clock = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._buckets: dict[str, Bucket] = {}

    def take(self, key: str, wanted: int, known: float | None = None, alone: bool = False) -> tuple[int, float]:
        """Take up to `wanted` calls; returns how many, and how many are left.

        `known`: what the asker believes to be left, which is where a lost count begins again; None: all. `alone`: it
        has allowed calls without this count, so no more is left than it believes.
        """
        now, believed = self._clock(), full(self._rate) if known is None else known
        bucket = self._buckets.setdefault(key, Bucket(self._rate, believed, now))
        left = bucket.refill(now)
        if alone:
            left = bucket.left = min(left, believed)
        taken = min(wanted, max(0, int(left)))
        bucket.left -= taken
        return taken, bucket.left


Ask = Callable[[str, int, float | None, bool], Coroutine[Any, Any, tuple[int, float]]]


@dataclass(slots=True)
class _Account:
    """A caller as a gateway sees it.

    `portion`: calls that it has taken and not yet allowed; `bucket`: the whole limit, as last heard; `alone`: whether
    it has allowed calls since without the count; `pause`: until when it does not ask again.
    """

    portion: int = 0
    bucket: Bucket | None = None
    alone: bool = False
    pause: float = 0.0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class SharedLimit:
    """One gateway's view of limits that all share. `ask`: `Counts.take`, which raises TemporaryError if it is lost."""

    def __init__(self, rate: float, gateways: int, ask: Ask, clock: Clock = time.monotonic) -> None:
        self._rate, self._gateways, self._ask, self._clock = rate, gateways, ask, clock
        self._portion = max(1, round(rate * PORTION))
        self._accounts: dict[str, _Account] = {}
        self._without = 0.0  # until when the count is taken for lost

    async def take(self, key: str) -> None:
        """See `Limit`."""
        account = self._accounts.setdefault(key, _Account())
        if not account.portion:
            async with account.asking:  # one call asks, the others wait for what it brings
                if not account.portion and self._clock() >= account.pause:
                    await self._fetch(key, account)
                if not account.portion:
                    raise limited(key, self._rate, account.bucket.left if account.bucket else 0.0)
                account.portion -= 1
                return
        account.portion -= 1

    async def _fetch(self, key: str, account: _Account) -> None:
        """Take a portion, or a single call while the count is lost."""
        if self._clock() >= self._without:
            known = account.bucket.refill(self._clock()) if account.bucket else None
            try:
                async with asyncio.timeout(PATIENCE):
                    taken, left = await self._ask(key, self._portion, known, account.alone)
            except (TemporaryError, TimeoutError):
                self._without = self._clock() + WITHOUT
            else:
                now = self._clock()
                account.portion, account.alone, account.bucket = taken, False, Bucket(self._rate, left, now)
                account.pause = 0.0 if taken == self._portion else now + PAUSE
                return
        self._take_alone(account)

    def _take_alone(self, account: _Account) -> None:
        """Count a call for as many as there are gateways: each of them does so."""
        now, most = self._clock(), max(full(self._rate), self._gateways)
        if account.bucket is None:
            account.bucket = Bucket(self._rate, most, now)
        if account.bucket.refill(now, most) >= self._gateways:
            account.bucket.left -= self._gateways
            account.portion, account.alone = 1, True


def limited(key: str, rate: float, left: float) -> RequestError:
    """The error for a call beyond the limit. `key`: empty for all callers together."""
    words = f"rate limit of {rate:g} calls per second reached for {'this caller' if key else 'all callers'}"
    return RequestError(429, "rate_limited", words, retry_after=max(0.0, 1 - left) / rate)
