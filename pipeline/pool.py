"""The pool: every replica of one model behind one Serve deployment, and the client that calls it.

Serve owns the actors: it restarts, watches and routes to them. A batch finds the deployment of its model spec in
a running application and uses it, or starts a headless application of its own and removes it at the end. All Ray
errors of a call are translated here.
"""

import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from pipeline.autoscaling import ROWS, SLOTS, autoscaling
from pipeline.config import ModelSpec, PoolConfig
from pipeline.errors import ReplicaError, RequestError, RunError, UsageError
from pipeline.headless import HEADLESS, ends_with_driver, headless_name
from pipeline.placement import actor_options, asked, has_gpus, live_nodes, refuse_what_cannot_come, room
from pipeline.records import Piece, Prediction, Request

DRAIN = 90.0  # seconds that a replica which is taken out gets to answer what it has begun; a call's limit is 60
STUCK = 120.0  # seconds of one step of the engine after which its device is taken to be broken
LOSSES = 3  # replicas that one request may outlive the loss of before it is given up


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

        from pipeline.engine import awaiting
        from pipeline.metrics import PERIOD, ReplicaMetrics
        from pipeline.replica import ready_engine

        begun = time.monotonic()
        self._awaiting, self._metrics, self._period = awaiting, ReplicaMetrics(), PERIOD
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
            predictions = await self._awaiting.predict(self.engine, requests)
        self._metrics.answered(requests, predictions)
        return [replace(prediction, replica=self._name) for prediction in predictions]

    async def stream(self, request: Request) -> AsyncIterator[Piece | Prediction]:
        """The pieces of one answer as they come, then its prediction."""
        with self._counting([request]):
            async for part in self._awaiting.stream(self.engine, request):
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


@dataclass(frozen=True, slots=True)
class PoolAddress:
    """Where a pool is: enough for any process of the cluster to call it."""

    application: str
    deployment: str
    replicas: int


def deployment_name(spec: ModelSpec, pool: str | None = None) -> str:
    """The deployment of this very spec, in a pool of this name: equal specs share replicas, unequal ones never do."""
    name = "replica-" + hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:12]
    return name if pool is None else f"{name}-{pool}"


@contextmanager
def open_pool(spec: ModelSpec, config: PoolConfig, run: str) -> Iterator[PoolAddress]:
    """Attach to a running pool of `spec`, or start one for this run, which ends with the block or with this driver.

    Raises RunError as `start_pool` does, and UsageError if the configuration names a pool that is not served.
    """
    if (served := served_pool(spec, config.name)) is not None:
        yield served
        return
    if config.name is not None:
        raise not_served(spec, config.name)
    application = headless_name(run)
    with ends_with_driver(application):
        yield start_pool(spec, config, application)


def start_pool(spec: ModelSpec, config: PoolConfig, application: str) -> PoolAddress:
    """Start the replicas of `spec` as a Serve application and wait until they have loaded their weights.

    Raises RunError if none comes up, with the replica's own last words, and UsageError as `replicas` does.
    """
    deployment, count = replicas(spec, config)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
    run_application(deployment, application)
    return PoolAddress(application, deployment_name(spec, config.name), count)


def replicas(spec: ModelSpec, config: PoolConfig, *, lasting: bool = False) -> tuple[serve.Application, int]:
    """The deployment of a spec's replicas on the cluster that is joined, and their number, of a scaled one the most.

    `lasting`: others than one run call it, so a replica that is taken out answers first what it has begun, and one that
    may be the only one is replaced only once its successor has loaded.
    Raises UsageError if Ray was started here, on one machine that does not have what a replica asks for.
    """
    config = config.model_copy(update={"gpus_per_replica": config.gpus(there=has_gpus())})
    each = config.gpus_per_replica or 0
    wanted = asked(config, each)
    refuse_what_cannot_come(wanted)
    count = config.replicas or config.max_replicas or room(live_nodes(), wanted)
    scaling = autoscaling(config, count)
    deployment = serve.deployment(
        name=deployment_name(spec, config.name),
        num_replicas=count if scaling is None else None,
        autoscaling_config=scaling,
        max_ongoing_requests=1024,  # the engine queues; batch callers bound themselves
        ray_actor_options=actor_options(config, each),
        max_surge_percent=100 if lasting and (scaling is not None or count == 1) else 0,  # its only replica answers on
        health_check_period_s=5,
        graceful_shutdown_timeout_s=DRAIN if scaling is not None or lasting else 5,
        max_constructor_retry_count=2,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(Replica)
    threads = config.threads or (max(1, (os.cpu_count() or 2) - 1) if not each else None)
    return deployment.bind(spec, threads, config), count


def run_application(application: serve.Application, name: str, route_prefix: str | None = None) -> None:
    """Deploy an application and wait until it runs. Raises RunError with its replicas' own last words."""
    try:
        serve.run(application, name=name, route_prefix=route_prefix, _local_testing_mode=False)
    except RuntimeError as error:
        status = serve.status().applications.get(name)
        said = [d.message for d in status.deployments.values()] if status else []
        lines = [line.strip() for message in [*said, str(error)] for line in message.splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith("pipeline.errors.")] or lines
        raise RunError(f"no replica came up: {telling[-1].removeprefix('pipeline.errors.')}") from None


def served_pool(spec: ModelSpec, name: str | None = None) -> PoolAddress | None:
    """A pool of this spec that somebody serves: the one of this name, if one is given, be it up or being brought up.

    A headless one of another run is left alone: it ends with it.
    """
    for application, deployment, replicas in _served(starting=name is not None):
        if deployment.startswith(deployment_name(spec)) and name in (None, _pool_of(deployment)):
            return PoolAddress(application, deployment, max(1, replicas))
    return None


def not_served(spec: ModelSpec, name: str) -> UsageError:
    """What to say where no pool of this name serves this spec: which pools there are."""
    found = [deployment for _, deployment, _ in _served()]
    of_spec = [deployment for deployment in found if deployment.startswith(deployment_name(spec))]
    of_others = [deployment for deployment in found if deployment not in of_spec]
    model = f"{spec.id} in {spec.precision}"
    lines = [f"no pool {name!r} of {model} is served here"]
    lines.append(f"of this model there is {_listed(of_spec)}" if of_spec else "of this model there is none")
    if of_others:
        lines.append(f"of other models, revisions or precisions {_listed(of_others)}")
    return UsageError("; ".join(lines))


def _pool_of(deployment: str) -> str | None:
    """The name of the pool whose deployment this is: what follows `replica-HASH-`."""
    return deployment.split("-", 2)[2] if deployment.count("-") > 1 else None


def _listed(deployments: Sequence[str]) -> str:
    return ", ".join(repr(name) if (name := _pool_of(found)) else "one without a name" for found in deployments)


def _served(*, starting: bool = True) -> list[tuple[str, str, int]]:
    """Application, deployment and number of replicas of every pool that somebody serves, or has begun to."""
    states = ("RUNNING", "DEPLOYING") if starting else ("RUNNING",)
    try:
        applications = serve.status().applications
    except Exception as error:  # no Serve instance on this cluster; the type is private to Ray
        logging.getLogger(__name__).debug("no running pools: %s", error)
        return []
    return [
        (name, deployment, sum(status.replica_states.values()))
        for name, application in applications.items()
        for deployment, status in application.deployments.items()
        if deployment.startswith("replica-") and application.status in states and not name.startswith(HEADLESS)
    ]


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
            answers: list[Prediction] = response.result(timeout_s=self._client.timeout)
            return answers
        except TimeoutError:
            raise RunError(f"the pool gave no answer within {self._client.timeout:.0f} s") from None
        except (RayActorError, ActorUnavailableError) as error:
            raise ReplicaError(f"{type(error).__name__}") from error
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ReplicaError):
                raise ReplicaError(str(cause)) from error
            raise RunError(f"a replica failed: {type(cause).__name__}: {cause}") from error
