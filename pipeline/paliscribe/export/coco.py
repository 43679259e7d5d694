"""COCO: one `annotations.json` with boxes, masks as RLE, and scores."""

from collections.abc import Sequence

from paliscribe.export.base import Format, Run
from paliscribe.export.pictures import Picture
from paliscribe.export.target import Target
from paliscribe.published.query import json_line


class Coco:
    """Writes `annotations.json`. Image ids are rows of the manifest, category ids places of labels, both from 1."""

    def __init__(self, target: Target, run: Run) -> None:
        self._places = run.places
        self._images, self._boxes = target.lines("annotations.json"), target.lines()
        info = {"description": "annotations of PaliGemma", "model": run.model, "revision": run.revision}
        kinds = [{"id": place + 1, "name": label} for label, place in run.places.items()]
        self._images.write(f'{{"info": {json_line(info)},\n"licenses": [],\n')
        self._images.write(f'"categories": {json_line(kinds)},\n"images": [')
        self._number = 0

    def add(self, picture: Picture) -> None:
        """See Writer."""
        self._images.item(
            {
                "id": picture.row + 1,
                "file_name": picture.place,
                "width": picture.width,
                "height": picture.height,
                "paliscribe_id": picture.id,
                "tasks": [answer.task for answer in picture.answers],
            }
        )
        for answer, region in picture.regions():
            box, rle = region.box, region.mask.rle if region.mask is not None else None
            width, height = round(box.x_max - box.x_min, 4), round(box.y_max - box.y_min, 4)
            self._number += 1
            self._boxes.item(
                {
                    "id": self._number,
                    "image_id": picture.row + 1,
                    "category_id": self._places[box.label] + 1,
                    "bbox": [box.x_min, box.y_min, width, height],
                    "area": round(width * height, 4) if rle is None else sum(rle[1::2]),
                    "segmentation": []
                    if rle is None
                    else {"size": [picture.height, picture.width], "counts": packed(rle)},
                    "iscrowd": 0,
                    "score": box.score,
                    "task": answer.task,
                }
            )

    def close(self) -> None:
        """See Writer."""
        self._images.write('\n],\n"annotations": [')
        self._images.append(self._boxes)
        self._images.write("\n]}\n")
        self._images.close()


def packed(counts: Sequence[int]) -> str:
    """Run lengths as COCO's compressed text.

    From the fourth on, each is the difference to the one before the last; 5 bits a character, low ones first, bit 6
    says that more follow, the highest of the last is the sign.
    """
    letters = []
    for place, count in enumerate(counts):
        value, more = count - counts[place - 2] if place > 2 else count, True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(chr((bits | 32 if more else bits) + 48))
    return "".join(letters)


FORMAT = Format(
    "`annotations.json`: boxes, masks as RLE, scores; categories with stable ids", "pycocotools", Coco, True
)
