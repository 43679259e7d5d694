"""The rows of a run that have truth, with it and, if asked, with another run's answers.

Both are divided by a hash of their ids into parts that are small enough to be joined in memory.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from paliscribe.evaluation.spill import Spill
from paliscribe.evaluation.truth import REJECTED
from paliscribe.published import Tables
from paliscribe.published.records import records
from paliscribe.storage.arrow import parts

PART_ROWS, PART_BYTES = 5000, 8 * 2**20  # that are joined at once, about
BATCH_ROWS, BATCH_BYTES = 512, 2**20  # that are made together, at most
SHAPES = {"boxes": ("detect", "segment"), "masks": ("segment",)}  # columns that only these kinds have
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


class Joined:
    """The rows of a task that have truth, with the answers of a run and, if there is one, of another."""

    def __init__(
        self, tables: Tables, other: Tables | None, task: str, kinds: Sequence[str], truth: Spill, folder: Path
    ) -> None:
        """`kinds`: of the task's records. `truth`: its true values as JSON, by id. `folder`: for temporary files."""
        runs = [each for each in (tables, other) if each is not None]
        sides = [truth, *(_spilled(each, task, kinds, folder / f"run-{at}") for at, each in enumerate(runs))]
        rows, size = max(each.rows for each in sides), sum(each.size for each in sides)
        count = max(1, -(-rows // PART_ROWS), -(-size // PART_BYTES))
        self._truth, *self._runs = (each.split(count) for each in sides)

    def of(self, kind: str) -> Iterator[list[Row]]:
        """Batches of the rows with records of a kind; those of a part are in the order of their ids."""
        for given, runs in self._parts():
            places = [_places(each, kind) for each in runs]
            ids = sorted(places[0].keys() & given.keys())
            taken = [
                each.take(pa.array([at.get(row) for row in ids], pa.int64()))
                for each, at in zip(runs, places, strict=True)
            ]
            start = 0
            for mine in parts(taken[0], BATCH_BYTES, BATCH_ROWS):
                theirs = [each.slice(start, len(mine)).to_pylist() for each in taken[1:]]
                start += len(mine)
                yield [_row(given[row[0]["id"]], *row) for row in zip(mine.to_pylist(), *theirs, strict=True)]

    def coverage(self, kind: str) -> dict[str, int]:
        """Records of a kind without truth, ids of truth without a record, and ids that the truth has several times."""
        counts = dict.fromkeys(("without_truth", "without_record", "repeated_ids"), 0)
        for given, (mine, *_) in self._parts():
            places = _places(mine, kind).keys()
            counts["without_truth"] += len(places - given.keys())
            counts["without_record"] += len(given.keys() - set(mine["id"].to_pylist()))
            counts["repeated_ids"] += sum(len(given[each]) > 1 for each in places & given.keys())
        return counts

    def _parts(self) -> Iterator[tuple[dict[str, list[str]], list[pa.Table]]]:
        """The parts: true values by id, and the records of each run."""
        for part in range(self._truth.buckets):
            given: dict[str, list[str]] = {}
            for batch in self._truth.batches(part):
                for row_id, value in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    given.setdefault(row_id, []).append(value)
            yield (
                {row_id: sorted(values) for row_id, values in given.items()},
                [each.table(part) for each in self._runs],
            )


def _spilled(tables: Tables, task: str, kinds: Sequence[str], folder: Path) -> Spill:
    """A task's records, dead letters included, in temporary files."""
    names = [name for name in FIELDS if name not in SHAPES or not {*SHAPES[name]}.isdisjoint(kinds)]
    columns = ["id", "kind", *names]
    spill = Spill(folder, pa.schema([tables.schema.field(name) for name in columns]), "id")
    for batch in records(tables, task, columns):
        spill.add(batch)
    return spill


def _places(table: pa.Table, kind: str) -> dict[str, int]:
    """Where the ids of a kind are."""
    pairs = enumerate(zip(table["id"].to_pylist(), table["kind"].to_pylist(), strict=True))
    return {row_id: at for at, (row_id, found) in pairs if found == kind}


def _row(given: list[str], mine: Mapping[str, Any], theirs: Mapping[str, Any] | None = None) -> Row:
    other = None if theirs is None or theirs["id"] is None else _answer(theirs)
    return Row(mine["id"], [json.loads(value) for value in given], REJECTED in given, _answer(mine), other)


def _answer(found: Mapping[str, Any]) -> Answer:
    shapes = {name: found.get(name) or [] for name in SHAPES}
    return Answer(**{name: found[name] for name in FIELDS if name not in SHAPES} | shapes)


def units(tables: Tables) -> list[tuple[str, str]]:
    """The tasks of a run with the kinds of their records; a task of rows' own prompts may have several kinds."""
    p = tables.prefix
    sql = f"SELECT task, kind FROM (SELECT task, kind FROM {p}annotations UNION SELECT task, kind FROM {p}errors)"
    return [(task, kind) for task, kind in tables.connection.execute(f"{sql} ORDER BY ALL").fetchall()]
