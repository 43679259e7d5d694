"""SQL over the tables of a run, its result as it comes: a text table, CSV, JSON or JSON Lines."""

import contextlib
import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from paliscribe.errors import UsageError
from paliscribe.published.tables import NAMES, Tables
from paliscribe.storage.arrow import parts

BATCH, PART_BYTES = 4096, 2**20  # rows that are fetched together; bytes that become Python objects together
CELL = 60  # characters of a value in a text table
FORMATS = ("table", "csv", "json", "jsonl")


def query(tables: Tables, sql: str) -> pa.RecordBatchReader:
    """The result of one SQL statement, read in batches. Raises UsageError for a mistake in it, in one line."""
    with mistakes():
        statements = tables.connection.extract_statements(sql)
        if len(statements) != 1:
            raise UsageError(f"query: one SQL statement is expected, not {len(statements)}")
        relation = tables.connection.sql(sql)
        return _nothing() if relation is None else relation.to_arrow_reader(BATCH)


def _nothing() -> pa.RecordBatchReader:
    """The result of a statement without one, such as COPY."""
    return pa.RecordBatchReader.from_batches(pa.schema([]), [])


@contextlib.contextmanager
def mistakes(where: str = "query") -> Iterator[None]:
    """Turns errors of DuckDB into a UsageError of one line, which begins with `where`.

    Those that it has while a result is read come as Arrow's: an ArrowException, or an OSError without a number.
    """
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        is_short = where in ("query", "evaluate") and str(error).startswith("Out of Memory Error")
        more = "; `--memory 4000` gives it more" if is_short else ""
        raise UsageError(f"{where}: {(lines or [type(error).__name__])[0][:300]}{more}") from None


def columns(tables: Tables) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each table with the names and types of its columns."""
    found = []
    for name in NAMES:
        described = tables.connection.execute(f"DESCRIBE {tables.prefix}{name}").fetchall()
        found.append((name, [(column, kind) for column, kind, *_ in described]))
    return found


def lines_of(found: pa.RecordBatchReader, form: str, limit: int | None = None) -> Iterator[str]:
    """A result as lines of text without line ends, in constant memory. `form`: one of `FORMATS`.

    `limit`: rows of a text table; after them a line says that there are more. Raises UsageError as `query`.
    """
    names = found.schema.names
    if form == "table":
        yield from _table(names, found, limit)
    elif form == "csv":
        yield csv_line(names)
        for row in rows_of(found):
            yield csv_line([csv_cell(value) for value in row])
    elif form == "jsonl":
        for row in rows_of(found):
            yield json_line(dict(zip(names, row, strict=True)))
    else:
        before = "["
        for row in rows_of(found):
            yield f"{before}{json_line(dict(zip(names, row, strict=True)))}"
            before = ","
        yield "]" if before == "," else "[]"


def rows_of(found: pa.RecordBatchReader, where: str = "query") -> Iterator[list[Any]]:
    """The rows as lists of values. DuckDB computes while it is read, so its errors come here too, see `mistakes`."""
    with mistakes(where):
        for batch in found:
            for part in parts(batch, PART_BYTES):
                yield from map(list, zip(*(short_floats(column).to_pylist() for column in part.columns), strict=True))


def short_floats(column: pa.Array) -> pa.Array:
    """The column with each 32-bit float, at any depth, as a 64-bit one with as few digits: 0.1, not 0.10000000149.

    They are written as text and read again.
    """
    texts, doubles = _retyped(column.type, pa.string()), _retyped(column.type, pa.float64())
    return column if texts == column.type else column.cast(texts).cast(doubles)


def _retyped(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    """A type in whose place of 32-bit floats, at any depth, is another type."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_retyped(field.type, other)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_retyped(kind.value_type, other)))
    return other if pa.types.is_float32(kind) else kind


def _table(names: Sequence[str], found: pa.RecordBatchReader, limit: int | None) -> Iterator[str]:
    rows: list[list[str]] = []
    more = False
    for row in rows_of(found):
        more = limit is not None and len(rows) == limit
        if more:
            break
        rows.append([_shown(value) for value in row])
    widths = [max([len(name), *(len(row[at]) for row in rows)]) for at, name in enumerate(names)]
    for row in [list(names), ["-" * width for width in widths], *rows]:
        yield "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
    if more:
        yield f"... more than {limit:,} rows: --limit N, or --format csv for all"
    elif not rows:
        yield "(no rows)"


def _shown(value: Any) -> str:
    """A value on one line of a table, shortened, without characters that steer a terminal."""
    words = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(csv_cell(value))
    words = "".join(letter if letter.isprintable() else " " for letter in words[: CELL + 1])
    return words if len(words) <= CELL else f"{words[: CELL - 3]}..."


def csv_cell(value: Any) -> Any:
    """A value of CSV: null is empty, lists and structs are JSON."""
    if isinstance(value, list | dict):
        return json_line(value)
    return "" if value is None else _plain(value)


def csv_line(values: Sequence[Any]) -> str:
    """A line of CSV without its end."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)  # only characters of its line end are quoted
    return text.getvalue().removesuffix("\r\n")


def json_line(value: Any) -> str:
    """A value as JSON on one line: numbers that are not finite are null, times and other types are text."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """A value as JSON has it: numbers that are not finite are null, times and other types are text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
