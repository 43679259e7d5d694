"""Tables that truth is kept in while a run is evaluated, in DuckDB, which writes to disk what is too much."""

import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import duckdb
import pyarrow as pa

TRUTH = "_given"  # task, id, value as JSON: one row for each row of the truth
ROWS = 4096
PASS_ROWS, PASS_BYTES = 50_000, 8 * 2**20  # that are joined or grouped at once, about
MOST_PASSES = 1000  # over all rows
IN_PASS = "hash(id) % $passes = $pass"  # SQL for the rows of a pass


class Inserts:
    """Inserts rows into a table, many at a time; the table is made anew. Values of `value` are written as JSON."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, table: str, columns: Mapping[str, pa.DataType]) -> None:
        self._connection, self._table, self._schema = connection, table, pa.schema(list(columns.items()))
        self._rows: list[Sequence[Any]] = []
        self._value = self._schema.get_field_index("value")
        connection.register("_new", self._schema.empty_table())
        connection.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT * FROM _new")

    def add(self, row: Sequence[Any]) -> None:
        """Add a row."""
        self._rows.append(row)
        if len(self._rows) >= ROWS:
            self._insert()

    def _insert(self) -> None:
        columns = [list(column) for column in zip(*self._rows, strict=True)] if self._rows else []
        if columns:
            if self._value >= 0:
                columns[self._value] = [json.dumps(value, default=str) for value in columns[self._value]]
            self._connection.register("_new", pa.table(columns, schema=self._schema))
            self._connection.execute(f"INSERT INTO {self._table} SELECT * FROM _new")
        self._rows = []

    def __enter__(self) -> "Inserts":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._insert()


def truth_columns() -> dict[str, pa.DataType]:
    """The columns of `TRUTH`."""
    return {"task": pa.string(), "id": pa.string(), "value": pa.string()}


def passes(rows: int, size: int) -> int:
    """The number of passes for so many rows, whose values have so many bytes."""
    return max(1, min(MOST_PASSES, max(-(-rows // PASS_ROWS), -(-size // PASS_BYTES))))
