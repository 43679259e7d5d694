"""Reviews that come back from Label Studio and COCO."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from demo_run import SCENES, DemoRun

from paliscribe.errors import UsageError
from paliscribe.export import export, import_review
from paliscribe.published import Mark, read_marks
from paliscribe.storage import open_store

DETECT = "detect {objects}"


@pytest.fixture
def output(demo_run: DemoRun, tmp_path: Path) -> Path:
    shutil.copytree(demo_run.output, tmp_path / "run")
    return tmp_path / "run"


def marks(output: Path) -> dict[tuple[str, str], Mark]:
    return {(mark.id, mark.task): mark for mark in read_marks(open_store(str(output)))}


def written(folder: Path, content: Any) -> str:
    (folder / "review.json").write_text(json.dumps(content))
    return str(folder / "review.json")


def test_label_studio(output: Path, tmp_path: Path) -> None:
    export(str(output), "label-studio", str(tmp_path / "ls"))
    tasks = json.loads((tmp_path / "ls/tasks-00000.json").read_text())
    for task in tasks:
        one = {"result": task["predictions"][0]["result"], "updated_at": "2026-01-02T03:04:05Z", "was_cancelled": False}
        task["annotations"] = [{"result": [], "updated_at": "2026-01-01T00:00:00Z"}, one]
    boxed = [
        task for task in tasks if sum(r["type"] == "rectanglelabels" for r in task["predictions"][0]["result"]) > 0
    ]
    moved, emptied = boxed[0]["annotations"][1]["result"], boxed[1]["annotations"][1]
    next(one for one in moved if one["type"] == "rectanglelabels")["value"]["width"] /= 2
    next(one for one in moved if one["from_name"] == "caption_1")["value"]["text"] = ["another caption"]
    emptied["result"] = [one for one in emptied["result"] if one["from_name"] == "caption_1"]
    boxed[2]["annotations"][1]["was_cancelled"] = True
    boxed[2]["annotations"].pop(0)
    made = import_review(str(output), written(tmp_path, tasks))
    found = marks(output)
    first, second, third = (task["data"]["id"] for task in boxed[:3])
    assert found[first, DETECT].verdict == "fix" and found[first, DETECT].boxes
    assert (found[first, "caption en"].verdict, found[first, "caption en"].text) == ("fix", "another caption")
    assert found[second, DETECT].verdict == "reject" and found[second, "caption en"].verdict == "accept"
    assert not any(row_id == third for row_id, _ in found), "a skipped task is not reviewed"
    assert (made["fix"], made["unknown"]) == (2, 0)
    assert made["accept"] + made["fix"] + made["reject"] == len(found) == (SCENES - 1) * 4
    assert {mark.source for mark in found.values()} == {"label-studio"}
    assert {mark.marked_at for mark in found.values()} == {1767323045.0}


def test_coco(output: Path, tmp_path: Path) -> None:
    export(str(output), "coco", str(tmp_path / "coco"))
    coco = json.loads((tmp_path / "coco/annotations.json").read_text())
    with_boxes = sorted({one["image_id"] for one in coco["annotations"]})
    next(one for one in coco["annotations"] if one["image_id"] == with_boxes[0])["bbox"][0] += 3
    coco["annotations"] = [one for one in coco["annotations"] if one["image_id"] != with_boxes[1]]
    for content in (coco, renumbered(coco)):  # as it is, and as a program that drops what it does not know
        made = import_review(str(output), written(tmp_path, content))
        assert made == {"accept": SCENES - 2, "fix": 1, "reject": 1, "unknown": 0, "named": []}
        ids = {image["id"]: image["paliscribe_id"] for image in coco["images"]}
        found = marks(output)
        assert found[ids[with_boxes[0]], DETECT].verdict == "fix"
        assert found[ids[with_boxes[1]], DETECT].verdict == "reject"
        shutil.rmtree(output / "_review")


def renumbered(coco: dict[str, Any]) -> dict[str, Any]:
    return {
        "categories": coco["categories"],
        "images": [{"id": 1000 - one["id"], "file_name": Path(one["file_name"]).name} for one in coco["images"]],
        "annotations": [
            {"image_id": 1000 - one["image_id"], **{name: one[name] for name in ("category_id", "bbox")}}
            for one in coco["annotations"]
        ],
    }


def test_a_correction_is_exported_and_read_back(output: Path, tmp_path: Path) -> None:
    export(str(output), "coco", str(tmp_path / "coco"))
    coco = json.loads((tmp_path / "coco/annotations.json").read_text())
    coco["annotations"][0]["bbox"] = [1.0, 2.0, 30.0, 40.0]
    import_review(str(output), written(tmp_path, coco))
    export(str(output), "coco", str(tmp_path / "again"))
    again = json.loads((tmp_path / "again/annotations.json").read_text())
    assert again["annotations"][0]["bbox"] == [1.0, 2.0, 30.0, 40.0]
    assert import_review(str(output), str(tmp_path / "again/annotations.json"))["fix"] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": 1}, "neither Label Studio"),
        ([], "no reviewed answers"),
        ([{"data": {"id": "x", "tasks": {"ocr_3": "ocr"}}, "annotations": [{"result": []}]}], "of another run"),
        ([{"data": {"image": "x"}, "annotations": [{"result": []}]}], "not from `paliscribe export`"),
        ([{"data": {"id": "x", "tasks": {"ocr_3": "ocr"}}, "annotations": [{}]}], "malformed"),
    ],
)
def test_files_that_are_refused(demo_run: DemoRun, tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        import_review(str(demo_run.output), written(tmp_path, content))
    assert "\n" not in str(raised.value)
    assert not (demo_run.output / "_review").exists()
