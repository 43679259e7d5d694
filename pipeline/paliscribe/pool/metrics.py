"""Prometheus metrics, exported by Ray on every node. Serve adds labels for application, deployment and replica."""

import threading
from collections import Counter
from collections.abc import Sequence

from ray.serve import metrics

from paliscribe.engine.stats import EngineStats
from paliscribe.records import ONLINE, Prediction, Request

PERIOD = 2.0  # seconds between updates
BUCKETS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]


class ReplicaMetrics:
    """Metrics of one replica: answers, and the engine's current state."""

    def __init__(self) -> None:
        labels = ("priority", "outcome")
        self._answers = metrics.Counter("paliscribe_answers", "Requests answered; outcome: ok or the error", labels)
        self._tokens = metrics.Counter("paliscribe_tokens", "Tokens generated", ("priority",))
        self._images = metrics.Counter("paliscribe_images", "Images encoded")
        self._first = metrics.Histogram(
            "paliscribe_first_token_seconds", "Submission to first token", BUCKETS, ("priority",)
        )
        self._seconds = metrics.Histogram(
            "paliscribe_answer_seconds", "Submission to the whole answer", BUCKETS, ("priority",)
        )
        self._reused = metrics.Counter("paliscribe_reused", "Requests whose image embedding was cached")
        self._steps = metrics.Counter("paliscribe_steps", "Engine steps")
        self._busy = metrics.Counter("paliscribe_busy_seconds", "Seconds that the engine spent in steps")
        self._step = metrics.Gauge("paliscribe_step_seconds", "Seconds since the current engine step started; 0: none")
        self._load = metrics.Gauge(
            "paliscribe_load_seconds", "Seconds that loading the weights and starting the engine took"
        )
        self._waiting = metrics.Gauge("paliscribe_queue", "Requests queued", ("priority",))
        self._live = metrics.Gauge("paliscribe_slots_in_use", "Requests running")
        self._slots = metrics.Gauge("paliscribe_slots", "Requests that can run at once")
        self._before = {"embedded": 0.0, "reused": 0.0, "steps": 0.0, "busy": 0.0}
        self._lock = threading.Lock()

    def answered(self, requests: Sequence[Request], predictions: Sequence[Prediction]) -> None:
        """Count answered requests."""
        outcomes: Counter[tuple[str, str]] = Counter()
        tokens: Counter[str] = Counter()
        for request, prediction in zip(requests, predictions, strict=True):
            priority = priority_name(request)
            outcomes[priority, prediction.error_kind or "ok"] += 1
            tokens[priority] += len(prediction.tokens)
            if prediction.first_token is not None:
                self._first.observe(max(prediction.first_token, 1e-6), {"priority": priority})
            if prediction.seconds is not None:
                self._seconds.observe(max(prediction.seconds, 1e-6), {"priority": priority})
        for (priority, outcome), count in outcomes.items():
            self._answers.inc(count, {"priority": priority, "outcome": outcome})
        for priority, count in tokens.items():
            if count:
                self._tokens.inc(count, {"priority": priority})

    def refused(self, requests: Sequence[Request], outcome: str) -> None:
        """Count refused requests."""
        for request in requests:
            self._answers.inc(1, {"priority": priority_name(request), "outcome": outcome})

    def update(self, stats: EngineStats, step: float, load: float) -> None:
        """Export the engine's state. `step`: seconds of the current step; `load`: seconds until the engine started.

        Ray drops gauges that are not set for 20 seconds, so a dead replica's disappear.
        """
        self._waiting.set(stats.waiting_online, {"priority": "online"})
        self._waiting.set(stats.waiting - stats.waiting_online, {"priority": "batch"})
        self._live.set(stats.live)
        self._slots.set(stats.slots)
        self._step.set(step)
        self._load.set(load)
        counters = {"embedded": self._images, "reused": self._reused, "steps": self._steps, "busy": self._busy}
        with self._lock:
            now = {name: float(getattr(stats, name)) for name in counters}
            fresh, self._before = {name: now[name] - self._before[name] for name in now}, now
        for name, counter in counters.items():
            if fresh[name]:
                counter.inc(fresh[name])


class GatewayMetrics:
    """Metrics of one gateway: HTTP calls, and its file of keys."""

    def __init__(self) -> None:
        self._calls = metrics.Counter("paliscribe_calls", "HTTP calls", ("path", "status"))
        self._seconds = metrics.Histogram("paliscribe_call_seconds", "Duration of a call", BUCKETS, ("path",))
        self._unusable = metrics.Gauge("paliscribe_keys_unusable", "1: the file of keys cannot be used, older keys are")

    def call(self, path: str, status: int, seconds: float) -> None:
        """Count a finished call. `path` is a route of the application, so label values are few."""
        self._calls.inc(1, {"path": path, "status": str(status)})
        self._seconds.observe(max(seconds, 1e-6), {"path": path})

    def keys(self, usable: bool) -> None:
        """Say whether the file of keys can be used."""
        self._unusable.set(0 if usable else 1)


def priority_name(request: Request) -> str:
    """A request's priority as a metric label."""
    return "online" if request.priority == ONLINE else "batch"
