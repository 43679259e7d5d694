"""A finished run of any size, made without a model: records come from row numbers, one row in a thousand failed.

They go through the frozen manifest, the commits and the publication of a real run.
"""

import tempfile
from collections.abc import Sequence
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
from paliscribe.results.schema import BOX
from paliscribe.storage import Store
from paliscribe.verify.whole import facts_of

TASKS = ("caption en", "ocr")
DETECT = "detect cat"
LABELS = ("cat", "dog", "a red car", "person", "tree")
FACTS = ModelFacts("none", "0", "float32")


def made(table: pa.Table, start: int, shard: int, schema: pa.Schema, tasks: Sequence[str]) -> pa.Table:
    """The records of the rows of a shard, from row `start` on, under both tasks."""
    rows = np.repeat(np.arange(start, start + len(table)), len(tasks))
    failed = pa.array(rows % 1000 == 999)
    texts = pa.array(np.char.add("a scene with number ", rows.astype(str)))
    count = len(rows)
    taken = table.take(pa.array(rows - start))

    def answered(values: Any, kind: pa.DataType) -> pa.Array:
        return pc.if_else(failed, pa.scalar(None, kind), values)

    columns: dict[str, Any] = {name: taken[name] for name in taken.column_names}
    columns |= {
        "task": pa.array(list(tasks) * len(table)),
        "kind": pa.array([task.split()[0] for task in tasks] * len(table)),
        "status": pc.if_else(failed, "error", "ok"),
        "text": answered(texts, pa.string()),
        "score": answered(pa.array((rows * 7919 % 1000 / 1000).astype(np.float32)), pa.float32()),
        "tokens": answered(pa.array((rows % 20).astype(np.int32)), pa.int32()),
        "error_kind": pc.if_else(failed, "missing", pa.scalar(None, pa.string())),
        "shard": pa.array(np.full(count, shard, np.int32)),
        "row": pa.array(rows),
        **{name: pa.array([getattr(FACTS, name)] * count) for name in ("model", "revision", "precision")},
    }
    if DETECT in tasks:
        each = np.where((rows % 1000 == 999) | (np.arange(count) % 2 == 0), 0, rows % 5)
        columns |= {"boxes": _boxes(rows, each), "width": pa.array(np.full(count, 640, np.int32))}
        columns |= {"height": pa.array(np.full(count, 480, np.int32))}
    return pa.table([columns.get(f.name, pa.nulls(count, f.type)) for f in schema], schema=schema)


def _boxes(rows: np.ndarray, each: np.ndarray) -> pa.Array:
    """So many boxes in each record, which differ in place, size, label and score."""
    of = np.repeat(rows, each)
    x, y = of % 500, of % 400
    side = 20 + of % 60
    edges = [pa.array(values.astype(np.float32)) for values in (x, y, x + side, y + side, of * 31 % 100 / 100)]
    labels = pa.array(LABELS).take(pa.array(of % len(LABELS)))
    offsets = np.concatenate([[0], np.cumsum(each)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.StructArray.from_arrays([labels, *edges], fields=list(BOX)))


def make(store: Store, rows: int, *, boxes: bool = False) -> None:
    """A finished run of so many rows. `boxes`: the second task is `detect cat`, with up to four boxes."""
    tasks = (TASKS[0], DETECT if boxes else TASKS[1])
    with tempfile.TemporaryDirectory() as folder:
        source = str(Path(folder) / "manifest.parquet")
        numbers = np.arange(rows).astype(str)
        ids, images = np.char.add("id-", numbers), np.char.add("s3://bucket/images/", numbers)
        pq.write_table(pa.table({"id": ids, "image": images, "label": pa.array(np.arange(rows) % 100)}), source)
        frozen = manifest.freeze(source, store, shard_rows=None)
        job = JobConfig(manifest=(source,), tasks=tasks, output=store.uri)
    size, spec = frozen.shard_rows, ModelSpec(id="none", precision="float32")
    fingerprint = Fingerprint.of(job, manifest=frozen.digest, rows=frozen.rows, revision="0", shard_rows=size)
    file = RunFile(fingerprint, job.model_copy(update={"model": spec}), spec, 224)
    file.write(store)
    layout, schema, shards = frozen.layout(job.tasks, job.partition_by), results.schema(frozen.schema), Shards(store)
    for part in range(layout.parts):
        for shard in layout.shards_of(part):
            table = pa.concat_tables(shards.tables(shard))
            records = made(table, frozen.first_row(shard), shard, schema, tasks)
            results.commit(store, results.write_shard(store, shard, "bench", records))
        results.publish_part(store, layout, part)
    results.finish(store, layout, facts_of(file))
    results.sweep(store, layout.shards)
