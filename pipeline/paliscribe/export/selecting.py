"""The pictures and answers that an export takes from a run, in the order of the manifest and in constant memory."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from paliscribe.errors import UsageError, did_you_mean
from paliscribe.export.calibrated import calibrate, kept_maps
from paliscribe.export.names import stem
from paliscribe.export.pictures import BOX_KINDS, NO_LABEL, Answer, Picture, Region
from paliscribe.published.corrections import kept_masks, paired
from paliscribe.published.query import BATCH, mistakes, rows_of
from paliscribe.published.records import windows
from paliscribe.published.tables import Tables, literal
from paliscribe.records import Box, Mask
from paliscribe.results.schema import NAMES

WINDOW = "_window"  # name of the table of the records that are read together
SEEN = ("accept", "fix")


@dataclass(frozen=True, slots=True)
class Filters:
    """Which answers are exported.

    `tasks`: tasks or kinds; none: all. `min_score`: boxes of a lower score are left out, and other answers of a lower
    score; a box without a score has its answer's. `where`: a condition in SQL over the columns of `annotations`.
    `reviewed`: only what a reviewer accepted or corrected. `invalid`: invalid answers too. What a reviewer accepted or
    corrected passes `min_score` and needs no `invalid`; what one rejected never passes. `calibrated`: scores are
    probabilities by the maps that `evaluate --fit` has kept, null without one; `min_score` is compared with these.
    """

    tasks: tuple[str, ...] = ()
    min_score: float | None = None
    where: str | None = None
    reviewed: bool = False
    invalid: bool = False
    calibrated: bool = False


class Selection:
    """The answers of a run that pass filters. `left_out`: what was left out of them so far, in words."""

    def __init__(self, tables: Tables, filters: Filters, *, boxes: bool, name: str) -> None:
        """Raises UsageError for an unknown task, a mistake in the condition, or if nothing passes.

        `boxes`: of the kinds of `BOX_KINDS` only. `name`: of the format, for messages.
        """
        self._tables, self._filters, self.left_out = tables, filters, Counter[str]()
        self.tasks = _tasks(tables)
        self._numbers = {task: number for number, (task, _) in enumerate(self.tasks, 1)}
        self._own = [column for column in tables.schema.names if column not in NAMES]
        kinds = {kind for _, found in self.tasks for kind in found}
        for asked in filters.tasks:
            if asked not in self._numbers and asked not in kinds:
                known = [task for task, _ in self.tasks]
                near = did_you_mean(asked, [*known, *kinds])
                raise UsageError(f"--task: {asked[:100]!r} is no task of this run{near}; {_listed(known)}")
        if boxes and not kinds & set(BOX_KINDS):
            words = _listed([task for task, _ in self.tasks])
            raise UsageError(f"{name} holds boxes, and this run has none: {words}. Use jsonl, csv, hf or webdataset")
        self._maps = kept_maps(tables.store) if filters.calibrated else None
        self._condition, self._reviewing = self._conditions(boxes)
        with mistakes("--where"):
            passing = f"SELECT 1 FROM ({self._sql(f'{tables.prefix}annotations')}) LIMIT 1"
            found = tables.connection.execute(passing).fetchone()
        if found is None:
            raise UsageError(f"{tables.output}: no answer passes the filters; `paliscribe query` shows what there is")

    def _conditions(self, boxes: bool) -> tuple[str, str]:
        """SQL over the records, and over the marks beside them."""
        filters, kinds = self._filters, literal(BOX_KINDS)
        of_records = [f"kind IN {kinds}"] if boxes else []
        if filters.tasks:
            of_records.append(f"(task IN {literal(filters.tasks)} OR kind IN {literal(filters.tasks)})")
        if filters.where is not None:
            with mistakes("--where"):
                if len(self._tables.connection.extract_statements(f"SELECT (\n{filters.where}\n)")) != 1:
                    raise UsageError("--where: one condition is expected, without `;`")
            of_records.append(f"(\n{filters.where}\n)")
        seen = f"coalesce(mark.verdict IN {literal(SEEN)}, false)"
        of_marks = [seen if filters.reviewed else "coalesce(mark.verdict <> 'reject', true)"]
        if not filters.invalid:
            of_marks.append(f"(annotations.status = 'ok' OR {seen})")
        return " AND ".join(of_records) or "true", " AND ".join(of_marks)

    def _sql(self, source: str) -> str:
        return (
            "SELECT annotations.*, mark.verdict, mark.text, mark.boxes FROM "
            f"(SELECT * FROM {source} AS annotations WHERE {self._condition}) AS annotations "
            f"LEFT JOIN {self._tables.prefix}review AS mark "
            "ON mark.id = annotations.id AND mark.task = annotations.task "
            f"WHERE {self._reviewing}"
        )

    def pictures(self) -> Iterator[Picture]:
        """The pictures with the answers that pass. Raises UsageError if the condition fails on a record."""
        order = f"ORDER BY row, list_position({literal([task for task, _ in self.tasks])}, annotations.task)"
        connection = self._tables.connection
        for window in self._windows():
            with mistakes("--where"):
                connection.register(WINDOW, window)
                reader = connection.sql(f"{self._sql(WINDOW)} {order}").to_arrow_reader(BATCH // 4)
            names = reader.schema.names[:-3]
            at = names.index("row")
            for _, values in itertools.groupby(rows_of(reader, "--where"), key=lambda row: row[at]):
                yield self._picture([(dict(zip(names, row, strict=False)), row[-3:]) for row in values])

    def _windows(self) -> Iterator[pa.Table]:
        with mistakes(f"{self._tables.output}: its files cannot be read"):
            yield from windows(self._tables)

    def _picture(self, found: list[tuple[dict[str, Any], list[Any]]]) -> Picture:
        first = found[0][0]
        picture = Picture(
            row=first["row"],
            id=first["id"],
            stem=stem(first["id"]),
            image=first["image"],
            sha256=first["image_sha256"],
            shard=first["shard"],
            width=first["width"] or 0,
            height=first["height"] or 0,
            columns={name: first[name] for name in self._own},
        )
        answers = (self._answer(record, *mark) for record, mark in found)
        picture.answers = [answer for answer in answers if answer is not None]
        return picture

    def _answer(self, record: dict[str, Any], verdict: str | None, text: str | None, boxes: Any) -> Answer | None:
        """A record with its corrections, or None if its score is too low."""
        least = None if verdict in SEEN else self._filters.min_score
        if self._maps is not None:
            calibrate(record, self._maps.get((record["task"], record["kind"])))
        if verdict == "fix":
            record |= {"status": "ok", "score": None, "error_message": None}
            if boxes is not None:
                record |= {"text": None, "masks": kept_masks(record, boxes), "boxes": boxes}
            if text is not None:
                record["text"] = text
        pairs = paired(record)
        if least is not None and record["kind"] in BOX_KINDS:
            pairs = [(box, mask) for box, mask in pairs if _reaches(box["score"], record["score"], least)]
            record |= {"boxes": [box for box, _ in pairs], "masks": [mask for _, mask in pairs if mask is not None]}
        elif least is not None and not _reaches(record["score"], None, least):
            self.left_out["answers of a lower score"] += 1
            return None
        return Answer(
            task=record["task"],
            kind=record["kind"],
            number=self._numbers[record["task"]],
            text=record["text"],
            score=record["score"],
            regions=tuple(self._regions(record, pairs)) if record["kind"] in BOX_KINDS else (),
            review=verdict,
            record=record,
        )

    def _regions(self, record: dict[str, Any], pairs: Sequence[tuple[dict[str, Any], Any]]) -> Iterator[Region]:
        for values, mask in pairs:
            box = clipped(values, record["width"] or 0, record["height"] or 0)
            if box is None:
                self.left_out["boxes without an area in their picture"] += 1
                continue
            rle = mask["rle"] if mask is not None else None
            whole = None
            if rle is not None and sum(rle) == mask["height"] * mask["width"]:
                whole = Mask(box.label, box, tuple(mask["codes"]), mask["height"], mask["width"], tuple(rle))
            yield Region(box, whole)


def labels(tables: Tables) -> tuple[str, ...]:
    """All labels of a run, sorted; then those that only corrections have, sorted."""
    found: list[str] = []
    for table in ("annotations", "review"):
        sql = f"SELECT DISTINCT box.label FROM (SELECT unnest(boxes) AS box FROM {tables.prefix}{table})"
        with mistakes("labels"):
            names = tables.connection.execute(sql).fetchall()
        found += sorted({named(name) for (name,) in names})
    return tuple(dict.fromkeys(found))


def named(label: str | None) -> str:
    """A label that is not empty."""
    return (label or "").strip() or NO_LABEL


def clipped(values: Mapping[str, Any], width: int, height: int) -> Box | None:
    """The part of a box that is in its picture of this size, in pixels; None if it has no area.

    `values`: with the keys of `results.schema.BOX`.
    """
    edges = [values[name] for name in ("x_min", "y_min", "x_max", "y_max")]
    if any(edge is None or not math.isfinite(edge) for edge in edges):
        return None
    x_min, x_max = (min(max(edge, 0.0), float(width)) for edge in edges[::2])
    y_min, y_max = (min(max(edge, 0.0), float(height)) for edge in edges[1::2])
    score = values["score"]
    score = score if score is not None and math.isfinite(score) else None
    if x_max <= x_min or y_max <= y_min:
        return None
    return Box(named(values["label"]), x_min, y_min, x_max, y_max, score)


def _reaches(score: float | None, other: float | None, least: float) -> bool:
    """Whether a score, or without one the other, is at least so high. Without either it is not."""
    found = other if score is None else score
    return found is not None and found >= least


def _tasks(tables: Tables) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The tasks of the run in its order, with the kinds of their records."""
    [(listed,)] = tables.connection.execute(f"SELECT tasks FROM {tables.prefix}runs").fetchall()
    kinds: dict[str, list[str]] = {task: [] for task in listed or []}
    sql = f"SELECT DISTINCT task, kind FROM {tables.prefix}annotations ORDER BY ALL"
    for task, kind in tables.connection.execute(sql).fetchall():
        kinds.setdefault(task, []).append(kind)
    return tuple((task, tuple(found)) for task, found in kinds.items())


def _listed(tasks: Sequence[str]) -> str:
    """The tasks of a run for a message, shortened."""
    words = ", ".join(repr(task[:60]) for task in tasks[:5])
    return f"its tasks are {words}{', ...' if len(tasks) > 5 else ''}"
