"""Images/s of the engine and of `generate`, and time to first token while batch-priority requests saturate the engine.

A load has rates only if, in every round including the warm-up, no request fails and each answer has exactly the
requested number of tokens.
"""

import functools
import itertools
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench import baseline
from bench.baseline import Subject
from bench.engine_parts import slot_bytes
from bench.machine import release, wait
from paliscribe.config import PoolConfig
from paliscribe.engine import Engine, engine_sizes
from paliscribe.records import ONLINE, Prediction, Request

MAX_BATCHES = 4  # timed static batches per `generate` method
MAX_IMAGES = 1024  # in these batches, if they are more than one
WARM_UPS = 8  # online requests to a GPU before timing: kernel selection, graph capture
ONLINE_TOKENS = 2  # of an online request, which runs to its end
CALL = 32  # batch-priority requests per submission, beside online ones
TIMEOUT = 300.0  # seconds to saturate the engine, or to answer a request

Tokens = list[list[int]]


class NoRate(Exception):
    """There is no rate, since an answer is missing or too short."""


@dataclass(frozen=True, slots=True)
class Method:
    """A way to answer requests. `prepare` runs before the clock starts; `run` takes its result."""

    wanted: Sequence[Request]
    prepare: Callable[[], Any]
    run: Callable[[Any], Any]
    tokens: Callable[[Any], Tokens]  # of each answer; raises NoRate
    fragile: bool = False  # report any exception, not only out of memory


def rates(
    subject: Subject, wanted: Sequence[Request], sizes: Sequence[int], static: int, rounds: int
) -> dict[str, Any]:
    """Images/s of all methods, measured in turns; reasons of failed methods; shares of equal answers.

    `sizes`: batch sizes for `generate`. `static`: batch size with a static cache, or 0. Raises NoRate.
    """
    device = subject.model.device.type
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    engine = Engine(subject.model, engine_sizes(subject.model))
    methods = {"engine": _engine(engine, wanted)}
    methods |= {f"generate-{size}": _generate(subject, wanted, size) for size in sizes}
    if static:
        methods[f"static-{static}"] = _generate(subject, wanted, static, cache_implementation="static")
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    failed: dict[str, str] = {}
    answers: dict[str, Tokens] = {}
    memory: dict[str, int | None] = {"slots": engine.stats().slots, "peak": None, "peak_of_all": None}
    memory["slot"] = slot_bytes(subject.model, engine.sizes.capacity)
    names = list(methods)
    for turn in range(-1, rounds):  # the first turn warms up
        start = max(turn, 0) % len(names)
        for name in names[start:] + names[:start]:
            if name in failed:
                continue
            taken, answers[name], problem = _timed(methods[name], device)
            if problem is not None:
                failed[name] = problem
            elif turn >= 0:
                seconds[name].append(taken)
            if device == "cuda" and turn < 0 and name == "engine":
                memory["peak"] = torch.cuda.max_memory_allocated()
    if device == "cuda":
        memory["peak_of_all"] = torch.cuda.max_memory_allocated()
    _forget_compiled(subject)
    found = {n: len(methods[n].wanted) / statistics.median(t) for n, t in seconds.items() if t and n not in failed}
    ratios = {name: found["engine"] / rate for name, rate in found.items() if name != "engine" and "engine" in found}
    same = {name: _same(methods[name], answers["engine"], answers[name]) for name in ratios}
    if ratios:
        ratios["best-generate"] = min(ratios.values())
    return {"images_per_second": found, "failed": failed, "ratios": ratios, "same_answers": same, "memory": memory}


def _engine(engine: Engine, wanted: Sequence[Request]) -> Method:
    def tokens(answers: Sequence[Prediction]) -> Tokens:
        if len(answers) != len(wanted):
            raise NoRate(f"engine: {len(answers)} answers to {len(wanted)} requests")
        for request, answer in zip(wanted, answers, strict=True):
            if (problem := fault(request, answer)) is not None:
                raise NoRate(f"engine: {problem}")
        return [list(answer.tokens) for answer in answers]

    return Method(wanted, engine.forget_images, lambda _: engine.run(wanted), tokens)  # images are always new


def fault(request: Request, answer: Prediction) -> str | None:
    """The reason why an answer is invalid, or None: an error, or not exactly `max_tokens` tokens."""
    if answer.error_kind is not None:
        return f"request {request.id} was refused: {answer.error_kind}: {answer.error_message}"
    if len(answer.tokens) != request.max_tokens:
        return f"request {request.id} has {len(answer.tokens)} tokens instead of {request.max_tokens}"
    return None


def _generate(subject: Subject, wanted: Sequence[Request], size: int, **options: Any) -> Method:
    some = wanted[: size * max(1, min(MAX_BATCHES, MAX_IMAGES // size))]
    some = some[: max(1, len(some) // size) * size]  # full batches only, for a single shape

    def tokens(outputs: Sequence[Tensor]) -> Tokens:
        rows = [row.tolist() for output in outputs for row in output]
        batches = [some[start : start + size] for start in range(0, len(some), size)]
        limits = [max(request.max_tokens for request in batch) for batch in batches for _ in batch]
        if [len(row) for row in rows] != limits:
            raise NoRate(f"generate-{size}: answers are not of {max(limits)} tokens each, or some are missing")
        return rows

    prepare = functools.partial(baseline.batches, subject, some, size)
    run = functools.partial(baseline.generate, subject, **options)
    return Method(some, prepare, run, tokens, fragile=bool(options))


def _timed(method: Method, device: str) -> tuple[float, Tokens, str | None]:
    """Seconds, tokens and, if it failed, the reason. Memory of a failed attempt is freed."""
    problem = None
    prepared = method.prepare()
    wait(device)
    begun = time.perf_counter()
    try:
        answers = method.run(prepared)
        wait(device)
        taken = time.perf_counter() - begun
    except torch.OutOfMemoryError:
        problem = "out of memory"
    except Exception as error:  # a static cache or its compilation may be unsupported
        if not method.fragile:
            raise
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if problem is not None:  # outside `except`, since the traceback references the tensors
        del prepared
        release(device)
        return 0.0, [], problem
    return taken, method.tokens(answers), None


def _same(method: Method, ours: Tokens, theirs: Tokens) -> float:
    """Share of requests with equal tokens; in low precision, near-ties differ."""
    pairs = zip(method.wanted, ours, theirs, strict=False)
    return statistics.fmean(mine == other[: request.max_tokens] for request, mine, other in pairs)


def _forget_compiled(subject: Subject) -> None:
    """Drop the compiled step and the CUDA graphs that `generate` keeps for a static cache."""
    for kept in ("_compiled_call", "_last_compile_config", "_cache"):
        subject.network.__dict__.pop(kept, None)
    if subject.model.device.type == "cuda":
        torch._dynamo.reset()


def first_tokens(subject: Subject, batch: Sequence[Request], probes: int, slots: int | None = None) -> dict[str, Any]:
    """Time to first token of online requests in ms, on an idle and on a saturated engine. Raises NoRate.

    `batch`: requests submitted repeatedly, always as new images, to saturate the engine. `slots`: for these; default:
    the engine's default.
    """
    engine = Engine(subject.model, engine_sizes(subject.model, PoolConfig(slots=slots)))
    warm_ups = WARM_UPS if subject.model.device.type == "cuda" else 1
    rng, numbers = random.Random(0), itertools.count()

    def probe() -> float:
        number = next(numbers)
        request = batch[number % len(batch)]
        name = f"online-{number}"
        request = replace(request, id=name, image_key=name, priority=ONLINE, max_tokens=ONLINE_TOKENS)
        answer = engine.submit([request])[0].result(TIMEOUT)
        if (problem := fault(request, answer)) is not None:
            raise NoRate(f"online: {problem}")
        assert answer.first_token is not None
        return answer.first_token * 1e3

    stop, done, problems = threading.Event(), threading.Event(), list[str]()
    feeder = threading.Thread(target=_feed, args=(engine, batch, stop, done, problems))
    engine.start()
    try:
        idle = [probe() for _ in range(warm_ups + probes // 4)][warm_ups:]
        feeder.start()
        if not done.wait(TIMEOUT) or problems:
            raise NoRate("; ".join(problems[:1]) or f"the engine was not saturated within {TIMEOUT:g} s")
        busy, live = [], []
        for _ in range(warm_ups + probes):
            time.sleep(rng.uniform(0, 2) * statistics.median(idle) / 1e3)  # at a random moment of a step
            live.append(engine.stats().live)
            busy.append(probe())
    finally:
        stop.set()
        if feeder.ident is not None:
            feeder.join()
        engine.close()
    if problems:
        raise NoRate(problems[0])
    figures: dict[str, Any] = {"idle": _summary(idle), "saturated": _summary(busy[warm_ups:])}
    return figures | {"live": statistics.median(live[warm_ups:]), "slots": engine.stats().slots}


def _feed(
    engine: Engine, batch: Sequence[Request], stop: threading.Event, done: threading.Event, problems: list[str]
) -> None:
    """Keep batch-priority requests queued until `stop`; set `done` when as many as there are slots are answered."""
    numbers, source = itertools.count(), itertools.cycle(batch)
    unfinished: list[tuple[Request, Future[Prediction]]] = []
    answered, slots = 0, engine.stats().slots
    while not stop.is_set():
        try:
            if engine.stats().waiting < 2 * CALL:
                call = [(next(numbers), next(source)) for _ in range(CALL)]
                fresh = [replace(request, id=f"batch-{n}", image_key=f"batch-{n}") for n, request in call]
                unfinished += zip(fresh, engine.submit(fresh), strict=True)
            still = []
            for request, future in unfinished:
                if not future.done():
                    still.append((request, future))
                elif (problem := fault(request, future.result())) is not None:
                    problems.append(f"batch: {problem}")
                else:
                    answered += 1
        except Exception as error:
            problems.append(f"batch: {type(error).__name__}: {error}")
        unfinished = still if not problems else unfinished
        if answered >= slots or problems:
            done.set()
        if problems:
            break
        stop.wait(0.005)
    for _, future in unfinished:
        future.cancel()


def _summary(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"median": statistics.median(ordered), "p95": p95, "worst": ordered[-1]}
