"""The engine holds steady: many requests of all fates, and then none of them is left anywhere."""

import ctypes
import gc
import itertools
import os
import random
import statistics
import sys
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import replace

import psutil
import pytest
import torch
from models import demo_model, engine, images

from paliscribe.engine import Engine
from paliscribe.errors import ReplicaError
from paliscribe.model.paligemma import Model
from paliscribe.records import BATCH, ONLINE, Prediction, Request

TOTAL, WAVE = (20_000, 250) if os.environ.get("FULL") else (2_000, 100)
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def demo() -> Model:
    return demo_model()


def wave(rng: random.Random, first: int) -> list[Request]:
    """Requests of one arrival: images that repeat and images that do not, and one in a hundred that cannot fit."""
    pixels = images(4)
    made = []
    for number in range(first, first + WAVE):
        key = f"shared-{number % 4}" if rng.random() < 0.9 else f"own-{number}"
        prompt = "caption en" * (600 if rng.random() < 0.01 else 1)
        request = Request(f"{number}", prompt, pixels[number % 4], key, rng.randint(1, 3), rng.choice((BATCH, ONLINE)))
        made.append(replace(request, timeout=0.0 if rng.random() < 0.01 else None))
    return made


def client(running: Engine, seed: int, waves: int, fates: list[str]) -> None:
    """Submit wave after wave, cancel some, and note how each request ended."""
    rng = random.Random(seed)
    for turn in range(waves):
        futures = running.submit(wave(rng, (seed * waves + turn) * WAVE))
        for future in rng.sample(futures, 5):
            future.cancel()
        assert not wait(futures, timeout=120).not_done
        fates.extend("cancelled" if f.cancelled() else f.result().error_kind or "answered" for f in futures)


def resident(process: psutil.Process) -> int:
    """Resident bytes, without those that the allocator keeps although nobody holds them, where it can be told so."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    return int(process.memory_info().rss)


def slope(values: list[int]) -> float:
    """Growth from one value to the next, by Theil and Sen: the median of all pairs, which single values do not move."""
    pairs = itertools.combinations(enumerate(values), 2)
    return statistics.median((later - earlier) / (j - i) for (i, earlier), (j, later) in pairs)


@pytest.mark.long
def test_thousands_of_requests_leave_nothing_behind(demo: Model) -> None:
    running = engine(demo, embedding_cache=2)
    running.start()
    memory, process = [], psutil.Process()
    fates: list[str] = []
    rounds = 10
    for turn in range(rounds):
        waves = TOTAL // WAVE // 2 // rounds
        threads = [threading.Thread(target=client, args=(running, 2 * turn + n, waves, fates)) for n in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        memory.append(resident(process))
    assert len(fates) == TOTAL
    assert {"answered", "cancelled", "expired", "prompt_too_long"} == set(fates)
    assert fates.count("answered") > 0.9 * TOTAL
    stats = running.stats()
    assert (stats.live, stats.waiting) == (0, 0) and not any(running._decoder._rows)
    assert not running._generations and not running._cancelled
    assert running._embeddings.bytes <= 2 * 2**20
    growth = rounds * slope(memory[2:])
    assert growth < 20 * 2**20, f"more than {20 * 2**20 / TOTAL:.0f} bytes a request: {memory}"
    running.close()


def test_closing_answers_everybody(demo: Model) -> None:
    running = engine(demo)
    running.start()
    rng = random.Random(1)
    pending: list[Future[Prediction]] = []
    waves = 4_000 // WAVE
    for turn in range(waves):
        pending += running.submit([replace(request, priority=BATCH) for request in wave(rng, turn * WAVE)])
    time.sleep(0.3)
    begun = time.monotonic()
    running.close()
    assert time.monotonic() - begun < 30, "it does not answer them all first"
    assert not wait(pending, timeout=0).not_done and len(pending) == waves * WAVE
    outcomes = [future.exception() for future in pending]
    assert sum(isinstance(error, ReplicaError) for error in outcomes) > 1000
    assert sum(error is None for error in outcomes) > 10, "some were answered before"
    with pytest.raises(ReplicaError):
        running.submit(wave(rng, 0))
    assert running.stats().live == running.stats().waiting == 0
