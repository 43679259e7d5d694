"""Rate limits: of one gateway, and of gateways that share them, also while the shared count is lost."""

import asyncio
import contextlib
import hashlib
from typing import Any

import pytest

from paliscribe.errors import RequestError, TemporaryError
from paliscribe.online.keys import Keys
from paliscribe.online.limits import BURST, PAUSE, WITHOUT, Counts, Limit, LocalLimit, SharedLimit

ONE, TWO = "the-first-key-of-two", "the-second-key-of-two"
HASHES = {hashlib.sha256(key.encode()).hexdigest(): "" for key in (ONE, TWO)}
OTHER = hashlib.sha256(b"a-key-of-its-own").hexdigest()


class Shared:
    """Gateways that share limits, on a clock of ours. `lost`: the count does not answer. `asked`: how often it did."""

    def __init__(self, rate: float, gateways: int) -> None:
        self.now, self.rate, self.lost, self.asked = 0.0, rate, False, 0
        self.limits = [SharedLimit(rate, gateways, self.ask, lambda: self.now) for _ in range(gateways)]
        self.restart()

    def restart(self) -> None:
        self.counts = Counts(self.rate, lambda: self.now)

    async def ask(self, *question: Any) -> tuple[int, float]:
        if self.lost:
            raise TemporaryError("lost")
        self.asked += 1
        return self.counts.take(*question)

    def allowed(self, seconds: float, *gateways: int, offered: float = 4.0) -> int:
        """Calls that these gateways allow a key, in turns, at `offered` times the rate."""
        count = round(seconds * self.rate * offered)

        async def calls() -> int:
            found = 0
            for number in range(count):
                self.now += seconds / count
                found += await allows(self.limits[gateways[number % len(gateways)]], "key")
            return found

        return asyncio.run(calls())


async def allows(limit: Limit, key: str) -> bool:
    try:
        await limit.take(key)
    except RequestError as error:
        assert error.status == 429 and error.code == "rate_limited" and error.retry_after is not None
        return False
    return True


def test_each_key_has_its_own_rate_limit() -> None:
    now = [0.0]
    keys = Keys(HASHES, LocalLimit(0.5, lambda: now[0]))
    for _ in range(5):
        asyncio.run(keys.admit(f"Bearer {ONE}"))
    with pytest.raises(RequestError) as refused:
        asyncio.run(keys.admit(f"Bearer {ONE}"))
    assert refused.value.status == 429 and refused.value.retry_after == 2.0
    asyncio.run(keys.admit(f"bearer {TWO}"))
    now[0] += 2.0
    asyncio.run(keys.admit(f"Bearer {ONE}"))
    with pytest.raises(RequestError):
        asyncio.run(keys.admit(f"Bearer {ONE}"))


def test_keys_of_a_tenant_share_its_rate_limit_at_all_gateways() -> None:
    shared, tenants = Shared(rate=1.0, gateways=2), {**dict.fromkeys(HASHES, "acme"), OTHER: ""}
    gateways = [Keys(tenants, limit) for limit in shared.limits]

    async def allowed(key: str) -> int:
        found = 0
        for number in range(20):
            with contextlib.suppress(RequestError):
                await gateways[number % 2].admit(f"Bearer {key}")
                found += 1
        return found

    assert asyncio.run(allowed(ONE)) == BURST and asyncio.run(allowed(TWO)) == 0
    assert asyncio.run(allowed("a-key-of-its-own")) == BURST


def test_unknown_keys_have_no_bucket() -> None:
    limit = LocalLimit(1000)
    keys = Keys(HASHES, limit)

    async def calls() -> None:
        for number in range(1000):
            with pytest.raises(RequestError):
                await keys.admit(f"Bearer an-unknown-key-{number}")
            await keys.admit(f"Bearer {ONE if number % 2 else TWO}")

    asyncio.run(calls())
    assert len(limit._counts._buckets) == 2


def test_without_keys_all_callers_share_one_rate_limit() -> None:
    keys = Keys({}, LocalLimit(0.1, lambda: 0.0))
    asyncio.run(keys.admit("Bearer whatever"))
    with pytest.raises(RequestError) as refused:
        asyncio.run(keys.admit(None))
    assert refused.value.status == 429 and refused.value.retry_after == 10.0


@pytest.mark.parametrize("rate", [0.2, 3, 50, 400])
@pytest.mark.parametrize("gateways", [2, 4])
def test_gateways_allow_together_what_one_would(rate: float, gateways: int) -> None:
    shared = Shared(rate, gateways)
    seconds = 20 + 20 / rate
    held = gateways * 0.1 * rate
    assert shared.allowed(seconds, *range(gateways)) == pytest.approx((10 + seconds) * rate, abs=1 + held)
    busy = shared.allowed(seconds, 0)  # one gateway gets all, such as when the others are lost
    assert busy == pytest.approx(seconds * rate, abs=1 + held)
    assert shared.asked < 2.2 / PAUSE * 2 * (seconds + 1) * gateways, "not once a call"


def test_most_calls_ask_nobody() -> None:
    shared = Shared(400, 2)
    shared.allowed(20, 0, 1, offered=0.5)
    assert shared.asked <= 4000 / 40 + 2


@pytest.mark.parametrize("rate", [0.2, 3, 50])
def test_without_the_count_each_gateway_allows_its_part(rate: float) -> None:
    shared = Shared(rate, 2)
    seconds = 20 + 40 / rate
    shared.allowed(seconds, 0, 1)
    shared.lost = True
    assert shared.allowed(seconds, 0, 1) == pytest.approx(seconds * rate, rel=0.1, abs=2)
    assert shared.allowed(seconds, 0) == pytest.approx(seconds * rate / 2, rel=0.1, abs=2)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_count_that_comes_back_gives_no_second_burst(is_new: bool) -> None:
    shared = Shared(20, 2)
    shared.allowed(30, 0, 1)
    shared.lost = True
    shared.allowed(15, 0, 1)
    shared.lost = False
    if is_new:
        shared.restart()
    shared.now += WITHOUT
    assert shared.allowed(30, 0, 1) == pytest.approx((30 + WITHOUT) * 20, rel=0.1)


def test_a_count_that_does_not_answer_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paliscribe.online.limits.PATIENCE", 0.05)
    asked = []

    async def silent(*question: Any) -> tuple[int, float]:
        asked.append(question)
        await asyncio.Event().wait()
        raise AssertionError

    async def calls() -> None:
        limit = SharedLimit(10, 2, silent)
        await asyncio.gather(*(limit.take("key") for _ in range(40)))

    asyncio.run(calls())
    assert len(asked) == 1
