"""COCO's JSON as a manifest: its images by name and id, and what is true of them as columns, in constant memory."""

import itertools
import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import ijson

from paliscribe.errors import UsageError
from paliscribe.manifest.blocks import Block, Listed, Row, Source, in_blocks
from paliscribe.manifest.messages import cut
from paliscribe.manifest.naming import RESERVED
from paliscribe.storage import StorageError, open_store, redacted, resolve, scheme, split

BOXES, CAPTIONS = "truth_boxes", "truth_captions"
TRIED: Final = 8  # images by which the folder of all is found
JSON_LINES: Final = "JSON with an object a line is named .jsonl"
TABLE: Final = "CREATE TABLE truth (image TEXT, kind TEXT, body TEXT)"
EDGES: Final = ("x_min", "y_min", "x_max", "y_max")


def coco_images(source: Source) -> Iterator[Block]:
    """The images of a COCO file, in order. Raises UsageError for another file, and if its images are nowhere near it.

    It is read once for each of its lists, and its annotations go through a temporary file.
    """
    yield Listed([])  # what a look at the first rows reads
    try:
        with tempfile.TemporaryDirectory(prefix="paliscribe-") as folder:
            truth = _Truth(Path(folder) / "annotations", source)
            images = _items(source, "images")
            first = list(itertools.islice(images, TRIED))
            if not first:
                raise other_json(source)
            shown = [image for image in first if isinstance(image, dict) and source.image_column not in image]
            root = _root(source, [str(image["file_name"]) for image in shown if image.get("file_name") is not None])
            yield from in_blocks(_row(source, root, image, truth) for image in itertools.chain(first, images))
            truth.close()
    except ijson.JSONError as error:
        words = cut(str(error).splitlines()[0])
        raise UsageError(f"manifest {redacted(source.uri)}: not JSON: {words}; {JSON_LINES}") from None


def other_json(source: Source) -> UsageError:
    """The error for a file that is neither COCO's nor an array of objects."""
    words = f"no list of `images`, as COCO's JSON has, and no array of objects; {JSON_LINES}"
    return UsageError(f"manifest {redacted(source.uri)}: {words}")


def _items(source: Source, name: str) -> Iterator[Any]:
    """The elements of one of the file's lists; none if it is not there."""
    with source.open() as file:
        yield from ijson.items(file, f"{name}.item", use_float=True)


def _row(source: Source, root: str, image: Any, truth: "_Truth") -> Row:
    """The row of an image. Its own plain values are carried too, but for those that results have of their own."""
    if not isinstance(image, dict) or image.get("id") is None:
        raise UsageError(f"manifest {redacted(source.uri)}: an image without an id: {cut(json.dumps(image))}")
    plain = {name: value for name, value in image.items() if not isinstance(value, (dict, list))}
    row = {name: value for name, value in plain.items() if name.lower() not in RESERVED}
    name = image.get("file_name")
    row |= {source.image_column: f"{root}{name}" if name is not None else None, source.id_column: image["id"]}
    row |= {key: plain[key] for key in (source.image_column, source.id_column) if key in plain}
    return row | truth.of(image["id"])


class _Truth:
    """The annotations of a file, by image. They are kept in a database on the disk."""

    def __init__(self, path: Path, source: Source) -> None:
        self._labels = {
            each["id"]: str(each["name"])
            for each in _items(source, "categories")
            if isinstance(each, dict) and {"id", "name"} <= each.keys()
        }
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        for words in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", "BEGIN", TABLE):
            self._database.execute(words)
        found = (entry for each in _items(source, "annotations") for entry in self._entries(each))
        self._database.executemany("INSERT INTO truth VALUES (?, ?, ?)", found)
        self.kinds = [kind for (kind,) in self._database.execute("SELECT DISTINCT kind FROM truth ORDER BY kind")]
        self._database.execute("CREATE INDEX by_image ON truth (image)")
        self._database.execute("COMMIT")

    def of(self, image: Any) -> dict[str, str]:
        """The columns of an image, as JSON: each kind that the file has, an empty list where the image has none."""
        columns: dict[str, list[Any]] = {kind: [] for kind in self.kinds}
        for kind, body in self._database.execute(
            "SELECT kind, body FROM truth WHERE image = ? ORDER BY rowid", (str(image),)
        ):
            columns[kind].append(json.loads(body))
        return {kind: json.dumps(values) for kind, values in columns.items()}

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _entries(self, annotation: Any) -> Iterable[tuple[str, str, str]]:
        """What an annotation says: a box in pixels with its label, a caption."""
        if not isinstance(annotation, dict) or annotation.get("image_id") is None:
            return
        image = str(annotation["image_id"])
        box = annotation.get("bbox")
        if isinstance(box, list) and len(box) == 4 and all(isinstance(each, int | float) for each in box):
            edges = dict(zip(EDGES, (box[0], box[1], box[0] + box[2], box[1] + box[3]), strict=True))
            category = annotation.get("category_id")
            crowd = {"iscrowd": 1} if annotation.get("iscrowd") else {}
            yield image, BOXES, json.dumps({"label": self._labels.get(category, str(category)), **edges, **crowd})
        if isinstance(annotation.get("caption"), str):
            yield image, CAPTIONS, json.dumps(annotation["caption"])


def _root(source: Source, names: list[str]) -> str:
    """The folder of the images, as what is put before their names: the first near the file that has one of them.

    Raises UsageError if none has.
    """
    here = split(source.uri)[0]
    if scheme(source.uri) in ("http", "https") or not names or any(resolve(name, here) == name for name in names):
        return ""
    folders = ["", "images/"]
    if here.rpartition("/")[2].lower() == "annotations":  # as COCO is unpacked: beside val2017, images/val2017
        split_ = source.uri.rpartition("/")[2].partition(".")[0].rpartition("_")[2]
        folders += [f"../{folder}" for folder in ("", "images/", f"{split_}/", f"images/{split_}/")]
    for folder in folders:
        for name in names:
            place, key = split(resolve(f"{folder}{name}", here))
            try:
                if open_store(place).exists(key):
                    return folder
            except StorageError as error:
                if error.kind != "bad_uri":
                    raise
    raise UsageError(
        f"manifest {redacted(source.uri)}: the image {cut(names[0])} is neither beside the file nor in "
        f"{', '.join(folders[1:])}; put the file beside its images, or name a column of addresses, as "
        "--image-column coco_url"
    )
