"""Boxes that a reviewer corrected in the browser, checked."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from paliscribe.errors import UsageError

KINDS: Final = ("detect", "segment")  # whose boxes may be corrected, even if there are none
MOST: Final = 1000  # boxes
LETTERS: Final = 200  # of a label
CORNERS: Final = ("x_min", "y_min", "x_max", "y_max")


def right_boxes(given: Any, item: Mapping[str, Any], boxes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The boxes of a mark, from what a browser sent: first those that were left as they were.

    `given`: for each box either {"of": number of the model's box} or {"label", "x_min", "y_min", "x_max", "y_max"} in
    pixels of the upright original image, which are rounded to hundredths. `boxes`: the model's. Raises UsageError.
    """
    if item["kind"] not in KINDS and not boxes:
        raise UsageError("this answer has no boxes")
    if not isinstance(given, list) or not all(isinstance(box, dict) for box in given):
        raise UsageError("boxes are a list of objects")
    if len(given) > MOST:
        raise UsageError(f"more than {MOST:,} boxes")
    numbers = [box["of"] for box in given if "of" in box]
    if any(type(number) is not int or not 0 <= number < len(boxes) for number in numbers):
        raise UsageError("the model gave no such box")
    if len(set(numbers)) < len(numbers):
        raise UsageError("a box of the model is there twice")
    size = item["width"] or 0, item["height"] or 0
    return [boxes[number] for number in numbers] + [_drawn(box, *size) for box in given if "of" not in box]


def is_text(given: Any) -> bool:
    """Whether it is text that can be written: halves of characters cannot."""
    return isinstance(given, str) and not any("\ud800" <= letter <= "\udfff" for letter in given)


def _drawn(box: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    label, corners = box.get("label"), [box.get(name) for name in CORNERS]
    if not is_text(label) or not (label := str(label).strip()) or len(label) > LETTERS or min(label) < " ":
        raise UsageError(f"a box needs a label of at most {LETTERS} letters in one line")
    limits = (width, height, width, height)
    if not all(_within(value, limit) for value, limit in zip(corners, limits, strict=True)):
        raise UsageError(f"a box has corners in its picture, which is {width} × {height}")
    x_min, y_min, x_max, y_max = (round(float(value), 2) for value in corners if value is not None)
    if x_min >= x_max or y_min >= y_max:
        raise UsageError("a box has x_min < x_max and y_min < y_max")
    return {"label": label, "x_min": x_min, "y_min": y_min, "x_max": x_max, "y_max": y_max, "score": None}


def _within(value: Any, limit: int) -> bool:
    """Whether it is a number, which NaN and infinity are not, from 0 to the limit."""
    return type(value) in (int, float) and 0 <= value <= limit
