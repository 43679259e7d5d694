"""Peak memory of commands over a small and a large run: `python -m bench.memory FOLDER --rows 5000 500000`.

Runs that are not there are made, with two annotations a row, see `made_run`. The pictures do not exist. Each command
runs in a process of its own; the peak is its resident memory.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.made_run import DETECT, make
from paliscribe import results
from paliscribe.storage import open_store

RUN = """
import atexit, sys
def peak():
    [found] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]  # not the parent's
    print(f"\\npeak {int(found) / 1024:.0f}", file=sys.stderr)
atexit.register(peak)
from paliscribe.cli.main import main
sys.exit(main())
"""
JOINED = "SELECT a.id, a.text, b.boxes FROM annotations a JOIN annotations b USING (id) WHERE a.task < b.task"


def commands(output: Path, folder: Path) -> dict[str, list[str]]:
    """Each command by a name, with what it writes below `folder`."""
    run, truth = str(output), str(_truth(output, folder))
    counts = "SELECT label, count(*) FROM (SELECT unnest(boxes, recursive := true) FROM annotations) GROUP BY 1"
    return {
        "query, counts of labels": ["query", run, counts],
        "query, all rows as CSV": ["query", run, "SELECT * FROM annotations", "--format", "csv"],
        "query, all rows sorted": ["query", run, "SELECT * FROM annotations ORDER BY score, id", "--format", "csv"],
        "query, a join": ["query", run, JOINED, "--format", "jsonl"],
        "report": ["report", run, "-o", str(folder / "report.html")],
        **{
            f"export {form}": ["export", run, "--format", form, "--to", str(folder / form)]
            for form in ("coco", "jsonl", "csv", "hf", "label-studio", "fiftyone")
        },
        "evaluate, captions and boxes": ["evaluate", run, "--truth", truth],
    }


def _truth(output: Path, folder: Path) -> Path:
    """Truth for every row: half of the captions as they were given, and one box."""
    rows = range(json.loads((output / "_summary.json").read_text())["rows"])
    path = folder / "truth.parquet"
    ids = [f"id-{row}" for row in rows]
    texts = [f"a scene with number {row + row % 2}" for row in rows]
    box = {"label": "cat", "x_min": 1.0, "y_min": 1.0, "x_max": 50.0, "y_max": 60.0}
    pq.write_table(pa.table({"id": ids, "caption en": texts, DETECT: [[box]] * len(rows)}), path)
    return path


def measured(words: list[str]) -> tuple[float, int]:
    """Seconds and peak resident memory in MiB of a command."""
    began = time.monotonic()
    command = [sys.executable, "-c", RUN, *words]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr[-2000:]}")
    return time.monotonic() - began, int(done.stderr.rsplit("peak ", 1)[1])


def main() -> None:
    """Print a line a command: rows, seconds and MiB of each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[5000, 500_000])
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    sizes: dict[int, dict[str, list[str]]] = {}
    for rows in given.rows:
        output, written = given.folder / f"run-{rows}", given.folder / f"written-{rows}"
        written.mkdir(parents=True, exist_ok=True)
        if not (store := open_store(str(output))).exists(results.SUCCESS):
            make(store, rows, boxes=True)
        sizes[rows] = commands(output, written)
    print("| command |", " | ".join(f"{rows:,} rows" for rows in sizes), "|")
    print("|---" * (len(sizes) + 1), "|", sep="")
    for name in next(iter(sizes.values())):
        if given.only in name:
            found = [measured(words[name]) for words in sizes.values()]
            cells = " | ".join(f"{seconds:.1f} s, {mebibytes} MiB" for seconds, mebibytes in found)
            print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
