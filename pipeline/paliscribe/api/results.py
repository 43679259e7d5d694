"""Published results of a run, as pyarrow, pandas, polars or DuckDB tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds

from paliscribe import results
from paliscribe.api.status import run_status
from paliscribe.errors import RunError, UsageError
from paliscribe.storage import StorageError, open_store
from paliscribe.storage.arrow import filesystem

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import polars as pl


@dataclass(frozen=True)
class Results:
    """The published records of a run, read from its output folder or `s3://` prefix.

    Its methods read annotations (status ok and invalid); `errors` reads dead letters. The guide documents the columns.
    `dataset` is lazy; the `to_` methods load `columns`, by default all.
    """

    output: str
    summary: dict[str, Any]
    """Content of `_summary.json`: rows, records, ok, invalid, errors, model, files."""
    dataset: ds.Dataset
    """The annotations, not loaded yet."""
    _errors: ds.Dataset

    @property
    def errors(self) -> "Results":
        """The dead letters: failed requests, with their reasons."""
        return Results(self.output, self.summary, self._errors, self._errors)

    def to_arrow(self, columns: list[str] | None = None) -> pa.Table:
        """A pyarrow Table."""
        return self.dataset.to_table(columns=columns)

    def to_pandas(self, columns: list[str] | None = None) -> "pd.DataFrame":
        """A pandas DataFrame. Raises UsageError if pandas is not installed."""
        try:
            import pandas  # noqa: F401  # required by pyarrow
        except ImportError:
            raise UsageError("pandas is not installed: pip install pandas") from None
        return self.to_arrow(columns).to_pandas()

    def to_polars(self, columns: list[str] | None = None) -> "pl.DataFrame":
        """A polars DataFrame. Raises UsageError if polars is not installed."""
        try:
            import polars
        except ImportError:
            raise UsageError("polars is not installed: pip install polars") from None
        frame = polars.from_arrow(self.to_arrow(columns))
        assert isinstance(frame, polars.DataFrame)
        return frame

    def to_duckdb(self, connection: "duckdb.DuckDBPyConnection | None" = None) -> "duckdb.DuckDBPyRelation":
        """A lazy DuckDB relation over the files."""
        import duckdb

        return (connection or duckdb.connect()).from_arrow(self.dataset)

    def status(self) -> dict[str, Any]:
        """The run's status, as `paliscribe status --json` prints it."""
        return run_status(self.output)

    def __len__(self) -> int:
        count: int = self.dataset.count_rows()
        return count

    def __repr__(self) -> str:
        return summary_words(self.summary, self.output)


def load(output: str | Path) -> Results:
    """Open the results of a finished run. Raises UsageError if there is none that can be read, RunError for damage."""
    place = str(output)
    try:
        store = open_store(place)
        summary = results.read_summary(store)
        if summary is None:
            raise UsageError(f"{place}: no finished run is here; see `paliscribe status {place}`")
        files, folder = filesystem(store.uri)
    except StorageError as error:
        raise UsageError(str(error)) from None
    kinds = [
        [f"{folder}/{key}" for key in summary["files"] if key.startswith(f"{kind}/")]
        for kind in ("annotations", "errors")
    ]
    try:
        schema = ds.dataset(next(filter(None, kinds))[0], format="parquet", filesystem=files).schema
        annotations, errors = (ds.dataset(keys, schema=schema, format="parquet", filesystem=files) for keys in kinds)
    except (OSError, pa.ArrowException, StopIteration) as error:
        words = (str(error).splitlines() or ["there are none"])[0][:200]
        raise RunError(f"{place}: its files cannot be read ({words}); see `paliscribe verify {place}`") from None
    return Results(place, summary, annotations, errors)


def summary_words(summary: dict[str, Any], output: str) -> str:
    """A finished run's summary as text."""
    lines = [
        f"{summary['rows']:,} images x {len(summary['tasks'])} tasks annotated with {summary['model']}{_news(summary)}",
        f"  {summary['records']:,} records: {counts_words(summary)}",
        f"  {len(summary['files'])} files below {output}",
    ]
    if changed := summary.get("rows_changed"):
        lines.append(f"  not annotated again: {changed:,} rows whose ids the run has with another image")
    if summary["errors"]:
        lines.append(f"  fix the causes, then: paliscribe retry {output}")
    return "\n".join(lines)


def _news(summary: dict[str, Any]) -> str:
    """What a call has added to the summary of a run, in words."""
    if "rows_appended" in summary:
        added = summary["rows_appended"]
        return f", {added:,} of them new" if added else " (nothing to append: every id is in the run already)"
    return "" if summary.get("shards_annotated", True) else " (it was finished already)"


def counts_words(counts: dict[str, Any]) -> str:
    """Counts as text: `3 ok, 1 invalid, 2 errors (missing 2)`."""
    words = f"{counts['ok']:,} ok, {counts['invalid']:,} invalid, {counts['errors']:,} errors"
    if counts["error_kinds"]:
        words += " (" + ", ".join(f"{kind} {number:,}" for kind, number in counts["error_kinds"].items()) + ")"
    return words
