"""The items of a run, which are its annotations and dead letters: filtered, sorted and counted in DuckDB."""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import duckdb

from paliscribe.errors import UsageError
from paliscribe.published import VERDICTS, Mark, Tables
from paliscribe.published.corrections import numbers_of, paired
from paliscribe.published.query import mistakes
from paliscribe.results.schema import NAMES

KEPT: Final = 3_000_000  # items of a run whose short columns are kept in memory
REMEMBERED: Final = 20_000  # addresses of pictures
BINS: Final = 20
LETTERS: Final = 10  # of text, in a bin
MOST: Final = 200  # items of a page
LABELS: Final = 12  # in a plot
SHOWN: Final = (
    "row, id, image, task, kind, prompt, status, text, boxes, masks, score, error_kind, error_message, width, height"
)
ORDERS: Final = {
    "manifest": "row, task",
    "score": "score NULLS LAST, row, task",
    "best": "score DESC NULLS LAST, row, task",
    "boxes": "boxes DESC NULLS LAST, row, task",
    "disagreement": "disagreement DESC NULLS LAST, row, task",
}
ITEMS: Final = """SELECT row, id, task, kind, status, score, len(boxes) AS boxes, error_kind, len(text) AS letters,
    list_distinct(list_transform(boxes, lambda b: b.label)) AS labels FROM records"""
BOXES: Final = """SELECT row, task, b.label AS label,
    sqrt(greatest(0, (b.x_max - b.x_min) * (b.y_max - b.y_min)) / nullif(width::DOUBLE * height, 0)) AS size
    FROM (SELECT row, task, width, height, unnest(boxes) AS b FROM records)"""
MACROS: Final = """
    CREATE OR REPLACE TEMP MACRO overlap(a, b) AS
        greatest(0, least(a.x_max, b.x_max) - greatest(a.x_min, b.x_min))
        * greatest(0, least(a.y_max, b.y_max) - greatest(a.y_min, b.y_min));
    CREATE OR REPLACE TEMP MACRO area(a) AS (a.x_max - a.x_min) * (a.y_max - a.y_min);
    CREATE OR REPLACE TEMP MACRO iou(a, b) AS
        if(a.label = b.label, coalesce(overlap(a, b) / nullif(area(a) + area(b) - overlap(a, b), 0), 0), 0);
    CREATE OR REPLACE TEMP MACRO matched(one, other) AS coalesce(list_sum(list_transform(one, lambda a:
        coalesce(list_max(list_transform(other, lambda b: iou(a, b))), 0))), 0);
"""
COMPARED: Final = """CREATE TABLE compared AS SELECT a.row, a.task, CASE
    WHEN a.status = 'error' OR b.status = 'error' THEN (a.status <> b.status)::INT::DOUBLE
    WHEN len(a.boxes) + len(b.boxes) > 0
        THEN 1 - (matched(a.boxes, b.boxes) + matched(b.boxes, a.boxes)) / (len(a.boxes) + len(b.boxes))
    WHEN a.text = b.text THEN 0
    ELSE levenshtein(left(a.text, 500), left(b.text, 500)) / greatest(len(left(a.text, 500)), len(left(b.text, 500)), 1)
    END AS disagreement FROM records a JOIN other_records b USING (id, task)"""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which items are meant; None: all. `column`, `value`: a carried column and its value as text. `text`: a part of
    text, id or error message, whatever its case. `verdict`: a mark, or `none`. `least`, `most`: scores."""

    task: str | None = None
    kind: str | None = None
    status: str | None = None
    label: str | None = None
    error_kind: str | None = None
    verdict: str | None = None
    least: float | None = None
    most: float | None = None
    column: str | None = None
    value: str | None = None
    text: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Filter":
        """The filter of a query string. Raises UsageError."""
        values: dict[str, Any] = {each.name: given[each.name] for each in fields(cls) if given.get(each.name)}
        for name in {"least", "most"} & set(values):
            try:
                values[name] = float(values[name])
            except ValueError:
                raise UsageError(f"{name} is not a number") from None
        if values.get("verdict") not in (None, "none", *VERDICTS):
            raise UsageError("unknown verdict")
        return cls(**values)


class Items:
    """The items of a run. Thread-safe. `other`: a second run in the same connection, to compare with."""

    def __init__(self, tables: Tables, other: Tables | None = None) -> None:
        self._connection, self.has_other = tables.connection, other is not None
        self._lock, self._compared = threading.Lock(), False
        for each in [tables, *([other] if other else [])]:
            whole = f"SELECT * FROM {each.prefix}annotations UNION ALL BY NAME SELECT * FROM {each.prefix}errors"
            self._connection.execute(f"CREATE VIEW {each.prefix}records AS {whole}")
        self._connection.execute(f"CREATE VIEW all_items AS {ITEMS}")
        self._connection.execute(f"CREATE VIEW all_boxes AS {BOXES}")
        self._connection.execute("CREATE TABLE marked AS SELECT id, task, verdict, text, boxes FROM review")
        self.columns = [name for name in tables.schema.names if name not in NAMES]
        self._items, self._boxes = "all_items", "all_boxes"
        self._images: dict[int, str] = {}  # of pages that were asked for: their pictures are asked for next

    def keep(self) -> None:
        """Keep the short columns of all items in memory, unless they are many: filters are faster then."""
        cursor = self._connection.cursor()
        if cursor.execute("SELECT count(*) FROM records").fetchall()[0][0] <= KEPT:
            cursor.execute("CREATE TABLE kept_items AS SELECT * FROM all_items")
            cursor.execute("CREATE TABLE kept_boxes AS SELECT * FROM all_boxes")
            self._items, self._boxes = "kept_items", "kept_boxes"

    def page(self, chosen: Filter, order: str, offset: int, limit: int) -> list[dict[str, Any]]:
        """Items in an order of `ORDERS`. Raises UsageError."""
        if order not in ORDERS or (order == "disagreement" and not self.has_other):
            raise UsageError("unknown order")
        where, values = self._where(chosen)
        source = self._items
        if order == "disagreement":
            self._compare()
            source = f"{source} LEFT JOIN compared USING (row, task)"
        added = "disagreement" if order == "disagreement" else "NULL"
        sql = f"SELECT row, task, {added} FROM {source} WHERE {where} ORDER BY {ORDERS[order]} LIMIT ? OFFSET ?"
        keys = self._rows(sql, [*values, max(0, min(limit, MOST)), max(0, offset)])
        found = {(each["row"], each["task"]): each for each in self._records("records", {row for row, *_ in keys})}
        if len(self._images) > REMEMBERED:
            self._images = {}
        self._images |= {row: each["image"] for (row, _), each in found.items() if each["width"] and each["image"]}
        return [found[row, task] | {"disagreement": _number(value, 3)} for row, task, value in keys]

    def of_row(self, row: int) -> list[dict[str, Any]]:
        """All items of a row, in the order of their tasks; with those of the other run, as `other`, by id."""
        found = sorted(self._records("records", [row]), key=lambda each: str(each["task"]))
        if self.has_other and found:
            sql = f"SELECT {SHOWN} FROM other_records WHERE id = ?"
            others = {each["task"]: each for each in self._dicts(sql, [found[0]["id"]])}
            found = [each | {"other": others.get(each["task"])} for each in found]
        return found

    def carried(self, row: int) -> dict[str, str]:
        """The carried columns of a row as text."""
        if not self.columns:
            return {}
        names = ", ".join(f"CAST({_quoted(name)} AS VARCHAR)" for name in self.columns)
        found = self._rows(f"SELECT {names} FROM records WHERE row = ? LIMIT 1", [row])
        return {name: value for name, value in zip(self.columns, found[0], strict=True) if value} if found else {}

    def image(self, row: int) -> str | None:
        """The address of a row's picture as its records name it; None if the run could not read it."""
        if row not in self._images:
            sql = "SELECT image FROM records WHERE row = ? AND width > 0 AND image IS NOT NULL LIMIT 1"
            found = self._rows(sql, [row])
            return str(found[0][0]) if found else None
        return self._images[row]

    def counts(self, chosen: Filter) -> dict[str, Any]:
        """Counts by task, kind, status, error_kind, verdict and label, and of scores, sizes and letters by bins."""
        where, values = self._where(chosen)
        facets = ("task", "kind", "status", "error_kind")
        with mistakes(), self._cursor() as cursor:
            source, meant = self._items, ""
            if values:  # found once, for all of the counts
                source, meant = "chosen", "SEMI JOIN chosen USING (row, task)"
                columns = f"row, id, {', '.join(facets)}, score, letters"
                cursor.execute(f"CREATE TEMP TABLE chosen AS SELECT {columns} FROM {self._items} WHERE {where}", values)

            def rows(sql: str) -> list[tuple[Any, ...]]:
                return cursor.execute(sql).fetchall()

            score = f"least(floor(score * {BINS}), {BINS - 1})::INT"
            found = rows(f"SELECT {', '.join(facets)}, {score}, count(*) FROM {source} GROUP BY ALL")
            letters = f"least(letters // {LETTERS}, {BINS - 1})"
            counts: dict[str, Any] = {name: {} for name in facets} | {"score": [0] * BINS}
            counts["letters"] = _bins(
                rows(f"SELECT {letters}, count(*) FROM {source} WHERE letters IS NOT NULL GROUP BY 1")
            )
            size = f"least(floor(size * {BINS}), {BINS - 1})::INT"
            counts["size"] = _bins(rows(f"SELECT {size}, count(*) FROM {self._boxes} {meant} GROUP BY 1"))
            labels = f"SELECT label, count(*) FROM {self._boxes} {meant} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {LABELS}"
            counts["label"] = dict(rows(labels))
            marked = f"SELECT verdict, count(*) FROM marked SEMI JOIN {source} USING (id, task) GROUP BY 1"
            counts["verdict"] = dict(rows(marked))
        for *names, bin_, count in found:
            for name, value in zip(facets, names, strict=True):
                if value is not None:
                    counts[name][value] = counts[name].get(value, 0) + count
            if bin_ is not None and 0 <= bin_ < BINS:
                counts["score"][bin_] += count
        return counts | {"total": sum(count for *_, count in found)}

    def mark(self, row_id: str, task: str, mark: Mark | None) -> None:
        """Remember a mark; None: there is none any more."""
        with self._lock:
            self._rows("DELETE FROM marked WHERE id = ? AND task = ?", [row_id, task])
            if mark is not None:
                values = [row_id, task, mark.verdict, mark.text, mark.boxes]
                self._rows("INSERT INTO marked VALUES (?, ?, ?, ?, ?)", values)

    def boxes(self, row: int, task: str) -> list[dict[str, Any]]:
        """The model's boxes of an item, not rounded."""
        [(found,)] = self._rows("SELECT boxes FROM records WHERE row = ? AND task = ?", [row, task])
        return list(found or [])

    def _where(self, chosen: Filter) -> tuple[str, list[Any]]:
        """A condition and its values: nothing that a browser sent is SQL."""
        parts, values = ["TRUE"], list[Any]()

        def meant(sql: str, *given: Any) -> None:
            parts.append(sql)
            values.extend(given)

        for name in ("task", "kind", "status", "error_kind"):
            if (value := getattr(chosen, name)) is not None:
                meant(f"{name} = ?", value)
        if chosen.label is not None:
            meant("list_contains(labels, ?)", chosen.label)
        if chosen.least is not None:
            meant("score >= ?", chosen.least)
        if chosen.most is not None:
            meant("score <= ?", chosen.most)
        if chosen.verdict is not None:
            one = "" if chosen.verdict == "none" else "WHERE verdict = ?"
            no = "NOT" if chosen.verdict == "none" else ""
            meant(f"{no} (id, task) IN (SELECT (id, task) FROM marked {one})", *([chosen.verdict] if one else []))
        if chosen.text is not None:
            named = ("text", "id", "error_message")
            any_of = " OR ".join(f"contains(lower({name}), lower(?))" for name in named)
            meant(f"(row, task) IN (SELECT (row, task) FROM records WHERE {any_of})", *([chosen.text] * len(named)))
        if chosen.column is not None:
            if chosen.column not in self.columns:
                raise UsageError("unknown column")
            same = f"CAST({_quoted(chosen.column)} AS VARCHAR) = ?"
            meant(f"(row, task) IN (SELECT (row, task) FROM records WHERE {same})", chosen.value or "")
        return " AND ".join(parts), values

    def _compare(self) -> None:
        with self._lock:
            if not self._compared:
                self._connection.cursor().execute(MACROS + COMPARED)
                self._compared = True

    def _records(self, source: str, rows: Sequence[int] | set[int]) -> list[dict[str, Any]]:
        places = ", ".join("?" * len(rows))
        return self._dicts(f"SELECT {SHOWN} FROM {source} WHERE row IN ({places})", list(rows)) if rows else []

    def _dicts(self, sql: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        names = SHOWN.split(", ")
        found = [dict(zip(names, row, strict=True)) for row in self._rows(sql, values)]
        marks: dict[tuple[str, str], Mark] = {}
        if found:
            places = ", ".join("?" * len(found))
            marked = f"SELECT id, task, verdict, text, boxes FROM marked WHERE id IN ({places})"
            given = (Mark(*values) for values in self._rows(marked, [each["id"] for each in found]))
            marks = {(mark.id, mark.task): mark for mark in given}
        return [with_mark(_plain(each), marks.get((each["id"], each["task"]))) for each in found]

    def _rows(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with mistakes(), self._cursor() as cursor:
            return cursor.execute(sql, list(values)).fetchall()

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        return self._connection.cursor()


def with_mark(item: dict[str, Any], mark: Mark | None) -> dict[str, Any]:
    """An item with its `verdict`, and as a reviewer corrected it: `right`, a text, and `right_boxes`; else null.

    `of`, in its masks and in `right_boxes`, is the number of the model's box that it belongs to, or is equal to.
    """
    numbers = {id(mask): number for number, (_, mask) in enumerate(paired(item)) if mask is not None}
    masks = [mask | {"of": numbers.get(id(mask))} for mask in item["masks"] or []]
    right = None if mark is None or mark.boxes is None else _plain(list(mark.boxes))
    if right is not None:
        found = numbers_of(item["boxes"] or [], right)
        right = [box | {"of": number} for box, number in zip(right, found, strict=True)]
    verdict, text = (mark.verdict, mark.text) if mark is not None else (None, None)
    return item | {"masks": masks, "verdict": verdict, "right": text, "right_boxes": right}


def _bins(found: Sequence[tuple[Any, ...]]) -> list[int]:
    by_bin = dict(found)
    return [by_bin.get(number, 0) for number in range(BINS)]


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return _number(value, 4) if isinstance(value, float) else value


def _number(value: float | None, digits: int) -> float | None:
    return round(value, digits) if value is not None and math.isfinite(value) else None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
