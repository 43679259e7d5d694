"""The same images and tasks through Paliscribe and through what one would write instead, from process start to end.

    python -m bench.peers [--images 200 2000] [--rounds 3] [--peers script:1 raydata:2] [--json]

The peers are `bench.peer_script` (transformers, batches of 32) and `bench.peer_raydata` (Ray Data with `generate` in an
actor), each with one torch thread and with as many as there are cores; the best counts. `--peers` chooses other pairs
of a peer and its threads. All answer four tasks for each image, with the demo model in float32, and write to a local
disk. One after another, in turns.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TASKS = {"caption en": 64, "answer en {question}": 32, "ocr": 128, "detect {objects}": 256}  # most tokens, as a run has
BATCH = 32
LOOK = 0.05  # seconds between two looks


def checkpoint() -> str:
    """The demo checkpoint's folder."""
    from paliscribe.config import ModelSpec
    from paliscribe.model.weights import locate

    return str(locate(ModelSpec()).path)


def inputs_of(processor: Any, rows: Sequence[dict[str, Any]], folder: Path, task: str) -> Any:
    """The inputs of a batch for `generate`. Rows have the bytes of their image, or its path in the folder."""
    from PIL import Image

    bodies = [row["bytes"] if "bytes" in row else (folder / row["image"]).read_bytes() for row in rows]
    images = [Image.open(io.BytesIO(body)).convert("RGB") for body in bodies]
    prompts = ["<image>" + task.format_map(row) for row in rows]
    inputs = processor(text=prompts, images=images, return_tensors="pt", padding="longest")
    inputs.pop("labels", None)
    return inputs


def peer_arguments(words: str | None) -> argparse.Namespace:
    """The arguments of a peer: manifest, output, torch threads."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--rounds", type=int, default=3)
    both = [f"{peer}:{threads}" for peer in ("script", "raydata") for threads in (1, os.cpu_count() or 1)]
    parser.add_argument("--peers", nargs="+", default=both, metavar="PEER:THREADS")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    from bench.machine import machine
    from paliscribe.demo.collection import write_collection

    described = machine()
    print(f"{described['processor']}, {described['cores']} cores, commit {described['commit']}")
    found: dict[str, Any] = {"machine": described}
    for images in options.images:
        with tempfile.TemporaryDirectory() as folder:
            manifest = write_collection(Path(folder) / "collection", images, seed=1)
            rounds = [one_round(manifest, Path(folder) / str(n), options.peers) for n in range(options.rounds)]
        found[str(images)] = report(images, rounds)
    if options.json:
        print(json.dumps(found))


def one_round(manifest: Path, folder: Path, peers: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Seconds to the first answers and to the end, of each contender."""
    folder.mkdir()
    found = {}
    for peer, threads in (each.split(":") for each in peers):
        output = folder / f"{peer}-{threads}"
        command = [f"bench.peer_{peer}", "--manifest", str(manifest), "--output", str(output), "--threads", threads]
        found[f"{peer}, {threads} threads"] = timed(command, output)
    output = folder / "paliscribe"
    tasks = [word for task in TASKS for word in ("--task", task)]
    command = ["paliscribe", "annotate", "--manifest", str(manifest), "--output", str(output), "--quiet", *tasks]
    found["paliscribe"] = timed(command, output / "_run/done")
    print(", ".join(f"{name}: {whole:.1f} s" for name, (_, whole) in found.items()), flush=True)
    return found


def timed(module: Sequence[str], output: Path) -> tuple[float, float]:
    """Seconds until something is in `output`, and until the process has ended."""
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    begun, first = time.monotonic(), 0.0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, "-m", *module], env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            if not first and _has_content(output):
                first = time.monotonic() - begun
            time.sleep(LOOK)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{log.read()[-2000:]}\n{module[0]} ended with status {process.returncode}")
    whole = time.monotonic() - begun
    return first or whole, whole


def report(images: int, rounds: Sequence[dict[str, tuple[float, float]]]) -> dict[str, Any]:
    """Print medians and ratios to Paliscribe, each of one round."""
    print(f"\n{images} images x {len(TASKS)} tasks, {len(rounds)} rounds, medians:")
    figures = {}
    for name in rounds[0]:
        first, whole = (statistics.median(each[name][i] for each in rounds) for i in (0, 1))
        ratio = statistics.median(each[name][1] / each["paliscribe"][1] for each in rounds)
        figures[name] = {"first": first, "whole": whole, "ratio": ratio}
        print(f"  {name:22s} first answers {first:7.1f} s   whole {whole:7.1f} s   {ratio:5.2f} x Paliscribe's time")
    return figures


def _has_content(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir():
            return any(found.is_file() and found.stat().st_size for found in path.rglob("*"))
        return path.stat().st_size > 0
    return False


if __name__ == "__main__":
    main()
