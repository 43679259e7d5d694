"""Reviews that come back: files of Label Studio and of COCO become marks beside the run."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import pyarrow as pa

from paliscribe.errors import RunError, UsageError
from paliscribe.export.pictures import BOX_KINDS
from paliscribe.export.review_files import CLOSE, Reviewed, read_review
from paliscribe.export.selecting import clipped
from paliscribe.published import Mark, Tables, open_tables, put_mark
from paliscribe.published.query import mistakes, rows_of
from paliscribe.records import Box
from paliscribe.storage import StorageError, registered_scheme, split
from paliscribe.storage.parallel import in_order

TOGETHER = 1000  # reviewed answers that are looked up at a time


def import_review(output: str, file: str) -> dict[str, Any]:
    """Write marks for what a reviewer left in a file: Label Studio's export as JSON, or COCO's JSON.

    Each reviewed answer is compared with the published one, whatever marks it has: equal: accept; other: fix; deleted:
    reject. An answer whose boxes were all deleted is deleted; so is an empty text. Boxes are equal if labels are, and
    edges to half a pixel. Returns counts: accept, fix, reject, `unknown` and the first of them in `named`: answers that
    this run does not have. Raises UsageError for a file that is neither, or of another run; and RunError.
    """
    tables = open_tables(output)
    try:
        store, key = split(file)
        content = json.loads(registered_scheme(file).open_store(store).get(key))
    except StorageError as error:
        raise UsageError(str(error)) from None
    except ValueError as error:
        raise UsageError(f"{file} is no JSON ({str(error)[:100]}); export from Label Studio as JSON") from None
    source, reviewed = read_review(tables, content, file)
    counts: Counter[str] = Counter()
    named: list[str] = []

    def marks() -> Iterator[Mark]:
        while some := list(islice(reviewed, TOGETHER)):
            published = _published(tables, some)
            for each in some:
                found = published.get((each.id, each.task))
                if found is None:
                    counts["unknown"] += 1
                    named.extend([f"{each.id[:100]}: {each.task[:60]}"] if len(named) < 5 else [])
                    continue
                mark = _mark(each, found, source)
                counts[mark.verdict] += 1
                yield mark

    try:
        for _ in in_order(lambda mark: put_mark(tables.store, mark), marks()):
            pass
    except StorageError as error:
        raise RunError(str(error)) from None
    if not counts:
        raise UsageError(f"{file} has no reviewed answers")
    if counts.total() == counts["unknown"]:
        raise UsageError(f"{file} is of another run: {output} has none of its answers, such as {named[0]!r}")
    return {name: counts[name] for name in ("accept", "fix", "reject", "unknown")} | {"named": named}


def _published(tables: Tables, reviewed: Sequence[Reviewed]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The published answers to what was reviewed."""
    wanted = pa.table({"id": [each.id for each in reviewed], "task": [each.task for each in reviewed]})
    name = f"{tables.prefix}reviewed"
    tables.connection.register(name, wanted)
    sql = f"SELECT * FROM {tables.prefix}annotations AS a SEMI JOIN {name} AS r ON a.id = r.id AND a.task = r.task"
    with mistakes("review"):
        reader = tables.connection.sql(sql).to_arrow_reader(TOGETHER)
    rows = [dict(zip(reader.schema.names, row, strict=True)) for row in rows_of(reader)]
    return {(row["id"], row["task"]): row for row in rows}


def _mark(each: Reviewed, record: Mapping[str, Any], source: str) -> Mark:
    marked = time.time() if each.at is None else each.at
    if record["kind"] not in BOX_KINDS:
        text, before = (each.text or "").strip(), (record["text"] or "").strip()
        if text == before:
            return Mark(each.id, each.task, "accept", source=source, marked_at=marked)
        if not text:
            return Mark(each.id, each.task, "reject", source=source, marked_at=marked)
        return Mark(each.id, each.task, "fix", text=text, source=source, marked_at=marked)
    width, height = record["width"] or 0, record["height"] or 0
    then = [box for values in record["boxes"] or [] if (box := clipped(values, width, height)) is not None]
    now = [box for box in each.boxes_in(width, height) if box is not None]
    if _equal(then, now, each.spelled):
        return Mark(each.id, each.task, "accept", source=source, marked_at=marked)
    if not now:
        return Mark(each.id, each.task, "reject", source=source, marked_at=marked)
    boxes = [{**asdict(box), "score": None} for box in now]
    return Mark(each.id, each.task, "fix", boxes=boxes, source=source, marked_at=marked)


def _equal(then: Sequence[Box], now: Sequence[Box], spelled: Any) -> bool:
    """Whether boxes are the same, in any order. `spelled`: the label as the file has it."""
    left = list(now)
    for box in then:
        same = next((other for other in left if spelled(box.label) == spelled(other.label) and _near(box, other)), None)
        if same is None:
            return False
        left.remove(same)
    return not left


def _near(one: Box, other: Box) -> bool:
    names = ("x_min", "y_min", "x_max", "y_max")
    return all(abs(getattr(one, name) - getattr(other, name)) <= CLOSE for name in names)
