"""How near the estimate of `paliscribe preview` is to the run that it estimates.

    python -m bench.preview [--rows 2000] [--sample 64] [--tries 5] [--json]

Each try previews a job of the demo model and then runs it, in processes of their own, on a machine that should do
nothing else. The error is that of the estimated time of the whole run, from the begin of its process to the end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import machine
from paliscribe.demo.collection import write_collection

TASKS = ("caption en", "answer en {question}", "ocr", "detect {objects}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--sample", type=int, default=64)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    tries = []
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_collection(Path(folder) / "collection", options.rows, seed=1)
        for number in range(options.tries):
            tries.append(one(manifest, Path(folder) / f"run-{number}", options.sample, number))
            found = tries[-1]
            low, high = found["range"]
            said = f"estimate {found['estimate']:.1f} s ({low:.1f} to {high:.1f}), run {found['run']:.1f} s"
            print(f"try {number + 1}: {said}: {found['error']:+.0%}", flush=True)
    described = machine()
    worst = max(abs(found["error"]) for found in tries)
    print(f"\n{described['processor']}, {described['cores']} cores, commit {described['commit']}")
    print(f"{options.rows} rows x {len(TASKS)} tasks from {options.sample}: the estimate is {worst:.0%} off at most")
    if options.json:
        print(json.dumps({"machine": described, "tries": tries}))


def one(manifest: Path, output: Path, sample: int, seed: int) -> dict[str, Any]:
    """One try: the estimated seconds, their range, the seconds of the run, and the error as a share of these."""
    job = ["--manifest", str(manifest), "--output", str(output), "--quiet", "--json"]
    job += [word for task in TASKS for word in ("--task", task)]
    place = str(output.with_name(f"{output.name}-sample"))
    found = json.loads(called(["preview", *job, "-n", str(sample), "--seed", str(seed), "--to", place]))
    begun = time.monotonic()
    called(["annotate", *job])
    seconds = time.monotonic() - begun
    guess = found["estimate"]
    return {
        "estimate": guess["seconds"],
        "range": guess["seconds_range"],
        "run": seconds,
        "error": guess["seconds"] / seconds - 1,
        "startup": guess["startup_seconds"],
        "rows_per_second": guess["rows_per_second"],
    }


def called(words: Sequence[str]) -> bytes:
    """What a command prints on stdout."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "paliscribe", *words]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout


if __name__ == "__main__":
    main()
