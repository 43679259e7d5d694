"""The engine at PaliGemma's full size on one GPU, against `model.generate`. Random weights: needs no network.

    python -m bench.gpu [--pixels 224 448] [--family gemma] [--parts check mixed ...] [--json]

Parts, in this order; each frees its memory:

check       the demo model in float32 against `generate` on the CPU; then, for each resolution, first logits and
            answers of the full-size model in its own precision against the same weights in float32. Near-ties are
            reported; any other difference ends the benchmark.
invariance  the same requests alone, together and in another order: the share of equal tokens and log-probabilities.
latency     time to first token (ms) of online requests, while batch-priority requests saturate the engine.
equal       images/s of the engine and of `generate`, in static batches and with a static cache, in turns; answers of
            `--tokens` tokens. If any request fails or any answer is too short, there are no rates, and the exit
            status is not 0.
mixed       as `equal`, with answers of 1 to `--longest` tokens.
steps       latency (ms) of prefills and decode steps, with and without CUDA graphs.

    python -m bench.gpu --small    # tests the code on a CPU, with a miniature model; its figures mean nothing
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench import full_size, gpu_checks, gpu_rates, gpu_steps
from bench.baseline import Subject
from bench.full_size import requests
from bench.gpu_checks import WrongAnswer
from bench.gpu_rates import NoRate
from bench.gpu_words import near_tie, words
from bench.machine import machine, release

PARTS = ("check", "invariance", "latency", "equal", "mixed", "steps")
SUSTAINED = {"H100": 790.0, "H200": 790.0}  # TFLOP/s of large products in dense bfloat16, on SXM modules
CHECKED, SMALL_CHECKED = 32, 8  # requests to the demo model in `check`
SMALL_SLOTS = 4  # with `--small`, in `latency`

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets for PaliGemma 1 in bfloat16 at 224 px, with answers of 20 tokens."""

    images_per_second: float
    ratio: float  # to the best `generate`, with mixed lengths
    first_token_ms: float  # maximum over online requests, at full load


TARGETS = {"H100": Targets(images_per_second=360, ratio=1.5, first_token_ms=100)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.small:
        sys.exit("no GPU found; `--small` tests the code on a CPU")
    if device == "cpu":
        torch.set_num_threads(1)  # as in the other benchmarks
    described = machine()
    print(f"{described['gpu'] or described['processor']}, commit {described['commit'] or 'unknown'}")
    figures: Figures = {}
    try:
        if "check" in options.parts:
            figures["demo"] = gpu_checks.demo(device, SMALL_CHECKED if options.small else CHECKED)
            asked, same = figures["demo"]["requests"], figures["demo"]["same"]
            print(f"demo model in float32: {same:.1%} of {asked} answers as on the CPU")
            for tie in figures["demo"]["near_ties"]:
                print(f"  {near_tie(tie)}")
            release(device)
        figures["product_tflops"] = gpu_steps.product(device, options.precision, 0.05 if options.small else 1.0)
        print(f"plain matrix products in {options.precision}: {figures['product_tflops']:.1f} TFLOP/s", flush=True)
        release(device)
        for pixels in options.pixels:
            figures[str(pixels)] = measure(options, pixels, device, figures["product_tflops"])
            release(device)
    except WrongAnswer as error:
        sys.exit(str(error))
    for line in compare_targets(described["gpu"], options, figures.get("224", {})):
        print(line)
    if options.json:
        ratios = {f"{p}/{name}": value for p in options.pixels for name, value in _ratios(figures[str(p)]).items()}
        print(json.dumps({"machine": described, "figures": figures, "ratios": ratios}))
    refused = [reason for pixels in options.pixels for reason in figures[str(pixels)]["refused"].values()]
    if refused:
        sys.exit(f"no rate for {len(refused)} parts: {refused[0]}")


def measure(options: argparse.Namespace, pixels: int, device: str, tflops: float) -> Figures:
    """All figures of one model, printed part by part. Raises WrongAnswer."""
    subject = full_size.subject(options.family, pixels, device, options.precision, small=options.small)
    model = subject.model
    count = max(max(options.batches), options.images * 224**2 // pixels**2)
    found: Figures = {"refused": {}}
    found["weight_bytes"] = sum(parameter.nbytes for parameter in model.network.parameters())
    work = full_size.work(model.network.config, _prompt_tokens(subject), options.tokens)
    found["gflop"] = {"vision": work.vision, "prefill": work.prefill, "decode": work.decode, "total": work.total}
    print(f"\n{subject.name}: {work.total:.0f} GFLOP an image with {options.tokens} tokens", flush=True)
    mixed = full_size.mixed_lengths(count, options.longest)
    several = min(count, 2 * gpu_steps.MAX_ROWS)

    def part(name: str, call: Callable[[], Any]) -> None:
        """Run a part, store and print its figures, and free its memory."""
        if name not in options.parts:
            return
        refusal = None
        try:
            found[name] = call()
        except NoRate as error:
            refusal = str(error)
        if refusal is not None:  # outside `except`, since the traceback references the engine
            found["refused"][name] = refusal
        print(words(name, found.get(name), refusal), flush=True)
        release(device)

    def check() -> Figures:
        return gpu_checks.own_precision(subject, requests(pixels, several, mixed), max(2, options.probes // 4))

    def invariance() -> Figures:
        return gpu_checks.invariance(subject, requests(pixels, several, mixed), options.probes // 2)

    def latency() -> Figures:
        slots = SMALL_SLOTS if options.small else None
        return gpu_rates.first_tokens(subject, requests(pixels, several, mixed), options.probes, slots)

    def equal() -> Figures:
        wanted = requests(pixels, count, options.tokens)
        rates: Figures = gpu_rates.rates(subject, wanted, options.batches, options.static, options.rounds)
        return rates | _shares(rates["images_per_second"].get("engine"), work, tflops)

    def unequal() -> Figures:
        wanted = requests(pixels, count, mixed)
        return gpu_rates.rates(subject, wanted, options.batches, options.static, options.rounds)

    part("check", check)
    part("invariance", invariance)
    part("latency", latency)
    part("equal", equal)
    part("mixed", unequal)
    part("steps", lambda: gpu_steps.steps(subject, work))
    return found


def compare_targets(gpu: str | None, options: argparse.Namespace, found: Figures) -> list[str]:
    """Lines that say which targets are reached; empty if there are none for this GPU, model and load."""
    target = next((targets for name, targets in TARGETS.items() if name in str(gpu)), None)
    known = (options.family, options.precision, options.tokens, options.longest) == ("gemma", "bfloat16", 20, 60)
    if target is None or not known or options.small or not found:
        return []
    rate = found.get("equal", {}).get("images_per_second", {}).get("engine")
    ratio = found.get("mixed", {}).get("ratios", {}).get("best-generate")
    first = found.get("latency", {}).get("saturated", {}).get("worst")
    compared = [
        ("images/s at 224 px with 20 tokens", rate, target.images_per_second, True),
        ("times `generate` at its best batch on mixed lengths", ratio, target.ratio, True),
        ("ms to the first token at full load, worst case", first, target.first_token_ms, False),
    ]
    lines = ["\ntargets"]
    for name, value, wanted, more in compared:
        bound = f"{'at least' if more else 'at most'} {wanted:g} {name}"
        if value is None:
            lines.append(f"  not measured: {bound}")
        else:
            reached = value >= wanted if more else value <= wanted
            lines.append(f"  {'reached' if reached else 'not reached'}: {value:.4g}, {bound}")
    return lines


def _shares(rate: float | None, work: full_size.Work, tflops: float) -> Figures:
    """Hardware utilisation of a rate: share of the measured matrix product throughput, and of the known one."""
    known = next((value for name, value in SUSTAINED.items() if name in str(machine()["gpu"])), None)
    return {
        "limit": tflops * 1e3 / work.total,
        "share_of_product": rate * work.total / (tflops * 1e3) if rate is not None else None,
        "share_of_known": rate * work.total / (known * 1e3) if rate is not None and known else None,
    }


def _ratios(found: Figures) -> dict[str, float]:
    ratios = {f"{load}/{n}": r for load in ("equal", "mixed") for n, r in found.get(load, {}).get("ratios", {}).items()}
    share = found.get("equal", {}).get("share_of_product")
    if share is not None:
        ratios["equal/share-of-product"] = share
    for order, shares in found.get("invariance", {}).items():
        ratios[f"invariance/{order}"] = shares["answers"]
    return ratios


def _prompt_tokens(subject: Subject) -> int:
    """Mean prompt length, without the image's tokens."""
    return round(statistics.fmean(len(subject.model.tokenize(prompt)) for prompt in full_size.PROMPTS))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, nargs="+", choices=[224, 448, 896], help="default: 224 448")
    parser.add_argument("--family", choices=list(full_size.TEXT), default="gemma", help="gemma2: PaliGemma 2")
    parser.add_argument("--precision", choices=["bfloat16", "float16", "float32"], help="default: bfloat16")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--batches", type=int, nargs="+", help="sizes for `generate`; default: 64 128 256 512 1024")
    parser.add_argument("--static", type=int, help="batch size with a static cache; 0: none; default: 256")
    parser.add_argument("--images", type=int, help="per round at 224 px, fewer at others; default: 2048")
    parser.add_argument("--tokens", type=int, default=20, help="tokens per answer in `equal`")
    parser.add_argument("--longest", type=int, default=60, help="maximum tokens per answer in `mixed`")
    parser.add_argument("--probes", type=int, help="timed online requests; `invariance` uses half, `check` a quarter")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a miniature model, also on a CPU")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    full: dict[str, Any] = {"pixels": [224, 448], "batches": [64, 128, 256, 512, 1024], "static": 256, "images": 2048}
    small: dict[str, Any] = {"pixels": [224], "batches": [1, 2], "static": 2, "images": 4}
    full |= {"probes": 64, "precision": "bfloat16"}
    small |= {"probes": 4, "precision": "float32"}  # some CPUs are very slow in 16-bit precision
    for name, value in (small if options.small else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


if __name__ == "__main__":
    main()
