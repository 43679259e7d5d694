"""The truth of a run's tasks: a manifest with columns, COCO's JSON, the run's own columns, or its reviewers' marks."""

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from paliscribe.errors import UsageError, did_you_mean
from paliscribe.evaluation.coco import is_coco, load_coco
from paliscribe.evaluation.given import Given
from paliscribe.grammar.tasks import parse_task
from paliscribe.manifest import Shards, formats
from paliscribe.manifest.blocks import Columns
from paliscribe.manifest.messages import listed, quoted
from paliscribe.manifest.naming import Naming
from paliscribe.manifest.values import text_of
from paliscribe.published import Tables
from paliscribe.published.query import short_floats
from paliscribe.published.records import records
from paliscribe.storage import redacted
from paliscribe.storage.arrow import parts
from paliscribe.storage.inline import is_inline

RUN, REVIEW = "run", "review"
PEEKED = 1000  # rows of a manifest that are read for the names of columns
PART_BYTES = 2**20  # of the run's manifest that become Python objects together
# Names under which data sets, and runs over a COCO file, keep the truth of a kind, beside the kind's own.
NAMES: dict[str, tuple[str, ...]] = {
    "caption": ("captions", "truth_captions", "description", "text"),
    "describe": ("description", "caption", "captions", "truth_captions", "text"),
    "answer": ("answers", "multiple_choice_answer", "label"),
    "question": ("questions",),
    "ocr": ("text", "transcription", "ocr_text", "words"),
    "detect": ("boxes", "truth_boxes", "bboxes", "objects", "annotations"),
    "segment": ("masks", "truth_boxes", "segmentation", "objects", "annotations"),
    "free": (),
}
LAST = ("suffix", "truth")
REJECTED = '{"rejected": true}'  # what a mark says of an answer whose right one is not known


@dataclass
class Truth:
    """What a run is compared with. `columns`: of each task that has truth. `notes`: lines for the user."""

    source: str
    columns: dict[str, str]
    notes: list[str] = field(default_factory=list)


def load_truth(
    tables: Tables,
    source: str,
    tasks: Sequence[tuple[str, str]],
    given: Given,
    chosen: Mapping[str, str],
    id_column: str = "id",
) -> Truth:
    """Read truth into `given`.

    `source`: the address of a manifest or of a COCO file, `run` for the run's own columns, `review` for its reviewers'
    marks. `tasks`: pairs of task and kind. `chosen`: columns of tasks or kinds. Raises UsageError: unreadable, no
    column for any task, columns that are not there.
    """
    if unknown := [name for name in chosen if name not in {each for pair in tasks for each in pair}]:
        near = did_you_mean(unknown[0], [task for task, _ in tasks])
        raise UsageError(f"--column: {quoted(unknown[0])} is no task{near}; tasks are {listed(dict(tasks))}")
    if source == REVIEW:
        return _review(tables, tasks, given)
    if source == RUN:
        return _own(tables, tasks, given, chosen)
    if is_coco(source):
        return Truth(source, *load_coco(tables, source, tasks, given))
    return _manifest(source, tasks, given, chosen, id_column)


def _manifest(
    source: str, tasks: Sequence[tuple[str, str]], given: Given, chosen: Mapping[str, str], id_column: str
) -> Truth:
    """Truth from a manifest, whose rows need no image."""
    naming = Naming(id=id_column)
    names: dict[str, None] = {}
    is_empty, has_ids = True, False
    for row_id, row in itertools.islice(_rows(source, naming), PEEKED):
        names.update(dict.fromkeys(name for name in row if name != id_column))
        is_empty, has_ids = False, has_ids or row_id is not None
    if is_empty:
        raise UsageError(f"truth {redacted(source)}: no rows")
    columns = choose([*names], tasks, chosen, f"truth {redacted(source)}")
    unnamed = 0
    if not has_ids:
        raise UsageError(
            f"truth {redacted(source)}: no column {quoted(id_column)} (columns: {listed([*names])}); set --id-column"
        )
    for row_id, row in _rows(source, naming):
        unnamed += row_id is None
        for task, column in columns.items():
            if row_id and not _is_null(value := row.get(column)):
                given.add(task, row_id, value)
    notes = [f"{unnamed:,} rows of the truth have no id"] if unnamed else []
    return Truth(source, columns, notes)


def _rows(source: str, naming: Naming) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """The rows of a manifest with their ids, which default to their images as in a run; None: it has neither."""
    for origin, block in formats.blocks(source, naming):
        with origin.translating():
            given = iter(block.ids.to_pylist() if isinstance(block, Columns) and block.ids is not None else ())
            for row in block.rows():
                image, default = row.get(naming.image), next(given, None)
                if isinstance(image, str) and not is_inline(image):
                    default = default or text_of(image)
                yield text_of(row.get(naming.id)) or default, row


def _own(tables: Tables, tasks: Sequence[tuple[str, str]], given: Given, chosen: Mapping[str, str]) -> Truth:
    """Truth from the columns that the run carries."""
    names = tables.frozen.schema.names if tables.frozen is not None else []
    columns = choose(names, tasks, chosen, f"{tables.output}: the run's own manifest")
    shards = Shards(tables.store)
    for table in (table for shard in range(shards.frozen.shards) for table in shards.tables(shard)):
        for part in parts(table, PART_BYTES):
            ids = part["id"].to_pylist()
            for task, column in columns.items():
                values = short_floats(part[column]).to_pylist() if column in part.column_names else []
                for row_id, value in zip(ids, values, strict=False):
                    if value is not None:
                        given.add(task, row_id, value)
    return Truth(RUN, columns)


def _review(tables: Tables, tasks: Sequence[tuple[str, str]], given: Given) -> Truth:
    """Truth from marks: what was accepted is right, what was fixed is as the mark says."""
    sql = f"SELECT id, verdict, text, boxes FROM {tables.prefix}review WHERE task = ?"
    for task, kind in dict(reversed(tasks)).items():
        columns = ("verdict", "text", "boxes")
        found = tables.connection.execute(sql, [task]).fetchall()
        marks = {row_id: dict(zip(columns, mark, strict=True)) for row_id, *mark in found}
        for batch in records(tables, task, ("id", "kind", "text", "boxes")) if marks else ():
            marked = batch.filter(pc.is_in(batch["id"], pa.array(list(marks), pa.string())))
            for record in marked.to_pylist():
                _add_mark(given, task, marks.pop(record["id"]), record)
        for row_id, mark in marks.items():  # of records that are no more
            _add_mark(given, task, mark, {"id": row_id, "kind": kind})
    if given.first is None:
        raise UsageError(f"{tables.output}: no annotation has a review mark yet; `paliscribe view` makes them")
    return Truth(REVIEW, dict.fromkeys(given.tasks(), "marks"))


def _add_mark(given: Given, task: str, mark: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    name = "boxes" if record["kind"] in ("detect", "segment") else "text"
    if mark["verdict"] == "accept" and name in record:
        given.add(task, record["id"], record[name])
    elif mark["verdict"] == "fix" and mark[name] is not None:
        given.add(task, record["id"], mark[name])
    elif mark["verdict"] != "accept":
        given.add_json(task, record["id"], REJECTED)


def choose(
    names: Sequence[str], tasks: Sequence[tuple[str, str]], chosen: Mapping[str, str], where: str
) -> dict[str, str]:
    """The column of each task that has one: the chosen one, or one named as the task or its kind, or as usual.

    A column that fills a task's own prompts is none. `chosen`: by task or kind. Raises UsageError if a chosen column is
    not there, and if no task has one. `where`: the start of the message.
    """
    if absent := [name for name in chosen.values() if name not in names]:
        near = did_you_mean(absent[0], names)
        raise UsageError(f"{where}: no column {quoted(absent[0])}{near} (columns: {listed(names)})")
    lower = {name.lower(): name for name in reversed(names)}
    columns: dict[str, str] = {}
    for task, kind in tasks:
        if own := chosen.get(task) or chosen.get(kind):
            columns[task] = own
            continue
        last = LAST if len({each for each, _ in tasks}) == 1 or "{prefix}" in task else ()
        prompts = {name.lower() for name in parse_task(task).columns}
        usual = (name for name in (task, kind, *NAMES.get(kind, ()), *last) if name.lower() not in prompts)
        if found := next((lower[name.lower()] for name in usual if name.lower() in lower), None):
            columns.setdefault(task, found)
    if not columns:
        first = tasks[0][0]
        near = next(iter(difflib.get_close_matches(first, names, 1, 0.0)), "COLUMN")
        raise UsageError(
            f"{where} has no column for {listed(dict(tasks))} (columns: {listed(names)}); say which, as in "
            f"--column '{first}={near}'"
        )
    return columns


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
