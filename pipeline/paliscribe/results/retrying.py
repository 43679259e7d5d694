"""The state of a retry: that it was begun, and the rows that it read from the manifest again, by shard."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import groupby
from typing import Any

import pyarrow.compute as pc

from paliscribe.records import ManifestRow
from paliscribe.results import state
from paliscribe.results.commit import read_committed, read_marker
from paliscribe.results.publish import SUCCESS, generation_base
from paliscribe.storage import Store
from paliscribe.storage.parallel import in_order


def begin_retry(store: Store, generation: int, rows: Iterable[ManifestRow], shard_of: Callable[[int], int]) -> None:
    """Record the start of a retry, so that an interrupted one is resumed. Deletes `_SUCCESS` first.

    `rows`: the dead letters' rows as they are in the manifest now, ascending. They are read only if the retry is not
    begun. `shard_of`: the shard of a row number.
    """
    store.delete(SUCCESS)
    begun = retry_begun(store, generation)
    if begun:  # an earlier version kept the rows in this file
        rows = state.read(store, begun_key(generation), _rows) or ()
        rows = sorted(rows, key=lambda row: row.row)
    else:  # an attempt that was interrupted here may have read other rows
        store.delete_many([found.key for found in store.list(_rows_folder(generation))])
    for _ in in_order(
        lambda found: store.put(rows_key(generation, found[0]), found[1]),
        ((shard, _encoded(found)) for shard, found in groupby(rows, lambda row: shard_of(row.row))),
    ):
        pass
    if not begun:
        store.put_if_absent(begun_key(generation), b"{}")


def retry_begun(store: Store, generation: int) -> bool:
    """Whether this retry was started."""
    return store.exists(begun_key(generation))


def retries_begun(store: Store) -> int:
    """How many retries were started."""
    generation = 0
    while retry_begun(store, generation + 1):
        generation += 1
    return generation


def retry_rows(store: Store, generation: int, shard: int) -> dict[int, ManifestRow]:
    """Row number -> row, for the rows of a shard that a retry read from the manifest again. Raises Damaged."""
    found = state.read(store, rows_key(generation, shard), _rows)
    return {row.row: row for row in found or ()}


def read_failed(store: Store, shard: int, generation: int) -> list[dict[str, Any]]:
    """`id`, `row` and `task` of a shard's dead letters in a generation."""
    table = read_committed(store, read_marker(store, shard, generation_base(generation)))
    failed = table.filter(pc.equal(table["status"], "error"))
    records: list[dict[str, Any]] = failed.select(["id", "row", "task"]).to_pylist()
    return records


def begun_key(generation: int) -> str:
    """Key of the file that begins a retry."""
    return f"{generation_base(generation)}/begun.json"


def _rows_folder(generation: int) -> str:
    return f"{generation_base(generation)}/rows/"


def rows_key(generation: int, shard: int) -> str:
    """Key of the rows of a shard that a retry read again."""
    return f"{_rows_folder(generation)}shard-{shard:05d}.json"


def _encoded(rows: Iterable[ManifestRow]) -> bytes:
    return state.encode({"rows": [asdict(row) for row in rows]})


def _rows(values: dict[str, Any]) -> list[ManifestRow]:
    return list(map(state.typed(ManifestRow), values.get("rows", [])))
