"""Result schema: records to tables and back, and its documentation."""

import pyarrow as pa
import pytest
from results.made import FACTS, TASKS, record

from paliscribe import results
from paliscribe.results.schema import COLUMNS, NAMES, VERSION

CARRIED = pa.schema([("place", pa.string()), ("year", pa.int64()), ("share", pa.float64()), ("kept", pa.bool_())])


def test_records_round_trip_through_a_table() -> None:
    rows = [
        record(4, TASKS[0], place="Köln", year=1923, share=0.1, kept=True),
        record(5, TASKS[1], failed=True),
        record(6, TASKS[1], place="", year=None),
    ]
    whole = results.schema(CARRIED)
    table = results.to_table(rows, FACTS, whole)
    assert table.schema.equals(whole, check_metadata=True)
    for given, found in zip(rows, table.to_pylist(), strict=True):
        assert list(found) == [*(name for name, _, _ in COLUMNS), *CARRIED.names]
        expected = results.record_values(given) | {"model": "demo", "revision": "abc123", "precision": "float32"}
        expected |= {name: given.columns.get(name) for name in CARRIED.names}
        assert found == expected
    assert table.to_pylist()[0]["boxes"] == [
        {"label": "cat", "x_min": 1.5, "y_min": 2.25, "x_max": 30.0, "y_max": 40.0, "score": 0.5}
    ]
    mask = table.to_pylist()[1]["masks"], table.to_pylist()[0]["masks"][0]
    assert mask[0] == []
    assert mask[1]["codes"] == list(range(16)) and mask[1]["rle"] is None and mask[1]["score"] == 0.5


def test_no_records_give_an_empty_table() -> None:
    table = results.to_table([], FACTS, results.schema(CARRIED))
    assert table.num_rows == 0 and table.schema.names[-1] == "kept"


def test_a_value_of_another_type_is_rejected() -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        results.to_table([record(0, TASKS[0], year="1923")], FACTS, results.schema(CARRIED))


def test_the_schema_describes_itself() -> None:
    whole = results.schema(CARRIED)
    assert whole.metadata == {b"paliscribe.schema_version": VERSION.encode()}
    assert all(field.metadata[b"description"] for field in whole)
    lines = results.describe().splitlines()
    assert len(lines) == 2 + len(COLUMNS) and len(NAMES) == len(COLUMNS)
    assert all(line.count("|") == 4 for line in lines)
    for name, kind, words in COLUMNS:
        line = next(line for line in lines if line.startswith(f"| `{name}` |"))
        assert line.endswith(f"| {words} |")
        if not pa.types.is_nested(kind):
            assert f"`{kind}`" in line
    assert "x_min: float" in results.describe() and "codes: list<int16>" in results.describe()
