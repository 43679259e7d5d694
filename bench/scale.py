"""What a run of many rows costs beside the model: freeze, plan, resume, publish, retry; and how shards reach processes.

    python -m bench.scale [--rows 1000000 10000000] [--parts freeze start ends stage shards] [--json]

`freeze`: seconds and peak memory for JSONL, CSV and Parquet. `start`: a run, new and with nine tenths committed, from
the call to the pool being ready, with the demo model; memory of the driver. `ends`: committed shards of synthetic
records, one in a hundred an error: publication, summary, sweep and the begin of a retry, and the calls of the store.
`stage`: rows/s of one stage process whose pool answers at once, with photographs of 640 x 480 to decode for each row.
`shards`: 4,000 shards through Ray Data to processes that do nothing, on simulated CPUs: 16 and 64 on one node, and 16
on each of four raylets. Every measurement has a process of its own. One task, output on a local disk.
"""

import argparse
import base64
import contextlib
import importlib
import io
import json
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from paliscribe.records import FinishReason, Prediction, Request

TASK = "caption en"
PARTS = ("freeze", "start", "ends", "stage", "shards")
STAGE_ROWS = 4_096
FORMATS = ("jsonl", "csv", "parquet")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    from bench.machine import machine

    found: dict[str, Any] = {"machine": machine()}
    print(f"{found['machine']['processor']}, {found['machine']['cores']} cores, commit {found['machine']['commit']}")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            measured = found.setdefault(f"{rows:,} rows", {})
            if "freeze" in options.parts:
                for kind in FORMATS:
                    manifest = Path(folder) / f"m.{kind}"
                    alone(write_manifest, manifest, rows)
                    told(measured, f"freeze {kind}", alone(freeze, manifest, Path(folder) / kind))
            manifest = Path(folder) / "m.parquet"
            alone(write_manifest, manifest, rows)
            if "start" in options.parts:
                told(measured, "start, new", alone(start, manifest, Path(folder) / "run"))
                alone(commit_tenths, Path(folder) / "run", 9)
                told(measured, "start, nine tenths done", alone(start, manifest, Path(folder) / "run"))
            if "ends" in options.parts:
                alone(freeze, manifest, Path(folder) / "ends")
                told(measured, "ends", alone(ends, manifest, Path(folder) / "ends"))
    if "stage" in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            told(found, f"stage, {STAGE_ROWS:,} rows", alone(stage, Path(folder), STAGE_ROWS))
    if "shards" in options.parts:
        for nodes, cpus in ((1, 16), (1, 64), (4, 16)):
            told(found, f"4,000 shards, {nodes} x {cpus} CPUs", alone(through_ray, 4_000, cpus, nodes))
    if options.json:
        print(json.dumps(found))


def told(found: dict[str, Any], name: str, figures: dict[str, Any]) -> None:
    """Add figures and print them."""
    found[name] = figures
    print(f"{name}: " + ", ".join(f"{key} {value:,}" for key, value in figures.items()), flush=True)


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, so that peaks of memory are its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def write_manifest(path: Path, rows: int) -> None:
    """A manifest of 111 bytes a row as JSONL, with four columns; images in S3, or inline for Parquet."""
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, manifest_table(range(1)).schema) as writer:
            for first in range(0, rows, 100_000):
                writer.write_table(manifest_table(range(first, min(rows, first + 100_000))))
        return
    with path.open("w") as file:
        if path.suffix == ".csv":
            file.write("id,image,source,n\n")
        for n in range(rows):
            image = f"s3://bucket/folder/{n // 1000:06d}/{n:09d}.jpg"
            if path.suffix == ".csv":
                file.write(f'img-{n:09d},{image},"camera, {n % 7}",{n}\n')
            else:
                file.write(f'{{"id": "img-{n:09d}", "image": "{image}", "source": "camera-{n % 7}", "n": {n}}}\n')


def manifest_table(rows: range) -> pa.Table:
    """Some rows of a manifest, with an inline image of one pixel."""
    body = io.BytesIO()
    Image.new("RGB", (1, 1)).save(body, "PNG")
    image = f"data:image/png;base64,{base64.b64encode(body.getvalue()).decode()}"
    ids = [f"img-{n:09d}" for n in rows]
    return pa.table(
        {"id": ids, "image": [image] * len(rows), "source": [f"camera-{n % 7}" for n in rows], "n": list(rows)}
    )


def freeze(manifest: Path, output: Path) -> dict[str, float]:
    """Freeze a manifest."""
    from paliscribe.manifest import freeze
    from paliscribe.storage import open_store

    begun = time.monotonic()
    frozen = freeze(str(manifest), open_store(str(output)), shard_rows=None)
    seconds = time.monotonic() - begun
    return {"s": round(seconds, 1), "rows/s": round(frozen.rows / seconds), "peak MiB": peak(), "shards": frozen.shards}


def start(manifest: Path, output: Path) -> dict[str, float]:
    """A run until its pool is ready; then it is stopped."""
    import psutil

    from paliscribe.batch.progress import Progress
    from paliscribe.batch.run import run_batch
    from paliscribe.config import JobConfig
    from paliscribe.errors import Stopped

    found: dict[str, float] = {}
    begun = time.monotonic()

    def watch(progress: Progress) -> None:
        if progress.annotating_since is not None and not found:
            processes = psutil.Process().children(recursive=True)
            found.update(s=round(progress.annotating_since - begun, 1), processes=len(processes))
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(Stopped):
        run_batch(JobConfig(manifest=(str(manifest),), tasks=(TASK,), output=str(output)), watch)
    return found | {"driver's peak MiB": peak()}


def commit_tenths(output: Path, tenths: int) -> None:
    """Write markers as if so many tenths of a run were committed and published."""
    from paliscribe import manifest, results
    from paliscribe.results.commit import marker_key
    from paliscribe.storage import open_store

    store = open_store(str(output))
    frozen = manifest.load(store)
    assert frozen is not None
    layout = results.Layout(frozen.shards, frozen.shard_rows, frozen.rows, (TASK,), ("task",))
    until = frozen.shards * tenths // 10
    for shard in range(until):
        rows = frozen.rows_of(shard)
        marker = results.Marker(shard, f"_run/shards/shard-{shard:05d}.x.arrow", "", 0, rows, rows, {"ok": rows}, {}, 0)
        store.put(marker_key(shard), marker.as_json())
    for part in range(layout.part_of(until)):
        records = sum(map(frozen.rows_of, layout.shards_of(part)))
        marked = results.PartMarker(part, {}, records, {"ok": records}, {}, 0, [])
        store.put(f"_run/parts/part-{part:05d}.json", marked.as_json())


class Counting:
    """A store that counts its calls by kind."""

    def __init__(self, store: Any) -> None:
        self.store, self.calls = store, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        self.calls[name] += callable(found)
        return found


def ends(source: Path, output: Path) -> dict[str, Any]:
    """Commit synthetic shards; then publish, finish, sweep and begin a retry."""
    from paliscribe import manifest, results
    from paliscribe.batch.progress import Progress
    from paliscribe.batch.retrying import begin_retry
    from paliscribe.config import JobConfig
    from paliscribe.storage import open_store

    store: Any = open_store(str(output))
    frozen = manifest.load(store)
    assert frozen is not None
    layout = results.Layout(frozen.shards, frozen.shard_rows, frozen.rows, (TASK,), ("task",))
    for shard, table in enumerate(synthetic(frozen)):
        results.commit(store, results.write_shard(store, shard, "a", table))
        results.write_shard(store, shard, "lost", table.slice(0, 1))
    counting: Any = Counting(store)
    job = JobConfig(manifest=(str(source),), tasks=(TASK,), output=str(output))
    figures: dict[str, Any] = {"parts": layout.parts}

    def timed(name: str, action: Callable[[], object]) -> None:
        counting.calls.clear()
        begun = time.monotonic()
        action()
        figures[f"{name} s"] = round(time.monotonic() - begun, 1)
        figures[f"{name} calls"] = sum(counting.calls.values())

    timed("publish", lambda: [results.publish_part(counting, layout, part) for part in range(layout.parts)])
    timed("finish", lambda: results.finish(counting, layout, {}))
    timed("sweep", lambda: results.sweep(counting, layout.shards))
    timed("begin retry", lambda: begin_retry(counting, frozen, job, 1, Progress()))
    return figures | {"peak MiB": peak()}


def synthetic(frozen: Any) -> Iterator[pa.Table]:
    """A table of records for each shard; one in a hundred is an error."""
    from paliscribe import results
    from paliscribe.records import Record

    schema = results.schema(frozen.schema)
    about: dict[str, Any] = {"id": "", "image": "data:...", "task": TASK, "kind": "caption", "prompt": TASK}
    about |= {"boxes": (), "masks": (), "width": 1, "height": 1, "image_sha256": "0" * 64, "shard": 0, "row": 0}
    answer: dict[str, Any] = {"status": "ok", "text": "a cat and two dogs", "score": 0.5, "prompt_tokens": 70}
    answer |= {"tokens": 9, "finish_reason": "stop", "error_kind": None, "error_message": None}
    error = dict.fromkeys(answer) | {"status": "error", "error_kind": "missing", "error_message": "no such file"}
    values: list[dict[str, Any]] = [about | (error if n % 100 == 7 else answer) for n in range(frozen.shard_rows)]
    made = [Record(**each) for each in values]
    whole = results.to_table(made, results.ModelFacts("demo", "0" * 40, "float32"), schema)
    for shard in range(frozen.shards):
        first, rows = shard * frozen.shard_rows, frozen.rows_of(shard)
        numbers = pa.array(np.arange(first, first + rows))
        table = whole.slice(0, rows)
        for name, values in (
            ("id", pa.array([f"img-{n:09d}" for n in range(first, first + rows)])),
            ("row", numbers),
            ("shard", pa.array(np.full(rows, shard, np.int32))),
        ):
            table = table.set_column(schema.get_field_index(name), schema.field(name), values)
        yield table


class AtOnce:
    """A pool that answers every request at once."""

    slots = 256

    def send(self, requests: Sequence[Request]) -> "Answered":
        """Start a call."""
        return Answered(requests)


class Answered:
    """A call of `AtOnce`."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._ids = [request.id for request in requests]

    def result(self) -> list[Prediction]:
        """The same answer for each request."""
        stop: FinishReason = "stop"
        return [Prediction(name, "a cat and two dogs", (1,) * 6, (-0.1,) * 6, stop) for name in self._ids]


def stage(folder: Path, rows: int) -> dict[str, float]:
    """All shards of a run through one stage process: read, fetched, decoded, parsed, committed."""
    from paliscribe import manifest, results
    from paliscribe.batch.stage import Plan, Stage
    from paliscribe.config import FetchConfig
    from paliscribe.grammar.tasks import parse_tasks
    from paliscribe.storage import open_store

    noise = np.random.default_rng(0)
    for number in range(64):
        small = Image.fromarray(noise.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    for number in range(64, rows):
        (folder / f"{number}.jpg").hardlink_to(folder / f"{number % 64}.jpg")
    listed = folder / "m.jsonl"
    listed.write_text("".join(f'{{"id": "img-{n:09d}", "image": "{n}.jpg"}}\n' for n in range(rows)))
    store = open_store(str(folder / "run"))
    frozen = manifest.freeze(str(listed), store, shard_rows=None)
    tasks, facts = tuple(parse_tasks([TASK])), results.ModelFacts("demo", "0" * 40, "float32")
    plan = Plan(store.uri, tasks, results.schema(frozen.schema), facts, 224, FetchConfig())
    begun, before = time.monotonic(), time.process_time()
    records = sum(marker.records for marker in Stage(plan, AtOnce()).annotate(range(frozen.shards)))
    seconds = time.monotonic() - begun
    assert records == rows
    return {"rows/s": round(rows / seconds), "cores": round((time.process_time() - before) / seconds, 2)}


class Idle:
    """A stage process that commits at once."""

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, block: pa.Table) -> Iterator[dict[str, Any]]:
        """Yield the markers of a block."""
        from paliscribe.batch.dataset import shards_of
        from paliscribe.results import Marker

        for shard in shards_of(block):
            marker = Marker(shard, "", "", 0, 1, 1, {"ok": 1}, {}, 0)
            yield {"marker": np.array([marker.as_json().decode()], dtype=object)}


def through_ray(shards: int, cpus: int, nodes: int = 1) -> dict[str, float]:
    """Send shards to processes that do nothing, on raylets with simulated CPUs."""
    import psutil
    import ray
    from ray.cluster_utils import Cluster

    from paliscribe.batch.dataset import annotate_shards
    from paliscribe.batch.progress import Progress

    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    cluster = None
    if nodes == 1:
        ray.init("local", num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    else:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "include_dashboard": False})
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=cpus)
        ray.init(cluster.address, **quiet)
    begun, most, count = time.monotonic(), 0, 0
    workers = max(1, nodes * cpus // 4)  # the rest is the pool's
    plan: Any = None
    idle = importlib.import_module("bench.scale").Idle  # not of __main__, which other processes do not have
    first = 0.0
    for _ in annotate_shards(plan, plan, np.arange(shards), cpus=1, workers=workers, progress=Progress(), stage=idle):
        first = first or time.monotonic()
        count += 1
        if count % 500 == 1:
            most = max(most, len(psutil.Process().children(recursive=True)))
    seconds, since = time.monotonic() - begun, time.monotonic() - first
    ray.shutdown()
    if cluster is not None:
        cluster.shutdown()
    assert count == shards
    return {
        "s": round(seconds, 1),
        "after the first": round(since, 1),
        "stage processes": workers,
        "processes at most": most,
        "driver's peak MiB": peak(),
    }


def peak() -> int:
    """Peak resident memory of this process, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) // 1024 if found else 0


if __name__ == "__main__":
    main()
