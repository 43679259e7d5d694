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
from paliscribe.results.schema import BOX, MASK
from paliscribe.storage import Store
from paliscribe.verify.whole import facts_of

TASKS = ("caption en", "ocr")
DETECT, SEGMENT = "detect cat", "segment cat"
WIDTH, HEIGHT = 640, 480
LABELS = ("cat", "dog", "a red car", "person", "tree")
FACTS = ModelFacts("none", "0", "float32")


def made(
    table: pa.Table, start: int, shard: int, schema: pa.Schema, tasks: Sequence[str], lengths: int = 0
) -> pa.Table:
    """The records of the rows of a shard, from row `start` on, under both tasks. `lengths`: see `make`."""
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
    if not {DETECT, SEGMENT}.isdisjoint(tasks):
        each = np.where((rows % 1000 == 999) | (np.arange(count) % 2 == 0), 0, 1 if lengths else rows % 5)
        columns |= {"boxes": _boxes(rows, each), "width": pa.array(np.full(count, WIDTH, np.int32))}
        columns |= {"height": pa.array(np.full(count, HEIGHT, np.int32))}
        if lengths:
            columns["masks"] = _masks(rows, each, lengths, columns["boxes"])
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


def _masks(rows: np.ndarray, each: np.ndarray, lengths: int, boxes: pa.ListArray) -> pa.Array:
    """A mask for each box, of so many run lengths."""
    of = np.repeat(rows, each)
    run = WIDTH * HEIGHT // lengths
    rle = np.full((len(of), lengths), run, np.int32)
    rle[:, 0], rle[:, -1] = 1 + of % run, WIDTH * HEIGHT - run * (lengths - 2) - 1 - of % run
    lists = pa.ListArray.from_arrays(np.arange(len(of) + 1, dtype=np.int32) * lengths, pa.array(rle.ravel()))
    codes = pa.ListArray.from_arrays(
        np.arange(len(of) + 1, dtype=np.int32) * 16, pa.array(np.tile(np.arange(16, dtype=np.int16), len(of)))
    )
    height, width = (pa.array(np.full(len(of), side, np.int32)) for side in (HEIGHT, WIDTH))
    values = [boxes.values.field("label"), codes, lists, height, width, boxes.values.field("score")]
    return pa.ListArray.from_arrays(boxes.offsets, pa.StructArray.from_arrays(values, fields=list(MASK)))


def make(store: Store, rows: int, *, boxes: bool = False, lengths: int = 0) -> None:
    """A finished run of so many rows. `boxes`: the second task is `detect cat`, with up to four boxes.

    `lengths`: it is `segment cat`, with a mask of so many run lengths, an even number.
    """
    tasks = (TASKS[0], SEGMENT if lengths else DETECT if boxes else TASKS[1])
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
            records = made(table, frozen.first_row(shard), shard, schema, tasks, lengths)
            results.commit(store, results.write_shard(store, shard, "bench", records))
        results.publish_part(store, layout, part)
    results.finish(store, layout, facts_of(file))
    results.sweep(store, layout.shards)
