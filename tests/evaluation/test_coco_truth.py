"""COCO's JSON as truth, and the spellings of true boxes in manifests."""

import gzip
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from demo_run import DemoRun

from paliscribe.errors import UsageError
from paliscribe.evaluation.answers import Unreadable, boxes, masks, texts
from paliscribe.evaluation.coco import load_coco
from paliscribe.evaluation.evaluate import Options
from paliscribe.evaluation.evaluate import figures as measured
from paliscribe.evaluation.given import Given
from paliscribe.published import open_tables

DETECT = ("detect {objects}", "detect")


def coco_of(run: DemoRun, name: Callable[[str], str] = lambda row_id: f"{row_id}.png", **more: Any) -> dict[str, Any]:
    """The scenes' true boxes as COCO."""
    rows = [json.loads(line) for line in (run.collection / "truth.jsonl").read_text().splitlines()]
    labels = sorted({box["label"] for row in rows for box in row["detect"]})
    annotations = []
    for number, row in enumerate(rows):
        annotations.append({"id": 1000 + number, "image_id": number, "caption": row["caption"]})
        for box in row["detect"]:
            x, y = box["x_min"], box["y_min"]
            place = [x, y, box["x_max"] - x, box["y_max"] - y]
            category = labels.index(box["label"])
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": category, "bbox": place} | more
            )
    return {
        "info": {"year": 2026},
        "annotations": annotations,
        "images": [
            {"id": number, "file_name": name(row["id"]), "width": 9, "height": 9} for number, row in enumerate(rows)
        ],
        "categories": [{"id": number, "name": label.upper()} for number, label in enumerate(labels)],
    }


def figures(run: DemoRun, source: Path, *tasks: tuple[str, str]) -> list[dict[str, Any]]:
    """What `evaluate` finds, without writing into the run."""
    with tempfile.TemporaryDirectory() as folder:
        _, found, _ = measured(open_tables(str(run.output)), tasks, Options(str(source)), Path(folder))
    return found


@pytest.mark.parametrize("name", ["{}", "{}.png", "val/{}.jpg"])
def test_coco_gives_the_figures_of_the_manifest(demo_run: DemoRun, tmp_path: Path, name: str) -> None:
    found = coco_of(demo_run, name.format)
    if name == "{}":
        (tmp_path / "coco.json").write_text(json.dumps(found, indent=1))
        source = tmp_path / "coco.json"
    else:
        source = tmp_path / "coco.json.gz"
        source.write_bytes(gzip.compress(json.dumps(found).encode()))
    here, captions = figures(demo_run, source, DETECT, ("caption en", "caption"))
    there, _ = figures(demo_run, demo_run.collection / "truth.jsonl", DETECT, ("caption en", "caption"))
    assert here["rows"] == there["rows"] | {"repeated_ids": here["rows"]["repeated_ids"]}
    for figure, value in there["figures"].items():
        assert here["figures"][figure] == pytest.approx(value, nan_ok=True), "labels differ in case alone"
    assert captions["figures"]["exact"]["value"] > 0.8


@pytest.mark.parametrize("indent", [None, 2])
def test_other_json_is_truth_as_json_lines_are(demo_run: DemoRun, tmp_path: Path, indent: int | None) -> None:
    lines = (demo_run.collection / "truth.jsonl").read_text()
    rows = [json.loads(line) for line in lines.splitlines()]
    text = lines if indent is None else json.dumps(rows, indent=indent)
    (tmp_path / "truth.json").write_text(text)
    [here] = figures(demo_run, tmp_path / "truth.json", DETECT)
    [there] = figures(demo_run, demo_run.collection / "truth.jsonl", DETECT)
    assert here == there


def test_crowds_are_neither_right_nor_wrong(demo_run: DemoRun, tmp_path: Path) -> None:
    (tmp_path / "coco.json").write_text(json.dumps(coco_of(demo_run, iscrowd=1)))
    [found] = figures(demo_run, tmp_path / "coco.json", DETECT)
    assert found["figures"]["AP"]["value"] is None
    assert found["rows"]["true"] == 0
    assert found["rows"]["found"] < 5


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{}", "no list of `images`"),
        ('{"images": [], "annotations": []}', "no list of `images`"),
        ('{"images": [{"id": 1, "file_name": "other.png"}], "annotations": []}', "the file 'other.png'"),
        ('{"images": [{"id": 1,', "not JSON"),
        ("[1, 2]", "object 1: not a JSON object"),
        ("", "not JSON"),
        ("no JSON at all", "not JSON"),
    ],
)
def test_what_is_no_coco(demo_run: DemoRun, tmp_path: Path, body: str, words: str) -> None:
    (tmp_path / "t.json").write_text(body)
    with pytest.raises(UsageError, match=words) as raised:
        figures(demo_run, tmp_path / "t.json", DETECT)
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="no such task"):
        load_coco(
            open_tables(str(demo_run.output)), str(tmp_path / "t.json"), [("ocr", "ocr")], Given(tmp_path / "given")
        )


BOX = {"x_min": 1, "y_min": 2, "x_max": 4, "y_max": 6}
SAME = [
    [BOX | {"label": "Cat"}],
    json.dumps([BOX | {"category": "cat"}]),
    [{"bbox": [1, 2, 3, 4], "name": " CAT "}],
    {"bbox": [1, 2, 3, 4], "label": "cat"},
    {"bbox": [[1, 2, 3, 4]], "label": ["cat"]},
    {"boxes": [[1, 2, 3, 4]], "labels": ["cat"]},
]


@pytest.mark.parametrize("value", SAME)
def test_spellings_of_boxes(value: Any) -> None:
    [found] = boxes([value, value], 100, 100)
    assert (found.label, found.place, found.area) == ("cat", [1.0, 2.0, 3.0, 4.0], 12.0)


def test_boxes_in_the_models_own_grammar() -> None:
    cat, dog = boxes(["<loc0000><loc0000><loc1023><loc0512> cat ; <loc0000><loc0000><loc0001><loc0001> dog"], 200, 100)
    assert (cat.label, cat.place[3]) == ("cat", 100.0)
    assert dog.label == "dog"


@pytest.mark.parametrize("value", [[], "", None, [None], math.nan])
def test_no_boxes(value: Any) -> None:
    assert boxes([value], 100, 100) == []


@pytest.mark.parametrize(
    "value",
    [
        3,
        "a cat",
        [{"label": "cat"}],
        [{"bbox": [1, 2, 3], "label": "cat"}],
        [{"bbox": [1, 2, math.nan, 4], "label": "cat"}],
        [{"bbox": [1, 2, -3, 4], "label": "cat"}],
        {"bbox": [[1, 2, 3, 4]], "label": ["cat", "dog"]},
        [BOX | {"x_min": "left"}],
    ],
)
def test_what_is_no_box(value: Any) -> None:
    with pytest.raises(Unreadable):
        boxes([value], 100, 100)


def test_masks_in_three_spellings() -> None:
    polygon = {"label": "cat", "segmentation": [[2, 1, 6, 1, 6, 5, 2, 5]]}
    counts = [21, 4, 6, 4, 6, 4, 6, 4, 45]  # a square of 4 pixels in a picture of 10, by columns
    lengths = {"label": "cat", "segmentation": {"counts": counts, "size": [10, 10]}}
    record = {"label": "cat", "rle": counts, "height": 10, "width": 10}
    found = [masks([each], 10, 10)[0] for each in (polygon, lengths, record)]
    assert {(each.label, each.area) for each in found} == {("cat", 16.0)}
    assert len({str(each.place["counts"]) for each in found}) == 1
    assert masks([[{"label": "cat", "bbox": [1, 2, 3, 4]}]], 10, 10) == []


@pytest.mark.parametrize("counts", [[1, 2], [200], [150, -50], "x", [None]])
def test_what_is_no_mask(counts: Any) -> None:
    given = {"label": "cat", "rle": counts, "height": 10, "width": 10}
    with pytest.raises(Unreadable):
        masks([given], 10, 10)


def test_texts() -> None:
    assert texts(["a", ["b", None, 3], 2.0, True, {"answer": "c"}, math.nan, '["d"]', "[exit]"]) == [
        "a", "b", "3", "2", "yes", "c", "d", "[exit]"
    ]  # fmt: skip
    with pytest.raises(Unreadable):
        texts([{"bytes": 1}])
