"""Overhead of a whole run over the engine alone: the same requests through both, in turns, in one process tree.

    python -m bench.pipeline [--model demo] [--images 512] [--rounds 3] [--json]

The engine alone gets decoded pixels and rendered prompts, in calls of the same size as in the run, with as many torch
threads as the run's replica. The run freezes the manifest, starts Ray and the pool, fetches, decodes, calls, parses,
commits, publishes. It has three rates: from the first commit to the last (the limit for a long run, with the share of
that time which the engine spends in steps), from the pool being ready to the last commit, and from start to finish.
The mid-size model is random, so nearly all of its answers have `--tokens` tokens.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.machine import machine

SHARD_ROWS = 64
LEAST_IMAGES = 3 * SHARD_ROWS  # of a run with a first and a last commit
TASKS = ("caption en", "answer en {question}", "ocr", "detect {objects}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["demo", "mid"], default="demo")
    parser.add_argument("--tokens", type=int, default=16, help="most tokens of an answer of the mid-size model")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the model")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.images < LEAST_IMAGES:
        parser.error(f"--images: at least {LEAST_IMAGES}, for the rate between commits")

    import torch

    from paliscribe.demo.collection import write_collection

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_collection(Path(folder) / "collection", arguments.images, seed=1)
        model, tokens = "demo", None
        if arguments.model == "mid":
            model, tokens = save_mid(Path(folder) / "model"), arguments.tokens
        rounds = []
        for number in range(arguments.rounds):
            alone = engine_alone(manifest, model, tokens)
            job = whole_run(manifest, Path(folder) / f"run-{number}", arguments.threads, model, tokens)
            rounds.append({"engine": alone, **job})
            print(f"round {number + 1}: " + ", ".join(f"{k} {v:,.2f}" for k, v in rounds[-1].items()), flush=True)
    figures = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    ratios = {
        "commits/engine": statistics.median(r["commits"] / r["engine"] for r in rounds),
        "job/engine": statistics.median(r["job"] / r["engine"] for r in rounds),
        "job from start/engine": statistics.median(r["job_from_start"] / r["engine"] for r in rounds),
    }
    described = machine()
    print(f"\n{described['processor']}, {described['cores']} cores, commit {described['commit']}")
    print(f"{arguments.model}, {arguments.images} images x {len(TASKS)} tasks, {arguments.rounds} rounds, medians:")
    print(f"  engine alone            {figures['engine']:8.1f} requests/s")
    print(
        f"  first commit to last    {figures['commits']:8.1f} requests/s   ratio {ratios['commits/engine']:.2f}, "
        f"engine busy {figures['busy']:.1%}"
    )
    print(f"  whole run, pool ready   {figures['job']:8.1f} requests/s   ratio {ratios['job/engine']:.2f}")
    print(
        f"  whole run, from start   {figures['job_from_start']:8.1f} requests/s   "
        f"ratio {ratios['job from start/engine']:.2f}"
    )
    print(f"  driver's memory grew by {figures['driver_growth_mib']:8.1f} MiB during the run (peak minus start)")
    if arguments.json:
        print(json.dumps({"machine": described, "figures": figures, "ratios": ratios}))


def save_mid(folder: Path) -> str:
    """Write the mid-size model as a checkpoint. Returns its address."""
    from bench import baseline
    from paliscribe.demo import CHECKPOINT

    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    baseline.mid().network.save_pretrained(folder)
    return str(folder)


def engine_alone(manifest: Path, model_id: str, tokens: int | None) -> float:
    """Requests/s of the engine with all inputs in memory."""
    from paliscribe.batch.stage import SLOTS_FILLED
    from paliscribe.config import ModelSpec
    from paliscribe.engine import Engine
    from paliscribe.grammar.tasks import parse_tasks
    from paliscribe.images.decode import decode
    from paliscribe.model import paligemma as model
    from paliscribe.records import Request

    loaded = model.load(ModelSpec(id=model_id), device="cpu")
    engine = Engine(loaded)
    requests = []
    for row in map(json.loads, manifest.read_text().splitlines()):
        decoded = decode((manifest.parent / row["image"]).read_bytes(), loaded.image_size)
        for task in parse_tasks(list(TASKS), max_tokens=tokens):
            name = f"{row['id']}/{task.template}"
            requests.append(Request(name, task.render(row), decoded.pixels, decoded.sha256, task.max_tokens))
    size = SLOTS_FILLED * engine.sizes.limits.slots
    engine.run(requests[:size])  # warm-up
    begun = time.perf_counter()
    for start in range(0, len(requests), size):
        engine.run(requests[start : start + size])
    return len(requests) / (time.perf_counter() - begun)


def whole_run(manifest: Path, output: Path, threads: int, model: str, tokens: int | None) -> dict[str, float]:
    """Requests/s of `run_batch`, share of busy time of its engine, and growth of this process's memory in MiB."""
    import ray

    from paliscribe.batch.progress import Progress
    from paliscribe.batch.run import run_batch
    from paliscribe.config import JobConfig, ModelSpec, PoolConfig

    seen: dict[str, Any] = {}
    looks: list[tuple[float, int, float]] = []  # time, requests committed, seconds that the engine was busy

    def watch(progress: Progress) -> None:
        if progress.annotating_since is not None:
            seen["since"] = progress.annotating_since
        if progress.rows and progress.rows_before + progress.rows_committed == progress.rows and "until" not in seen:
            seen["until"] = time.monotonic()
        if progress.annotating_since is not None and ray.is_initialized():  # else Serve would start it
            with contextlib.suppress(Exception):  # the pool is there no longer
                looks.append((time.monotonic(), progress.requests, busy_seconds()))

    job = JobConfig(
        manifest=(str(manifest),),
        tasks=TASKS,
        output=str(output),
        shard_rows=SHARD_ROWS,
        model=ModelSpec(id=model),
        max_tokens=tokens,
        pool=PoolConfig(replicas=1, threads=threads),
    )
    with _Memory() as memory:
        begun = time.monotonic()
        summary = run_batch(job, watch)
        ended = time.monotonic()
    requests = summary["records"]
    committed = [look for look in looks if look[1]]
    first, last = committed[0], next(look for look in committed if look[1] == committed[-1][1])
    seconds = last[0] - first[0]
    return {
        "commits": (last[1] - first[1]) / seconds,
        "busy": (last[2] - first[2]) / seconds,
        "job": requests / (seen.get("until", ended) - seen["since"]),
        "job_from_start": requests / (ended - begun),
        "driver_growth_mib": memory.growth / 2**20,
    }


def busy_seconds() -> float:
    """Seconds that the engine of the only pool has spent in steps."""
    from ray import serve

    [(name, application)] = serve.status().applications.items()
    [deployment] = application.deployments
    return float(serve.get_deployment_handle(deployment, name).stats.remote().result(timeout_s=1).busy)


class _Memory:
    """Context manager that samples this process's resident memory."""

    def __enter__(self) -> "_Memory":
        self._stop, self._first, self._peak = threading.Event(), _resident(), 0
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return max(0, self._peak - self._first)

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            self._peak = max(self._peak, _resident())


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


if __name__ == "__main__":
    main()
