"""A small run to look at: what the demo model answered about scenes, which are drawn anew."""

from pathlib import Path
from typing import Final

import pyarrow.compute as pc
import pyarrow.parquet as pq

from paliscribe import results
from paliscribe.demo.collection import write_collection
from paliscribe.results import Layout
from paliscribe.storage import open_store

RECORDS: Final = Path(__file__).parent / "example.parquet"  # of the run, with images relative to its manifest
SCENES, SEED = 24, 7  # of the run
NOTE: Final = (
    "An example: what the demo model answered about generated scenes, recorded with this release; marks are not kept."
)


def write_example(folder: Path) -> str:
    """Write the run and its pictures into an empty folder; returns its output."""
    collection, output = write_collection(folder / "collection", SCENES, SEED).parent, folder / "example run"
    table = pq.read_table(RECORDS)
    place = table.schema.get_field_index("image")
    images = pc.binary_join_element_wise(str(collection), table["image"], "/")
    table = table.set_column(place, table.schema.field(place), images)
    store = open_store(str(output))
    tasks = tuple(pc.unique(table["task"]).to_pylist())
    layout = Layout(shards=1, shard_rows=SCENES + 1, rows=SCENES + 1, tasks=tasks, partition_by=("task",))
    results.commit(store, results.write_shard(store, 0, "example", table))
    results.publish_part(store, layout, 0)
    results.finish(store, layout, {"model": "demo"})
    return str(output)
