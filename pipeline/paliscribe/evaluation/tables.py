"""Tables that are kept in DuckDB while a run is evaluated; it writes to disk what is too much."""

import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import duckdb
import pyarrow as pa

ROWS = 4096


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
