"""A frozen manifest that is extended gives every shard its rows, and knows the ids that it has."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from paliscribe import manifest
from paliscribe.manifest import FrozenManifest, KnownIds, Shards, checked, freezing
from paliscribe.manifest.frozen import FOLDER, INDEX
from paliscribe.manifest.ids import HASH
from paliscribe.storage import Store, open_store
from paliscribe.storage.arrow import encode


def write(path: Path, numbers: range) -> str:
    rows = [{"id": f"é{n}", "image": f"{n}.png", "n": n, "s": "x" * (n % 9)} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def extended(store: Store, source: str, retries: int = 0) -> FrozenManifest:
    """The frozen manifest of a store, extended."""
    frozen = manifest.load(store)
    assert frozen is not None
    extension = manifest.extend(source, store, frozen, retries=retries, check=lambda schema: None)
    if extension.frozen != frozen:
        manifest.commit_extension(store, frozen, extension)
    assert manifest.load(store) == extension.frozen
    return extension.frozen


def check_shards(store: Store, frozen: FrozenManifest, numbers: list[int]) -> None:
    """All shards, in both orders: these rows, numbered from 0."""
    for order in (range(frozen.shards), reversed(range(frozen.shards))):
        shards = Shards(store)
        found = {shard: shards.read(shard) for shard in order}
        rows = [row for shard in range(frozen.shards) for row in found[shard]]
        assert [(row.row, row.id, row.columns["n"]) for row in rows] == [
            (row, f"é{n}", n) for row, n in enumerate(numbers)
        ]
        assert [len(found[shard]) for shard in found] == [frozen.rows_of(shard) for shard in found]
        assert all(frozen.shard_of(row.row) == shard for shard in found for row in found[shard])
        assert all(found[shard][0].row == frozen.first_row(shard) for shard in found)
    assert frozen.rows_in(np.ones(frozen.shards, np.bool_)) == frozen.rows == len(numbers)


@pytest.mark.parametrize("shard_rows", [1, 7, 1000])
@pytest.mark.parametrize(("file_rows", "batch"), [(1000, 4), (9, 100), (1, 1)])
def test_shards(shard_rows: int, file_rows: int, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "FILE_ROWS", file_rows)
    monkeypatch.setattr(freezing, "BATCH", batch)
    store = open_store(str(tmp_path / "run"))
    manifest.freeze(write(tmp_path / "a.jsonl", range(20)), store, shard_rows=shard_rows)
    index = store.get(INDEX)
    assert list(json.loads(index)) == [
        *("source", "rows", "shards", "shard_rows", "digest", "identity", "files", "columns", "check")
    ], "as it was before there were appends, and a hash"
    assert extended(store, write(tmp_path / "b.jsonl", range(5, 18))).additions == () and store.get(INDEX) == index
    extended(store, write(tmp_path / "a.jsonl", range(33)))
    frozen = extended(store, write(tmp_path / "c.jsonl", range(31, 36)), retries=2)
    check_shards(store, frozen, [*range(36)])
    assert [(added.row, added.retries) for added in frozen.additions] == [(20, 0), (33, 2)]
    last = frozen.additions[1].shard
    assert [frozen.retried_generation(last, generation) for generation in (3, 4)] == [0, 3]
    assert [frozen.retried_generation(last - 1, generation) for generation in (1, 2, 3)] == [0, 1, 2]


def test_a_run_whose_shards_have_a_file_each(tmp_path: Path) -> None:
    """As older versions wrote them."""
    store = open_store(str(tmp_path / "run"))
    source = write(tmp_path / "a.jsonl", range(10))
    frozen = manifest.freeze(source, store, shard_rows=4)
    rows = list(manifest.read(source))
    for shard in range(frozen.shards):
        values = [
            {"row": r.row, "id": r.id, "image": r.image} | dict(r.columns) for r in rows[4 * shard : 4 * shard + 4]
        ]
        store.put(f"{FOLDER}/shard-{shard:05d}.arrow", encode(pa.Table.from_pylist(values)))
    store.delete_many([found.key for found in store.list(f"{FOLDER}/rows-")])
    index = json.loads(store.get(INDEX))
    del index["files"], index["identity"], index["check"]
    store.put(INDEX, json.dumps(index).encode())
    extended(store, write(tmp_path / "b.jsonl", range(7, 15)))
    check_shards(store, extended(store, write(tmp_path / "b.jsonl", range(18))), [*range(18)])


def test_known_ids(tmp_path: Path) -> None:
    known = KnownIds(tmp_path)
    numbers = np.random.default_rng(0).permutation(5000)
    for part in np.array_split(numbers, 7):
        known.add(manifest.hashed(pa.array([f"id {n}" for n in part])), part)
    asked = [f"id {n}" for n in range(4900, 5100)]
    assert known.find(manifest.hashed(pa.array(asked))).tolist() == [*range(4900, 5000), *[-1] * 100]
    assert known.find(np.empty(0, HASH)).size == 0


def test_ids_with_an_equal_half_of_their_hash_are_told_apart(tmp_path: Path) -> None:
    hashes = np.array([(high, low) for high in (1, 2, 65, 2**64 - 1) for low in (5, 6, 7)], HASH)
    known = KnownIds(tmp_path)
    known.add(hashes[::2], np.arange(0, 12, 2))
    assert known.find(hashes).tolist() == [n if n % 2 == 0 else -1 for n in range(12)]


def test_rows_that_come_again_with_another_image_are_counted(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    frozen = manifest.freeze(write(tmp_path / "a.jsonl", range(5)), store, shard_rows=4)
    (tmp_path / "b").mkdir()
    moved = write(tmp_path / "b/a.jsonl", range(3, 7))
    found = manifest.extend(moved, store, frozen, retries=0, check=lambda schema: None)
    assert (found.changed, found.frozen.rows) == (2, 7), "relative images are in another folder"
    assert replace(found.frozen, rows=5, shards=2, files=frozen.files, additions=()) == frozen


MEASURE = r"""
import re, sys
from pathlib import Path
from paliscribe.manifest import extend, freeze
from paliscribe.storage import open_store
source, grown, output = sys.argv[1:]
store = open_store(output)
frozen = freeze(source, store, shard_rows=5000)
assert extend(grown, store, frozen, retries=0, check=lambda schema: None).frozen.rows == frozen.rows * 2
print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not os.environ.get("FULL"), reason="takes two minutes")
def test_memory_does_not_grow_with_the_manifest(tmp_path: Path) -> None:
    peaks = []
    for rows in (1_000_000, 3_000_000):
        for name, count in (("one", rows), ("two", 2 * rows)):
            with (tmp_path / f"{name}.txt").open("w") as file:
                file.writelines(f"images/{number:09d}.png\n" for number in range(count))
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "one.txt"), str(tmp_path / "two.txt")]
        done = subprocess.run([*command, str(tmp_path / f"{rows}")], check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout))  # KiB
    assert (peaks[1] - peaks[0]) / 1024 < 150, "24 bytes an id in mapped files, and buffers; the ids alone take 300"
