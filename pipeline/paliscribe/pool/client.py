"""What calls a pool: `PoolClient` for a run, which waits and repeats, `PoolBackend` for the endpoint."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from paliscribe.errors import ReplicaError, RequestError, RunError
from paliscribe.pool.deploy import PoolAddress
from paliscribe.pool.ray_cluster import unwrapped
from paliscribe.pool.replica import ReplicaFacts
from paliscribe.records import Piece, Prediction, Request

GRACE = 5.0  # seconds that an engine gets to say itself that a request has expired
LOSSES = 3  # replicas that one request may outlive the loss of before it is given up


class PoolClient:
    """Calls a pool from a process of the cluster, and outlives the loss of replicas.

    Serve does not repeat a call that a replica had accepted when it died: the client does. A call that was lost
    is repeated in halves, so that a request that kills replicas ends alone and is given up after `LOSSES` of them.
    """

    def __init__(self, address: PoolAddress, timeout: float = 3600.0) -> None:
        self.timeout = timeout
        self._handle = serve.get_deployment_handle(address.deployment, address.application)

    def facts(self) -> ReplicaFacts:
        """What one of the replicas says of itself. Raises RunError if the pool stays without an answer."""
        try:
            facts: ReplicaFacts = self._handle.facts.remote().result(timeout_s=self.timeout)
        except TimeoutError:
            raise RunError(f"the pool gave no answer within {self.timeout:.0f} s") from None
        return facts

    def send(self, requests: Sequence[Request]) -> "PendingCall":
        """Begin a call; its answers come from `PendingCall.result`."""
        return PendingCall(self, list(requests))

    def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        """Answer requests in their order. Raises RunError if the pool stays without an answer."""
        return self.send(requests).result()


class PendingCall:
    """A call under way."""

    def __init__(self, client: PoolClient, requests: list[Request]) -> None:
        self._client, self._requests = client, requests
        self._response = client._handle.predict.remote(requests)

    def result(self) -> list[Prediction]:
        """Wait for the answers; repeat what was lost. Raises RunError if the pool stays without an answer."""
        try:
            return self._wait(self._response)
        except ReplicaError as error:
            return self._repeat(error)

    def _repeat(self, first: ReplicaError) -> list[Prediction]:
        answers: dict[int, Prediction] = {}
        waiting = deque([(range(len(self._requests)), 1, first)])
        while waiting:
            places, losses, error = waiting.popleft()
            if len(places) == 1 and losses >= LOSSES:
                request = self._requests[places[0]]
                message = f"{losses} replicas were lost while they worked on this request; the last: {error}"
                answers[places[0]] = Prediction(request.id, "", (), (), None, "replica_lost", message)
                continue
            middle = len(places) // 2
            for half in (places[:middle], places[middle:]) if middle else (places,):
                time.sleep(min(0.5 * losses, 5.0))  # a replacement needs a moment
                try:
                    found = self._wait(self._client._handle.predict.remote([self._requests[i] for i in half]))
                    answers.update(zip(half, found, strict=True))
                except ReplicaError as again:
                    waiting.append((half, losses + 1, again))
        return [answers[place] for place in range(len(self._requests))]

    def _wait(self, response: Any) -> list[Prediction]:
        try:
            with _calling():
                answers: list[Prediction] = response.result(timeout_s=self._client.timeout)
                return answers
        except TimeoutError:
            raise RunError(f"the pool gave no answer within {self._client.timeout:.0f} s") from None
        except RequestError as error:
            raise RunError(f"a replica failed: {error}") from error


class PoolBackend:
    """Replicas behind a Serve handle. A plain call that is lost with its replica is repeated on another one."""

    def __init__(self, handle: Any, timeout: float) -> None:
        self._handle, self._timeout = handle, timeout

    async def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        """See `Backend`."""
        for _ in range(LOSSES):
            with _for_callers():
                answers: list[Prediction] = await asyncio.wait_for(
                    self._handle.predict.remote(list(requests)), self._timeout + GRACE
                )
                return answers
        raise RequestError(503, "replica_lost", f"{LOSSES} replicas were lost while they worked on this call")

    async def stream(self, request: Request) -> AsyncIterator[Piece | Prediction]:
        """See `Backend`. A stream that had begun is not repeated: its beginning may have been shown."""
        for _ in range(LOSSES):
            begun = False
            parts = self._handle.options(stream=True).stream.remote(request)
            try:
                with _for_callers():
                    while True:
                        try:
                            part = await asyncio.wait_for(anext(parts), self._timeout + GRACE)
                        except StopAsyncIteration:
                            return
                        begun = True
                        yield part
            finally:
                parts.cancel()
            if begun:
                raise RequestError(503, "replica_lost", "the replica was lost in mid-answer; ask again")
        raise RequestError(503, "replica_lost", f"{LOSSES} replicas were lost while they worked on this call")


@contextlib.contextmanager
def _for_callers() -> Iterator[None]:
    """Errors of a call as HTTP has them; the loss of a replica ends the block without an error."""
    try:
        with _calling():
            yield
    except ReplicaError:
        return
    except TimeoutError:
        raise RequestError(504, "expired", "no replica answered in time") from None
    except RunError as error:
        raise RequestError(500, "internal_error", "a replica failed on this call") from error


@contextlib.contextmanager
def _calling() -> Iterator[None]:
    """Translate errors of a call: ReplicaError if the replica is lost, else what it raised if ours, else RunError."""
    try:
        yield
    except TimeoutError:  # one of Ray's is both
        raise
    except RayError as error:
        if (inner := unwrapped(error)) is not None:
            raise inner from None
        if isinstance(error, RayActorError | ActorUnavailableError):
            raise ReplicaError(type(error).__name__) from error
        cause = getattr(error, "cause", error)
        raise RunError(f"a replica failed: {type(cause).__name__}: {cause}") from error
