"""The Python interface over the pool that the session serves: the same runs as the commands', and what reads them."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from front.conftest import TASKS, Paliscribe, published, read_rows

import paliscribe

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("served")]
SETTINGS: dict[str, Any] = {"shard_rows": 8}


@pytest.fixture(scope="module")
def run(served: None, collection: Path, tmp_path_factory: pytest.TempPathFactory) -> paliscribe.Run:
    """Two tasks over 24 scenes and a row whose image is missing, given as rows."""
    rows = [row | {"image": str(collection.parent / row["image"])} for row in read_rows(collection)]
    rows.append({"id": "lost", "image": str(collection.parent / "lost.jpg"), "question": "?", "objects": "cat"})
    return paliscribe.annotate(rows, TASKS[:2], tmp_path_factory.mktemp("python") / "out", progress=False, **SETTINGS)


def test_a_run_from_python_is_that_of_the_command(
    run: paliscribe.Run, collection: Path, tmp_path: Path, paliscribe: Paliscribe
) -> None:
    manifest = next((Path(run.output) / "_run/given").iterdir())
    flags = [word for task in TASKS[:2] for word in ("--task", task)]
    said = paliscribe("annotate", "--manifest", manifest, "--output", tmp_path / "o", "--shard-rows", "8", *flags)
    assert said.code == 0, said.err
    assert published(Path(run.output)) == published(tmp_path / "o")
    assert repr(run).splitlines()[0] == said.out.splitlines()[0]
    status = paliscribe("status", run.output, "--json").json
    assert status == run.status() and status["state"] == "finished"


def test_results_in_every_library(run: paliscribe.Run) -> None:
    found = paliscribe.load(run.output)
    assert len(found) == 48 and found.summary["rows"] == 25
    arrow, pandas, polars, relation = found.to_arrow(), found.to_pandas(), found.to_polars(), found.to_duckdb()
    assert isinstance(arrow, pa.Table) and isinstance(pandas, pd.DataFrame) and isinstance(polars, pl.DataFrame)
    counted = relation.aggregate("task, count(*) as n", "task").order("task").fetchall()
    assert counted == [("answer en {question}", 24), ("caption en", 24)]
    assert pandas["text"].tolist() == polars["text"].to_list() == arrow["text"].to_pylist()
    assert found.to_arrow(["id", "text"]).column_names == ["id", "text"]
    connection = duckdb.connect()
    found.to_duckdb(connection).create_view("annotations")
    assert connection.sql("select count(*) from annotations").fetchall() == [(48,)]


def test_errors_are_apart_and_may_be_none(run: paliscribe.Run, collection: Path, tmp_path: Path) -> None:
    errors = run.results().errors
    assert set(errors.to_pandas()["id"]) == {"lost"} and set(errors.to_arrow()["error_kind"].to_pylist()) == {"missing"}
    whole = paliscribe.annotate(collection, "ocr", tmp_path / "whole", progress=False).results()
    assert len(whole) == 24 and len(whole.errors) == 0
    assert whole.errors.to_arrow().schema.names == whole.to_arrow().schema.names


def test_called_again_it_computes_nothing_and_another_manifest_is_refused(
    run: paliscribe.Run, collection: Path
) -> None:
    rows = [json.loads(line) for line in next((Path(run.output) / "_run/given").iterdir()).read_text().splitlines()]
    again = paliscribe.annotate(pd.DataFrame(rows), list(TASKS[:2]), run.output, progress=False, **SETTINGS)
    assert again.summary["shards_annotated"] == 0
    with pytest.raises(paliscribe.UsageError, match="manifest"):
        paliscribe.annotate(rows[:-1], list(TASKS[:2]), run.output, progress=False, **SETTINGS)


def test_a_retry(run: paliscribe.Run, collection: Path) -> None:
    lost = collection.parent / "lost.jpg"
    lost.write_bytes((collection.parent / read_rows(collection)[0]["image"]).read_bytes())
    try:
        summary = run.retry(progress=False).summary
    finally:
        lost.unlink()
    assert (summary["errors"], summary["retries"]) == (0, 1)
    assert len(run.results()) == 50 and len(run.results().errors) == 0


def test_an_append(run: paliscribe.Run, collection: Path) -> None:
    image = str(collection.parent / read_rows(collection)[0]["image"])
    rows = [{"id": f"new-{n}", "image": image, "question": "how many circles are there?"} for n in range(3)]
    added = paliscribe.annotate(rows, TASKS[:2], run.output, append=True, progress=False, **SETTINGS)
    assert (added.summary["rows"], added.summary["rows_appended"], added.summary["appends"]) == (28, 3, 1)
    assert repr(added).startswith("28 images x 2 tasks annotated with demo, 3 of them new\n")
    assert len(added.results()) == 56 and {"new-0", "lost"} < set(added.results().to_pandas(["id"])["id"])
    again = paliscribe.annotate(pa.Table.from_pylist(rows), TASKS[:2], run.output, append=True, progress=False)
    assert again.summary["rows_appended"] == 0
    with pytest.raises(paliscribe.UsageError, match="no run is here to append to"):
        paliscribe.annotate(rows, "ocr", f"{run.output}-other", append=True, progress=False)


@pytest.mark.long
def test_results_in_object_storage(run: paliscribe.Run, collection: Path, bucket: str) -> None:
    output = f"s3://{bucket}/runs/one"
    paliscribe.annotate(collection, "caption en", output, progress=False)
    found = paliscribe.load(output)
    assert found.to_pandas()["id"].nunique() == 24 and len(found.errors) == 0
    assert found.to_duckdb().filter("id = 'scene-00000'").fetchall()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tasks": []}, "tasks"),
        ({"tasks": "answer en {no_such}"}, "no_such"),
        ({"shard_row": 3}, "shard_row"),
        ({"manifest": "no-such-file.jsonl"}, "no-such-file"),
        ({"model": {"id": "demo", "precision": "float8"}}, "precision"),
        ({"output": "gs://bucket/x"}, "unknown scheme 'gs'"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(
    arguments: dict[str, object], words: str, collection: Path, tmp_path: Path
) -> None:
    given = {"manifest": collection, "tasks": "ocr", "output": tmp_path / "o", "progress": False} | arguments
    with pytest.raises(paliscribe.UsageError, match=words) as error:
        paliscribe.annotate(**given)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(paliscribe.UsageError, match="no finished run is here"):
        paliscribe.load(tmp_path)
