"""The state of a retry."""

import json
from dataclasses import asdict
from pathlib import Path

from paliscribe import results
from paliscribe.records import ManifestRow
from paliscribe.storage import open_store

ROWS = [ManifestRow(number, f"id-{number}", "/a.png", {"n": number}) for number in (3, 4, 11, 25)]


def shard_of(row: int) -> int:
    return row // 10


def test_rows_are_kept_by_shard(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    results.begin_retry(store, 1, ROWS, shard_of)
    assert results.retry_begun(store, 1) and not results.retry_begun(store, 2)
    found = [results.retry_rows(store, 1, shard) for shard in range(4)]
    assert found == [{3: ROWS[0], 4: ROWS[1]}, {11: ROWS[2]}, {25: ROWS[3]}, {}]


def test_a_retry_that_an_earlier_version_began_goes_on_with_its_rows(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put(
        f"{results.generation_base(1)}/begun.json",
        json.dumps({"rows": [asdict(row) for row in reversed(ROWS)]}).encode(),
    )
    results.begin_retry(store, 1, [], shard_of)
    assert results.retry_rows(store, 1, 1) == {11: ROWS[2]} and results.retry_rows(store, 1, 2) == {25: ROWS[3]}
