"""The engine against `model.generate`: the same requests, in one process, in turns.

    python -m bench.engine [--models demo mid] [--loads short mixed] [--rounds 3] [--json]

Loads: `short`: answers of 1 to 3 tokens; `mixed`: three tasks per image, 1 to 40 tokens; `long-tail`: one in six of 60
to 100 tokens, the others short. Lengths are random, since the mid-size model is untrained and the demo's answers are
short; in `natural`, the demo's answers end by themselves. `generate-1`, `-8` and `-32` use static batches in arrival
order. `sorted-32` uses static batches of 32, sorted by answer length, which is unknown in practice: the strongest
simple baseline. A ratio above 1 means that the engine is faster; each is the median over rounds of paired measurements.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench import baseline
from bench.baseline import LOADS, Subject
from bench.machine import machine
from paliscribe.config import PoolConfig
from paliscribe.engine import Engine, engine_sizes
from paliscribe.records import Request

SIZES = {"generate-1": 1, "generate-8": 8, "generate-32": 32, "sorted-32": 32}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["demo", "mid"], default=["demo", "mid"])
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS)
    parser.add_argument("--requests", type=int, default=192, help="requests of a load; the mid-size model gets half")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=None, help="slots of the engine; default: the engine's default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {}
    for name in options.models:
        subject = baseline.demo() if name == "demo" else baseline.mid()
        count = options.requests // (1 if name == "demo" else 2)
        for load in options.loads:
            if load == "natural" and name != "demo":
                continue
            figures[f"{name}/{load}"] = compare(subject, load, count, options.rounds, options.slots)
            print(words(f"{name}/{load}", figures[f"{name}/{load}"]), flush=True)
    described = machine()
    print(f"\n{described['processor']}, {described['cores']} cores, commit {described['commit']}")
    if options.json:
        ratios = {f"{where}/{method}": r for where, f in figures.items() for method, r in f["ratios"].items()}
        print(json.dumps({"machine": described, "figures": figures, "ratios": ratios}))


def compare(subject: Subject, load: str, count: int, rounds: int, slots: int | None = None) -> dict[str, Any]:
    """Time all methods on a load. Each round uses another order. Measures agreement of answers too."""
    wanted = baseline.requests(load, count)
    subject.let_end(load == "natural")
    sizes = engine_sizes(subject.model, PoolConfig(slots=slots))
    engine = Engine(subject.model, sizes)
    lengths = [len(answer.logprobs) for answer in engine.run(wanted)]
    by_length = [request for _, request in sorted(zip(lengths, wanted, strict=True), key=lambda pair: pair[0])]
    orders = {method: by_length if method.startswith("sorted") else wanted for method in SIZES}
    prepared = {method: baseline.batches(subject, orders[method], size) for method, size in SIZES.items()}

    def ours() -> None:
        engine.forget_images()
        engine.run(wanted)

    methods: dict[str, Callable[[], Any]] = {"engine": ours}
    for method in SIZES:
        methods[method] = functools.partial(baseline.generate, subject, prepared[method])
    agreement = {method: _agreement(subject, methods[method](), orders[method], engine) for method in SIZES}
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    names = list(methods)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begun = time.perf_counter()
            methods[name]()
            seconds[name].append(time.perf_counter() - begun)
    return _figures(subject, wanted, lengths, orders, seconds, engine) | {"agreement": agreement}


def _figures(
    subject: Subject,
    wanted: Sequence[Request],
    lengths: Sequence[int],
    orders: dict[str, list[Request]],
    seconds: dict[str, list[float]],
    engine: Engine,
) -> dict[str, Any]:
    """Rates, ratios, occupancy of decode steps and padding of prefills."""
    steps = dict(zip((id(request) for request in wanted), lengths, strict=True))
    prompts = {id(r): subject.model.image_tokens + len(subject.model.tokenize(r.prompt)) for r in wanted}
    stats = engine.stats()
    occupancy, padding = {"engine": stats.occupancy}, {"engine": stats.padding}
    for method, order in orders.items():
        ids = [id(request) for request in order]
        occupancy[method], padding[method] = baseline.waste(
            [prompts[i] for i in ids], [steps[i] for i in ids], SIZES[method]
        )
    return {
        "requests_per_second": {name: len(wanted) / statistics.median(taken) for name, taken in seconds.items()},
        "ratios": {
            name: statistics.median(t / e for t, e in zip(taken, seconds["engine"], strict=True))
            for name, taken in seconds.items()
            if name != "engine"
        },
        "occupancy": occupancy,
        "padding": padding,
        "tokens": {"shortest": min(lengths), "mean": statistics.fmean(lengths), "longest": max(lengths)},
    }


def _agreement(subject: Subject, outputs: Sequence[torch.Tensor], order: Sequence[Request], engine: Engine) -> float:
    """Share of requests that both answer with the same tokens."""
    theirs = [row.tolist() for output in outputs for row in output]
    ours = {answer.id: answer.tokens for answer in engine.run(order)}
    same = [tuple(row[: len(ours[r.id])]) == ours[r.id] for row, r in zip(theirs, order, strict=True)]
    return sum(same) / len(same)


def words(where: str, figures: dict[str, Any]) -> str:
    """The figures as a text table."""
    tokens = figures["tokens"]
    lines = [
        f"\n{where}: answers of {tokens['shortest']} to {tokens['longest']} tokens, {tokens['mean']:.1f} on average"
    ]
    lines.append(f"  {'':12} {'requests/s':>10} {'ratio':>6} {'occupancy':>10} {'padding':>8} {'same tokens':>12}")
    for name, rate in figures["requests_per_second"].items():
        ratio = f"{figures['ratios'][name]:.2f}" if name in figures["ratios"] else ""
        same = f"{figures['agreement'][name]:.1%}" if name in figures["agreement"] else ""
        work = f"{figures['occupancy'][name]:10.1%} {figures['padding'][name]:8.1%}"
        lines.append(f"  {name:12} {rate:10.1f} {ratio:>6} {work} {same:>12}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
