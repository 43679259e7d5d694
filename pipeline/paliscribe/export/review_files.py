"""What reviewers' files say: the answers that remain in an export of Label Studio, or in a COCO file."""

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from paliscribe.errors import UsageError
from paliscribe.export.label_studio import printable
from paliscribe.export.names import stem
from paliscribe.export.pictures import BOX_KINDS
from paliscribe.export.selecting import clipped
from paliscribe.published import Tables
from paliscribe.published.query import mistakes
from paliscribe.records import Box

CLOSE = 0.5  # pixels between edges that are the same


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What a reviewer left of an answer. `at`: seconds since 1970, if the file says it.

    `boxes`: label and the edges x_min, y_min, x_max, y_max, in pixels, or as parts of the picture if `relative`.
    `spelled`: how the file's program writes a label.
    """

    id: str
    task: str
    text: str | None = None
    boxes: Sequence[tuple[str, tuple[float, float, float, float]]] = ()
    relative: bool = False
    at: float | None = None
    spelled: Callable[[str], str] = str

    def boxes_in(self, width: int, height: int) -> list[Box | None]:
        """The boxes, clipped to a picture of this size; None for one without an area in it."""
        x, y = (width, height) if self.relative else (1, 1)
        found = []
        for label, (x_min, y_min, x_max, y_max) in self.boxes:
            edges = {"x_min": x_min * x, "y_min": y_min * y, "x_max": x_max * x, "y_max": y_max * y}
            found.append(clipped({"label": label, "score": None, **edges}, width, height))
        return found


def read_review(tables: Tables, content: Any, file: str) -> tuple[str, Iterator[Reviewed]]:
    """The source and the reviewed answers of a file. Raises UsageError if it is neither Label Studio's nor COCO's."""
    if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
        return "coco", _guarded(_coco(tables, content), file)
    if isinstance(content, list) and all(isinstance(task, dict) and "data" in task for task in content):
        return "label-studio", _guarded(_label_studio(content), file)
    raise UsageError(
        f"{file} is neither Label Studio's export as JSON (a list of tasks) nor COCO (images, annotations)"
    )


def _guarded(found: Iterator[Reviewed], file: str) -> Iterator[Reviewed]:
    """The reviewed answers; what is malformed is one line."""
    try:
        yield from found
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UsageError(f"{file} is malformed ({type(error).__name__}: {str(error)[:100]})") from None


def _label_studio(tasks: Sequence[dict[str, Any]]) -> Iterator[Reviewed]:
    """Of each task the last annotation that was not skipped; a task without one is not reviewed."""
    for task in tasks:
        data = task["data"]
        if "id" not in data or "tasks" not in data:
            raise UsageError("the tasks have no `id` and `tasks`: they are not from `paliscribe export`")
        done = [one for one in task.get("annotations") or [] if not one.get("was_cancelled")]
        if not done:
            continue
        last = max(done, key=lambda one: str(one.get("updated_at") or ""))
        for field, name in data["tasks"].items():
            results = [one for one in last["result"] if one.get("from_name") == field]
            texts = [words for one in results for words in one["value"].get("text", [])]
            boxes = [_rectangle(one["value"]) for one in results if "rectanglelabels" in one["value"]]
            yield Reviewed(
                data["id"],
                name,
                "\n".join(texts),
                boxes,
                relative=True,
                at=_seconds(last.get("updated_at")),
                spelled=printable,
            )


def _rectangle(value: dict[str, Any]) -> tuple[str, tuple[float, float, float, float]]:
    x, y = float(value["x"]) / 100, float(value["y"]) / 100
    edges = x, y, x + float(value["width"]) / 100, y + float(value["height"]) / 100
    return (value["rectanglelabels"] or [""])[0], edges


def _seconds(text: Any) -> float | None:
    try:
        return datetime.datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def _coco(tables: Tables, content: dict[str, Any]) -> Iterator[Reviewed]:
    """Every picture of the file is reviewed, with the annotations that it has."""
    tasks = _box_tasks(tables)
    labels = {kind["id"]: str(kind["name"]) for kind in content["categories"]}
    boxes: dict[Any, list[dict[str, Any]]] = {}
    for one in content["annotations"]:
        boxes.setdefault(one["image_id"], []).append(one)
    names = None if all("paliscribe_id" in image for image in content["images"]) else _names(tables)
    for image in content["images"]:
        row_id = image.get("paliscribe_id") or _by_name(names or {}, str(image["file_name"]))
        found = boxes.get(image["id"], [])
        given = image.get("tasks")
        if given is None and len(tasks) > 1 and not all("task" in one for one in found):
            raise UsageError(
                "annotations without `task`, and the run has several tasks with boxes: it is not clear whose"
            )
        for task in given or (tasks if len(tasks) == 1 else sorted({one["task"] for one in found})):
            of_task = [one for one in found if one.get("task", task) == task]
            yield Reviewed(row_id, task, boxes=[(labels[one["category_id"]], _edges(one["bbox"])) for one in of_task])


def _edges(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = map(float, box)
    return x, y, x + width, y + height


def _box_tasks(tables: Tables) -> list[str]:
    kinds = ", ".join(f"'{kind}'" for kind in BOX_KINDS)
    sql = f"SELECT DISTINCT task FROM {tables.prefix}annotations WHERE kind IN ({kinds}) ORDER BY ALL"
    with mistakes("review"):
        return [task for (task,) in tables.connection.execute(sql).fetchall()]


def _names(tables: Tables) -> dict[str, str]:
    """Ids by the names that a picture may have in a file: its address, the last part of that, and its own stem."""
    found: dict[str, str] = {}
    twice = set()
    with mistakes("review"):
        rows = tables.connection.execute(f"SELECT DISTINCT id, image FROM {tables.prefix}annotations").fetchall()
    for row_id, image in rows:
        for name in {image or "", (image or "").rpartition("/")[2], stem(row_id)} - {""}:
            if found.setdefault(name, row_id) != row_id:
                twice.add(name)
    return {name: row_id for name, row_id in found.items() if name not in twice}


def _by_name(names: dict[str, str], file: str) -> str:
    """The id of a file name; the name itself if there is none, which is then unknown."""
    last = file.rpartition("/")[2]
    keys = (file, last, last.rpartition(".")[0])
    return next((names[key] for key in keys if key in names), file)
