"""Pascal VOC: an XML file for each picture."""

import re
from xml.etree import ElementTree

from paliscribe.export.base import Format, Run
from paliscribe.export.pictures import Picture
from paliscribe.export.target import Target
from paliscribe.published.query import csv_line
from paliscribe.records import Box

NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML 1.0 cannot hold


class Voc:
    """Writes `Annotations/NAME.xml`, the list of names, and `images.csv`, which says what picture a name is."""

    def __init__(self, target: Target, run: Run) -> None:
        self._target = target
        self._names = target.lines("ImageSets/Main/trainval.txt")
        self._list = target.lines("images.csv")
        self._list.write(f"{csv_line(['annotation', 'id', 'image'])}\n")

    def add(self, picture: Picture) -> None:
        """See Writer."""
        root = ElementTree.Element("annotation")
        _text(root, "folder", "JPEGImages")
        _text(root, "filename", picture.file.rpartition("/")[2] if picture.file else picture.place)
        _text(ElementTree.SubElement(root, "source"), "database", "Paliscribe")
        size = ElementTree.SubElement(root, "size")
        for name, value in (("width", picture.width), ("height", picture.height), ("depth", 3)):
            _text(size, name, str(value))
        _text(root, "segmented", "0")
        for _, region in picture.regions():
            _object(root, region.box, picture.width, picture.height)
        ElementTree.indent(root)
        key = f"Annotations/{picture.stem}.xml"
        self._target.put(key, ElementTree.tostring(root, encoding="utf-8") + b"\n")
        self._names.write(f"{picture.stem}\n")
        self._list.write(f"{csv_line([key, picture.id, picture.place])}\n")

    def close(self) -> None:
        """See Writer."""
        self._names.close()
        self._list.close()


def _object(root: ElementTree.Element, box: Box, width: int, height: int) -> None:
    """An object. VOC counts pixels from 1, and the last one is inside the box."""
    found = ElementTree.SubElement(root, "object")
    _text(found, "name", box.label)
    for name, value in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
        _text(found, name, value)
    left, top = (
        min(round(edge), side - 1) + 1 for edge, side in ((box.x_min, max(width, 1)), (box.y_min, max(height, 1)))
    )
    edges = (("xmin", left), ("ymin", top), ("xmax", max(round(box.x_max), left)), ("ymax", max(round(box.y_max), top)))
    bounds = ElementTree.SubElement(found, "bndbox")
    for name, edge in edges:
        _text(bounds, name, str(edge))
    if box.score is not None:
        _text(found, "score", str(box.score))


def _text(parent: ElementTree.Element, name: str, text: str) -> None:
    ElementTree.SubElement(parent, name).text = NO_XML.sub("\ufffd", text)


FORMAT = Format(
    "`Annotations/NAME.xml` with whole pixels from 1, `ImageSets/Main/trainval.txt`, `images.csv`",
    "torchvision's `VOCDetection`",
    Voc,
    True,
    "JPEGImages",
)
