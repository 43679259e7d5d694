"""Runs over images inside archives and Parquet: the same records as by path."""

import io
import json
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch.alone import Answered, DemoPool, alone
from batch.test_pictures_inside import job, records

from paliscribe.batch.run import run_batch, run_retry
from paliscribe.config import JobConfig
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.records import Request
from paliscribe.storage import open_store

BROKEN = 3


def images(folder: Path) -> dict[str, bytes]:
    """Scenes, two of them equal, and one that is damaged; they are also at their names in a folder."""
    found: dict[str, bytes] = {}
    for number in range(8):
        made = io.BytesIO()
        draw(sample_scene(number % 7)).save(made, "PNG")
        found[f"{number} é.png"] = made.getvalue() if number != BROKEN else made.getvalue()[:200]
    folder.mkdir()
    for name, body in found.items():
        (folder / name).write_bytes(body)
    return found


def packed(folder: Path, held: dict[str, bytes]) -> None:
    """The same images inside a Parquet file, a zip and a tar."""
    column = pa.array([{"bytes": body, "path": name} for name, body in held.items()])
    pq.write_table(pa.table({"image": column}), folder / "m.parquet", row_group_size=3)
    with zipfile.ZipFile(folder / "m.zip", "w") as made, tarfile.open(folder / "m.tar", "w") as tar:
        for name, body in held.items():
            made.writestr(name, body)
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))


def test_records_equal_those_by_path(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path, images(tmp_path / "images"))
    for name in ("m.zip", "m.tar"):
        open_store(f"s3://{bucket}/in").put(name, (tmp_path / name).read_bytes())
    places = [str(tmp_path / name) for name in ("images", "m.parquet", "m.zip", "m.tar")]
    found = []
    with alone(monkeypatch, pool=DemoPool()):
        for number, place in enumerate([*places, f"s3://{bucket}/in/m.zip", f"s3://{bucket}/in/m.tar"]):
            output = tmp_path / f"o{number}"
            given = {"manifest": place, "tasks": ("caption en", "detect red circle"), "output": str(output)}
            run_batch(JobConfig.model_validate(given | {"shard_rows": 3}))
            found.append(records(output, "image", "created_at"))
            shown = {row["image"] for row in records(output)}
            assert place == places[1] or f"{place}{'/' if number == 0 else '#'}0 é.png" in shown
    assert all(each == found[0] for each in found[1:]) and len(found[0]) == 16
    assert {row["row"] for row in found[0] if row["status"] == "error"} == {BROKEN}
    assert len({row["text"] for row in found[0]}) > 4


def test_a_mended_archive_is_read_by_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = images(tmp_path / "images")
    packed(tmp_path, held)
    (tmp_path / "m.jsonl").write_text(
        "".join(f'{{"image": "m.zip#{name}", "ask": "x"}}\n' for name in [*held, "none.png"])
    )
    with alone(monkeypatch):
        run_batch(job(tmp_path / "m.jsonl", tmp_path / "o"))
        kinds = {row["row"]: row["error_kind"] for row in records(tmp_path / "o")}
        assert {row for row, kind in kinds.items() if kind} == {BROKEN, 8} and kinds[8] == "missing"
        packed(tmp_path, held | {"none.png": held["0 é.png"], f"{BROKEN} é.png": held["1 é.png"]})
        run_retry(str(tmp_path / "o"))
    assert {row["error_kind"] for row in records(tmp_path / "o")} == {None}


class Counting(DemoPool):
    """The demo pool, which counts its requests."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Request] = []

    def send(self, requests: Sequence[Request]) -> Answered:
        self.sent += requests
        return super().send(requests)


def test_equal_images_are_asked_about_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = images(tmp_path / "images")
    del held[f"{BROKEN} é.png"]
    rows = [
        {"id": f"{turn}-{name}", "image": f"images/{name}", "q": "is there a circle ?" if turn != 2 else "how many ?"}
        | ({"options": '{"max_tokens": 1}'} if turn == 4 else {})
        for turn in range(5)
        for name in held
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, sent = [], []
    for deduplicate in (False, True):
        pool, output = Counting(), tmp_path / f"o{deduplicate}"
        given = {"manifest": str(tmp_path / "m.jsonl"), "tasks": ("caption en", "answer en {q}"), "output": str(output)}
        with alone(monkeypatch, pool=pool):
            run_batch(
                JobConfig.model_validate(
                    given | {"options_column": "options", "shard_rows": 4, "deduplicate": deduplicate}
                )
            )
        found.append(records(output, "created_at"))
        sent.append(len(pool.sent))
    assert found[0] == found[1] and len(found[0]) == 2 * len(rows) == sent[0] == 70
    images_, captions, answers = 6, 2, 3  # two images are equal; each with other options and questions
    assert sent[1] == images_ * (captions + answers)
