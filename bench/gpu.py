"""The engine at PaliGemma's full size on one GPU, against `model.generate`, with random weights: no network needed.

    python -m bench.gpu [--pixels 224 448] [--family gemma] [--batches 1 8 32 64 128] [--images 512] [--json]

First the demo model answers on the GPU in float32 what `model.generate` answers on the CPU, or the bench ends there.
Then, for each resolution: images a second of the engine and of `generate` in static batches, in turns; which share that
is of what the arithmetic allows at the speed of a plain matrix product on the same machine; the time of prefills and of
decode steps, with and without CUDA graphs; and memory. Every image is new, has one prompt and gets an answer of
`--tokens` tokens.

    python -m bench.gpu --small    # the same code on a CPU, with a model in miniature: its figures mean nothing
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bench import baseline, full_size
from bench.baseline import Subject
from bench.machine import machine
from pipeline import model as model_module
from pipeline.config import ModelSpec
from pipeline.engine import Engine, engine_sizes
from pipeline.records import Request
from pipeline.slots import Slots, rounded, row_counts

PROMPTS = ("caption en", "answer en what color is the square?", "detect red circle ; blue square")
SUSTAINED = {"H100": 790.0, "H200": 790.0}  # TFLOP/s, dense bfloat16: what large products reach on the SXM modules
GROUPS = (1, 4, 16)  # requests of the prefills that are timed
CHECKED = 32  # requests to the demo model

Figures = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, nargs="+", default=[224, 448], choices=[224, 448, 896])
    parser.add_argument("--family", choices=list(full_size.TEXT), default="gemma", help="gemma2: PaliGemma 2")
    parser.add_argument("--precision", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 128], help="sizes for `generate`")
    parser.add_argument("--images", type=int, default=512, help="of a round at 224; fewer at other resolutions")
    parser.add_argument("--tokens", type=int, default=20, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a model in miniature, also on a CPU")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.small:
        sys.exit("no GPU here; `--small` tries the code on a CPU")
    described = machine()
    print(f"{described['gpu'] or described['processor']}, commit {described['commit']}")
    figures: Figures = {"exact": exact(device), "product_tflops": product(device, options.precision)}
    print(f"demo model in float32: {figures['exact']:.1%} of {CHECKED} answers as model.generate on the CPU")
    if figures["exact"] < 1:
        sys.exit("the engine is not exact on this device; figures of its speed would be worthless")
    print(f"a plain matrix product in {options.precision}: {figures['product_tflops']:.1f} TFLOP/s")
    for pixels in options.pixels:
        subject = full_size.subject(options.family, pixels, device, options.precision, small=options.small)
        figures[str(pixels)] = measure(subject, options, figures["product_tflops"])
        print(words(subject.name, figures[str(pixels)]), flush=True)
        del subject
        _free(device)
    if options.json:
        shares = {f"{p}/share-of-product": figures[str(p)]["share_of_product"] for p in options.pixels}
        ratios = {f"{p}/{name}": r for p in options.pixels for name, r in figures[str(p)]["ratios"].items()}
        print(json.dumps({"machine": described, "figures": figures, "ratios": ratios | shares}))


def exact(device: str) -> float:
    """Share of requests that the demo model answers in float32 on the device as `generate` does on the CPU."""
    on_cpu = baseline.demo()
    on_device = model_module.load(ModelSpec(precision="float32"), device=device)
    wanted = baseline.requests("natural", CHECKED)
    theirs = baseline.generate(on_cpu, baseline.batches(on_cpu, wanted, 1))
    ours = Engine(on_device).run(wanted)
    end = on_device.tokenizer.eos_token_id
    same = [
        list(answer.tokens) == [t for t in row[0].tolist() if t != end]
        for answer, row in zip(ours, theirs, strict=True)
    ]
    return statistics.fmean(same)


def product(device: str, precision: str) -> float:
    """TFLOP/s of one large matrix product: what the arithmetic of a model can at best come near to."""
    side = 8192 if device == "cuda" else 512
    left, right = (torch.randn(side, side, device=device).to(model_module.DTYPES[precision]) for _ in range(2))
    return float(2 * side**3 / milliseconds(functools.partial(torch.matmul, left, right), device, 20) / 1e9)


def measure(subject: Subject, options: argparse.Namespace, tflops: float) -> Figures:
    """All figures of one model."""
    model, device = subject.model, subject.model.device.type
    weights = sum(parameter.nbytes for parameter in model.network.parameters())
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    images = max(max(options.batches), options.images * 224**2 // model.image_size**2)
    wanted = requests(model.image_size, images, options.tokens)
    engine = Engine(model, engine_sizes(model))
    found = rates(subject, engine, wanted, options.batches, options.rounds)
    prompt = statistics.fmean(len(model.tokenize(request.prompt)) for request in wanted)
    work = full_size.work(model.network.config, round(prompt), options.tokens)
    rate = found["images_per_second"]["engine"]
    limit = tflops * 1e3 / work.total
    found |= {"gflop": work.total, "limit": limit, "share_of_product": rate / limit}
    known = next((value for name, value in SUSTAINED.items() if name in str(machine()["gpu"])), None)
    found["share_of_known"] = rate * work.total / (known * 1e3) if known else None
    found["memory"] = {"weights": weights, "slots": engine.stats().slots}
    found["memory"]["slot"] = Slots.bytes_each(model.config, engine.sizes.capacity, model.dtype)
    found["memory"]["peak"] = torch.cuda.max_memory_allocated() if device == "cuda" else None
    del engine
    _free(device)
    return found | {"steps": steps(subject, work, options.tokens)}


def requests(pixels: int, count: int, tokens: int) -> list[Request]:
    """Random images, each with a prompt and an answer of just so many tokens."""
    rng = np.random.default_rng(0)
    return [
        Request(f"{n}", PROMPTS[n % len(PROMPTS)], rng.integers(0, 256, (pixels, pixels, 3), np.uint8), f"{n}", tokens)
        for n in range(count)
    ]


def rates(
    subject: Subject, engine: Engine, wanted: Sequence[Request], sizes: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Images a second of the engine and of `generate` at each batch size, in turns; None where memory ran out."""
    methods: dict[str, tuple[int, Callable[[], Any]]] = {"engine": (len(wanted), lambda: _fresh(engine, wanted))}
    for size in sizes:
        some = wanted[: 4 * size]  # enough for a rate
        call = functools.partial(baseline.generate, subject, baseline.batches(subject, some, size))
        methods[f"generate-{size}"] = (len(some), call)
    measured: dict[str, list[float]] = {name: [] for name in methods}
    failed: set[str] = set()
    names = list(methods)
    for turn in range(-1, rounds):  # the first one warms up
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            count, call = methods[name]
            if name in failed:
                continue
            begun = time.perf_counter()
            try:
                call()
            except torch.OutOfMemoryError:
                failed.add(name)
                continue
            if turn >= 0:
                measured[name].append(count / (time.perf_counter() - begun))
    found = {name: statistics.median(values) if values else None for name, values in measured.items()}
    baselines = {name: rate for name, rate in found.items() if name != "engine" and rate is not None}
    ratios = {name: found["engine"] / rate for name, rate in baselines.items() if found["engine"] is not None}
    return {"images_per_second": found, "ratios": ratios | {"best-generate": min(ratios.values())}}


def steps(subject: Subject, work: full_size.Work, tokens: int) -> dict[str, dict[str, float | None]]:
    """Milliseconds of a prefill and of a decode step, by the number of requests in it; GB that a decode step reads."""
    model, device = subject.model, subject.model.device.type
    capacity, most = engine_sizes(model).capacity, 256 if device == "cuda" else max(GROUPS)
    slots = Slots(model.config, most, capacity, dtype=model.dtype, device=model.device)
    graphs = None
    if device == "cuda":
        from pipeline.engine.graphs import DecodeGraphs

        graphs = DecodeGraphs(model, slots)
    found: dict[str, dict[str, float | None]] = {}
    for count in GROUPS:
        wanted = requests(model.image_size, count, tokens)
        prompts = [model.tokenize(request.prompt) for request in wanted]

        def read(wanted: list[Request] = wanted, prompts: list[list[int]] = prompts) -> None:
            features = model.embed_images(model.upload([request.pixels for request in wanted]))
            model.prefill(features, prompts, slots, range(len(prompts)))

        found[f"prefill-{count}"] = {"ms": milliseconds(read, device, 5)}
    for rows in row_counts(most, recorded=True):
        held = model.image_tokens + 16
        length, positions = rounded(held + 1, slots.capacity), torch.full((rows,), held, device=model.device)
        eager = milliseconds(functools.partial(model.decode_step, slots, positions, length), device, 10)
        replayed = None
        if graphs is not None:
            replayed = milliseconds(functools.partial(graphs.decode_step, [held] * rows, length), device, 10)
        gigabytes = (work.weight_bytes + rows * length * work.token_bytes) / 1e9
        found[f"decode-{rows}"] = {"ms": eager, "ms_in_graph": replayed, "reads_gb": gigabytes}
    return found


def milliseconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    """The median time of a call, all that it started on the device included."""
    taken = []
    for turn in range(-2, repeats):
        _wait(device)
        begun = time.perf_counter()
        call()
        _wait(device)
        if turn >= 0:
            taken.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(taken)


def words(name: str, figures: Figures) -> str:
    """Tables for people."""
    memory, gib = figures["memory"], 2**30
    lines = [f"\n{name}: {figures['gflop']:.0f} GFLOP an image, so at most {figures['limit']:.1f} images/s"]
    for method, rate in figures["images_per_second"].items():
        ratio = f"engine / {method}: {figures['ratios'][method]:.2f}" if method in figures["ratios"] else ""
        lines.append(f"  {method:14} {'out of memory' if rate is None else f'{rate:8.2f} images/s'}  {ratio}")
    lines.append(f"  the engine reaches {figures['share_of_product']:.1%} of what the arithmetic allows")
    if figures["share_of_known"] is not None:
        lines.append(f"  and {figures['share_of_known']:.1%} of what it allows on such a GPU elsewhere (`SUSTAINED`)")
    peak = "" if memory["peak"] is None else f", peak {memory['peak'] / gib:.2f} GiB, generate's included"
    held = f"{memory['slots']} slots of {memory['slot'] / 2**20:.1f} MiB"
    lines.append(f"  memory: weights {memory['weights'] / gib:.2f} GiB, {held}{peak}")
    for step, taken in figures["steps"].items():
        replayed = taken.get("ms_in_graph")
        graph = f", {replayed:.2f} ms in a CUDA graph" if replayed is not None else ""
        reads = f", reads {taken['reads_gb']:.2f} GB" if "reads_gb" in taken else ""
        lines.append(f"  {step:14} {taken['ms']:8.2f} ms{graph}{reads}")
    return "\n".join(lines)


def _fresh(engine: Engine, wanted: Sequence[Request]) -> None:
    engine.forget_images()
    engine.run(wanted)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _free(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
