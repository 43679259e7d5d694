"""COCO's JSON as truth: its annotations by the ids of a run's rows, in constant memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import ijson
import pyarrow as pa

from paliscribe.errors import UsageError
from paliscribe.evaluation.given import Given
from paliscribe.evaluation.tables import ROWS, Inserts
from paliscribe.manifest.blocks import Source
from paliscribe.manifest.json_files import holds_rows
from paliscribe.manifest.messages import cut, quoted
from paliscribe.published import Tables
from paliscribe.storage import redacted

ENDINGS = (".json", ".json.gz", ".json.zst")
KINDS = ("detect", "segment", "caption", "describe")
KEPT = ("id", "bbox", "area", "iscrowd", "segmentation")
_BASE, _STEM = r"regexp_extract({}, '[^/\\]*$')", r"regexp_extract({}, '([^/\\]*?)(\.[^./\\]*)?$', 1)"
# How rows of a run are found among a file's images, in words, and the two things that are then equal.
WAYS = (
    ("its image ids", "r.id", "i.image"),
    ("its file names", "r.id", "i.file"),
    ("its file names without folders", _BASE.format("r.id"), _BASE.format("i.file")),
    ("its file names and the rows' images", _BASE.format("r.image"), _BASE.format("i.file")),
    ("its file names without folders and endings", _STEM.format("r.id"), _STEM.format("i.file")),
)


def is_coco(source: str) -> bool:
    """Whether a truth is a COCO file, by its name and its first bytes. Raises UsageError if they cannot be read."""
    if not source.lower().partition("?")[0].endswith(ENDINGS):
        return False
    with (opened := _opened(source)).translating():
        return not holds_rows(opened)


def _opened(source: str) -> Source:
    codec = {"gz": "gzip", "st": "zstd"}.get(source.lower().partition("?")[0][-2:])
    return Source(source, codec, "image")


def load_coco(
    tables: Tables, source: str, tasks: Sequence[tuple[str, str]], given: Given
) -> tuple[dict[str, str], list[str]]:
    """Add a file's annotations to what is given for the tasks of a run, pairs of task and kind.

    Returns what each task is compared with, in words, and notes. Raises UsageError for another file, for tasks that
    COCO has nothing for, and if no image is one of the run's.
    """
    wanted = {task: kind for task, kind in tasks if kind in KINDS}
    if not wanted:
        raise UsageError(f"truth {redacted(source)}: COCO has boxes, masks and captions, and the run has no such task")
    categories = _images(tables, source)
    con = tables.connection
    way, matched = _way(tables, source)
    con.execute(f"CREATE OR REPLACE TABLE _ids AS {matched}")
    with Inserts(con, "_annotations", {"image": pa.string(), "caption": pa.bool_(), "value": pa.string()}) as into:
        for each in _items(source, "annotations"):
            if "caption" in each:
                into.add((str(each.get("image_id")), True, each["caption"]))
            elif "bbox" in each or "segmentation" in each:
                value = {name: each[name] for name in KEPT if name in each}
                value["label"] = categories.get(each.get("category_id"), str(each.get("category_id")))
                into.add((str(each.get("image_id")), False, value))
    columns = {}
    for task, kind in wanted.items():
        is_caption = kind in ("caption", "describe")
        sql = f"SELECT id, value FROM _ids JOIN _annotations USING (image) WHERE caption = {is_caption}"
        if not is_caption:  # an image without an annotation has no object
            sql += " UNION ALL SELECT id, '[]' FROM _ids"
        for batch in con.sql(sql).to_arrow_reader(ROWS):
            for row_id, value in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                given.add_json(task, row_id, value)
        columns[task] = "captions" if is_caption else "annotations"
    con.execute("DROP TABLE _annotations")
    return columns, [f"rows were found by {way}"]


def _items(source: str, name: str) -> Iterator[dict[str, Any]]:
    """The objects of one of the file's lists; none if it is not there. Raises UsageError for what is no JSON."""
    opened = _opened(source)
    try:
        with opened.translating(), opened.open() as file:
            yield from (each for each in ijson.items(file, f"{name}.item", use_float=True) if isinstance(each, dict))
    except ijson.JSONError as error:
        words = cut((str(error).splitlines() or ["it ends too soon"])[0])
        raise UsageError(f"truth {redacted(source)}: not JSON: {words}") from None


def _images(tables: Tables, source: str) -> dict[Any, str]:
    """Insert the images into `_images`; returns the names of the categories."""
    with Inserts(tables.connection, "_images", {"image": pa.string(), "file": pa.string()}) as into:
        for each in _items(source, "images"):
            into.add((str(each.get("id")), str(each.get("file_name", ""))))
    if tables.connection.execute("SELECT count(*) FROM _images").fetchall() == [(0,)]:
        raise UsageError(f"truth {redacted(source)}: no list of `images`, as COCO's JSON has")
    return {each.get("id"): str(each.get("name")) for each in _items(source, "categories")}


def _way(tables: Tables, source: str) -> tuple[str, str]:
    """How most rows are found, in words and as a query of pairs of id and image. Raises UsageError if none is."""
    rows = "(SELECT DISTINCT id, image FROM annotations UNION SELECT DISTINCT id, image FROM errors)"
    best = ("", "", 0)
    for words, mine, theirs in WAYS:
        query = f"SELECT DISTINCT r.id, i.image FROM {rows} r JOIN _images i ON {mine} = {theirs} WHERE {mine} <> ''"
        [(pairs, ids)] = tables.connection.execute(f"SELECT count(*), count(DISTINCT id) FROM ({query})").fetchall()
        if pairs == ids and ids > best[2]:
            best = (words, query, ids)
    if not best[2]:
        samples = f"SELECT (SELECT min(id) FROM {rows}), (SELECT min(file) FROM _images)"
        [(mine, theirs)] = tables.connection.execute(samples).fetchall()
        raise UsageError(
            f"truth {redacted(source)}: no image is one of the run's by id or file name: the run has {quoted(mine)}, "
            f"the file {quoted(theirs)}"
        )
    return best[0], best[1]
