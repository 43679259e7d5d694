"""Appends: rows that are added to a finished run, exactly once, with the files that are there left alone."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch.alone import alone, draw
from results.made import Crash, Crashing, published

from paliscribe import manifest, results
from paliscribe.api.status import run_status
from paliscribe.batch.run import run_append, run_batch, run_retry
from paliscribe.config import JobConfig
from paliscribe.errors import TemporaryError, UsageError
from paliscribe.storage import Store, open_store

TASKS = ("caption en", "answer en {ask}")
Rows = list[dict[str, Any]]
Files = dict[str, tuple[bytes, int]]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs without Ray whose parts have two shards of two rows."""
    monkeypatch.setattr(results.layout, "PART_RECORDS", 8)
    with alone(monkeypatch):
        yield


def rows(folder: Path, numbers: range, lost: tuple[int, ...] = ()) -> Rows:
    """Rows with images; those of `lost` are not there."""
    for number in numbers:
        if number not in lost:
            draw(folder / f"images/{number}.png", number)
    return [{"id": f"id-{n}", "image": f"images/{n}.png", "ask": f"what {n}", "n": n} for n in numbers]


def job(folder: Path, given: Rows, output: str | Path | None = None, name: str = "m", **settings: Any) -> JobConfig:
    """A job over a manifest that is written into a folder."""
    source = folder / f"{name}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in given))
    values = {"manifest": str(source), "tasks": TASKS, "output": str(output or folder / "o"), "shard_rows": 2}
    return JobConfig.model_validate(values | settings)


def files(output: str | Path) -> Files:
    """Published files, with their content and times of modification."""
    return {
        path.relative_to(output).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in Path(output).rglob("*.parquet")
    }


def untouched(before: Files, now: Files) -> bool:
    """Whether annotations that were there are there, not written again."""
    return {key: now.get(key) for key in before} == before


def records(output: str) -> Rows:
    """The published records, by row and task."""
    bodies = [body for key, body in published(output).items() if key.endswith(".parquet")]
    tables = [pq.read_table(pa.BufferReader(body)) for body in bodies]
    assert len({table.schema for table in tables}) <= 1, "files with other columns"
    found = [record for table in tables for record in table.to_pylist()]
    return sorted(found, key=lambda record: (record["row"], record["task"]))


def check(output: str, ids: list[str], failed: tuple[str, ...] = ()) -> None:
    """Every id under every task once, numbered in this order, and a summary of the whole."""
    found = records(output)
    expected = [(row, name, task) for row, name in enumerate(ids) for task in sorted(TASKS)]
    assert [(record["row"], record["id"], record["task"]) for record in found] == expected
    assert {record["id"] for record in found if record["status"] == "error"} == set(failed)
    summary = results.read_summary(store := open_store(output))
    assert summary is not None and store.exists(results.SUCCESS)
    statuses = Counter(record["status"] for record in found)
    assert summary["rows"] == len(ids) and summary["records"] == len(found)
    assert (summary["ok"], summary["invalid"], summary["errors"]) == (statuses["ok"], 0, statuses["error"])
    assert summary["error_kinds"] == ({"missing": statuses["error"]} if failed else {})
    assert sorted(summary["files"]) == sorted(key for key in published(output) if key.endswith(".parquet"))
    assert summary["tokens"] == sum(record["tokens"] or 0 for record in found)


def names(*ranges: range) -> list[str]:
    return [f"id-{number}" for numbers in ranges for number in numbers]


def test_new_rows_follow_the_others_and_published_files_stay(tmp_path: Path) -> None:
    run_batch(job(tmp_path, rows(tmp_path, range(7))))
    before = files(tmp_path / "o")
    grown = job(tmp_path, rows(tmp_path, range(12)))
    summary = run_append(grown)
    assert (summary["rows_appended"], summary["shards_annotated"], summary["appends"]) == (5, 3, 1)
    check(grown.output, names(range(12)))
    assert untouched(before, once := files(tmp_path / "o")) and len(once) > len(before)
    for again in (run_append(grown), run_append(grown)):
        assert (again["rows_appended"], again["shards_annotated"]) == (0, 0)
    only_new = job(tmp_path, rows(tmp_path, range(20, 23)), name="only-new")
    assert run_append(only_new)["rows_appended"] == 3
    check(grown.output, names(range(12), range(20, 23)))
    assert untouched(once, files(tmp_path / "o"))
    shards = [record["shard"] for record in records(grown.output)]
    assert sorted(set(shards)) == list(range(9)) and shards == sorted(shards)
    status = run_status(grown.output)
    assert (status["state"], status["rows"], status["rows_done"], status["shards_done"]) == ("finished", 15, 15, 9)


def test_a_run_with_an_append_is_finished_for_each_of_its_manifests(tmp_path: Path) -> None:
    first = job(tmp_path, rows(tmp_path, range(3)), name="one")
    second = job(tmp_path, rows(tmp_path, range(5)), name="two")
    run_batch(first)
    with pytest.raises(UsageError, match=r"differs in the manifest .* add --append"):
        run_batch(second)
    run_append(second)
    for finished in (first, second):
        assert run_batch(finished)["shards_annotated"] == 0
        os.utime(finished.manifest[0])
        assert run_batch(finished)["rows"] == 5
    with pytest.raises(UsageError, match="differs in the manifest"):
        run_batch(job(tmp_path, rows(tmp_path, range(4)), name="two"))


def test_rows_that_are_changed_or_gone_stay_as_they_are(tmp_path: Path) -> None:
    given = rows(tmp_path, range(4))
    run_batch(job(tmp_path, given))
    before = records(str(tmp_path / "o"))
    given[1] |= {"image": "images/3.png"}
    given[2] |= {"ask": "something else"}
    changed = job(tmp_path, [*rows(tmp_path, range(8, 9)), *given[1:]])
    summary = run_append(changed)
    assert (summary["rows_appended"], summary["rows_changed"]) == (1, 1)
    assert records(changed.output)[: len(before)] == before
    check(changed.output, names(range(4), range(8, 9)))


def crash_everywhere(
    folder: Path,
    prepare: Callable[[str], object],
    action: Callable[[str], object],
    monkeypatch: pytest.MonkeyPatch,
    every: int = 1,
) -> str:
    """Crash `action` before each write, repeat it, compare with an undisturbed one; returns the output of that.

    `every`: the first write and each of so many that follow, but for `make test-full`.
    """
    prepared = str(folder / "prepared")
    prepare(prepared)
    before = {key: found for key, found in files(prepared).items() if key.startswith("annotations/")}

    def attempt(output: str, at: int) -> int:
        store = Crashing(open_store(output), at)
        open_store(output).delete("_run/lease.json")  # the crash may have left it; a driver that is gone does

        seen: set[Path] = set()

        def look() -> None:
            nonlocal seen
            if (now := set(Path(output).rglob("*.parquet"))) != seen:
                seen = now
                tables = [pq.ParquetFile(path).read(["id", "task"]) for path in now]
                found = [tuple(record.values()) for table in tables for record in table.to_pylist()]
                assert len(found) == len(set(found)), "duplicate record"

        store.seen = look
        with alone(monkeypatch, store):
            action(output)
        return store.writes

    clean = str(folder / "clean")
    shutil.copytree(prepared, clean)
    writes = attempt(clean, 0)
    assert writes > 20 and untouched(before, files(clean))
    for at in range(1, writes + 1, 1 if os.environ.get("FULL") else every):
        output = str(folder / str(at))
        shutil.copytree(prepared, output)
        with pytest.raises(Crash):
            attempt(output, at)
        assert untouched(before, files(output))
        attempt(output, 0)
        assert published(output) == published(clean), f"crash at write {at}"
        assert untouched(before, files(output))
        left = [found.key for found in open_store(output).list("_run/manifest/rows-")]
        frozen = manifest.load(open_store(output))
        assert frozen is not None and sorted(left) == sorted(map(frozen.key_of, range(len(frozen.files))))
        shutil.rmtree(output)
    return clean


def test_an_append_goes_on_after_a_crash_at_any_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = rows(tmp_path, range(10), lost=(1, 8))
    first, grown = job(tmp_path, given[:5], name="one"), job(tmp_path, given, name="two")

    def prepare(output: str) -> None:
        run_batch(first.model_copy(update={"output": output}))

    def action(output: str) -> None:
        run_append(grown.model_copy(update={"output": output}))

    clean = crash_everywhere(tmp_path, prepare, action, monkeypatch)
    check(clean, names(range(10)), failed=("id-1", "id-8"))


def test_a_retry_of_appended_rows_goes_on_after_a_crash_at_any_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = rows(tmp_path, range(10), lost=(1, 2, 8, 9))
    first, grown = job(tmp_path, given[:5], name="one"), job(tmp_path, given, name="two")

    def prepare(output: str) -> None:
        run_batch(first.model_copy(update={"output": output}))
        run_retry(output)
        run_append(grown.model_copy(update={"output": output}))
        for number in (1, 2, 8, 9):
            draw(tmp_path / f"images/{number}.png", number)

    clean = crash_everywhere(tmp_path, prepare, run_retry, monkeypatch, every=8)
    check(clean, names(range(10)))


def test_dead_letters_of_all_rows_are_retried_together(tmp_path: Path) -> None:
    given = rows(tmp_path, range(16), lost=(1, 4, 6, 9, 12))
    output = job(tmp_path, given[:5]).output
    run_batch(job(tmp_path, given[:5]))
    draw(tmp_path / "images/1.png", 1)
    assert run_retry(output)["retries"] == 1
    check(output, names(range(5)), failed=("id-4",))
    assert run_append(job(tmp_path, given[:10]))["errors"] == 6
    check(output, names(range(10)), failed=("id-4", "id-6", "id-9"))
    assert run_append(job(tmp_path, given))["errors"] == 8
    for number in (4, 9):
        draw(tmp_path / f"images/{number}.png", number)
    before = {key: found for key, found in files(output).items() if key.startswith("annotations/")}
    summary = run_retry(output)
    assert (summary["retries"], summary["appends"]) == (2, 2)
    check(output, names(range(16)), failed=("id-6", "id-12"))
    assert untouched(before, files(output))
    assert run_append(job(tmp_path, [*given, *rows(tmp_path, range(20, 21))]))["rows_appended"] == 1
    draw(tmp_path / "images/6.png", 6)
    given[12]["image"] = "images/20.png"  # corrected in the manifest
    job(tmp_path, given)
    summary = run_retry(output)
    assert (summary["retries"], summary["errors"], summary["shards_annotated"]) == (3, 0, 2)
    check(output, names(range(16), range(20, 21)))
    assert run_retry(output)["shards_annotated"] == 0


def interrupted(config: JobConfig, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object], files: int) -> None:
    """Crash an action once so many shards are committed."""
    store: Any = Crashing(open_store(config.output))

    def look() -> None:
        if len(list(open_store(config.output).list("_run/done/"))) == files:
            raise Crash

    store.seen = look
    with alone(monkeypatch, store), pytest.raises(Crash):
        action()


def test_what_else_is_asked_of_an_interrupted_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = job(tmp_path, rows(tmp_path, range(4), lost=(1,)), name="one")
    run_batch(first)
    second = job(tmp_path, rows(tmp_path, range(10)), name="two")
    interrupted(second, monkeypatch, lambda: run_append(second), files=3)
    actions: list[Callable[[], object]] = [partial(run_batch, first), partial(run_batch, second)]
    actions.append(partial(run_retry, first.output))
    for action in actions:
        with pytest.raises(UsageError, match=r"an append was interrupted here; resume it .*--append`$") as caught:
            action()
        assert "\n" not in str(caught.value)
    status = run_status(first.output)
    assert (status["state"], status["rows"], status["rows_done"]) == ("interrupted", 10, 6)
    assert (status["ok"], status["errors"]) == (10, 2)
    third = job(tmp_path, rows(tmp_path, range(12)), name="three")
    assert run_append(third)["rows_appended"] == 8, "those that were begun, then those that have come since"
    check(first.output, names(range(12)), failed=("id-1",))


def test_an_append_to_no_finished_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = job(tmp_path, rows(tmp_path, range(6), lost=(1,)))
    with pytest.raises(UsageError, match="no run is here to append to; leave out --append to begin one"):
        run_append(config)
    assert not [path for path in Path(config.output).rglob("*") if path.is_file()]
    interrupted(config, monkeypatch, lambda: run_batch(config), files=1)
    with pytest.raises(UsageError, match="not finished; finish it with the command that began it, without --append"):
        run_append(config)
    run_batch(config)
    store: Any = Crashing(open_store(config.output), at=5)
    with alone(monkeypatch, store), pytest.raises(Crash):
        run_retry(config.output)
    with pytest.raises(UsageError, match="a retry was interrupted here; resume it with `paliscribe retry"):
        run_append(config)
    run_retry(config.output)
    assert run_append(config)["rows_appended"] == 0


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        ({"more": 1}, {}, "column 'more' is not in the run"),
        ({"n": 0.5}, {}, "column 'n' is float, and the run carries it as int"),
        ({"n": "5"}, {}, "column 'n' is str, and the run carries it as int"),
        ({"ask": ...}, {}, "needs a column 'ask', which the manifest does not have"),
        ({"id": None, "image": None}, {}, "row 1 has neither an id nor an image"),
        ({"id": "id-8"}, {}, "duplicate ids: 'id-8'"),
        ({}, {"tasks": ["ocr"]}, r"differs in tasks \('caption en', 'answer en {ask}' then, 'ocr' now\)\. Use another"),
        ({}, {"max_tokens": 3}, r"differs in max_tokens"),
        ({}, {"shard_rows": 3}, r"differs in shard_rows \(2 then, 3 now\)"),
        ({}, {"manifest": "no-such.jsonl"}, "no-such.jsonl"),
    ],
)
def test_what_does_not_go_into_the_run_is_refused(
    change: dict[str, Any], settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    run_batch(job(tmp_path, rows(tmp_path, range(4))))
    before = published(output := str(tmp_path / "o"))
    state = sorted(path for path in Path(output).rglob("*") if path.is_file())
    given = [
        {name: value for name, value in (row | change).items() if value is not ...}
        for row in rows(tmp_path, range(7, 8))
    ]
    given += rows(tmp_path, range(8, 9)) if change.get("id") else []
    with pytest.raises(UsageError, match=words) as caught:
        run_append(job(tmp_path, given, name="new", **settings))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert published(output) == before
    assert sorted(path for path in Path(output).rglob("*") if path.is_file()) == state, "nothing is left behind"


def test_a_column_that_new_rows_do_not_have_is_null_and_integers_widen(tmp_path: Path) -> None:
    given = [row | {"s": "x", "n": 0.5} for row in rows(tmp_path, range(3))]
    run_batch(job(tmp_path, given))
    run_append(config := job(tmp_path, rows(tmp_path, range(3, 5)), name="new"))
    check(config.output, names(range(5)))
    assert [(record["s"], record["n"]) for record in records(config.output)[-2:]] == [(None, 4.0), (None, 4.0)]


def test_columns_that_only_the_new_rows_have_are_dropped(tmp_path: Path) -> None:
    """Also one that the run carries in another type, and one that has a name of ours; a retry reads them so too."""
    run_batch(job(tmp_path, rows(tmp_path, range(3)), drop_columns=[]))
    given = [row | {"Text": "x", "more": 1, "n": "many"} for row in rows(tmp_path, range(3, 6), lost=(4,))]
    dropped = ("Text", "more", "n")
    for few in (dropped[:1], dropped[:2]):
        with pytest.raises(UsageError, match=f"column '{dropped[len(few)]}' is .*--drop-column {dropped[len(few)]}"):
            run_append(job(tmp_path, given, name="new", drop_columns=few))
    config = job(tmp_path, given, name="new", drop_columns=dropped)
    assert run_append(config)["rows_appended"] == 3 and run_append(config)["rows_appended"] == 0
    check(config.output, names(range(6)), failed=("id-4",))
    assert [record["n"] for record in records(config.output)[::2]] == [0, 1, 2, None, None, None]
    draw(tmp_path / "images/moved.png", 4)
    given[1]["image"] = "images/moved.png"
    job(tmp_path, given, name="new")  # the manifest alone
    run_retry(config.output)
    check(config.output, names(range(6)))
    with pytest.raises(UsageError, match="needs a column 'ask'"):
        run_append(job(tmp_path, rows(tmp_path, range(7, 8)), name="other", drop_columns=["ask"]))


def test_another_driver_that_appends_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease keeps it away; if it is lost unnoticed, one append wins, and the other is not begun."""
    run_batch(first := job(tmp_path, rows(tmp_path, range(3)), name="one"))
    second, third = (job(tmp_path, rows(tmp_path, numbers), name="n") for numbers in (range(5), range(2, 7)))
    commit = manifest.commit_extension

    def late(store: Store, before: manifest.FrozenManifest, extension: manifest.Extension) -> None:
        monkeypatch.setattr(manifest, "commit_extension", commit)
        store.delete("_run/lease.json")
        assert run_append(third)["rows_appended"] == 4
        commit(store, before, extension)

    monkeypatch.setattr(manifest, "commit_extension", late)
    with pytest.raises(TemporaryError, match="another driver appended to"):
        run_append(second)
    check(first.output, names(range(7)))
    assert run_append(second)["rows_appended"] == 0


def test_an_append_on_s3(tmp_path: Path, bucket: str) -> None:
    output = f"s3://{bucket}/runs/one"
    run_batch(job(tmp_path, rows(tmp_path, range(5), lost=(1,)), output))
    before = {item.key: (item.etag, item.modified) for item in open_store(output).list("annotations/")}
    summary = run_append(job(tmp_path, rows(tmp_path, range(5, 9), lost=(8,)), output, name="two"))
    assert (summary["rows_appended"], summary["errors"]) == (4, 4)
    check(output, names(range(9)), failed=("id-1", "id-8"))
    for number in (1, 8):
        draw(tmp_path / f"images/{number}.png", number)
    assert run_retry(output)["errors"] == 0
    check(output, names(range(9)))
    assert run_append(job(tmp_path, rows(tmp_path, range(2, 11)), output, name="three"))["rows_appended"] == 2
    check(output, names(range(11)))
    now = {item.key: (item.etag, item.modified) for item in open_store(output).list("annotations/")}
    assert {key: now[key] for key in before} == before


def test_a_sample_is_completed_by_an_append(tmp_path: Path) -> None:
    given = rows(tmp_path, range(7))
    source = tmp_path / "m.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in given))
    whole = JobConfig(manifest=(str(source),), tasks=TASKS, output=str(tmp_path / "o"), shard_rows=2)
    sample = whole.model_copy(update={"limit": 3})
    assert run_batch(sample)["rows"] == 3
    assert run_batch(sample)["shards_annotated"] == 0
    with pytest.raises(UsageError, match=r"3 rows then, 7 rows now.*add --append"):
        run_batch(whole)
    with pytest.raises(UsageError, match="differs in the manifest"):
        run_batch(whole.model_copy(update={"limit": 4}))
    assert run_append(sample)["rows_appended"] == 0
    more = run_append(whole.model_copy(update={"limit": 5}))
    assert (more["rows"], more["rows_appended"]) == (5, 2)
    assert (run_append(whole)["rows"], run_status(whole.output)["rows_done"]) == (7, 7)


def test_later_rows_do_not_change_a_sample(tmp_path: Path) -> None:
    given: Rows = [{"image": f"{n}.png", "size": n} for n in range(4)] + [{"image": "x.png", "size": "big", "new": 1}]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given[:4]))
    limited = manifest.scan(str(tmp_path / "all.jsonl"), limit=4)
    assert (
        limited == manifest.scan(str(tmp_path / "some.jsonl")) == manifest.scan(str(tmp_path / "some.jsonl"), limit=9)
    )
