"""The true answers of a run's tasks, in temporary files."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa

from paliscribe.evaluation.spill import Spill

SCHEMA = pa.schema([("id", pa.string()), ("value", pa.string())])
HELD_ROWS, HELD_CHARACTERS = 4096, 2**20  # that are added together, about


class Given:
    """Ids with their true values as JSON, task by task. `first`: the least id; None: there is none."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, count()
        self._spills: dict[str, Spill] = {}
        self._waiting: dict[str, tuple[list[str], list[str]]] = {}
        self._held = 0
        self.first: str | None = None

    def add(self, task: str, row_id: str, value: Any) -> None:
        """Add a value."""
        self.add_json(task, row_id, json.dumps(value, default=str))

    def add_json(self, task: str, row_id: str, value: str) -> None:
        """Add a value that is JSON already."""
        ids, values = self._waiting.setdefault(task, ([], []))
        ids.append(row_id)
        values.append(value)
        self.first = row_id if self.first is None else min(self.first, row_id)
        self._held += len(value)
        if self._held >= HELD_CHARACTERS or len(ids) >= HELD_ROWS:
            self._flush()

    def _flush(self) -> None:
        for task, columns in self._waiting.items():
            self._of(task).add(
                pa.RecordBatch.from_arrays([pa.array(each, pa.string()) for each in columns], schema=SCHEMA)
            )
        self._waiting, self._held = {}, 0

    def _of(self, task: str) -> Spill:
        if task not in self._spills:
            self._spills[task] = Spill(self._folder / f"truth-{next(self._numbers)}", SCHEMA, "id")
        return self._spills[task]

    def tasks(self) -> Iterator[str]:
        """The tasks that have values."""
        self._flush()
        yield from self._spills

    def take(self, task: str) -> Spill:
        """The values of a task. Can be taken once."""
        self._flush()
        found = self._of(task)
        del self._spills[task]
        return found
