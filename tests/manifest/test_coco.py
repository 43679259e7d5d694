"""COCO's JSON as a manifest."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paliscribe.errors import UsageError
from paliscribe.manifest import fixed_columns, read
from paliscribe.storage import open_store

CATS = [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog é", "supercategory": "x"}]
IMAGES: list[dict[str, Any]] = [
    {"id": 11, "file_name": "a.jpg", "width": 9, "height": 8, "coco_url": "http://x/a.jpg", "license": 3},
    {"id": "b", "file_name": "d/b.jpg", "width": 9, "height": 8, "coco_url": "http://x/b.jpg", "license": None},
]
TRUTH: list[dict[str, Any]] = [
    {"id": 1, "image_id": "b", "category_id": 7, "bbox": [1, 2, 3.5, 4], "segmentation": [[1, 2, 3, 4]], "iscrowd": 1},
    {"id": 2, "image_id": 11, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 0},
    {"id": 3, "image_id": 11, "category_id": 9, "bbox": [0, 0, 1, 1]},
    {"id": 4, "image_id": 11, "caption": "a cat"},
    {"id": 5, "image_id": 11, "caption": "two"},
]


def box(label: str, *edges: float, **more: int) -> dict[str, Any]:
    return {"label": label, **dict(zip(("x_min", "y_min", "x_max", "y_max"), edges, strict=True)), **more}


@pytest.mark.parametrize("order", [("images", "annotations", "categories"), ("categories", "annotations", "images")])
def test_images_with_their_truth(order: tuple[str, ...], tmp_path: Path) -> None:
    lists = {"images": IMAGES, "annotations": TRUTH, "categories": CATS}
    body = json.dumps({"info": {"images": [1]}, **{name: lists[name] for name in order}}).encode()
    (tmp_path / "i.json").write_bytes(body)
    (tmp_path / "i.json.gz").write_bytes(gzip.compress(body))
    (tmp_path / "a.jpg").touch()
    for name in ("i.json", "i.json.gz"):
        first, second = read(str(tmp_path / name))
        assert [(row.id, row.image) for row in (first, second)] == [
            ("11", f"{tmp_path}/a.jpg"),
            ("b", f"{tmp_path}/d/b.jpg"),
        ]
        assert {"file_name": "a.jpg", "coco_url": "http://x/a.jpg", "license": 3}.items() <= first.columns.items()
        assert not {"width", "height"} & first.columns.keys()
        assert json.loads(first.columns["truth_boxes"]) == [box("cat", 0, 0, 5, 5), box("9", 0, 0, 1, 1)]
        assert json.loads(second.columns["truth_boxes"]) == [box("dog é", 1, 2, 4.5, 6, iscrowd=1)]
        assert [json.loads(row.columns["truth_captions"]) for row in (first, second)] == [["a cat", "two"], []]
    assert fixed_columns(str(tmp_path / "i.json")) is None
    assert [row.image for row in read(str(tmp_path / "i.json"), image_column="coco_url")] == [
        "http://x/a.jpg", "http://x/b.jpg"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "image"),
    [
        ("i.json", "images/d/b.jpg"),
        ("annotations/instances_val2017.json", "val2017/a.jpg"),
        ("annotations/x.json", "a.jpg"),
    ],
)
def test_the_folder_of_the_images_is_found(file: str, image: str, bucket: str, tmp_path: Path) -> None:
    for place in (str(tmp_path), f"s3://{bucket}/c"):
        store = open_store(place)
        store.put(file, json.dumps({"images": IMAGES}).encode())
        store.put(image, b"1")
        assert f"{place}/{image}" in {str(row.image).replace("/annotations/..", "") for row in read(f"{place}/{file}")}


def test_refusals(tmp_path: Path) -> None:
    bodies = {
        json.dumps({"images": IMAGES}): "a.jpg is neither beside the file nor in images/",
        "3": "no list of `images`", '{"images": []}': "no list of `images`", '{"a": 1}': "no list of `images`",
        '{"images": []}\n{"image": "b.jpg"}': "named .jsonl", '{"images": [{"id": 1,': "not JSON",
        '{"images": [3]}': "an image without an id: 3", "": "no list of `images`",
    }  # fmt: skip
    for body, words in bodies.items():
        (tmp_path / "i.json").write_text(body)
        with pytest.raises(UsageError, match=re.escape(words)) as caught:
            list(read(str(tmp_path / "i.json")))
        assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "m.jsonl").write_text('{"image": "a.jpg"}\n')
    assert [row.id for row in read(str(tmp_path))] == ["a.jpg"], "JSON beside a manifest is none"


MEASURE = r"""
import re, sys
from pathlib import Path
from paliscribe.manifest import read
print(sum(1 for _ in read(sys.argv[1])), re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").touch()
    peaks = []
    for rows in (2000, 40_000):
        images = ({"id": n, "file_name": f"{n}.jpg"} for n in range(rows))
        with (tmp_path / "i.json").open("w") as file:
            file.write('{"annotations": [')
            file.write(
                ",".join(json.dumps(TRUTH[1] | {"image_id": n, "segmentation": [[1.5] * 200]}) for n in range(rows))
            )
            file.write('], "images": [' + ",".join(map(json.dumps, images)) + "]}")
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "i.json")]
        count, peak = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        assert count == rows
        peaks.append(peak / 1024)
    assert peaks[1] - peaks[0] < 40, f"the file is {(tmp_path / 'i.json').stat().st_size:,} bytes"
