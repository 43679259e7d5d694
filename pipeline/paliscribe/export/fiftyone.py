"""FiftyOne: `metadata.json` and `samples.json` of a FiftyOneDataset, in the form without a version of its database."""

import base64
import io
import zlib
from typing import Any

import numpy as np

from paliscribe.export.base import Format, Run
from paliscribe.export.pictures import BOX_KINDS, Answer, Picture, Region
from paliscribe.export.target import Target
from paliscribe.grammar.masks import decode_rle
from paliscribe.published.query import json_line


class FiftyOne:
    """Writes `samples.json` and `metadata.json`. Each task is a field: `Detections`, or `Classification` for text."""

    def __init__(self, target: Target, run: Run) -> None:
        fields = {f"{kind}_{number}": task for number, (task, kinds) in enumerate(run.tasks, 1) for kind in kinds}
        info = {"tasks": fields, "classes": list(run.labels), "model": run.model, "revision": run.revision}
        target.put("metadata.json", json_line({"media_type": "image", "info": info}).encode())
        self._samples = target.lines("samples.json")
        self._samples.write('{"samples": [')

    def add(self, picture: Picture) -> None:
        """See Writer."""
        sample: dict[str, Any] = {"filepath": picture.place, "tags": [], "_media_type": "image"}
        sample |= {"paliscribe_id": picture.id} | {answer.name: _label(answer, picture) for answer in picture.answers}
        self._samples.item(sample)

    def close(self) -> None:
        """See Writer."""
        self._samples.write("\n]}\n")
        self._samples.close()


def _label(answer: Answer, picture: Picture) -> dict[str, Any]:
    tags = [answer.review] if answer.review else []
    if answer.kind not in BOX_KINDS:
        return {"_cls": "Classification", "label": answer.text, "confidence": answer.score, "tags": tags}
    found = [_detection(region, picture, tags) for region in answer.regions]
    return {"_cls": "Detections", "detections": found}


def _detection(region: Region, picture: Picture, tags: list[str]) -> dict[str, Any]:
    """A box, relative to the picture, and its mask inside the box."""
    box, mask = region.box, region.mask
    x, width = box.x_min / picture.width, (box.x_max - box.x_min) / picture.width
    y, height = box.y_min / picture.height, (box.y_max - box.y_min) / picture.height
    detection: dict[str, Any] = {
        "_cls": "Detection",
        "label": box.label,
        "bounding_box": [round(value, 6) for value in (x, y, width, height)],
        "confidence": box.score,
        "tags": tags,
    }
    if mask is not None and mask.rle is not None:
        whole = decode_rle(mask.rle, mask.height, mask.width)
        inside = whole[round(box.y_min) : round(box.y_max), round(box.x_min) : round(box.x_max)]
        if inside.size:
            detection["mask"] = _array(inside)
    return detection


def _array(values: Any) -> dict[str, Any]:
    """An array as the JSON of its database has it: a compressed .npy file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values), allow_pickle=False)
    return {"$binary": {"base64": base64.b64encode(zlib.compress(file.getvalue())).decode(), "subType": "00"}}


FORMAT = Format(
    "`samples.json` and `metadata.json`: a field for each task, boxes with masks, texts as classifications",
    "FiftyOne's `FiftyOneDataset`",
    FiftyOne,
    folder="data",
)
