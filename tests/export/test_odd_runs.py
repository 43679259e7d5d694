"""Exports of odd ids, labels, boxes and masks; and runs without boxes."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pytest
import yaml
from results.made import Failing, Job

from paliscribe import results
from paliscribe.errors import UsageError
from paliscribe.export import FORMATS, export
from paliscribe.export.names import stem
from paliscribe.records import Box, Mask, Record
from paliscribe.storage import open_store

IDS = [
    "../../etc/x",
    "a/b.c",
    "A",
    "a",
    "é",
    "e\u0301",
    "con",
    "x" * 3000,
    "",
    ".hidden",
    "a\nb",
    '<&"\x01>',
    "ｅ",
    ".",
]
LABELS = ["", " ", "a, b; c", '<x> & "y"', "naïve ☃", "line\nbreak", "bell\x07", "- yaml: [", "true"]


class Odd(Job):
    """Two tasks over rows with the ids of `IDS`; boxes with the labels of `LABELS`, some of which leave the picture."""

    def shard(self, shard: int, failing: Failing) -> list[Record]:
        return [self.changed(record) for record in super().shard(shard, failing)]

    def changed(self, record: Record) -> Record:
        edges = [(1.0, 2.0, 30.0, 40.0), (-9.0, -9.0, 900.0, 900.0), (50.0, 5.0, 50.0, 9.0), (float("nan"), 0, 1, 1)]
        boxes = tuple(
            Box(label, *edges[(record.row + place) % 4], score=None if place % 2 else 0.5)
            for place, label in enumerate(LABELS)
        )
        mask = Mask(LABELS[0], boxes[0], tuple(range(16)), 480, 640, (480 * 640 - 3, 3))
        masks = (mask,) if record.kind == "segment" else ()
        return replace(record, id=IDS[record.row], status="ok", boxes=boxes, masks=masks)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("odd")
    job = Odd([{}] * len(IDS), tasks=("detect a", "segment b"), shard_rows=5)
    store = open_store(str(output))
    job.annotate(store)
    job.publish(store)
    return str(output)


def test_names_are_safe_and_differ_on_every_file_system() -> None:
    names = [stem(row_id) for row_id in IDS]
    assert len({name.casefold() for name in names}) == len(IDS)
    assert all(
        name.replace("-", "").replace("_", "").isalnum() and name.isascii() and len(name) < 120 for name in names
    )
    made = stem("A")
    assert stem(made) != made, "an id that looks like a made name does not take its place"
    assert stem("scene-00001") == "scene-00001"


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_written_outside(odd: str, tmp_path: Path, form: str) -> None:
    made = export(odd, form, str(tmp_path / "deep" / "to"))
    assert made["pictures"] == len(IDS)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["to"]


def test_labels_and_boxes(odd: str, tmp_path: Path) -> None:
    made = export(odd, "coco", str(tmp_path / "coco"))
    coco = json.loads((tmp_path / "coco/annotations.json").read_text())
    names = {kind["id"]: kind["name"] for kind in coco["categories"]}
    assert set(names.values()) == {label.strip() or "object" for label in LABELS}
    assert {image["paliscribe_id"] for image in coco["images"]} == set(IDS)
    assert made["left_out"]["boxes without an area in their picture"] > 0
    for one in coco["annotations"]:
        x, y, width, height = one["bbox"]
        assert 0 <= x < x + width <= 640 and 0 <= y < y + height <= 480
    masked = [one for one in coco["annotations"] if one["segmentation"]]
    assert masked and {one["area"] for one in masked} == {3}
    assert {one["score"] for one in coco["annotations"]} == {0.5, None}

    export(odd, "yolo", str(tmp_path / "yolo"))
    assert list(yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())["names"].values()) == list(names.values())
    with (tmp_path / "yolo/images.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == IDS
    export(odd, "voc", str(tmp_path / "voc"))
    for path in (tmp_path / "voc/Annotations").iterdir():
        ElementTree.parse(path)
    export(odd, "label-studio", str(tmp_path / "ls"))
    config = ElementTree.parse(tmp_path / "ls/config.xml")
    known = {label.get("value") for label in config.iter("Label")}
    tasks = json.loads((tmp_path / "ls/tasks-00000.json").read_text())
    assert {one["value"]["rectanglelabels"][0] for task in tasks for one in task["predictions"][0]["result"]} <= known


def test_runs_without_boxes_and_unfinished_ones(tmp_path: Path) -> None:
    job = Job([{"review": "mine"}] * 4, pa.schema([("review", pa.string())]))
    store = open_store(str(tmp_path / "run"))
    job.annotate(store)
    results.publish_part(store, job.layout, 0, 0)
    with pytest.raises(UsageError, match="yolo holds boxes, and this run has none"):
        export(store.uri, "yolo", str(tmp_path / "to"))
    made = export(store.uri, "jsonl", str(tmp_path / "to"))
    assert not made["finished"]
    lines = [json.loads(line) for line in (tmp_path / "to/annotations.jsonl").read_text().splitlines()]
    assert {(one["review"], one["review_"]) for one in lines} == {("mine", None)}, "the manifest's own column stays"
