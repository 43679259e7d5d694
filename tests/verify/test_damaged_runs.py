"""Damage to a finished output: each kind is found, and repaired as far as anything tells; a good one is left alone."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from results.made import published
from verify.history import History, history
from whole import check_whole

from paliscribe.batch.run import run_batch
from paliscribe.results import state
from paliscribe.verify import repair, verify

__all__ = ["history"]

FILE = "annotations/task-caption en/part-00000.parquet"
SECOND = "annotations/task-answer en %7Bask%7D/part-00002.parquet"
RETRIED = "annotations/task-caption en/part-00000.retry-001.parquet"
ERRORS = "errors/task-caption en/part-00001.parquet"
MARKER = "_run/parts/part-00000.json"
INDEX = "_run/manifest/manifest.json"
Change = Callable[[pa.Table], pa.Table]


def alter(output: Path, key: str, change: Callable[[bytes], bytes]) -> None:
    """Replace the bytes of a file."""
    path = output / key
    path.write_bytes(change(path.read_bytes()))


def flip(body: bytes) -> bytes:
    """One byte in the middle."""
    at = len(body) // 2
    return body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :]


def tell(output: Path, key: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a state file as its own writer would."""
    values = json.loads((output / key).read_bytes())
    values.pop("check", None)
    change(values)
    (output / key).write_bytes(json.dumps(values).encode() if key == "_summary.json" else state.encode(values))


def rewrite(output: Path, key: str, change: Change, *, hashes: bool = False) -> None:
    """Write a Parquet file again with other records. `hashes`: its marker and the summary agree with it."""
    import hashlib

    path = output / key
    table = change(pq.read_table(path, partitioning=None))
    pq.write_table(table, path, compression="zstd")
    if hashes:
        facts = {"records": len(table), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        number = key.rpartition("part-")[2][:5]
        for marker in output.rglob(f"_run/**/parts/part-{number}.json"):
            if key in json.loads(marker.read_bytes())["files"]:
                place = marker.relative_to(output).as_posix()
                tell(output, place, lambda values: values["files"].update({key: facts}))
        tell(output, "_summary.json", lambda values: values["files"].update({key: facts}))


def first(table: pa.Table) -> pa.Table:
    return table.slice(0, 1)


def other(column: str, value: Any) -> Change:
    """A table with another value in the first row of a column."""

    def change(table: pa.Table) -> pa.Table:
        values = [value, *table[column].to_pylist()[1:]]
        field = table.schema.field(column)
        return table.set_column(table.column_names.index(column), field, pa.array(values, field.type))

    return change


def moved(output: Path) -> None:
    """A record that is in the file of another part instead of its own."""
    record = pq.read_table(output / FILE, partitioning=None).slice(0, 1)
    rewrite(output, FILE, lambda table: table.slice(1), hashes=True)
    place = FILE.replace("part-00000", "part-00001")
    rewrite(output, place, lambda table: pa.concat_tables([table, record]), hashes=True)


def frozen(output: Path, number: int) -> str:
    """Key of a file of the frozen manifest."""
    found = sorted((output / "_run/manifest").glob("rows-*"))
    return found[number].relative_to(output).as_posix()


def kept(output: Path) -> str:
    """Key of a shard file that the next retry reads."""
    values = json.loads((output / "_run/retry-002/parts/part-00001.json").read_bytes())
    return str(values["kept"][0])


def renamed(table: pa.Table) -> pa.Table:
    return table.rename_columns(["n2" if name == "n" else name for name in table.column_names])


def copied(key: str, to: str) -> Callable[[Path], object]:
    def copy(output: Path) -> None:
        (output / to).parent.mkdir(exist_ok=True, parents=True)
        shutil.copyfile(output / key, output / to)

    return copy


def without_rows(output: Path) -> None:
    for path in output.glob("_run/retry-00*/rows/*"):
        path.unlink()


def gone(key: str) -> Callable[[Path], object]:
    return lambda output: (output / key).unlink()


MENDED: dict[str, Callable[[Path], object]] = {
    "a file of annotations missing": gone(FILE),
    "a file of appended annotations missing": gone(SECOND),
    "a file of a retry missing": gone(RETRIED),
    "a file of dead letters missing": gone(ERRORS),
    "bytes flipped": lambda output: alter(output, FILE, flip),
    "bytes of dead letters flipped": lambda output: alter(output, ERRORS, flip),
    "a file cut": lambda output: alter(output, SECOND, lambda body: body[: len(body) // 2]),
    "an empty file": lambda output: alter(output, RETRIED, lambda body: b""),
    "a file doubled": copied(FILE, FILE.replace("part-00000", "part-00009")),
    "a stray of another name": copied(FILE, "annotations/task-caption en/more.parquet"),
    "a stray in another folder": copied(FILE, "annotations/task-other/part-00000.parquet"),
    "a stray of dead letters": copied(ERRORS, "errors/task-caption en/part-00000.parquet"),
    "a stray beside the folders": copied(FILE, "backup/part.parquet"),
    "a stray that is no Parquet": lambda output: (output / "annotations/notes.txt").write_text("mine"),
    "a row removed": lambda output: rewrite(output, FILE, lambda table: table.slice(1)),
    "a row removed, with its hash": lambda output: rewrite(output, FILE, lambda t: t.slice(1), hashes=True),
    "a row doubled": lambda output: rewrite(output, FILE, lambda table: pa.concat_tables([table, first(table)])),
    "a row doubled, with its hash": lambda output: rewrite(
        output, FILE, lambda table: pa.concat_tables([table, first(table)]), hashes=True
    ),
    "a row moved": moved,
    "another id": lambda output: rewrite(output, FILE, other("id", "id-x"), hashes=True),
    "another carried value": lambda output: rewrite(output, FILE, other("n", 77), hashes=True),
    "another status": lambda output: rewrite(output, FILE, other("status", "invalid"), hashes=True),
    "another shard": lambda output: rewrite(output, FILE, other("shard", 1), hashes=True),
    "a task of another folder": lambda output: rewrite(output, FILE, other("task", "answer en {ask}"), hashes=True),
    "other columns": lambda output: rewrite(output, FILE, renamed, hashes=True),
    "another type": lambda output: rewrite(
        output, FILE, lambda t: t.set_column(t.column_names.index("n"), "n", t["n"].cast(pa.int32())), hashes=True
    ),
    "a wrong count in a marker": lambda output: tell(output, MARKER, lambda v: v.update(records=9)),
    "a wrong status in a marker": lambda output: tell(output, MARKER, lambda v: v["statuses"].update(ok=4)),
    "a wrong number of tokens": lambda output: tell(output, MARKER, lambda v: v.update(tokens=1)),
    "a wrong hash in a marker": lambda output: tell(output, MARKER, lambda v: v["files"][FILE].update(sha256="0" * 64)),
    "a damaged marker": lambda output: alter(output, MARKER, flip),
    "a marker missing": gone(MARKER),
    "a marker of a retry missing": gone("_run/retry-002/parts/part-00001.json"),
    "a marker of another part": copied("_run/parts/part-00001.json", MARKER),
    "a marker of no part": copied(MARKER, "_run/parts/part-00099.json"),
    "a marker of a shard missing": gone("_run/done/shard-00001.json"),
    "a marker of a shard with dead letters missing": gone("_run/retry-002/done/shard-00002.json"),
    "a damaged marker of a shard": lambda output: alter(output, "_run/done/shard-00004.json", flip),
    "a wrong marker of a shard": lambda output: tell(output, "_run/done/shard-00001.json", lambda v: v.update(rows=1)),
    "a shard file for the next retry missing": lambda output: (output / kept(output)).unlink(),
    "a shard file for the next retry altered": lambda output: alter(output, kept(output), flip),
    "a wrong count in the summary": lambda output: tell(output, "_summary.json", lambda v: v.update(ok=1)),
    "wrong tokens in the summary": lambda output: tell(output, "_summary.json", lambda v: v.update(tokens=1)),
    "a file that the summary lacks": lambda output: tell(output, "_summary.json", lambda v: v["files"].pop(FILE)),
    "the summary missing": gone("_summary.json"),
    "the summary cut": lambda output: alter(output, "_summary.json", lambda body: body[:100]),
    "_SUCCESS missing": gone("_SUCCESS"),
    "the beginning of a retry missing": gone("_run/retry-001/begun.json"),
}
FEW = (  # one of each remedy
    "a file of annotations missing",
    "a file of dead letters missing",
    "a stray of another name",
    "a row doubled, with its hash",
    "a marker of a retry missing",
    "a marker of a shard missing",
    "a shard file for the next retry missing",
    "the summary missing",
)
LOST: dict[str, Callable[[Path], object]] = {
    "a file of the frozen manifest missing": lambda output: (output / frozen(output, 0)).unlink(),
    "a file of the frozen manifest cut": lambda output: alter(output, frozen(output, 1), lambda body: body[:-50]),
    "a file of the frozen manifest replaced": lambda output: copied(frozen(output, 1), frozen(output, 0))(output),
    "the index altered": lambda output: alter(output, INDEX, flip),
    "the index of another manifest": lambda output: tell(output, INDEX, lambda v: v.update(digest="columns-x")),
    "the index missing": gone(INDEX),
    "the run file altered": lambda output: alter(output, "_run/run.json", flip),
    "the run file missing": gone("_run/run.json"),
    "the run file of another model": lambda output: tell(
        output, "_run/run.json", lambda v: v["fingerprint"].update(revision="x")
    ),
    "another model": lambda output: rewrite(output, RETRIED, other("model", "x"), hashes=True),
    "the rows of a retry missing": without_rows,
}


@pytest.mark.parametrize("name", [*MENDED, *LOST])
def test_damage_is_found(name: str, history: History, tmp_path: Path) -> None:
    job = history.copy(tmp_path / "o")
    (MENDED | LOST)[name](tmp_path / "o")
    report = verify(job.output)
    assert not report.good
    words = [str(finding) for finding in report.findings]
    assert all("\n" not in line and len(line) < 400 for line in words), words
    assert (name in LOST) == (report.findings[0].remedy == "none"), words


@pytest.mark.parametrize("name", MENDED if os.environ.get("FULL") else FEW)
def test_damage_is_repaired(name: str, history: History, tmp_path: Path) -> None:
    job = history.copy(tmp_path / "o")
    MENDED[name](tmp_path / "o")
    made = repair(job.output)
    if made.withdrawn:
        assert not (tmp_path / "o/_SUCCESS").exists()
        assert run_batch(job)["shards_annotated"] <= 4
    check_whole(job.output, "finished")
    expected, now = published(str(history.output)), published(job.output)
    for key in expected.keys() | now.keys():
        if key.endswith(".parquet") or key in ("_SUCCESS", "_summary.json"):
            assert now.get(key) == expected.get(key), key
    assert repair(job.output).done == []


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_good_run_is_left_alone(history: History, tmp_path: Path) -> None:
    job = history.copy(tmp_path / "o")
    before = contents(tmp_path)
    report = check_whole(job.output, "finished")
    counts = {"rows": 14, "parts": 4, "shards": 13, "files": 16, "records": 28}
    assert report.checked == counts
    assert repair(job.output).done == []
    assert contents(tmp_path) == before
