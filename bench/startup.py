"""What a small run spends before and after its work: from the command to the first committed shard, and to the end.

    python -m bench.startup [--images 64] [--rounds 3] [--processes] [--json]

Runs `paliscribe annotate` with the demo model in a process of its own, and looks at its process tree ten times a
second. CPU time is that of all processes of the run, those of Ray included; `--processes` lists them.
"""

import argparse
import contextlib
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

import psutil

from bench.machine import machine
from paliscribe.demo.collection import write_collection

LOOK = 0.1  # seconds between two looks


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", action="store_true", help="start, end and CPU time of each process")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_collection(Path(folder) / "collection", options.images, seed=1)
        for number in range(options.rounds):
            rounds.append(one(manifest, Path(folder) / f"run-{number}", show=options.processes))
            print(f"round {number + 1}: " + ", ".join(f"{k} {v:.1f}" for k, v in rounds[-1].items()), flush=True)
    figures = {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}
    described = machine()
    print(f"\n{described['processor']}, {described['cores']} cores, commit {described['commit']}")
    print(f"{options.images} images x 2 tasks, {options.rounds} rounds, medians:")
    print(f"  first committed shard  {figures['first_commit']:6.1f} s")
    print(f"  whole run              {figures['whole']:6.1f} s")
    print(f"  CPU time               {figures['cpu']:6.1f} s in {figures['processes']:.0f} processes")
    if options.json:
        print(json.dumps({"machine": described, "figures": figures}))


def one(manifest: Path, output: Path, *, show: bool = False) -> dict[str, float]:
    """One run: seconds to the first commit and to the end, CPU seconds, and the number of processes.

    `show`: print when each process was first and last seen, its CPU seconds, and its name.
    """
    command = [sys.executable, "-m", "paliscribe", "annotate", "--manifest", str(manifest), "--output", str(output)]
    command += ["--task", "caption en", "--task", "ocr", "--quiet"]
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    begun, first, cpu = time.monotonic(), 0.0, dict[int, float]()
    seen = dict[int, tuple[float, float, str]]()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in [tree, *tree.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    cpu[each.pid] = sum(each.cpu_times()[:2])
                    now = time.monotonic() - begun
                    seen[each.pid] = (seen.get(each.pid, (now,))[0], now, _name(each.cmdline()))
        if not first and any((output / "_run/done").glob("*.json")):
            first = time.monotonic() - begun
        time.sleep(LOOK)
    if process.returncode or not first:
        raise SystemExit(f"the run ended with status {process.returncode}")
    whole = time.monotonic() - begun
    if show:
        for pid, (start, end, name) in sorted(seen.items(), key=lambda item: item[1]):
            print(f"  {start:5.1f} to {end:5.1f} s, {cpu[pid]:5.1f} s of CPU: {name}")
    return {"first_commit": first, "whole": whole, "cpu": sum(cpu.values()), "processes": float(len(cpu))}


def _name(words: list[str]) -> str:
    """The program of a command line, without folders and settings."""
    shown = (word.rpartition("/")[2] for word in words if not word.startswith("-"))
    return " ".join(shown)[:60]


if __name__ == "__main__":
    main()
