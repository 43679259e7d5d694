"""A small run to look at: what the demo model answered about scenes, which are drawn anew."""

import json
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paliscribe.demo.collection import write_collection
from paliscribe.results import SUCCESS, SUMMARY

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
    is_error = pc.equal(table["status"], "error")
    files = {}
    for name, part in (("annotations", table.filter(pc.invert(is_error))), ("errors", table.filter(is_error))):
        files[f"{name}/part-00000.parquet"] = _written(part, output / name / "part-00000.parquet")
    (output / SUMMARY).write_text(json.dumps({"files": files, "model": "demo", "rows": SCENES + 1}))
    (output / SUCCESS).touch()
    return str(output)


def _written(table: pa.Table, path: Path) -> dict[str, int]:
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    return {"records": table.num_rows}
