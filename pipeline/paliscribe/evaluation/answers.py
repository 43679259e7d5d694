"""True answers as people write them: texts, lists of texts, boxes in several spellings, PaliGemma's own grammar."""

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from paliscribe.evaluation.matching import Shape
from paliscribe.grammar.tasks import parse_task

CORNERS = ("x_min", "y_min", "x_max", "y_max")
LABELS = ("label", "category", "name", "class", "labels", "categories", "category_name")
SHAPES = ("bbox", "box", "bboxes", "boxes", "segmentation", "rle", "x_min")
NOMINAL = 1000  # side in pixels of an image whose size is not known


class Unreadable(ValueError):
    """A true answer that cannot be read as what its task needs."""


def decoded(value: Any) -> Any:
    """A value, or what its text holds if that is a JSON list or object."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def texts(values: Sequence[Any]) -> list[str]:
    """The true texts of a row; empty if it has none. `values`: one for each row of the truth. Raises Unreadable."""
    return [text for value in values for text in _texts(decoded(value))]


def _texts(value: Any) -> Iterator[str]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, bool):
        yield "yes" if value else "no"
    elif isinstance(value, int | float):
        yield str(int(value)) if float(value).is_integer() else str(value)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        known = [value[name] for name in ("answer", "caption", "text", "raw") if name in value]
        if not known:
            raise Unreadable(f"an object with {', '.join(map(str, value))[:80]} is no text")
        yield from _texts(known[0])
    else:
        raise Unreadable(f"{type(value).__name__} is no text")


def same_label(label: Any) -> str:
    """A label as it is compared: form NFKC, case folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", str(label)).casefold().split())


def boxes(values: Sequence[Any], width: int | None, height: int | None) -> list[Shape]:
    """The true boxes of a row. `width`, `height`: of its image, in pixels. Raises Unreadable."""
    return [_box(each) for each in _items(values, width, height)]


def masks(values: Sequence[Any], width: int | None, height: int | None) -> list[Shape]:
    """The true masks of a row: those of its true shapes that have one. Raises Unreadable."""
    found = ((each, _rle(each, width, height)) for each in _items(values, width, height))
    return [
        Shape(same_label(_label(each)), rle, float(each.get("area") or coco.area(rle)), bool(each.get("iscrowd")))
        for each, rle in found
        if rle is not None
    ]


def _items(values: Sequence[Any], width: int | None, height: int | None) -> Iterator[dict[str, Any]]:
    """The true shapes of a row as objects with a label; a value that is there twice counts once."""
    for value in {json.dumps(value, sort_keys=True): value for value in values}.values():
        yield from _shapes(decoded(value), width or NOMINAL, height or NOMINAL)


def _shapes(value: Any, width: int, height: int) -> Iterator[dict[str, Any]]:
    if isinstance(value, str):
        read = parse_task("detect x").parse(value, width, height)
        if read.status != "ok":
            raise Unreadable(f"{value[:60]!r} is no list of boxes")
        yield from ({"label": box.label} | {side: getattr(box, side) for side in CORNERS} for box in read.boxes)
    elif isinstance(value, list) and value and all(isinstance(each, int | float) for each in value):
        yield {"bbox": value}
    elif isinstance(value, list):
        for each in value:
            yield from _shapes(each, width, height)
    elif isinstance(value, dict) and any(name in value for name in SHAPES):
        columns = [name for name, each in value.items() if isinstance(each, list) and name in (*LABELS, *SHAPES)]
        nested = [
            name for name in columns if name in LABELS or (value[name] and isinstance(value[name][0], list | dict))
        ]
        if (
            any(name in LABELS for name in nested) or "bboxes" in nested or "boxes" in nested
        ):  # a column of each property
            length = {len(value[name]) for name in nested}
            if len(length) > 1:
                raise Unreadable("as many labels as boxes are needed")
            yield from ({name: value[name][at] for name in nested} for at in range(length.pop() if length else 0))
        else:
            yield value
    elif value is not None and not (isinstance(value, float) and math.isnan(value)):
        raise Unreadable(f"{str(value)[:60]} is no box")


def _label(each: Mapping[str, Any]) -> Any:
    return next((each[name] for name in LABELS if each.get(name) is not None), "")


def _box(each: Mapping[str, Any]) -> Shape:
    try:
        if "x_min" in each:
            x, y, right, bottom = (float(each[side]) for side in CORNERS)
            width, height = right - x, bottom - y
        else:
            x, y, width, height = map(float, next(each[name] for name in SHAPES[:4] if name in each))
    except (KeyError, TypeError, ValueError, StopIteration):
        raise Unreadable(f"{str(dict(each))[:60]} is no box: x_min, y_min, x_max, y_max or bbox") from None
    if not all(map(math.isfinite, (x, y, width, height))) or width < 0 or height < 0:
        raise Unreadable(f"the box {x:g}, {y:g}, {width:g} x {height:g} is none")
    area = each.get("area")
    size = float(area) if isinstance(area, int | float) and math.isfinite(area) else width * height
    return Shape(same_label(_label(each)), [x, y, width, height], size, bool(each.get("iscrowd")))


def _rle(each: Mapping[str, Any], width: int | None, height: int | None) -> Any:
    """The mask of a true shape as COCO's compressed RLE; None if it has none."""
    given = each.get("segmentation") or each.get("rle")
    if not given:
        return None
    try:
        if isinstance(given, dict) and not isinstance(given["counts"], list):
            return {"size": given["size"], "counts": given["counts"]}
        if isinstance(given, dict):
            return rle_of(given["counts"], *given["size"])
        size = (int(each.get("height") or height or 0), int(each.get("width") or width or 0))
        if each.get("rle"):
            return rle_of(given, *size)
        polygons = [np.asarray(polygon, float).tolist() for polygon in given]
        return coco.merge(coco.frPyObjects(polygons, *size))
    except (KeyError, TypeError, ValueError, IndexError):
        raise Unreadable("a segmentation that is neither polygons nor run lengths") from None


def rle_of(counts: Sequence[int], height: int, width: int) -> Any:
    """Run lengths as COCO's compressed RLE. Raises ValueError if they do not cover the image."""
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise ValueError(f"run lengths cover {sum(counts)} pixels of {height * width}")
    return coco.frPyObjects({"counts": list(counts), "size": [height, width]}, height, width)
