"""Requests that no replica survives are told apart from their neighbours, with few replicas."""

import asyncio
import math
from collections.abc import AsyncIterator, Collection

import pytest

from bench.poison import KINDS, expected, made, measured, request, verdict
from paliscribe.errors import ReplicaError, RunError
from paliscribe.pool.company import Company
from paliscribe.pool.deploy import failed_starts
from paliscribe.pool.isolation import MOST_LOSSES, PIECES, PROOFS, isolate
from paliscribe.records import Prediction, Request


class Mortal:
    """Replicas that die of some requests, and by chance in some attempts."""

    def __init__(self, poisons: Collection[int], spot: Collection[int] = (), refusals: Collection[int] = ()) -> None:
        self.poisons, self.spot, self.refusals, self.attempts, self.deaths = poisons, spot, refusals, 0, 1

    async def apart(self, requests: list[Request], size: int) -> AsyncIterator[list[Prediction]]:
        self.attempts += 1
        if self.attempts in self.refusals:
            raise ReplicaError("the engine is not running")
        yield []
        for start in range(0, len(requests), size):
            piece = requests[start : start + size]
            if self.attempts in self.spot or any(int(each.id) in self.poisons for each in piece):
                self.deaths += 1
                raise ReplicaError("its process ended")
            yield [expected(each) for each in piece]

    def isolated(self, count: int) -> list[str | None]:
        """The error kinds of the answers; those of good requests are verified."""
        requests = [request(number) for number in range(count)]
        answers = asyncio.run(isolate(requests, self.apart))
        assert [answer.id for answer in answers] == [each.id for each in requests]
        good = [(a, expected(r)) for a, r in zip(answers, requests, strict=True) if a.error_kind is None]
        assert all(answer == wanted for answer, wanted in good)
        return [answer.error_kind for answer in answers]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paliscribe.pool.isolation.PAUSES", (0.0, 0.0))


@pytest.mark.parametrize("count", [1, 2, 8, 9, 64, 512, 4096])
def test_one_in_many_costs_a_logarithm_of_replicas(count: int) -> None:
    for place in {0, count // 3, count - 1}:
        replicas = Mortal({place})
        kinds = replicas.isolated(count)
        assert [number for number, kind in enumerate(kinds) if kind] == [place]
        assert replicas.deaths <= math.ceil(math.log(count, PIECES)) + 1 + PROOFS


def test_several_in_one_call() -> None:
    poisons = {3, 4, 200, 511}
    replicas = Mortal(poisons)
    kinds = replicas.isolated(512)
    assert {number for number, kind in enumerate(kinds) if kind == "replica_lost"} == poisons
    assert replicas.deaths <= 4 * (3 + PROOFS)


def test_a_loss_by_chance_fails_nobody() -> None:
    for spot in ({1}, {1, 2}, {2, 3}):
        assert Mortal(set(), spot).isolated(100) == [None] * 100
    assert Mortal(set(), {1}).isolated(1) == [None], "one loss is no proof, even of a request that was alone"


def test_replicas_that_had_not_begun_are_no_proof() -> None:
    replicas = Mortal({1}, refusals={1, 2, 4, 5, 6})
    assert replicas.isolated(3) == [None, "replica_lost", None]
    with pytest.raises(RunError, match=r"100 replicas in a row were lost before they began a call; the last: the eng"):
        Mortal(set(), refusals=range(1000)).isolated(1)


def test_a_call_is_the_end_of_so_many_replicas_at_most() -> None:
    replicas = Mortal(range(512))
    assert set(replicas.isolated(512)) == {"replica_lost"}
    assert replicas.deaths == MOST_LOSSES


def test_calls_together_and_alone() -> None:
    async def check() -> None:
        company, inside, most = Company(), [], []

        async def work(name: str) -> None:
            async with company.alone() if name == "alone" else company.together():
                inside.append(name)
                most.append(sorted(inside))
                await asyncio.sleep(0.01)
                inside.remove(name)

        await asyncio.gather(*(work(name) for name in ("a", "b", "alone", "c", "d")))
        assert most == [["a"], ["a", "b"], ["alone"], ["c"], ["c", "d"]]

    asyncio.run(check())


def test_processes_that_crash_hang_and_swell(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real watch, in processes that are really lost. A replica that ends refuses calls meanwhile."""
    monkeypatch.setattr("paliscribe.pool.isolation.PAUSES", (0.1, 1.0))
    requests = made(256, len(KINDS), seed=3)
    found = verdict(requests, asyncio.run(measured(requests, replicas=4, limit=2.0)))
    assert (found["dead letters"], found["innocent ones"], found["wrong or missing"]) == (len(KINDS), 0, 0)
    assert {"SIGSEGV", "exit 1"} <= set(found["lost"]), "by a crash, and by the watch"


@pytest.mark.parametrize(
    ("replicas", "fitting", "most"), [(1, 1, 2), (2, 2, 2), (4, 0, 4), (100, 0, 8), (100, 100, 100), (300, 40, 40)]
)
def test_failed_starts_of_a_pool(replicas: int, fitting: int, most: int) -> None:
    assert failed_starts(replicas, fitting) == most
