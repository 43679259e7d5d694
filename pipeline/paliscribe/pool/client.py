"""Clients of a pool: `PoolClient` for runs, which blocks and retries; `PoolBackend` for the endpoint."""

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from paliscribe.errors import ReplicaError, RequestError, RunError
from paliscribe.pool.address import PoolAddress
from paliscribe.pool.ray_cluster import unwrapped
from paliscribe.pool.replica import ReplicaFacts
from paliscribe.records import Piece, Prediction, Request

GRACE = 5.0  # seconds beyond the timeout, for the engine to report the expiry itself
MAX_LOSSES = 3  # replicas lost to one request before it fails


class PoolClient:
    """Calls a pool from a process of the cluster, and survives the loss of replicas.

    Serve does not retry a call that a replica had accepted when it died; this client does. A lost call is bisected, so
    that a request that kills replicas is isolated, and fails after `MAX_LOSSES` of them.
    """

    def __init__(self, address: PoolAddress, timeout: float = 3600.0) -> None:
        self.timeout, self._address = timeout, address

    @functools.cached_property
    def _handle(self) -> Any:
        """Serve's handle; the pool must have been deployed."""
        return serve.get_deployment_handle(self._address.deployment, self._address.application)

    def facts(self) -> ReplicaFacts:
        """Facts of any one replica. Raises RunError if none answers in time."""
        try:
            facts: ReplicaFacts = self._handle.facts.remote().result(timeout_s=self.timeout)
        except TimeoutError:
            raise RunError(f"the pool did not answer within {self.timeout:.0f} s") from None
        return facts

    @functools.cached_property
    def slots(self) -> int:
        """Slots of a replica."""
        return self.facts().slots

    def send(self, requests: Sequence[Request]) -> "PendingCall":
        """Start a call; `PendingCall.result` waits for its answers."""
        return PendingCall(self, list(requests))

    def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        """Answer requests, in order. Raises RunError if the pool does not answer in time."""
        return self.send(requests).result()


class PendingCall:
    """A call in flight."""

    def __init__(self, client: PoolClient, requests: list[Request]) -> None:
        self._client, self._requests = client, requests
        self._response = client._handle.predict.remote(requests)

    def result(self) -> list[Prediction]:
        """Wait for the answers; retry lost calls. Raises RunError if the pool does not answer in time."""
        try:
            return self._wait(self._response)
        except ReplicaError as error:
            return self._repeat(error)

    def _repeat(self, first: ReplicaError) -> list[Prediction]:
        answers: dict[int, Prediction] = {}
        waiting = deque([(range(len(self._requests)), 1, first)])
        while waiting:
            places, losses, error = waiting.popleft()
            if len(places) == 1 and losses >= MAX_LOSSES:
                request = self._requests[places[0]]
                message = f"{losses} replicas were lost while working on this request; last error: {error}"
                answers[places[0]] = Prediction(request.id, "", (), (), None, "replica_lost", message)
                continue
            middle = len(places) // 2
            for half in (places[:middle], places[middle:]) if middle else (places,):
                time.sleep(min(0.5 * losses, 5.0))  # time for a replacement to start
                try:
                    found = self._wait(self._client._handle.predict.remote([self._requests[i] for i in half]))
                    answers.update(zip(half, found, strict=True))
                except ReplicaError as again:
                    waiting.append((half, losses + 1, again))
        return [answers[place] for place in range(len(self._requests))]

    def _wait(self, response: Any) -> list[Prediction]:
        try:
            with _translated_errors():
                answers: list[Prediction] = response.result(timeout_s=self._client.timeout)
                return answers
        except TimeoutError:
            raise RunError(f"the pool did not answer within {self._client.timeout:.0f} s") from None
        except RequestError as error:
            raise RunError(f"a replica failed: {error}") from error


class PoolBackend:
    """A Serve handle as a `Backend`. A plain call is retried on another replica if its replica is lost."""

    def __init__(self, handle: Any, timeout: float) -> None:
        self._handle, self._timeout = handle, timeout

    async def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        """See `Backend`."""
        for _ in range(MAX_LOSSES):
            with _http_errors():
                answers: list[Prediction] = await asyncio.wait_for(
                    self._handle.predict.remote(list(requests)), self._timeout + GRACE
                )
                return answers
        raise RequestError(503, "replica_lost", f"{MAX_LOSSES} replicas were lost while working on this call")

    async def stream(self, request: Request) -> AsyncIterator[Piece | Prediction]:
        """See `Backend`. A stream that has sent a part is not retried: the client has seen its beginning."""
        for _ in range(MAX_LOSSES):
            begun = False
            parts = self._handle.options(stream=True).stream.remote(request)
            try:
                with _http_errors():
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
                raise RequestError(503, "replica_lost", "the replica was lost mid-stream; retry")
        raise RequestError(503, "replica_lost", f"{MAX_LOSSES} replicas were lost while working on this call")


@contextlib.contextmanager
def _http_errors() -> Iterator[None]:
    """Raise a call's errors as RequestError with an HTTP status. Suppresses ReplicaError: the caller retries."""
    try:
        with _translated_errors():
            yield
    except ReplicaError:
        return
    except TimeoutError:
        raise RequestError(504, "expired", "no replica answered in time") from None
    except RunError as error:
        raise RequestError(500, "internal_error", "a replica failed on this call") from error


@contextlib.contextmanager
def _translated_errors() -> Iterator[None]:
    """Translate Ray's errors: a wrapped PaliscribeError itself, ReplicaError if the replica is lost, else RunError."""
    try:
        yield
    except TimeoutError:  # some of Ray's errors are TimeoutErrors too
        raise
    except RayError as error:
        if (inner := unwrapped(error)) is not None:
            raise inner from None
        if isinstance(error, RayActorError | ActorUnavailableError):
            raise ReplicaError(type(error).__name__) from error
        cause = getattr(error, "cause", error)
        raise RunError(f"a replica failed: {type(cause).__name__}: {cause}") from error
