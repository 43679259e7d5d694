"""Records that stand for a run: a seeded sample of its rows, the lowest scores, and examples of what went wrong.

Which rows are sampled follows from the seed and the ids alone: they have the smallest hashes. So a sample takes one
pass and constant memory, and equal ids give equal samples on every machine.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paliscribe.published import Tables
from paliscribe.published.query import mistakes
from paliscribe.storage.inline import is_inline

TEXT, PROMPT, BOXES, MASKS = 600, 300, 200, 40  # characters, boxes and masks of a record that are read
IDS: Final = 32  # rows whose records are read together
GROUPS: Final = 25  # kinds of errors, and tasks with invalid answers
COLUMNS: Final = (
    f"id, image, task, kind, left(prompt, {PROMPT}) AS prompt, status, left(text, {TEXT}) AS text, "
    f"boxes[1:{BOXES}] AS boxes, coalesce(len(boxes), 0) AS box_count, masks[1:{MASKS}] AS masks, score, error_kind, "
    f"left(error_message, {TEXT}) AS error_message, width, height, image_sha256"
)
Found = dict[str, Any]  # a record, with `COLUMNS`
Key = tuple[str, str]  # id and task


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples of one kind of error, or of invalid answers to one task. `count`: of all of them."""

    name: str
    count: int
    keys: list[Key]


class Samples:
    """Reads samples of a run. Not thread-safe."""

    def __init__(self, tables: Tables, seed: int) -> None:
        self._tables, self._seed = tables, str(seed)
        names = (f"{tables.prefix}annotations", f"{tables.prefix}errors")
        self._annotations, self._errors = names
        self._all = " UNION ALL BY NAME ".join(f"FROM {name}" for name in names)

    def ids(self, number: int, tasks: int) -> list[str]:
        """Ids of so many rows, in the order of their hashes. `tasks`: records that a row has at most."""
        hashed = f"SELECT id, md5(concat(?, '/', id)) AS place FROM ({self._all}) ORDER BY place, id LIMIT ?"
        sql = f"SELECT DISTINCT place, id FROM ({hashed}) ORDER BY place, id LIMIT ?"
        return [row_id for _, row_id in self._rows(sql, self._seed, number * max(1, tasks), number)]

    def lowest(self, number: int) -> list[Key]:
        """The answers with the lowest scores."""
        found = f"SELECT id, task FROM {self._annotations} WHERE score IS NOT NULL ORDER BY score, id, task LIMIT ?"
        return [(row_id, task) for row_id, task in self._rows(found, number)]

    def errors(self, number: int) -> list[Examples]:
        """Examples of each kind of dead letter, the most frequent first."""
        return self._examples(f"SELECT error_kind AS name, id, task FROM {self._errors}", number)

    def invalid(self, number: int) -> list[Examples]:
        """Examples of invalid answers to each task, the most frequent first."""
        part = f"SELECT task AS name, id, task FROM {self._annotations} WHERE status = 'invalid'"
        return self._examples(part, number)

    def rows(self, ids: Sequence[str]) -> Iterator[list[Found]]:
        """The records of each id, by task, in the order given."""
        for start in range(0, len(ids), IDS):
            some = ids[start : start + IDS]
            found: dict[str, list[Found]] = {row_id: [] for row_id in some}
            for record in self._records(some):
                found[record["id"]].append(record)
            yield from (found[row_id] for row_id in some if found[row_id])

    def records(self, keys: Iterable[Key]) -> list[Found]:
        """The records with these keys, in their order. They are few."""
        wanted = list(keys)
        found = {(record["id"], record["task"]): record for record in self._records([row_id for row_id, _ in wanted])}
        return [found[key] for key in wanted if key in found]

    def _records(self, ids: Sequence[str]) -> list[Found]:
        sql = f"SELECT {COLUMNS} FROM ({self._all}) WHERE id IN (SELECT unnest(?)) ORDER BY id, task"
        with mistakes():
            found: list[Found] = self._tables.connection.sql(sql, params=[list(ids)]).to_arrow_table().to_pylist()
        if inline := [record["id"] for record in found if record["image"] and is_inline(record["image"])]:
            whole = dict(
                self._rows(f"SELECT id, image FROM {self._tables.prefix}rows WHERE id IN (SELECT unnest(?))", inline)
            )
            for record in found:  # records have data URLs without their data
                record["image"] = whole.get(record["id"], record["image"])
        return found

    def _examples(self, part: str, number: int) -> list[Examples]:
        keys = f"arg_min({{'id': id, 'task': task}}, md5(concat(?, '/', id, '/', task)), {number:d})"
        sql = f"SELECT name, count(*) AS n, {keys} FROM ({part}) GROUP BY name ORDER BY n DESC, name LIMIT {GROUPS}"
        rows = self._rows(sql, self._seed)
        return [Examples(name or "", n, [(key["id"], key["task"]) for key in found]) for name, n, found in rows]

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with mistakes():
            return self._tables.connection.execute(sql, list(values)).fetchall()
