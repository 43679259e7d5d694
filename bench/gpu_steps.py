"""Latency of the parts of a step on a device: plain matrix products, prefills, decode steps."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench import full_size
from bench.baseline import Subject
from bench.engine_parts import decode_steps, make_slots
from bench.machine import wait
from paliscribe.engine import engine_sizes
from paliscribe.model import paligemma as model_module

GROUPS = (1, 4, 16)  # requests per timed prefill
MAX_ROWS = 256  # of a decode step


def product(device: str, precision: str, seconds: float) -> float:
    """TFLOP/s of large matrix products, run for `seconds`: an upper bound for a model.

    Warms up for the same time, since a GPU lowers its clock only after a while at full power.
    """
    side, together = (8192, 50) if device == "cuda" else (512, 2)
    left, right = (torch.randn(side, side, device=device).to(model_module.DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(left)

    def sustained() -> float:
        count, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            for _ in range(together):
                torch.matmul(left, right, out=out)
            wait(device)
            count += together
        return 2 * side**3 * count / (time.perf_counter() - begun) / 1e12

    sustained()
    return sustained()


def steps(subject: Subject, work: full_size.Work) -> dict[str, dict[str, float | None]]:
    """Latency in ms of prefills and decode steps, by number of requests; GB read per decode step."""
    model, device = subject.model, subject.model.device.type
    groups, most = (GROUPS, MAX_ROWS) if device == "cuda" else (GROUPS[:2], max(GROUPS[:2]))
    capacity = engine_sizes(model).capacity
    slots = make_slots(model, max(groups), capacity)
    found: dict[str, dict[str, float | None]] = {}
    for count in groups:
        wanted = full_size.requests(model.image_size, count, 1)
        prompts = [model.tokenize(request.prompt) for request in wanted]
        pixels = [request.pixels for request in wanted]

        def read(pixels: list[Any] = pixels, prompts: list[list[int]] = prompts) -> None:
            model.prefill(model.embed_images(model.upload(pixels)), prompts, slots, range(len(prompts)))

        found[f"prefill-{count}"] = {"ms": milliseconds(read, device, 5)}
    for step in decode_steps(model, most, capacity, model.image_tokens + 16):
        found[f"decode-{step.rows}"] = {
            "ms": milliseconds(step.run, device, 10),
            "ms_in_graph": None if step.replay is None else milliseconds(step.replay, device, 10),
            "reads_gb": (work.weight_bytes + step.rows * step.length * work.token_bytes) / 1e9,
        }
    return found


def milliseconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of a call in ms, including its work on the device. On a CPU it runs once, to test the code."""
    taken = []
    for turn in range(-2, repeats) if device == "cuda" else range(-1, 1):
        wait(device)
        begun = time.perf_counter()
        call()
        wait(device)
        if turn >= 0:
            taken.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(taken)
