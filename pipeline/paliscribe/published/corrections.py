"""Corrected boxes beside the model's: which of them a reviewer left as they were, and so keep their masks."""

from collections.abc import Mapping, Sequence
from typing import Any

Values = Mapping[str, Any]  # a box or a mask with the keys of `results.schema`


def paired(record: Values) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Each box of a record with its mask: masks are in the order of their boxes, with the same label and score."""
    masks = list(record["masks"] or [])
    pairs: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
    for box in record["boxes"] or []:
        fits = bool(masks) and (masks[0]["label"], masks[0]["score"]) == (box["label"], box["score"])
        pairs.append((box, masks.pop(0) if fits else None))
    return pairs


def numbers_of(boxes: Sequence[Values], right: Sequence[Values]) -> list[int | None]:
    """For each box of `right`, the number in `boxes` of one that is equal, each number once; None: there is none."""
    left = dict(enumerate(boxes))
    found: list[int | None] = []
    for box in right:
        number = next((number for number, each in left.items() if each == box), None)
        if number is not None:
            del left[number]
        found.append(number)
    return found


def kept_masks(record: Values, right: Sequence[Values]) -> list[dict[str, Any]]:
    """The masks of a record's boxes that are in `right` as they were, in the order of `right`."""
    pairs = paired(record)
    numbers = numbers_of([box for box, _ in pairs], right)
    return [mask for number in numbers if number is not None and (mask := pairs[number][1]) is not None]
