"""The truth of a run's tasks: a manifest with columns, COCO's JSON, the run's own columns, or its reviewers' marks."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from paliscribe.errors import UsageError, did_you_mean
from paliscribe.evaluation.coco import is_coco, load_coco
from paliscribe.evaluation.tables import IN_PASS, TRUTH, Inserts, passes, truth_columns
from paliscribe.grammar.tasks import parse_task
from paliscribe.manifest import formats
from paliscribe.manifest.blocks import Columns
from paliscribe.manifest.messages import listed, quoted
from paliscribe.manifest.naming import Naming
from paliscribe.manifest.values import text_of
from paliscribe.published import Tables
from paliscribe.storage import redacted
from paliscribe.storage.inline import is_inline

RUN, REVIEW = "run", "review"
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
    tables: Tables, source: str, tasks: Sequence[tuple[str, str]], chosen: Mapping[str, str], id_column: str = "id"
) -> Truth:
    """Read truth into the table `_truth` of a run's connection: task, id, and the values as JSON.

    `source`: the address of a manifest or of a COCO file, `run` for the run's own columns, `review` for its reviewers'
    marks. `tasks`: pairs of task and kind. `chosen`: columns of tasks or kinds. Raises UsageError: unreadable, no
    column for any task, columns that are not there.
    """
    con = tables.connection
    with Inserts(con, TRUTH, truth_columns()):
        pass
    if unknown := [name for name in chosen if name not in {each for pair in tasks for each in pair}]:
        near = did_you_mean(unknown[0], [task for task, _ in tasks])
        raise UsageError(f"--column: {quoted(unknown[0])} is no task{near}; tasks are {listed(dict(tasks))}")
    if source == REVIEW:
        truth = _review(tables, tasks)
    elif source == RUN:
        truth = _own(tables, tasks, chosen)
    elif is_coco(source):
        truth = Truth(source, *load_coco(tables, source, tasks))
    else:
        truth = _manifest(tables, source, tasks, chosen, id_column)
    _group(con)
    return truth


def _group(connection: duckdb.DuckDBPyConnection) -> None:
    """Make `_truth` of `TRUTH`, in passes: DuckDB cannot write the lists that it is making to disk."""
    connection.execute("CREATE OR REPLACE TABLE _truth (task VARCHAR, id VARCHAR, given VARCHAR[])")
    [(rows, size)] = connection.execute(f"SELECT count(*), coalesce(sum(strlen(value)), 0) FROM {TRUTH}").fetchall()
    grouped = f"SELECT task, id, list(value ORDER BY value) FROM {TRUTH} WHERE {IN_PASS} GROUP BY task, id"
    for number in range(count := passes(rows, int(size))):
        connection.execute(f"INSERT INTO _truth {grouped}", {"passes": count, "pass": number})
    connection.execute(f"DROP TABLE {TRUTH}")


def _manifest(
    tables: Tables, source: str, tasks: Sequence[tuple[str, str]], chosen: Mapping[str, str], id_column: str
) -> Truth:
    """Truth from a manifest, whose rows need no image."""
    naming = Naming(id=id_column)
    rows = _rows(source, naming)
    first = [row for _, row in zip(range(1000), rows, strict=False)]
    if not first:
        raise UsageError(f"truth {redacted(source)}: no rows")
    names = list(dict.fromkeys(name for _, row in first for name in row if name != id_column))
    columns = choose(names, tasks, chosen, f"truth {redacted(source)}")
    unnamed = 0
    if not any(row_id for row_id, _ in first):
        raise UsageError(
            f"truth {redacted(source)}: no column {quoted(id_column)} (columns: {listed(names)}); set --id-column"
        )
    with Inserts(tables.connection, TRUTH, truth_columns()) as into:
        for row_id, row in (pair for part in (first, rows) for pair in part):
            unnamed += row_id is None
            for task, column in columns.items() if row_id else ():
                if not _is_null(value := row.get(column)):
                    into.add((task, row_id, value))
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


def _own(tables: Tables, tasks: Sequence[tuple[str, str]], chosen: Mapping[str, str]) -> Truth:
    """Truth from the columns that the run carries."""
    names = [name for name, *_ in tables.connection.execute("DESCRIBE rows").fetchall() if name not in ("id", "image")]
    columns = choose(names, tasks, chosen, f"{tables.output}: the run's own manifest")
    for task, column in columns.items():
        name = '"' + column.replace('"', '""') + '"'
        tables.connection.execute(
            f"INSERT INTO {TRUTH} SELECT ?, id, to_json({name})::VARCHAR FROM rows WHERE {name} IS NOT NULL", [task]
        )
    return Truth(RUN, columns)


def _review(tables: Tables, tasks: Sequence[tuple[str, str]]) -> Truth:
    """Truth from marks: what was accepted is right, what was fixed is as the mark says."""
    con = tables.connection
    for task, kind in tasks:
        name = "boxes" if kind in ("detect", "segment") else "text"
        con.execute(
            f"""INSERT INTO {TRUTH} SELECT r.task, r.id, CASE
                WHEN r.verdict = 'accept' THEN to_json(a.{name})::VARCHAR
                WHEN r.verdict = 'fix' AND r.{name} IS NOT NULL THEN to_json(r.{name})::VARCHAR
                ELSE '{REJECTED}' END
            FROM review r LEFT JOIN annotations a USING (id, task) WHERE r.task = ? AND (a.id IS NOT NULL
                OR r.verdict <> 'accept')""",
            [task],
        )
    found = dict(con.execute(f"SELECT task, count(*) FROM {TRUTH} GROUP BY task").fetchall())
    if not found:
        raise UsageError(f"{tables.output}: no annotation has a review mark yet; `paliscribe view` makes them")
    return Truth(REVIEW, {task: "marks" for task, _ in tasks if task in found})


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
