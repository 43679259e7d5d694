"""The tables of a run: annotations, errors, rows, the run itself and its review."""

import shutil
from pathlib import Path

import pytest
from demo_run import SCENES, TASKS, DemoRun
from results.made import Job

from paliscribe.errors import UsageError
from paliscribe.published import Mark, Tables, open_tables, put_mark
from paliscribe.storage import open_store


def one(tables: Tables, sql: str) -> tuple[object, ...]:
    [found] = tables.connection.execute(sql).fetchall()
    return tuple(found)


def test_every_record_and_row_is_there(demo_run: DemoRun) -> None:
    tables = open_tables(str(demo_run.output))
    assert tables.finished
    assert one(tables, "SELECT count(*), count(DISTINCT id) FROM annotations") == (SCENES * 4, SCENES)
    assert one(tables, "SELECT count(*), any_value(error_kind) FROM errors WHERE id = 'gone'") == (4, "missing")
    assert one(tables, "SELECT count(*), count(DISTINCT question) > 3 FROM rows") == (SCENES + 1, True)
    assert one(tables, "SELECT rows, records, ok, errors, model, precision, tasks FROM runs") == (
        SCENES + 1,
        (SCENES + 1) * 4,
        demo_run.summary["ok"],
        4,
        "demo",
        "float32",
        list(TASKS),
    )
    assert one(tables, "SELECT count(*) FROM rows ANTI JOIN annotations USING (id)") == (1,)


def test_from_object_storage(demo_run: DemoRun, bucket: str) -> None:
    store = open_store(f"s3://{bucket}/a run")
    for path in filter(Path.is_file, demo_run.output.rglob("*")):
        store.put(path.relative_to(demo_run.output).as_posix(), path.read_bytes())
    here, there = open_tables(str(demo_run.output)), open_tables(f"s3://{bucket}/a run")
    for table in ("annotations", "errors", "rows"):
        sql = f"SELECT * FROM {table} ORDER BY ALL"
        assert there.connection.execute(sql).fetchall() == here.connection.execute(sql).fetchall()


def test_names_that_are_patterns_elsewhere(demo_run: DemoRun, tmp_path: Path) -> None:
    output = tmp_path / "run [1] *? 'quoted' #%20"
    shutil.copytree(demo_run.output, output)
    assert one(open_tables(str(output)), "SELECT count(*) FROM annotations") == (SCENES * 4,)


def test_two_runs_in_one_connection(demo_run: DemoRun, tmp_path: Path) -> None:
    job, store = Job([{}] * 5), open_store(str(tmp_path))
    job.annotate(store)
    job.publish(store)
    first = open_tables(str(demo_run.output))
    open_tables(str(tmp_path), first.connection, prefix="other_")
    assert one(first, "SELECT (SELECT count(*) FROM annotations), (SELECT count(*) FROM other_annotations)") == (
        SCENES * 4,
        10,
    )
    assert one(first, "SELECT count(*) FROM other_errors") == (0,), (
        "a run without dead letters has the table all the same"
    )
    assert one(first, "SELECT rows FROM other_runs") == (5,)


def test_only_dead_letters(tmp_path: Path) -> None:
    job, store = Job([{}] * 4), open_store(str(tmp_path))
    job.annotate(store, lambda row, task: True)
    job.publish(store)
    tables = open_tables(str(tmp_path))
    assert one(tables, "SELECT count(*) FROM annotations WHERE len(boxes) > 0") == (0,)
    assert one(tables, "SELECT count(*) FROM errors") == (8,)


def test_cursors_have_the_tables(tmp_path: Path) -> None:
    job, store = Job([{}] * 5), open_store(str(tmp_path))
    job.annotate(store)
    job.publish(store)
    cursor = open_tables(str(tmp_path)).connection.cursor()  # of a run without dead letters or marks
    for table in ("annotations", "errors", "runs", "review"):
        cursor.execute(f"SELECT * FROM {table}").fetchall()


def test_a_run_that_goes_on_shows_what_is_published(demo_run: DemoRun, tmp_path: Path) -> None:
    shutil.copytree(demo_run.output, tmp_path / "run")
    for name in ("_SUCCESS", "_summary.json"):
        (tmp_path / "run" / name).unlink()
    tables = open_tables(str(tmp_path / "run"))
    assert not tables.finished
    assert one(tables, "SELECT count(*) FROM annotations") == (SCENES * 4,)
    assert one(tables, "SELECT finished, rows, model FROM runs") == (False, None, "demo")


@pytest.mark.parametrize("output", ["nothing-here", "gs://bucket/run", "http://127.0.0.1:9/run"])
def test_no_run(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        open_tables(output)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_marks_are_a_table(demo_run: DemoRun, tmp_path: Path) -> None:
    shutil.copytree(demo_run.output, tmp_path / "run")
    tables = open_tables(str(tmp_path / "run"))
    put_mark(tables.store, Mark("scene-00001", "ocr", "fix", text="EXIT", marked_at=1.5))
    assert one(tables, "SELECT count(*) FROM review") == (0,)
    tables.refresh()
    joined = "SELECT id, verdict, r.text, r.boxes, epoch_ms(marked_at) FROM review r JOIN annotations USING (id, task)"
    assert one(tables, joined) == ("scene-00001", "fix", "EXIT", None, 1500)
