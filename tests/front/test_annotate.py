"""A manifest in, Parquet out: read back as users read it."""

import json
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from front.conftest import TASKS, Paliscribe, published, read_rows, task_flags, write_rows

from paliscribe import results
from paliscribe.cli.report import demo_accuracy

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("served")]


@pytest.fixture(scope="module")
def output(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An annotated collection."""
    from paliscribe.batch.run import run_batch
    from paliscribe.config import JobConfig

    folder = tmp_path_factory.mktemp("run") / "output"
    run_batch(JobConfig(manifest=(str(collection),), tasks=TASKS, output=str(folder), shard_rows=10))
    return folder


def wanted(collection: Path) -> set[tuple[str, str]]:
    return {(row["id"], task) for row in read_rows(collection) for task in TASKS}


def documented() -> list[str]:
    return results.schema(pa.schema([("objects", pa.string()), ("question", pa.string())])).names


def check(rows: list[dict[str, Any]], collection: Path) -> None:
    pairs = [(row["id"], row["task"]) for row in rows]
    assert len(pairs) == 24 * len(TASKS)
    assert set(pairs) == wanted(collection)
    assert set(rows[0]) == set(documented())


def test_pyarrow_reads_the_output_as_it_stands(output: Path, collection: Path) -> None:
    check(ds.dataset(output, format="parquet").to_table().to_pylist(), collection)
    check(ds.dataset(output, format="parquet", partitioning="hive").to_table().to_pylist(), collection)


def test_duckdb_reads_the_output_as_it_stands(output: Path, collection: Path) -> None:
    found = duckdb.sql(f"select * from read_parquet('{output}/**/*.parquet')")
    assert found is not None
    check([dict(zip(found.columns, row, strict=True)) for row in found.fetchall()], collection)


def test_polars_reads_the_output_as_it_stands(output: Path, collection: Path) -> None:
    check(pl.read_parquet(f"{output}/**/*.parquet").to_dicts(), collection)


def test_every_file_has_the_documented_schema(output: Path) -> None:
    whole = results.schema(pa.schema([("objects", pa.string()), ("question", pa.string())]))
    for path in output.rglob("*.parquet"):
        assert ds.dataset(path).schema.equals(whole, check_metadata=False)


def test_the_answers_are_right(output: Path, collection: Path) -> None:
    accuracy = demo_accuracy(str(output), collection.parent)
    assert float(accuracy["questions, exact"].split("%")[0]) > 80
    assert float(accuracy["captions, item F1"].split()[0]) > 0.9
    assert float(accuracy["boxes, F1 at IoU 0.5"].split()[0]) > 0.8


def test_two_runs_of_one_job_give_equal_files(
    output: Path, collection: Path, tmp_path: Path, paliscribe: Paliscribe
) -> None:
    again = paliscribe(
        "annotate",
        "--manifest",
        collection,
        *task_flags(*TASKS),
        "--output",
        tmp_path / "o",
        "--shard-rows",
        "10",
        "-q",
    )
    assert again.code == 0, again.err
    assert published(tmp_path / "o") == published(output)


def test_a_finished_run_is_not_run_again(output: Path, collection: Path, paliscribe: Paliscribe) -> None:
    files = published(output)
    said = paliscribe(
        "annotate", "--manifest", collection, *task_flags(*TASKS), "--output", output, "--shard-rows", "10", "--json"
    )
    assert said.code == 0, said.err
    assert said.json["shards_annotated"] == 0
    assert published(output) == files
    assert (output / "_SUCCESS").exists()


def test_status_tells_what_is_there(output: Path, paliscribe: Paliscribe) -> None:
    found = paliscribe("status", output, "--json").json
    assert (found["state"], found["rows"], found["rows_done"], found["errors"]) == ("finished", 24, 24, 0)
    assert "finished" in paliscribe("status", output).out


def test_images_inside_a_parquet_manifest(
    output: Path, collection: Path, tmp_path: Path, paliscribe: Paliscribe
) -> None:
    rows = read_rows(collection)[:8]
    for row in rows:
        row["image"] = {"bytes": (collection.parent / row["image"]).read_bytes(), "path": None}
    pq.write_table(pa.Table.from_pylist(rows), source := tmp_path / "m.parquet", row_group_size=3)
    said = paliscribe(
        "annotate", "--manifest", source, *task_flags(*TASKS), "--output", tmp_path / "o", "--shard-rows", "3", "-q"
    )
    assert said.code == 0, said.err
    query = "select id, task, text, score from read_parquet('{}/**/*.parquet') where id in ({}) order by all"
    ids = ", ".join(f"'{row['id']}'" for row in rows)
    with duckdb.connect() as reader:
        found, wanted = (reader.execute(query.format(place, ids)).fetchall() for place in (tmp_path / "o", output))
    assert found == wanted and len(found) == 8 * len(TASKS)


def test_partitions_by_kind_and_a_carried_column(collection: Path, tmp_path: Path, paliscribe: Paliscribe) -> None:
    rows = [row | {"split": 1 + index % 2} for index, row in enumerate(read_rows(collection)[:6])]
    for row in rows:
        row["image"] = str(collection.parent / row["image"])
    manifest = write_rows(tmp_path / "split.jsonl", rows)
    job = tmp_path / "job.yaml"
    job.write_text(
        json.dumps({"manifest": str(manifest), "tasks": ["ocr"], "output": str(tmp_path / "o"), "shard_rows": 4})
    )
    said = paliscribe("annotate", job, "--partition-by", "kind", "--partition-by", "split", "--quiet")
    assert said.code == 0, said.err
    folders = {path.parent.relative_to(tmp_path / "o").as_posix() for path in (tmp_path / "o").rglob("*.parquet")}
    assert folders == {"annotations/kind-ocr/split-1", "annotations/kind-ocr/split-2"}
    found = duckdb.sql(f"select id, split from read_parquet('{tmp_path}/o/**/*.parquet') order by id")
    assert found is not None and found.fetchall() == [(row["id"], row["split"]) for row in rows]
