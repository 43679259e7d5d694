"""Exports of the demo's run: other programs read them, and find in them what the run published."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from demo_run import SCENES, DemoRun
from PIL import Image

from paliscribe.cli import export as command
from paliscribe.errors import UsageError
from paliscribe.evaluation import Options, evaluate, read_maps
from paliscribe.export import FORMATS, Filters, export
from paliscribe.export.coco import packed
from paliscribe.grammar.masks import decode_rle, encode_rle
from paliscribe.published import Mark, open_tables, put_mark
from paliscribe.storage import open_store

DETECT = "detect {objects}"
Corners = list[tuple[str, tuple[float, ...]]]


@pytest.fixture(scope="module")
def made(demo_run: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """An export in a format, with pictures, made once."""
    folder = tmp_path_factory.mktemp("exports")

    def make(form: str) -> Path:
        if not (folder / form).exists():
            export(str(demo_run.output), form, str(folder / form), images=True)
        return folder / form

    return make


@pytest.fixture
def output(demo_run: DemoRun, tmp_path: Path) -> Path:
    """A copy of the run, to put marks into."""
    shutil.copytree(demo_run.output, tmp_path / "run")
    return tmp_path / "run"


def answers(output: Path, sql: str) -> list[Any]:
    return open_tables(str(output)).connection.execute(sql).fetchall()


def published_boxes(demo_run: DemoRun) -> dict[str, Corners]:
    found = answers(demo_run.output, "SELECT id, boxes FROM annotations WHERE kind = 'detect' AND status = 'ok'")
    return {
        row_id: [(box["label"], (box["x_min"], box["y_min"], box["x_max"], box["y_max"])) for box in boxes]
        for row_id, boxes in found
    }


def assert_same(found: dict[str, Corners], expected: dict[str, Corners], pixels: float) -> None:
    assert found.keys() == expected.keys()
    assert sum(map(len, expected.values())) > SCENES / 2
    for row_id, boxes in expected.items():
        assert [label for label, _ in found[row_id]] == [label for label, _ in boxes]
        for (_, one), (_, other) in zip(found[row_id], boxes, strict=True):
            assert np.abs(np.subtract(one, other)).max() <= pixels


def iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    sides = [min(one[at + 2], other[at + 2]) - max(one[at], other[at]) for at in (0, 1)]
    inside = max(sides[0], 0) * max(sides[1], 0)
    areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (one, other)]
    return inside / (sum(areas) - inside)


def test_pycocotools_reads_coco_and_boxes_are_at_the_truth(demo_run: DemoRun, made: Callable[[str], Path]) -> None:
    from pycocotools.coco import COCO

    folder = made("coco")
    coco = COCO(str(folder / "annotations.json"))
    names = {kind["id"]: kind["name"] for kind in coco.loadCats(coco.getCatIds())}
    assert list(names) == list(range(1, len(names) + 1)) and list(names.values()) == sorted(names.values())
    found: dict[str, Corners] = {}
    for image in coco.loadImgs(coco.getImgIds()):
        assert Image.open(folder / image["file_name"]).size == (image["width"], image["height"])
        found[image["paliscribe_id"]] = [
            (names[one["category_id"]], (x, y, x + w, y + h))
            for one in coco.loadAnns(coco.getAnnIds(image["id"]))
            for x, y, w, h in [one["bbox"]]
        ]
        assert all(0 <= one["score"] <= 1 for one in coco.loadAnns(coco.getAnnIds(image["id"])))
    assert_same(found, published_boxes(demo_run), 1e-3)
    best = []
    for line in (demo_run.collection / "truth.jsonl").read_text().splitlines():
        truth = json.loads(line)
        for box in truth["detect"]:
            edges = tuple(box[name] for name in ("x_min", "y_min", "x_max", "y_max"))
            best.append(max((iou(e, edges) for label, e in found[truth["id"]] if label == box["label"]), default=0.0))
    assert np.mean(best) > 0.7, "the demo model finds its shapes"


def test_packed_run_lengths_are_those_of_pycocotools() -> None:
    from pycocotools import mask as masks

    random = np.random.default_rng(3)
    for height, width, share in ((1, 1, 0.5), (7, 5, 0.5), (300, 400, 0.01), (64, 2000, 0.999), (40, 40, 0.0)):
        whole = random.random((height, width)) < share
        counts = encode_rle(whole)
        rle = {"size": [height, width], "counts": packed(counts)}
        assert packed(counts) == masks.encode(np.asfortranarray(whole, dtype=np.uint8))["counts"].decode()
        assert np.array_equal(masks.decode(rle), decode_rle(counts, height, width))


def test_an_independent_reader_of_yolo(demo_run: DemoRun, made: Callable[[str], Path]) -> None:
    folder = made("yolo")
    names = yaml.safe_load((folder / "data.yaml").read_text())["names"]
    found: dict[str, Corners] = {}
    for row in csv.DictReader((folder / "images.csv").open(newline="")):
        width, height = Image.open(folder / row["image"]).size
        assert Path(row["image"]).stem == Path(row["labels"]).stem
        found[row["id"]] = []
        for line in (folder / row["labels"]).read_text().splitlines():
            kind, *numbers = line.split()
            x, y, w, h = (float(number) for number in numbers)
            edges = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
            found[row["id"]].append((names[int(kind)], edges))
    assert_same(found, published_boxes(demo_run), 0.01)


def test_voc(demo_run: DemoRun, made: Callable[[str], Path]) -> None:
    folder, found = made("voc"), {}
    stems = (folder / "ImageSets/Main/trainval.txt").read_text().split()
    for stem in stems:
        root = ElementTree.parse(folder / "Annotations" / f"{stem}.xml").getroot()
        assert (folder / "JPEGImages" / str(root.findtext("filename"))).is_file()
        found[stem] = [
            (
                str(each.findtext("name")),
                tuple(
                    int(str(each.findtext(f"bndbox/{edge}"))) - (edge in ("xmin", "ymin"))
                    for edge in ("xmin", "ymin", "xmax", "ymax")
                ),
            )
            for each in root.iter("object")
        ]
    assert_same(found, published_boxes(demo_run), 0.5)  # type: ignore[arg-type]


def test_lines_have_every_answer(demo_run: DemoRun, made: Callable[[str], Path]) -> None:
    expected = answers(demo_run.output, "SELECT id, task, text FROM annotations WHERE status = 'ok' ORDER BY ALL")
    lines = [json.loads(line) for line in (made("jsonl") / "annotations.jsonl").read_text().splitlines()]
    assert sorted((one["id"], one["task"], one["text"]) for one in lines) == expected
    assert all((made("jsonl") / one["file"]).is_file() for one in lines)
    assert [one["row"] for one in lines] == sorted(one["row"] for one in lines)
    rows = list(csv.DictReader((made("csv") / "annotations.csv").open(newline="")))
    assert [(row["id"], row["task"], row["text"]) for row in rows] == [(o["id"], o["task"], o["text"]) for o in lines]
    assert [json.loads(row["boxes"]) for row in rows] == [one["boxes"] for one in lines]


@pytest.mark.parametrize("embedded", [False, True])
def test_datasets_opens_hf(
    demo_run: DemoRun, made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded: bool
) -> None:
    import datasets

    folder = made("hf") if embedded else tmp_path / "hf"
    if not embedded:
        export(str(demo_run.output), "hf", str(folder))
    found = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found) == SCENES
    assert {"question", "objects"} <= set(found.column_names)
    one = found[1]
    assert len(one["annotations"]) == 4
    if embedded:
        assert one["image"].size == (one["width"], one["height"])
    else:
        assert Path(one["image"]).is_file()


def test_webdataset_reads_the_tars(demo_run: DemoRun, made: Callable[[str], Path]) -> None:
    import webdataset

    pipeline = webdataset.WebDataset(str(made("webdataset") / "shard-000000.tar"), shardshuffle=False)
    samples = list(pipeline.decode("pil"))
    assert len(samples) == SCENES
    for sample in samples:
        picture = sample.get("jpg") or sample.get("png")
        assert picture.size == (sample["json"]["width"], sample["json"]["height"])
        assert len(sample["json"]["annotations"]) == 4


def test_fiftyone(demo_run: DemoRun, made: Callable[[str], Path]) -> None:
    """As `LegacyFiftyOneDatasetImporter` of fiftyone 1.22, to which its `FiftyOneDataset` hands such folders."""
    folder = made("fiftyone")
    metadata = json.loads((folder / "metadata.json").read_text())
    assert "version" not in metadata and metadata["media_type"] == "image"
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    found: dict[str, Corners] = {}
    for sample in samples:
        width, height = Image.open(folder / sample["filepath"]).size
        assert sample["caption_1"]["_cls"] == "Classification" and sample["caption_1"]["label"]
        assert sample["detect_4"]["_cls"] == "Detections"
        assert set(metadata["info"]["tasks"]) >= {name for name in sample if name.split("_")[-1].isdigit()}
        found[sample["paliscribe_id"]] = []
        for one in sample["detect_4"]["detections"]:
            x, y, w, h = one["bounding_box"]
            assert one["_cls"] == "Detection" and 0 <= one["confidence"] <= 1
            edges = x * width, y * height, (x + w) * width, (y + h) * height
            found[sample["paliscribe_id"]].append((one["label"], edges))
    assert_same(found, published_boxes(demo_run), 0.01)


def test_label_studio(demo_run: DemoRun, made: Callable[[str], Path]) -> None:
    """As its documentation of predictions and of the labelling configuration has them."""
    folder, found = made("label-studio"), {}
    config = ElementTree.parse(folder / "config.xml").getroot()
    controls = {each.get("name"): each for each in config if each.get("toName") == "image"}
    labels = [label.get("value") for label in controls["detect_4"]]
    for task in json.loads((folder / "tasks-00000.json").read_text()):
        assert (folder / task["data"]["image"].partition("?d=")[2]).is_file()
        [prediction] = task["predictions"]
        boxes: Corners = []
        for one in prediction["result"]:
            assert one["from_name"] in controls and one["to_name"] == "image"
            assert one["type"] == controls[one["from_name"]].tag.lower()
            if one["type"] == "rectanglelabels":
                value, width, height = one["value"], one["original_width"], one["original_height"]
                [label] = value["rectanglelabels"]
                assert label in labels
                x, y = value["x"] * width / 100, value["y"] * height / 100
                boxes.append((label, (x, y, x + value["width"] * width / 100, y + value["height"] * height / 100)))
        found[task["data"]["id"]] = boxes
    assert_same(found, published_boxes(demo_run), 1e-3)


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_bytes_again(demo_run: DemoRun, made: Callable[[str], Path], tmp_path: Path, form: str) -> None:
    export(str(demo_run.output), form, str(tmp_path / "again"), images=True)
    assert contents(tmp_path / "again") == contents(made(form))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_to_object_storage(demo_run: DemoRun, made: Callable[[str], Path], bucket: str) -> None:
    export(str(demo_run.output), "yolo", f"s3://{bucket}/a yolo", images=True)
    store = open_store(f"s3://{bucket}/a yolo")
    assert {item.key: store.get(item.key) for item in store.list()} == contents(made("yolo"))


def test_filters(demo_run: DemoRun, tmp_path: Path) -> None:
    def lines(name: str, **filters: Any) -> list[dict[str, Any]]:
        export(str(demo_run.output), "jsonl", str(tmp_path / name), Filters(**filters))
        return [json.loads(line) for line in (tmp_path / name / "annotations.jsonl").read_text().splitlines()]

    assert {one["task"] for one in lines("a", tasks=("ocr", "detect"))} == {"ocr", DETECT}
    assert len(lines("b", where="row < 3 -- the first")) == 12
    [(least,)] = answers(demo_run.output, "SELECT median(score) FROM annotations WHERE kind <> 'detect'")
    high = lines("c", min_score=least)
    assert all(box["score"] >= least for one in high for box in one["boxes"])
    assert all(one["score"] >= least for one in high if one["kind"] != "detect")
    assert sum(one["kind"] == "detect" for one in high) == SCENES, "a picture without boxes of this score stays"
    assert len(high) < SCENES * 4


def test_calibrated_scores(demo_run: DemoRun, output: Path, tmp_path: Path) -> None:
    def lines(name: str, **filters: Any) -> dict[tuple[str, str], dict[str, Any]]:
        export(str(output), "jsonl", str(tmp_path / name), Filters(**filters))
        found = [json.loads(line) for line in (tmp_path / name / "annotations.jsonl").read_text().splitlines()]
        return {(one["id"], one["task"]): one for one in found}

    with pytest.raises(UsageError, match="has no maps of scores; `paliscribe evaluate OUTPUT --truth FILE --fit`"):
        lines("none", calibrated=True)
    evaluate(str(output), Options(str(demo_run.collection / "truth.jsonl"), fit=True))
    maps = read_maps(open_store(str(output)))
    levels = {each.level for each in maps.values()}
    assert levels == {"record", "box"}
    before, after = lines("scores"), lines("calibrated", calibrated=True)
    assert before.keys() == after.keys()
    for (row_id, task), one in after.items():
        found, old = maps.get((task, one["kind"])), before[row_id, task]
        of_record, of_boxes = (found if found and found.level == level else None for level in ("record", "box"))
        assert one["score"] == (pytest.approx(float(of_record(old["score"])), abs=1e-4) if of_record else None)
        expected = [of_boxes and pytest.approx(float(of_boxes(box["score"])), abs=1e-4) for box in old["boxes"]]
        assert [box["score"] for box in one["boxes"]] == expected
    some = lines("sure", calibrated=True, min_score=0.5)
    assert {key for key, one in some.items() if one["kind"] != "detect"} == {
        key for key, one in after.items() if one["kind"] != "detect" and (one["score"] or 0) >= 0.5
    }


def test_review(output: Path, tmp_path: Path) -> None:
    store = open_store(str(output))
    [(first,), (second,), (third,)] = answers(output, "SELECT DISTINCT id FROM annotations ORDER BY id LIMIT 3")
    box = {"label": "new thing", "x_min": -5.0, "y_min": 1.0, "x_max": 9.0, "y_max": 9.0, "score": None}
    put_mark(store, Mark(first, "caption en", "fix", text="a corrected caption"))
    put_mark(store, Mark(first, DETECT, "fix", boxes=[box]))
    put_mark(store, Mark(second, "ocr", "reject"))
    put_mark(store, Mark(third, "ocr", "accept"))

    def lines(name: str, **filters: Any) -> dict[tuple[str, str], dict[str, Any]]:
        export(str(output), "jsonl", str(tmp_path / name), Filters(**filters))
        found = [json.loads(line) for line in (tmp_path / name / "annotations.jsonl").read_text().splitlines()]
        return {(one["id"], one["task"]): one for one in found}

    every = lines("all")
    assert (second, "ocr") not in every and len(every) == SCENES * 4 - 1
    assert every[first, "caption en"]["text"] == "a corrected caption"
    assert every[first, "caption en"]["score"] is None and every[first, "caption en"]["review"] == "fix"
    assert every[first, DETECT]["boxes"] == [box]
    assert set(lines("reviewed", reviewed=True)) == {(first, "caption en"), (first, DETECT), (third, "ocr")}
    assert set(lines("sure", min_score=1.0)) >= {(first, "caption en"), (third, "ocr")}
    before = json.loads(made_coco(demo := output, tmp_path / "one", Filters()))
    fewer = json.loads(made_coco(demo, tmp_path / "two", Filters(where=f"id = '{first}'")))
    assert fewer["categories"] == before["categories"], "filters do not change ids"
    assert before["categories"][-1]["name"] == "new thing"
    assert fewer["annotations"][0]["bbox"] == [0.0, 1.0, 9.0, 8.0], "clipped"


def made_coco(output: Path, to: Path, filters: Filters) -> str:
    export(str(output), "coco", str(to), filters)
    return (to / "annotations.json").read_text()


def test_pictures_that_cannot_be_read(demo_run: DemoRun, tmp_path: Path) -> None:
    pictures = sorted((demo_run.collection / "images").iterdir())
    kept = {path: path.read_bytes() for path in pictures[:2]}
    try:
        pictures[0].unlink()
        pictures[1].write_bytes(kept[pictures[1]] + b"x")
        made = export(str(demo_run.output), "webdataset", str(tmp_path / "tar"), images=True)
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
    assert (made["failed_images"], made["pictures"]) == (2, SCENES - 2)
    listed = [json.loads(line) for line in (tmp_path / "tar/failed-images.jsonl").read_text().splitlines()]
    assert [one["error_kind"] for one in listed] == ["missing", "changed"]
    with tarfile.open(tmp_path / "tar/shard-000000.tar") as tar:
        assert len(tar.getnames()) == 2 * (SCENES - 2)


@pytest.mark.parametrize(
    ("form", "filters", "words"),
    [
        ("coc", Filters(), "did you mean 'coco'"),
        ("jsonl", Filters(tasks=("ocrr",)), "did you mean 'ocr'"),
        ("jsonl", Filters(where="scor > 1"), "--where: .*scor"),
        ("jsonl", Filters(where="1 = "), "--where"),
        ("jsonl", Filters(where="true); SELECT (1"), "--where: one condition"),
        ("jsonl", Filters(where="count(*) > 1"), "--where"),
        ("jsonl", Filters(where="row < 0"), "no answer passes"),
        ("jsonl", Filters(min_score=3), "--min-score"),
        ("jsonl", Filters(reviewed=True), "no answer passes"),
        ("yolo", Filters(tasks=("ocr",)), "no answer passes"),
    ],
)
def test_refusals(demo_run: DemoRun, tmp_path: Path, form: str, filters: Filters, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        export(str(demo_run.output), form, str(tmp_path / "to"), filters)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
    assert not (tmp_path / "to").exists()


def test_places_that_are_refused(demo_run: DemoRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for to, words in (
        (str(demo_run.collection), "is not empty"),
        (str(demo_run.output / "export"), "inside the run's output"),
        (str(tmp_path / "file" / "below"), "--to"),
        ("https://example.com/x", "--to"),
        ("gs://bucket/x", "--to"),
    ):
        with pytest.raises(UsageError, match=words):
            export(str(demo_run.output), "jsonl", to)


def test_the_help_names_every_format() -> None:
    assert command.FORMATS.split(", ") == list(FORMATS)


def test_a_mask_of_fiftyone_is_an_array() -> None:
    import base64
    import zlib

    from paliscribe.export.fiftyone import _array

    body = base64.b64decode(_array(np.eye(3, dtype=np.bool_))["$binary"]["base64"])
    assert np.array_equal(np.load(io.BytesIO(zlib.decompress(body))), np.eye(3, dtype=np.bool_))
