"""What Prometheus sees, through Ray's own exporter on every node. Serve adds application, deployment and replica."""

import threading
from collections import Counter
from collections.abc import Sequence

from ray.serve import metrics

from paliscribe.engine.stats import EngineStats
from paliscribe.records import ONLINE, Prediction, Request

PERIOD = 2.0  # seconds between two looks at an engine
SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]


class ReplicaMetrics:
    """Of one replica: what it has answered, and what it holds."""

    def __init__(self) -> None:
        told = ("priority", "outcome")
        self._answers = metrics.Counter("paliscribe_answers", "Requests answered; outcome: ok or the error", told)
        self._tokens = metrics.Counter("paliscribe_tokens", "Tokens written", ("priority",))
        self._images = metrics.Counter("paliscribe_images", "Images that passed the encoder")
        self._first = metrics.Histogram(
            "paliscribe_first_token_seconds", "Submission to first token", SECONDS, ("priority",)
        )
        self._seconds = metrics.Histogram(
            "paliscribe_answer_seconds", "Submission to the whole answer", SECONDS, ("priority",)
        )
        self._reused = metrics.Counter("paliscribe_reused", "Requests whose image had passed the encoder before")
        self._steps = metrics.Counter("paliscribe_steps", "Steps of the engine")
        self._step = metrics.Gauge("paliscribe_step_seconds", "How long the step under way has lasted; 0: none is")
        self._load = metrics.Gauge("paliscribe_load_seconds", "What loading the weights and starting the engine took")
        self._waiting = metrics.Gauge("paliscribe_queue", "Requests that wait", ("priority",))
        self._live = metrics.Gauge("paliscribe_slots_in_use", "Requests under way")
        self._slots = metrics.Gauge("paliscribe_slots", "Requests that may be under way")
        self._before = {"embedded": 0, "reused": 0, "steps": 0}
        self._lock = threading.Lock()

    def answered(self, requests: Sequence[Request], predictions: Sequence[Prediction]) -> None:
        """Book the answers to requests."""
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
        """Book requests that were not taken."""
        for request in requests:
            self._answers.inc(1, {"priority": priority_name(request), "outcome": outcome})

    def look(self, stats: EngineStats, step: float, load: float) -> None:
        """Show what an engine holds now. `step`: seconds of the step under way; `load`: seconds until it had started.

        Gauges that are not set again within 20 seconds leave the exporter, and so do those of a replica that has died.
        """
        self._waiting.set(stats.waiting_online, {"priority": "online"})
        self._waiting.set(stats.waiting - stats.waiting_online, {"priority": "batch"})
        self._live.set(stats.live)
        self._slots.set(stats.slots)
        self._step.set(step)
        self._load.set(load)
        counters = {"embedded": self._images, "reused": self._reused, "steps": self._steps}
        with self._lock:
            now = {name: int(getattr(stats, name)) for name in counters}
            fresh, self._before = {name: now[name] - self._before[name] for name in now}, now
        for name, counter in counters.items():
            if fresh[name]:
                counter.inc(fresh[name])


class GatewayMetrics:
    """Of one gateway: its calls."""

    def __init__(self) -> None:
        self._calls = metrics.Counter("paliscribe_calls", "HTTP calls", ("path", "status"))
        self._seconds = metrics.Histogram("paliscribe_call_seconds", "Until a call was over", SECONDS, ("path",))

    def call(self, path: str, status: int, seconds: float) -> None:
        """Book a call that is over; `path` is a route of the application, so there are few."""
        self._calls.inc(1, {"path": path, "status": str(status)})
        self._seconds.observe(max(seconds, 1e-6), {"path": path})


def priority_name(request: Request) -> str:
    """Of a request, as metrics call it."""
    return "online" if request.priority == ONLINE else "batch"
