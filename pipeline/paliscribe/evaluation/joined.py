"""The rows of a run that have truth, with it and, if asked, with another run's answers; in the order of their ids."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from paliscribe.evaluation.tables import IN_PASS, passes
from paliscribe.evaluation.truth import REJECTED
from paliscribe.published import Tables

ROWS = 2048  # of a batch
BOX_BYTES = 64  # of a box with its label in DuckDB, about
_TABLES = ("annotations", "errors")
FIELDS = ("status", "text", "score", "boxes", "masks", "width", "height", "prompt")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run has for a row: fields of a record. `said`: its text; empty unless the status is ok."""

    status: str
    text: str | None
    score: float | None
    boxes: list[dict[str, Any]]
    masks: list[dict[str, Any]]
    width: int | None
    height: int | None
    prompt: str | None

    @property
    def said(self) -> str:
        """The text that counts."""
        return (self.text or "") if self.status == "ok" else ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row with truth. `given`: its values. `rejected`: a reviewer says only that the answer is wrong.

    `other`: the other run's answer; None if it has none, or there is no other run.
    """

    id: str
    given: list[Any]
    rejected: bool
    answer: Answer
    other: Answer | None


def joined(
    tables: Tables, task: str, kind: str, other: str | None = None, *, ordered: bool = True
) -> Iterator[list[Row]]:
    """Batches of the rows that have truth. `other`: before the names of another run's tables in the connection.

    Many rows, or large ones, are joined in passes by a hash of their ids, so that memory does not grow.
    `ordered`: by id within a pass. The connection does nothing else until the batches are read or let go; cursors do
    not see all tables.
    """
    theirs = f"LEFT JOIN ({_records(other, kind)}) b USING (id)" if other is not None else ""
    sql = f"""SELECT id, t.given, a.found AS mine, {"b.found" if other is not None else "NULL"} AS theirs
        FROM (SELECT id, given FROM _truth WHERE task = $task AND {IN_PASS}) t
        JOIN ({_records(tables.prefix, kind)}) a USING (id) {theirs} {"ORDER BY id" if ordered else ""}"""
    rows = _one(tables.connection, "SELECT count(*) FROM _truth WHERE task = $task", {"task": task})
    count = passes(rows, _size(tables, task, kind, other))
    for number in range(count):
        values = {"task": task, "kind": kind, "passes": count, "pass": number}
        with contextlib.closing(tables.connection.sql(sql, params=values).to_arrow_reader(ROWS)) as reader:
            for batch in reader:
                yield [_row(values) for values in batch.to_pylist()]


def _size(tables: Tables, task: str, kind: str, other: str | None) -> int:
    """About how many bytes the values of a task have that `joined` reads, in its truth and in the runs."""
    truth = "SELECT sum(list_sum(list_transform(given, lambda value: strlen(value)))) FROM _truth WHERE task = $task"
    sizes = [f"({truth})"]
    each = "coalesce(strlen(text), 0) + coalesce(strlen(prompt), 0)"
    if kind in ("detect", "segment"):
        each += f" + {BOX_BYTES} * coalesce(len(boxes), 0)"
    if kind == "segment":
        each += " + 4 * coalesce(list_sum(list_transform(masks, lambda mask: len(mask.rle))), 0)"
    for prefix in (tables.prefix, other):
        if prefix is not None:
            sizes.append(f"(SELECT sum({each}) FROM {prefix}annotations WHERE task = $task AND kind = $kind)")
    found = " + ".join(f"coalesce({size}, 0)" for size in sizes)
    return _one(tables.connection, f"SELECT {found}", {"task": task, "kind": kind})


def _records(prefix: str, kind: str) -> str:
    """SQL of a task's records, as id and one value."""
    shapes = {"boxes": kind in ("detect", "segment"), "masks": kind == "segment"}
    names = ", ".join(f"{name} := {name if shapes.get(name, True) else 'NULL'}" for name in FIELDS)
    wanted = f"task = $task AND kind = $kind AND {IN_PASS}"
    parts = (f"SELECT id, struct_pack({names}) AS found FROM {prefix}{table} WHERE {wanted}" for table in _TABLES)
    return " UNION ALL ".join(parts)


def _row(values: Mapping[str, Any]) -> Row:
    given = [json.loads(value) for value in values["given"]]
    rejected = REJECTED in values["given"]
    theirs = values["theirs"]
    return Row(values["id"], given, rejected, _answer(values["mine"]), None if theirs is None else _answer(theirs))


def _answer(found: Mapping[str, Any]) -> Answer:
    values = {name: found[name] for name in FIELDS}
    return Answer(**values | {"boxes": found["boxes"] or [], "masks": found["masks"] or []})


def units(tables: Tables) -> list[tuple[str, str]]:
    """The tasks of a run with the kinds of their records; a task of rows' own prompts may have several kinds."""
    p = tables.prefix
    sql = f"SELECT task, kind FROM (SELECT task, kind FROM {p}annotations UNION SELECT task, kind FROM {p}errors)"
    return [(task, kind) for task, kind in tables.connection.execute(f"{sql} ORDER BY ALL").fetchall()]


def coverage(tables: Tables, task: str, kind: str) -> dict[str, int]:
    """Rows of a task without truth, ids of its truth without a record, and ids that the truth has several times."""
    p = tables.prefix
    mine = " UNION ALL ".join(f"SELECT id FROM {p}{name} WHERE task = $task AND kind = $kind" for name in _TABLES)
    any_kind = " UNION ALL ".join(f"SELECT id FROM {p}{name} WHERE task = $task" for name in _TABLES)
    truth = "(SELECT id, given FROM _truth WHERE task = $task)"
    count = {"task": task, "kind": kind}
    con = tables.connection
    return {
        "without_truth": _one(con, f"SELECT count(*) FROM ({mine}) a ANTI JOIN {truth} t USING (id)", count),
        "without_record": _one(con, f"SELECT count(*) FROM {truth} t ANTI JOIN ({any_kind}) a USING (id)", count),
        "repeated_ids": _one(
            con, f"SELECT count(*) FROM {truth} t SEMI JOIN ({mine}) a USING (id) WHERE len(given) > 1", count
        ),
    }


def _one(connection: duckdb.DuckDBPyConnection, sql: str, values: Mapping[str, Any]) -> int:
    used = {name: value for name, value in values.items() if f"${name}" in sql}
    [(count,)] = connection.execute(sql, used).fetchall()
    return int(count)
