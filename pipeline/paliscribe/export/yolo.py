"""YOLO: a text file of relative boxes for each picture, and `data.yaml`."""

import yaml

from paliscribe.export.base import Format, Run
from paliscribe.export.pictures import Picture
from paliscribe.export.target import Target
from paliscribe.published.query import csv_line


class Yolo:
    """Writes `labels/NAME.txt`, `data.yaml`, and `images.csv`, which says what picture a name is."""

    def __init__(self, target: Target, run: Run) -> None:
        self._target, self._places = target, run.places
        settings = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(run.labels))}
        target.put("data.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())
        self._list = target.lines("images.csv")
        self._list.write(f"{csv_line(['labels', 'id', 'image'])}\n")

    def add(self, picture: Picture) -> None:
        """See Writer."""
        lines = []
        for _, region in picture.regions():
            box = region.box
            centre = (box.x_min + box.x_max) / 2 / picture.width, (box.y_min + box.y_max) / 2 / picture.height
            sides = (box.x_max - box.x_min) / picture.width, (box.y_max - box.y_min) / picture.height
            lines.append(" ".join([str(self._places[box.label]), *(f"{value:.6f}" for value in (*centre, *sides))]))
        key = f"labels/{picture.stem}.txt"
        self._target.put(key, "".join(f"{line}\n" for line in lines).encode())
        self._list.write(f"{csv_line([key, picture.id, picture.place])}\n")

    def close(self) -> None:
        """See Writer."""
        self._list.close()


FORMAT = Format(
    "`labels/NAME.txt` with class and relative box a line, `data.yaml`, `images.csv`", "Ultralytics", Yolo, True
)
