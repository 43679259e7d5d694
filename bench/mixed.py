"""Online requests beside batch-priority requests in one engine: time to first token, and cost for the others.

    python -m bench.mixed [--models demo mid] [--probes 40] [--requests 384] [--rounds 3] [--json]

Online requests run one at a time on an idle engine; then the same number at random moments, while batch-priority
requests fill all their slots and more are queued. Measured from submission to first token: engine steps, and ms. Then
the same batch-priority requests run alone and with one online request for every ten, in turns. The online requests are
additional work, so an ideal engine keeps 1 / 1.1 of the rate.
"""

import argparse
import json
import random
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench import baseline
from bench.baseline import Subject
from bench.machine import machine
from paliscribe.engine import Engine
from paliscribe.records import ONLINE, Piece, Prediction, Request

WAITING = 64  # minimum number of queued batch-priority requests while the engine is saturated
CALL = 96  # requests per call
ONLINE_SHARE = 10  # batch-priority requests per online request


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Time to first token of one request."""

    steps: int
    milliseconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["demo", "mid"], default=["demo", "mid"])
    parser.add_argument("--probes", type=int, default=40, help="timed online requests")
    parser.add_argument(
        "--requests", type=int, default=384, help="batch-priority ones; the mid-size model gets a quarter"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {}
    for name in options.models:
        subject = baseline.demo() if name == "demo" else baseline.mid()
        subject.let_end(False)
        count = options.requests // (1 if name == "demo" else 4)
        waits = first_tokens(subject, options.probes)
        figures[name] = {"first_token": {k: summary(v) for k, v in waits.items()}}
        figures[name] |= rates(subject, count, options.rounds)
        print(words(name, figures[name]), flush=True)
    described = machine()
    print(f"\n{described['processor']}, {described['cores']} cores, commit {described['commit']}")
    if options.json:
        ratios = {f"{name}/{key}": found[key] for name, found in figures.items() for key in ("batch", "all")}
        for name, found in figures.items():
            idle, busy = (found["first_token"][state]["steps"] for state in ("idle", "saturated"))
            ratios[f"{name}/first-token/more-steps"] = busy["max"] - idle["max"]
        print(json.dumps({"machine": described, "figures": figures, "ratios": ratios}))


def first_tokens(subject: Subject, probes: int) -> dict[str, list[FirstToken]]:
    """Times to first token of online requests, on an idle and on a saturated engine."""
    online = [replace(request, priority=ONLINE) for request in baseline.requests("short", probes)]
    rng = random.Random(0)
    engine = Engine(subject.model)
    engine.start()
    try:
        for request in online:  # warm-up
            probe(engine, request)
        idle = [probe(engine, request) for request in online]
        feeding = threading.Event()
        feeder = threading.Thread(target=feed, args=(engine, feeding))
        feeder.start()
        while engine.stats().waiting < WAITING:
            time.sleep(0.01)
        saturated = []
        for request in online:
            time.sleep(rng.uniform(0, 2) * idle[0].milliseconds / 1e3)
            saturated.append(probe(engine, request))
        feeding.set()
        feeder.join()
    finally:
        engine.close()
    return {"idle": idle, "saturated": saturated}


def probe(engine: Engine, request: Request) -> FirstToken:
    """Submit a request with a new image key, and wait until it is finished."""
    first: list[FirstToken] = []
    fresh = replace(request, image_key=f"{request.image_key}-{time.monotonic_ns()}")
    before, begun = engine.stats().steps, time.perf_counter()

    def on_piece(_: Piece) -> None:
        if not first:
            first.append(FirstToken(engine.stats().steps - before, (time.perf_counter() - begun) * 1e3))

    engine.submit([fresh], on_piece)[0].result(120)
    return first[0]


def feed(engine: Engine, done: threading.Event) -> None:
    """Keep batch-priority requests queued until `done` is set; then cancel the rest."""
    load = baseline.requests("mixed", 2 * WAITING)
    futures: list[Future[Prediction]] = []
    while not done.is_set():
        if engine.stats().waiting < 2 * WAITING:
            futures += engine.submit(load)
        done.wait(0.002)
    for future in futures:
        future.cancel()


def rates(subject: Subject, count: int, rounds: int) -> dict[str, Any]:
    """Requests/s of batch-priority requests alone and beside online requests, and ratios."""
    wanted = baseline.requests("mixed", count + count // ONLINE_SHARE)
    batch, online = wanted[:count], [replace(request, priority=ONLINE) for request in wanted[count:]]
    engine = Engine(subject.model)
    run(engine, batch, [])  # warm-up
    interval = run(engine, batch, [])[0] / (len(online) + 1)
    seconds: dict[str, list[tuple[float, float]]] = {"alone": [], "mixed": []}
    for turn in range(rounds):
        for name in ("alone", "mixed") if turn % 2 else ("mixed", "alone"):
            seconds[name].append(run(engine, batch, online if name == "mixed" else [], interval))
    pairs = list(zip(seconds["alone"], seconds["mixed"], strict=True))
    return {
        "alone_per_second": statistics.median(count / alone for alone, _ in seconds["alone"]),
        "batch_per_second": statistics.median(count / batch_done for batch_done, _ in seconds["mixed"]),
        "batch": statistics.median(alone[0] / mixed[0] for alone, mixed in pairs),
        "all": statistics.median((1 + len(online) / count) * alone[1] / mixed[1] for alone, mixed in pairs),
    }


def run(
    engine: Engine, batch: Sequence[Request], online: Sequence[Request], interval: float = 0.0
) -> tuple[float, float]:
    """Seconds until `batch` is finished, and until all are. `batch` is submitted in calls, `online` one by one."""
    engine.forget_images()
    begun = time.perf_counter()
    finished: list[float] = []
    called = sent = 0
    while engine.step() or len(finished) < len(batch) or sent < len(online):
        if called < len(batch) and engine.stats().waiting < WAITING:
            for future in engine.submit(batch[called : called + CALL]):
                future.add_done_callback(lambda _: finished.append(time.perf_counter() - begun))
            called += CALL
        while sent < len(online) and time.perf_counter() - begun >= (sent + 1) * interval:
            engine.submit([online[sent]])
            sent += 1
    return finished[-1], time.perf_counter() - begun


def summary(waits: Sequence[FirstToken]) -> dict[str, dict[str, float]]:
    """Median, 95th percentile and maximum of steps and milliseconds."""
    found = {}
    for name in ("steps", "milliseconds"):
        values = sorted(getattr(wait, name) for wait in waits)
        last = values[min(len(values) - 1, int(0.95 * len(values)))]
        found[name] = {"median": statistics.median(values), "p95": last, "max": values[-1]}
    return found


def words(name: str, figures: dict[str, Any]) -> str:
    """The figures as a text table."""
    lines = [f"\n{name}: first token of an online request"]
    for state, found in figures["first_token"].items():
        steps, taken = found["steps"], found["milliseconds"]
        lines.append(
            f"  {state:10} steps: median {steps['median']:.0f}, p95 {steps['p95']:.0f}, max {steps['max']:.0f};  "
            f"ms: median {taken['median']:.1f}, p95 {taken['p95']:.1f}, max {taken['max']:.1f}"
        )
    lines.append(f"  batch priority alone {figures['alone_per_second']:.1f} requests/s, beside online requests ")
    lines[-1] += f"{figures['batch_per_second']:.1f}: {figures['batch']:.3f} of it; both together {figures['all']:.3f}"
    return "\n".join(lines)


if __name__ == "__main__":
    main()
