"""Average precision against pycocotools, over random boxes and masks: crowds, equal scores, many of a label."""

import contextlib
import io
import random
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from paliscribe.evaluation import collected as collected_module
from paliscribe.evaluation.collected import Collected
from paliscribe.evaluation.matching import Labels, Shape, match
from paliscribe.evaluation.precision import FIGURES, Precision, measured

LABELS = ("cat", "dog", "cow", "unseen")  # the last is never true
SIZE = 200
STATS = (0, 1, 2, 3, 4, 5, 8)  # of COCOeval, in the order of `FIGURES`


def scenes(seed: int, images: int, what: str) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """True and found annotations of images, in COCO's keys."""
    random_ = random.Random(seed)
    made = []
    for image in range(1, images + 1):
        true, found = [], []
        for _ in range(random_.randrange(6)):
            box = _box(random_)
            crowd = random_.random() < 0.2
            area = box[2] * box[3] * random_.choice([1, 0.6])
            true.append(_annotation(image, random_.choice(LABELS[:3]), box, what, area) | {"iscrowd": int(crowd)})
            for _ in range(random_.randrange(3)):
                moved = [max(0.0, value + random_.gauss(0, 2)) for value in box]
                label = true[-1]["label"] if random_.random() < 0.9 else random_.choice(LABELS)
                found.append(_annotation(image, label, moved, what) | {"score": round(random_.random(), 1)})
        many = 130 if image == 1 else random_.randrange(2)  # more than the 100 that count
        for _ in range(many):
            found.append(
                _annotation(image, random_.choice(LABELS), _box(random_), what) | {"score": random_.random() / 3}
            )
        made.append((true, found))
    return made


def _box(random_: random.Random) -> list[float]:
    side = random_.choice([20, 60, 120])
    return [random_.uniform(0, 70), random_.uniform(0, 70), random_.uniform(2, side), random_.uniform(2, side)]


def _annotation(image: int, label: str, box: list[float], what: str, area: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"image_id": image, "category_id": LABELS.index(label) + 1, "label": label, "bbox": box}
    if what == "segm":
        pixels = np.zeros((SIZE, SIZE), np.uint8, order="F")
        x, y, width, height = (round(value) for value in box)
        pixels[y : y + height, x : x + width] = 1
        found["segmentation"] = coco.encode(pixels)
        area = float(pixels.sum())
        del found["bbox"]  # COCO.loadRes would take its area
    return found | {"area": box[2] * box[3] if area is None else area}


def reference(made: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]], what: str) -> list[float]:
    """The figures of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO()
        true.dataset = {
            "images": [{"id": number + 1, "height": SIZE, "width": SIZE} for number in range(len(made))],
            "categories": [{"id": number + 1, "name": label} for number, label in enumerate(LABELS)],
            "annotations": [each | {"id": at + 1} for at, each in enumerate(each for pair in made for each in pair[0])],
        }
        true.createIndex()
        evaluation = COCOeval(true, true.loadRes([dict(each) for pair in made for each in pair[1]]), what)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(evaluation.stats[at]) for at in STATS]


def shape(each: dict[str, Any], what: str) -> Shape:
    place = each["bbox"] if what == "bbox" else each["segmentation"]
    area = each["area"] if what == "bbox" else float(coco.area(place))
    return Shape(each["label"], place, area, bool(each.get("iscrowd")), each.get("score", 0.0))


def precision(made: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]], what: str) -> Precision:
    return Precision(*collected(made, what), 0)


def collected(made: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]], what: str) -> tuple[Collected, Labels]:
    labels, whole = Labels(), Collected()
    for true, found in made:
        whole.add(match([shape(each, what) for each in true], [shape(each, what) for each in found], labels))
    return whole, labels


@pytest.mark.parametrize(
    ("seed", "images", "what"), [(1, 60, "bbox"), (2, 60, "bbox"), (8, 2, "bbox"), (4, 30, "segm")]
)
def test_equal_to_the_reference(seed: int, images: int, what: str) -> None:
    made = scenes(seed, images, what)
    found = precision(made, what)
    expected = [np.nan if value == -1 else value for value in reference(made, what)]
    assert found.values.tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert 0.02 < expected[0] < 0.9


def test_it_is_so_however_the_shapes_of_a_label_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scenes(1, 60, "bbox")
    whole = precision(made, "bbox")
    figures, labels = whole.figures(), whole.of_labels()
    monkeypatch.setattr(collected_module, "ROWS", 7)
    parts = precision(made, "bbox")
    assert parts.figures() == figures and parts.of_labels() == labels


def test_a_weight_of_two_is_an_image_twice() -> None:
    made = scenes(5, 12, "bbox")
    weight = np.array([2, 0, 1] * 4, np.uint8)
    copies = [pair for pair, count in zip(made, weight, strict=True) for _ in range(count)]
    [weighted], _ = measured(collected(made, "bbox")[0], lambda images: weight[images][None])
    whole = precision(copies, "bbox").values
    assert weighted.tolist() == pytest.approx(whole.tolist(), abs=0.02, nan_ok=True), (
        "equal scores of copies may be in another order"
    )


def test_intervals_hold_the_value_and_are_the_same_for_a_seed() -> None:
    made = scenes(6, 40, "bbox")
    figures = precision(made, "bbox").figures()
    assert figures == precision(made, "bbox").figures()
    assert list(figures) == list(FIGURES)
    for figure in figures.values():
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert figures["AP"]["low"] < figures["AP"]["value"] < figures["AP"]["high"]


def test_labels_are_counted() -> None:
    rows = precision(scenes(7, 20, "bbox"), "bbox").of_labels()
    assert {row["label"] for row in rows} == set(LABELS)
    unseen = next(row for row in rows if row["label"] == "unseen")
    assert unseen["AP"] is None
    assert (unseen["true"], unseen["found"] > 0) == (0, True)


def test_nothing_at_all() -> None:
    none = precision([], "bbox")
    assert np.isnan(none.values).all()
    assert none.of_labels() == []
    assert {figure["value"] for figure in none.figures().values()} == {None}
