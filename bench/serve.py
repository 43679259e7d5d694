"""Latency of live calls over HTTP: idle, saturated, and beside a run at full speed on the same replica.

    python -m bench.serve [--calls 60] [--together 48] [--images 256] [--rounds 3] [--json]

The endpoint is set up as by `paliscribe serve`. Another process makes the calls: plain chat completions (`caption en`
of held-out scenes), one after another when idle and beside a run, `--together` at a time when saturated. The rate of
the run is measured with and without live calls, in turns. Latency is measured by the client, from sending to the whole
response. Every response is counted by its status, and transport errors by their type.
"""

import argparse
import asyncio
import base64
import io
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from bench.machine import machine
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS

TASKS = ("caption en", "answer en {question}", "ocr", "detect {objects}")
FIRST_SCENE = TEST_SEEDS + 800_000_000
APPLICATION = "paliscribe"


def main() -> None:
    """Measure and print. With --generate, make calls and print their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=60, help="sequential calls per phase")
    parser.add_argument("--together", type=int, default=48, help="concurrent calls in the saturated phase")
    parser.add_argument("--images", type=int, default=256, help="images of the run, four tasks each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--generate", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        calls = None if options.calls == 0 else options.calls
        print(json.dumps(asyncio.run(generate(options.generate, calls, options.together))))
        return
    figures = measure(options)
    described = machine()
    print(f"\n{described['processor']}, {described['cores']} cores, commit {described['commit']}")
    if options.json:
        print(json.dumps({"machine": described, "figures": figures}))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All phases against one endpoint."""
    from ray import serve

    from paliscribe.config import PoolConfig, ServeConfig, ServedModel
    from paliscribe.demo.collection import write_collection
    from paliscribe.online.application import application
    from paliscribe.pool.deploy import run_application
    from paliscribe.pool.ray_cluster import cluster

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, cluster():
        manifest = write_collection(Path(folder) / "collection", options.images, seed=1)
        config = ServeConfig(port=port, models=(ServedModel(pool=PoolConfig(replicas=1, threads=1)),))
        http = {"host": "127.0.0.1", "port": port, "request_timeout_s": None}
        serve.start(proxy_location="HeadOnly", http_options=http, logging_config={"log_level": "WARNING"})
        run_application(application(config), APPLICATION, "/")
        try:
            run(address, 5, 1)  # warm-up
            figures["idle"] = show("idle", run(address, options.calls, 1))
            figures["saturated"] = show("saturated", run(address, 10 * options.together, options.together))
            figures |= beside_run(address, manifest, Path(folder), options.rounds)
        finally:
            serve.delete(APPLICATION)
    idle, busy = figures["idle"]["p99_ms"], figures["under batch"]["p99_ms"]
    print(f"p99 beside a run / p99 idle: {busy / idle:.2f}")
    return figures


def beside_run(address: str, manifest: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Figures of a run alone and of a run beside sequential live calls, in turns."""
    alone, beside, seen = [], [], []
    for number in range(rounds):
        alone.append(run_rate(manifest, folder / f"alone-{number}"))
        process = start(address, 0, 1)
        beside.append(run_rate(manifest, folder / f"beside-{number}"))
        assert process.stdin is not None
        process.stdin.close()  # the process ends when its input ends
        seen.append(json.loads(finish(process)))
    calls = {"seconds": [s for one in seen for s in one["seconds"]], "elapsed": sum(one["elapsed"] for one in seen)}
    calls["statuses"] = dict(sum((Counter(one["statuses"]) for one in seen), Counter()))
    shown = show("beside a run", calls)
    ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
    print(
        f"run: {statistics.median(alone):.1f} requests/s alone, {statistics.median(beside):.1f} beside live calls, "
        f"ratio {ratio:.2f}"
    )
    return {"under batch": shown, "batch": {"alone": alone, "beside": beside, "ratio": ratio}}


def run_rate(manifest: Path, output: Path) -> float:
    """Requests/s of a run through the served replica, from the first image to its end."""
    from paliscribe.batch.progress import Progress
    from paliscribe.batch.run import run_batch
    from paliscribe.config import JobConfig, PoolConfig

    since: list[float] = []

    def watch(progress: Progress) -> None:
        if progress.annotating_since is not None and not since:
            since.append(progress.annotating_since)

    pool = PoolConfig(replicas=1, threads=1)
    job = JobConfig(manifest=(str(manifest),), tasks=TASKS, output=str(output), shard_rows=64, pool=pool)
    records: int = run_batch(job, watch)["records"]
    return records / (time.monotonic() - since[0])


def start(address: str, calls: int, together: int) -> "subprocess.Popen[str]":
    """Start the load generator as a process. `calls`: 0 means until its standard input is closed."""
    command = [sys.executable, "-m", "bench.serve", "--generate", address]
    command += ["--calls", str(calls), "--together", str(together)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for a load generator, and return its output."""
    assert process.stdout is not None
    said = process.stdout.read()
    if process.wait() != 0:
        raise SystemExit("the load generator failed")
    return said


def run(address: str, calls: int, together: int) -> dict[str, Any]:
    """Make `calls` calls, `together` at a time, from another process."""
    found: dict[str, Any] = json.loads(finish(start(address, calls, together)))
    return found


async def generate(address: str, calls: int | None, together: int) -> dict[str, Any]:
    """Make calls, `together` at a time, on varying images. Returns latencies in seconds, and counts by status."""
    bodies = [body(FIRST_SCENE + number) for number in range(64)]
    ended, left = threading.Event(), calls
    if calls is None:
        threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    seconds: list[float] = []
    statuses: Counter[str] = Counter()
    begun = time.perf_counter()

    async def caller(client: httpx.AsyncClient) -> None:
        nonlocal left
        while not ended.is_set() and (left is None or left > 0):
            left = None if left is None else left - 1
            sent = time.perf_counter()
            try:
                reply = await client.post(
                    f"{address}/v1/chat/completions", json=bodies[sum(statuses.values()) % len(bodies)]
                )
                statuses[str(reply.status_code)] += 1
                seconds.append(time.perf_counter() - sent)
            except httpx.TransportError as error:
                statuses[type(error).__name__] += 1

    limits = httpx.Limits(max_connections=together)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:
        await asyncio.gather(*(caller(client) for _ in range(together)))
    return {"seconds": seconds, "statuses": dict(statuses), "elapsed": time.perf_counter() - begun}


def body(seed: int) -> dict[str, Any]:
    """The JSON body of a call about a scene."""
    buffer = io.BytesIO()
    draw(sample_scene(seed)).save(buffer, "JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "caption en"}]
    return {"model": "demo", "messages": [{"role": "user", "content": content}]}


def show(phase: str, found: dict[str, Any]) -> dict[str, Any]:
    """Print a phase's figures and return them."""
    ordered = sorted(found["seconds"])
    shown = {
        "p50_ms": statistics.median(ordered) * 1e3,
        "p99_ms": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1e3,
        "per_second": len(ordered) / found["elapsed"],
        "statuses": found["statuses"],
    }
    print(
        f"{phase:12} {len(ordered):5} calls: p50 {shown['p50_ms']:7.1f} ms, p99 {shown['p99_ms']:7.1f} ms, "
        f"{shown['per_second']:6.1f} calls/s, replies {shown['statuses']}",
        flush=True,
    )
    return shown


if __name__ == "__main__":
    main()
