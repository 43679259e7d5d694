"""Runs over images inside a Parquet manifest: the same records as by path; resumed, retried and appended to."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch.alone import alone, annotate, draw
from results.made import published

from paliscribe.api.tables import manifest_addresses
from paliscribe.batch.run import run_append, run_batch, run_retry
from paliscribe.config import JobConfig

TASKS = ("caption en", "answer en {ask}")
KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Rows = list[dict[str, Any]]


def images(folder: Path, numbers: range) -> Rows:
    """Images as a struct holds them; some are at their path only, one is damaged, one is in neither place."""
    rows: Rows = []
    for number in numbers:
        draw(folder / f"images/{number}.png", number)
        path = f"images/{number}.png"
        body = (folder / path).read_bytes()
        rows.append({"bytes": None if number % 5 == 3 else body, "path": path})
    rows[2]["bytes"] = b"no image"
    (folder / rows[2]["path"]).write_bytes(b"no image")
    return [*rows, {"bytes": None, "path": None}]


def write(source: Path, held: Rows) -> None:
    columns = {"ask": [f"what {n}" for n in range(len(held))], "n": list(range(len(held)))}
    ids = [image["path"] or "none" for image in held]
    pq.write_table(pa.table({"image": pa.array(held, KIND), "id": ids, **columns}), source, row_group_size=6)


def by_path(source: Path, held: Rows) -> None:
    columns = {"ask": [f"what {n}" for n in range(len(held))], "n": list(range(len(held)))}
    paths = [image["path"] for image in held]
    pq.write_table(pa.table({"image": paths, "id": [path or "none" for path in paths], **columns}), source)


def job(source: Path | str, output: Path) -> JobConfig:
    values = {"manifest": str(source), "tasks": TASKS, "output": str(output), "shard_rows": 4}
    return JobConfig.model_validate(values)


def records(output: Path, *without: str) -> Rows:
    """The published records without some columns, by row and task."""
    bodies = [body for key, body in published(str(output)).items() if key.endswith(".parquet")]
    rows = [record for body in bodies for record in pq.read_table(pa.BufferReader(body)).to_pylist()]
    kept = [{name: value for name, value in row.items() if name not in without} for row in rows]
    return sorted(kept, key=lambda record: (record["row"], record["task"]))


def test_records_equal_those_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = images(tmp_path, range(20))
    write(tmp_path / "inside.parquet", held)
    by_path(tmp_path / "paths.parquet", held)
    with alone(monkeypatch):
        for name in ("inside", "paths"):
            run_batch(job(tmp_path / f"{name}.parquet", tmp_path / name))
        run_batch(job(tmp_path / "inside.parquet", tmp_path / "inside"))  # resumed: nothing is left to do
    found = records(tmp_path / "inside", "image", "created_at")
    assert found == records(tmp_path / "paths", "image", "created_at") and len(found) == 42
    failed = {(row["row"], row["error_kind"]) for row in found if row["status"] == "error"}
    assert failed == {(2, "not_an_image"), (20, "no_image")}


def test_a_changed_file_is_dead_letters_until_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, source, output = images(tmp_path, range(10)), tmp_path / "inside.parquet", tmp_path / "o"
    write(source, held)

    def changed(*arguments: Any) -> None:
        held[2]["bytes"] = held[0]["bytes"]
        write(source, held)
        annotate(*arguments)

    with alone(monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr("paliscribe.batch.annotate.annotate", changed)
            run_batch(job(source, output))
        kinds = {row["row"]: row["error_kind"] for row in records(output)}
        inside = [row for row, image in enumerate(held) if image["bytes"] is not None]
        assert [row for row, kind in kinds.items() if kind == "changed"] == inside
        run_retry(str(output))
    kinds = {row["row"]: row["error_kind"] for row in records(output)}
    assert {row: kind for row, kind in kinds.items() if kind is not None} == {10: "no_image"}
    digests = {row["row"]: row["image_sha256"] for row in records(output)}
    assert digests[2] == digests[0] != digests[1]


def test_an_append_adds_the_rows_that_are_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, output = images(tmp_path, range(12)), tmp_path / "o"
    write(tmp_path / "first.parquet", held[:7])
    write(tmp_path / "second.parquet", held[:12])
    with alone(monkeypatch):
        run_batch(job(tmp_path / "first.parquet", output))
        run_append(job(tmp_path / "second.parquet", output))
    found = records(output)
    assert [row["id"] for row in found[::2]] == [f"images/{n}.png" for n in range(12)]
    assert [row["row"] for row in found if row["status"] == "error"] == [2, 2]
    assert len({row["image_sha256"] for row in found if row["status"] != "error"}) == 11


def test_a_table_with_images_resumes_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = images(tmp_path, range(6))
    table = pa.table({"image": pa.array(held, KIND), "ask": ["what"] * 7})
    monkeypatch.chdir(tmp_path)
    with alone(monkeypatch):
        for _ in range(2):
            run_batch(job(manifest_addresses(table, str(tmp_path / "o"), "image")[0], tmp_path / "o"))
    found = records(tmp_path / "o")
    assert [row["row"] for row in found if row["status"] == "error"] == [2, 2, 6, 6]
    assert found[2]["id"] == "images/1.png" and found[6]["id"] == str(tmp_path / "images/3.png")
