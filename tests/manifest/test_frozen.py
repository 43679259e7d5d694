"""A frozen manifest gives every shard its rows, however the files and their batches are cut."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from paliscribe import manifest
from paliscribe.errors import UsageError
from paliscribe.manifest import Shards, checked, freezing
from paliscribe.manifest.frozen import FOLDER, INDEX
from paliscribe.storage import open_store
from paliscribe.storage.arrow import decode, encode

ROWS = [{"id": f"é{n}", "image": f"{n}.png", "n": n if n < 70 else n + 0.5, "s": "x" * (n % 9)} for n in range(100)]


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.mark.parametrize("shard_rows", [1, 7, 16, 33, 1000])
@pytest.mark.parametrize(
    ("file_rows", "file_bytes", "batch"), [(16, 1 << 20, 5), (1000, 60, 4), (9, 40, 100), (1, 1, 1)]
)
def test_shards(
    source: str, shard_rows: int, file_rows: int, file_bytes: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(manifest.read(source))
    plain = manifest.scan(source)
    monkeypatch.setattr(checked, "FILE_ROWS", file_rows)
    monkeypatch.setattr(checked, "FILE_BYTES", file_bytes)
    monkeypatch.setattr(freezing, "BATCH", batch)
    store = open_store(f"{source}-run")
    frozen = manifest.freeze(source, store, shard_rows=shard_rows)
    assert manifest.load(store) == frozen
    assert frozen.files[-1] == frozen.rows == 100 and len(frozen.files) > 1
    assert all(end - start <= file_rows for start, end in zip((0, *frozen.files), frozen.files, strict=False))
    assert frozen.schema == plain.schema and frozen.schema.field("n").type == pa.float64()
    shards = Shards(store)
    for order in (range(frozen.shards), reversed(range(frozen.shards))):
        found = {shard: shards.read(shard) for shard in order}
        assert [row for shard in range(frozen.shards) for row in found[shard]] == whole
        assert all(type(row.columns["n"]) is float for rows in found.values() for row in rows)
        assert [len(found[shard]) for shard in range(frozen.shards)] == [*map(frozen.rows_of, range(frozen.shards))]


def test_rows_of_many_bytes_are_in_batches_of_few(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing, "BATCH_BYTES", 1000)
    store = open_store(f"{source}-run")
    manifest.freeze(source, store, shard_rows=10)
    [key] = [found.key for found in store.list(FOLDER) if found.key != INDEX]
    assert 1 < pa.ipc.open_file(pa.BufferReader(store.get(key))).get_batch(0).num_rows < 50


def test_the_manifest_of_a_run_of_an_older_version(source: str) -> None:
    """It has a file for each shard, with the row numbers in it."""
    store = open_store(f"{source}-run")
    frozen = manifest.freeze(source, store, shard_rows=40)
    whole = list(manifest.read(source))
    columns = ("n", "s")
    for shard in range(frozen.shards):
        rows = whole[40 * shard : 40 * (shard + 1)]
        values = [{"row": r.row, "id": r.id, "image": r.image} | {c: r.columns.get(c) for c in columns} for r in rows]
        store.put(f"{FOLDER}/shard-{shard:05d}.arrow", encode(pa.Table.from_pylist(values)))
    index = json.loads(store.get(INDEX))
    store.delete_many(found.key for found in list(store.list(f"{FOLDER}/rows-")))
    for name in ("files", "identity", "check"):
        del index[name]
    store.put(INDEX, json.dumps(index).encode())
    shards = Shards(store)
    assert [row for shard in range(frozen.shards) for row in shards.read(shard)] == whole
    assert decode(store.get(f"{FOLDER}/shard-00000.arrow")).num_rows == 40


def test_a_refused_manifest_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "FILE_ROWS", 2)
    path = tmp_path / "m.jsonl"
    path.write_text('{"image": "a"}\n' * 9)
    store = open_store(str(tmp_path / "run"))
    with pytest.raises(UsageError, match="duplicate ids: 'a'"):
        manifest.freeze(str(path), store, shard_rows=4)
    assert not list(store.list())
