"""Which boxes a correction left as they were, and their masks."""

from typing import Any

from paliscribe.published.corrections import kept_masks, numbers_of


def box(label: str, x: float, score: float | None = None) -> dict[str, Any]:
    return {"label": label, "x_min": x, "y_min": 0.0, "x_max": x + 1, "y_max": 1.0, "score": score}


def test_equal_boxes_are_found_once() -> None:
    given = [box("cat", 1, 0.5), box("cat", 1, 0.5), box("dog", 2)]
    assert numbers_of(given, [box("dog", 2), box("cat", 1), *given[:2], given[0]]) == [2, None, 0, 1, None]


def test_a_mask_goes_with_its_box() -> None:
    boxes = [box("cat", 1, 0.5), box("dog", 2, 0.75), box("cat", 3, 0.25)]
    masks = [{"label": each["label"], "score": each["score"], "rle": [number]} for number, each in enumerate(boxes)]
    record = {"boxes": boxes, "masks": masks}
    assert kept_masks(record, [boxes[2], boxes[0] | {"label": "cow"}, boxes[1]]) == [masks[2], masks[1]]
    assert kept_masks(record, []) == kept_masks({"boxes": None, "masks": None}, boxes) == []
