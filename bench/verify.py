"""Time and memory of `paliscribe verify`: `python -m bench.verify OUTPUT --rows 1000000` makes a run and verifies it.

The run has two tasks and no model: records are made from row numbers, and one row in a thousand is a dead letter. They
go through the frozen manifest, the commits and the publication of a real run. An output that is there is only verified.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paliscribe import manifest, results
from paliscribe.config import JobConfig, ModelSpec
from paliscribe.manifest import Shards
from paliscribe.results import ModelFacts
from paliscribe.results.run_file import Fingerprint, RunFile
from paliscribe.storage import Store, open_store
from paliscribe.verify.whole import facts_of

TASKS = ("caption en", "ocr")
FACTS = ModelFacts("none", "0", "float32")
VERIFY = """
import json, resource, sys, time
from paliscribe.verify import verify
began = time.monotonic()
report = verify(sys.argv[1])
used = resource.getrusage(resource.RUSAGE_SELF)
figures = {"seconds": time.monotonic() - began, "cpu_seconds": used.ru_utime + used.ru_stime}
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]  # not the parent's
figures |= {"peak_mib": int(peak) / 1024}
print(json.dumps(report.as_dict() | {name: round(value, 1) for name, value in figures.items()}))
"""


def made(table: pa.Table, start: int, shard: int, schema: pa.Schema) -> pa.Table:
    """The records of the rows of a shard, from row `start` on, under both tasks."""
    rows = np.repeat(np.arange(start, start + len(table)), len(TASKS))
    failed = pa.array(rows % 1000 == 999)
    texts = pa.array(np.char.add("a scene with number ", rows.astype(str)))
    count = len(rows)
    taken = table.take(pa.array(rows - start))

    def answered(values: Any, kind: pa.DataType) -> pa.Array:
        return pc.if_else(failed, pa.scalar(None, kind), values)

    columns: dict[str, Any] = {name: taken[name] for name in taken.column_names}
    columns |= {
        "task": pa.array(TASKS * (count // len(TASKS))),
        "kind": pa.array(("caption", "ocr") * (count // len(TASKS))),
        "status": pc.if_else(failed, "error", "ok"),
        "text": answered(texts, pa.string()),
        "score": answered(pa.array(np.full(count, 0.5, np.float32)), pa.float32()),
        "tokens": answered(pa.array((rows % 20).astype(np.int32)), pa.int32()),
        "error_kind": pc.if_else(failed, "missing", pa.scalar(None, pa.string())),
        "shard": pa.array(np.full(count, shard, np.int32)),
        "row": pa.array(rows),
        **{name: pa.array([getattr(FACTS, name)] * count) for name in ("model", "revision", "precision")},
    }
    return pa.table([columns.get(f.name, pa.nulls(count, f.type)) for f in schema], schema=schema)


def make(store: Store, rows: int) -> None:
    """A finished run of so many rows."""
    with tempfile.TemporaryDirectory() as folder:
        source = str(Path(folder) / "manifest.parquet")
        numbers = np.arange(rows).astype(str)
        ids, images = np.char.add("id-", numbers), np.char.add("s3://bucket/images/", numbers)
        pq.write_table(pa.table({"id": ids, "image": images, "label": pa.array(np.arange(rows) % 100)}), source)
        frozen = manifest.freeze(source, store, shard_rows=None)
        job = JobConfig(manifest=(source,), tasks=TASKS, output=store.uri)
    size, spec = frozen.shard_rows, ModelSpec(id="none", precision="float32")
    fingerprint = Fingerprint.of(job, manifest=frozen.digest, rows=frozen.rows, revision="0", shard_rows=size)
    file = RunFile(fingerprint, job.model_copy(update={"model": spec}), spec, 224)
    file.write(store)
    layout, schema, shards = frozen.layout(job.tasks, job.partition_by), results.schema(frozen.schema), Shards(store)
    for part in range(layout.parts):
        for shard in layout.shards_of(part):
            table = pa.concat_tables(shards.tables(shard))
            records = made(table, frozen.first_row(shard), shard, schema)
            results.commit(store, results.write_shard(store, shard, "bench", records))
        results.publish_part(store, layout, part)
    results.finish(store, layout, facts_of(file))
    results.sweep(store, layout.shards)


def main() -> None:
    """Make the run if it is not there, and verify it in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output")
    parser.add_argument("--rows", type=int, default=500_000)
    given = parser.parse_args()
    store = open_store(given.output)
    if not store.exists(results.SUCCESS):
        began = time.monotonic()
        make(store, given.rows)
        print(
            f"made in {time.monotonic() - began:.0f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB"
        )
    ran = subprocess.run([sys.executable, "-c", VERIFY, given.output], capture_output=True, text=True, check=True)
    print(json.dumps(json.loads(ran.stdout), indent=2))


if __name__ == "__main__":
    main()
