"""What a retry reads from the manifests again."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from paliscribe import manifest
from paliscribe.manifest import FrozenManifest, KnownIds, updated
from paliscribe.records import ManifestRow
from paliscribe.storage import open_store

NAMES = {"image_column": "image", "id_column": "id"}
Rows = list[dict[str, object]]


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read_again(frozen: FrozenManifest, failed: dict[str, int], folder: Path) -> tuple[list[ManifestRow], list[str]]:
    """The rows that are found, and the errors of manifests."""
    folder.mkdir()
    known, errors = KnownIds(folder), list[str]()
    known.add(manifest.hashed(pa.array(failed)), np.array([*failed.values()], np.int64))
    rows = manifest.updated_rows(frozen, known, folder, **NAMES, unreadable=lambda error: errors.append(str(error)))
    return list(rows), errors


def test_rows_are_found_by_id_as_the_run_carries_them(tmp_path: Path) -> None:
    source = write(tmp_path / "m.jsonl", [{"id": name, "image": f"{name}.png", "n": 1.5, "s": "x"} for name in "abc"])
    frozen = manifest.freeze(source, open_store(str(tmp_path / "run")), shard_rows=2)
    write(tmp_path / "m.jsonl", [{"id": "c", "image": "new.png", "n": 2, "more": True}, {"id": "a", "image": "a.png"}])
    found, errors = read_again(frozen, {"c": 2, "b": 1}, tmp_path / "one")
    assert found == [ManifestRow(2, "c", f"{tmp_path}/new.png", {"n": 2.0})] and not errors
    assert isinstance(found[0].columns["n"], float), "it fits the column that the run carries"
    write(tmp_path / "m.jsonl", [{"id": "c", "image": "new.png", "s": 1}])
    found, [error] = read_again(frozen, {"c": 2}, tmp_path / "two")
    assert not found and "column 's' in row 1 is int now; the run carries it as string" in error


@pytest.mark.parametrize("spilled", [1, 7, 1000])
def test_rows_come_in_the_order_of_the_run(spilled: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updated, "SPILL_ROWS", spilled)
    rows: Rows = [{"id": f"é{n}", "image": f"{n}.png", "n": n, "s": None if n % 3 else "x"} for n in range(300)]
    source = write(tmp_path / "m.jsonl", rows)
    frozen = manifest.freeze(source, open_store(str(tmp_path / "run")), shard_rows=7)
    whole = list(manifest.read(source))
    rows = [rows[n] for n in np.random.default_rng(0).permutation(300)]
    write(tmp_path / "m.jsonl", [*rows, {"id": "another", "image": "a.png", "n": 1}])
    failed = {f"é{n}": n for n in range(0, 300, 3)}
    assert read_again(frozen, failed, tmp_path / "again") == (whole[::3], [])


def test_the_manifest_given_last_counts_and_an_unreadable_one_does_not(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    sources = [tmp_path / f"{number}.jsonl" for number in range(3)]
    frozen = manifest.freeze(write(sources[0], [{"id": "a", "image": "0.png"}]), store, shard_rows=2)
    for source, name in zip(sources[1:], "bc", strict=True):
        write(source, [{"id": name, "image": "0.png"}])
        extended = manifest.extend(str(source), store, frozen, retries=0, check=lambda schema: None)
        manifest.commit_extension(store, frozen, extended)
        frozen = extended.frozen
    failed = {"a": 0, "b": 1, "c": 2}
    for number, source in enumerate(sources):
        write(source, [{"id": name, "image": f"{number}.png"} for name in "abc"[: 3 - number]])
    found, errors = read_again(frozen, failed, tmp_path / "one")
    assert [(row.row, Path(row.image or "").name) for row in found] == [(0, "2.png"), (1, "1.png"), (2, "0.png")]
    assert not errors
    sources[2].unlink()
    write(sources[1], [{"id": "b", "image": "1.png"}, {"image": "data:,x"}])
    found, errors = read_again(frozen, failed, tmp_path / "two")
    assert [(row.row, Path(row.image or "").name) for row in found] == [(0, "0.png"), (1, "0.png"), (2, "0.png")]
    assert "2.jsonl" in errors[1] and "1.jsonl: row 2 has neither an id nor an image" in errors[0]
