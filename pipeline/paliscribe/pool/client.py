"""Clients of a pool: `PoolClient` for runs, which blocks and retries; `PoolBackend` for the endpoint."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from ray import exceptions, serve
from ray.exceptions import RayError

from paliscribe.errors import ReplicaError, RequestError, RunError
from paliscribe.pool.address import PoolAddress
from paliscribe.pool.isolation import isolate
from paliscribe.pool.ray_cluster import unwrapped
from paliscribe.pool.replica import ReplicaFacts
from paliscribe.records import Piece, Prediction, Request

log = logging.getLogger(__name__)
GRACE = 5.0  # seconds beyond the timeout, for the engine to report the expiry itself
PULSE_TIMEOUT = 10.0  # seconds for all replicas to say what they have done
MAX_LOSSES = 3  # replicas lost to a live call before it fails
LOSSES = (  # a replica was lost, or its answer with its node
    exceptions.RayActorError,
    exceptions.OutOfMemoryError,
    exceptions.NodeDiedError,
    exceptions.WorkerCrashedError,
    exceptions.ObjectLostError,
)


class PoolClient:
    """Calls a pool from a process of the cluster, and survives the loss of replicas.

    Serve does not retry a call that a replica had accepted when it died; this client does, in pieces, so that a request
    that no replica survives is isolated and fails: see `isolation`.
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

    def pulse(self) -> float | None:
        """A number that changes while the replicas work; None if not all of them answer."""
        with contextlib.suppress(Exception):  # the pool is not deployed, or replicas are lost or hang
            stats = self._handle.broadcast("stats").results(timeout_s=PULSE_TIMEOUT)
            return float(sum(each.steps + each.embedded for each in stats))
        return None

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
            with _translated_errors():
                answers: list[Prediction] = self._response.result(timeout_s=self._client.timeout)
                return answers
        except TimeoutError:
            raise self._late() from None
        except RequestError as error:
            raise RunError(f"a replica failed: {error}") from error
        except ReplicaError as error:
            log.warning("a replica was lost (%s); its %d requests are repeated", error, len(self._requests))
        return asyncio.run(isolate(self._requests, self._apart))

    async def _apart(self, requests: list[Request], size: int) -> AsyncIterator[list[Prediction]]:
        """`Replica.predict_apart` of any replica."""
        parts = self._client._handle.options(stream=True).predict_apart.remote(requests, size)
        while True:
            try:
                with _translated_errors():
                    part: list[Prediction] = await asyncio.wait_for(anext(parts), self._client.timeout)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise self._late() from None
            except RequestError as error:
                raise RunError(f"a replica failed: {error}") from error
            yield part

    def _late(self) -> RunError:
        return RunError(f"the pool did not answer within {self._client.timeout:.0f} s")


class PoolBackend:
    """A Serve handle as a `Backend`. A plain call is retried on another replica if its replica is lost."""

    def __init__(self, handle: Any, timeout: float) -> None:
        self._handle, self._timeout = handle, timeout

    async def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        """See `Backend`."""
        for losses in range(MAX_LOSSES):
            await asyncio.sleep(losses)  # a replica that has failed takes calls until it has ended
            with _http_errors():
                answers: list[Prediction] = await asyncio.wait_for(
                    self._handle.predict.remote(list(requests)), self._timeout + GRACE
                )
                return answers
        raise RequestError(503, "replica_lost", f"{MAX_LOSSES} replicas were lost while working on this call")

    async def stream(self, request: Request) -> AsyncIterator[Piece | Prediction]:
        """See `Backend`. A stream that has sent a part is not retried: the client has seen its beginning."""
        for losses in range(MAX_LOSSES):
            await asyncio.sleep(losses)
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
        if isinstance(error, LOSSES):
            raise ReplicaError(_how_lost(error)) from error
        cause = getattr(error, "cause", error)
        raise RunError(f"a replica failed: {type(cause).__name__}: {cause}") from error


def _how_lost(error: RayError) -> str:
    """How a replica was lost, in words."""
    said = str(error)
    if isinstance(error, exceptions.OutOfMemoryError) or "OUT_OF_MEMORY" in said:
        return "its node ran out of memory, and Ray ended its process"
    if isinstance(error, exceptions.NodeDiedError) or "its node has died" in said:
        return "its node was lost"
    if isinstance(error, exceptions.ActorDiedError | exceptions.WorkerCrashedError):
        return "its process ended: it crashed, or was killed, as for lack of memory"
    return type(error).__name__
