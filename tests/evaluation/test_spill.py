"""Rows in temporary files by a hash of a column."""

import itertools
from pathlib import Path

import pyarrow as pa
import pytest

from paliscribe.evaluation import spill
from paliscribe.evaluation.spill import Spill

SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int64()), ("at", pa.int64())])


@pytest.mark.parametrize("key", ["id", "n"])
@pytest.mark.parametrize("flush", [1, 700, 10**9])
def test_equal_values_are_in_one_file_in_order(
    key: str, flush: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "FLUSH", flush)
    monkeypatch.setattr(spill, "FILE_FLUSH", 0)
    rows = [(f"é{number % 40}", number % 40 * 2**56, number) for number in range(200)]
    made = Spill(tmp_path / "made", SCHEMA, key)
    for start in range(0, 200, 9):
        made.add(pa.record_batch(list(zip(*rows[start : start + 9], strict=True)), schema=SCHEMA))
    assert made.rows == 200 and made.size == pytest.approx(200 * (len("é20".encode()) + 4 + 8 + 8), rel=0.2)
    assert [tuple(row.values()) for row in made.table().to_pylist()] == rows
    split = made.split(7)
    assert (split.rows, split.buckets) == (200, 7) and split.split(7) is split
    parts = [[tuple(row.values()) for row in split.table(part).to_pylist()] for part in range(7)]
    assert sum(map(bool, parts)) > 2 and sorted(itertools.chain(*parts), key=lambda row: row[2]) == rows
    assert all(part == sorted(part, key=lambda row: row[2]) for part in parts)
    places = [{row_id for row_id, *_ in part} for part in parts]
    assert sum(map(len, places)) == 40, "an id is in one of them"
    found = list(itertools.chain(*parts))
    assert key == "id" or [n for _, n, _ in found] != sorted(n for _, n, _ in found), "not sorted within a file"
    limits = [(min(n), max(n)) for n in ([n for _, n, _ in part] for part in parts) if n]
    assert key == "id" or all(high < low for (_, high), (low, _) in itertools.pairwise(limits))
    assert made.table().num_rows == 0, "its files are gone"


def test_nothing(tmp_path: Path) -> None:
    made = Spill(tmp_path / "made", SCHEMA, "id")
    assert [*made.batches()] == [] and made.split(3).table(2).to_pylist() == []
