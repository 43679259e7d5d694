"""The records of a run in small batches."""

import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.made_run import make
from paliscribe import results
from paliscribe.published import open_tables, records
from paliscribe.published.records import windows
from paliscribe.storage import open_store

ROWS = 700


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with boxes in two files, one for each task, of several row groups."""
    output = tmp_path_factory.mktemp("records") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results.publish, "ROW_GROUP", 150)
        make(open_store(str(output)), ROWS, boxes=True)
    files = [*(output / "annotations").rglob("*.parquet")]
    assert [pq.ParquetFile(file).num_row_groups for file in files] == [5, 5]
    return output


@pytest.mark.parametrize(("size", "most", "opened"), [(1, 3, 16), (4000, 50, 1), (10**9, 64, 0), (10**9, 8192, 16)])
def test_windows_are_all_records_in_order(
    size: int, most: int, opened: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "WINDOW_BYTES", size)
    monkeypatch.setattr(records, "MOST_WINDOW", most)
    monkeypatch.setattr(records, "OPEN_FILES", opened)
    tables = open_tables(str(run))
    found = [*windows(tables)]
    ends = [(min(rows), max(rows)) for rows in (table["row"].to_pylist() for table in found)]
    assert all(before < after for (_, before), (after, _) in itertools.pairwise(ends))
    assert len(found) >= ROWS / most
    whole = tables.connection.sql("SELECT * FROM annotations").to_arrow_table()
    order = [("row", "ascending"), ("task", "ascending")]
    assert pa.concat_tables(found).sort_by(order).equals(whole.sort_by(order).cast(found[0].schema))


def test_records_of_a_task_have_its_dead_letters(run: Path) -> None:
    tables = open_tables(str(run))
    found = pa.Table.from_batches(records.records(tables, "detect cat", ("id", "status")))
    assert found.column_names == ["id", "status"] and found.num_rows == ROWS
    assert len(set(found["id"].to_pylist())) == ROWS
    assert [*records.records(tables, "detect dog", ("id",))] == []
