"""Label Studio: tasks with predictions, and the labelling configuration that shows them."""

import re
from typing import Any
from xml.sax.saxutils import quoteattr

from paliscribe.export.base import Format, Run
from paliscribe.export.pictures import BOX_KINDS, Answer, Picture
from paliscribe.export.target import Lines, Target
from paliscribe.export.voc import NO_XML
from paliscribe.storage import is_local

MOST = 10_000  # tasks of a file: imports have limits


class LabelStudio:
    """Writes `config.xml`, and `tasks-00000.json` and so on. Masks are shown as their boxes."""

    def __init__(self, target: Target, run: Run) -> None:
        self._target, self._version = target, f"{run.model} {run.revision}".strip()
        target.put("config.xml", _config(run).encode())
        self._lines: Lines | None = None
        self._number = self._tasks = 0

    def add(self, picture: Picture) -> None:
        """See Writer."""
        if self._lines is None:
            self._lines = self._target.lines(f"tasks-{self._number:05d}.json")
            self._lines.write("[")
        results = [result for answer in picture.answers for result in _results(answer, picture)]
        scores = [answer.score for answer in picture.answers if answer.score is not None]
        prediction: dict[str, Any] = {"model_version": self._version, "result": results}
        if scores:
            prediction["score"] = round(sum(scores) / len(scores), 4)
        fields = {answer.name: answer.task for answer in picture.answers}
        data = {"image": self._address(picture), "id": picture.id, "tasks": fields}
        self._lines.item({"data": data, "predictions": [prediction]})
        self._tasks += 1
        if self._tasks >= MOST:
            self._end(self._lines)

    def close(self) -> None:
        """See Writer."""
        if self._lines is not None:
            self._end(self._lines)

    def _end(self, lines: Lines) -> None:
        lines.write("\n]\n")
        lines.close()
        self._lines, self._number, self._tasks = None, self._number + 1, 0

    def _address(self, picture: Picture) -> str:
        """A copy in a folder is served by Label Studio itself, from a storage of local files."""
        if picture.file is None:
            return picture.place
        uri = self._target.uri
        return f"/data/local-files/?d={picture.file}" if is_local(uri) else f"{uri}/{picture.file}"


def _results(answer: Answer, picture: Picture) -> list[dict[str, Any]]:
    """The parts of a prediction: a rectangle for each box, in percent; or one text."""
    head = {"from_name": answer.name, "to_name": "image"}
    if answer.kind not in BOX_KINDS:
        text = {"id": answer.name, **head, "type": "textarea", "value": {"text": [answer.text or ""]}}
        return [text if answer.score is None else {**text, "score": answer.score}]
    found = []
    for number, region in enumerate(answer.regions, 1):
        box = region.box
        sides = {
            "x": 100 * box.x_min / picture.width,
            "y": 100 * box.y_min / picture.height,
            "width": 100 * (box.x_max - box.x_min) / picture.width,
            "height": 100 * (box.y_max - box.y_min) / picture.height,
        }
        size = {"original_width": picture.width, "original_height": picture.height, "image_rotation": 0}
        value = {**sides, "rotation": 0, "rectanglelabels": [printable(box.label)]}
        one: dict[str, Any] = {"id": f"{answer.name}_{number}", **head, "type": "rectanglelabels", **size}
        found.append({**one, "value": value} | ({} if box.score is None else {"score": box.score}))
    return found


def printable(label: str) -> str:
    """A label as an attribute of XML has it: its reader makes one space of white space."""
    return re.sub(r"\s+", " ", NO_XML.sub("\ufffd", label)).strip()


def _config(run: Run) -> str:
    lines = ["<View>", '  <Image name="image" value="$image"/>']
    for number, (task, kinds) in enumerate(run.tasks, 1):
        for kind in kinds:
            name = f"{kind}_{number}"
            lines.append(f"  <Header value={quoteattr(printable(task))}/>")
            if kind in BOX_KINDS:
                lines.append(f'  <RectangleLabels name="{name}" toName="image">')
                labels = dict.fromkeys(map(printable, run.labels))
                lines += [f"    <Label value={quoteattr(label)}/>" for label in labels]
                lines.append("  </RectangleLabels>")
            else:
                lines.append(f'  <TextArea name="{name}" toName="image" maxSubmissions="1" editable="true"/>')
    return "\n".join([*lines, "</View>", ""])


FORMAT = Format(
    "`tasks-00000.json` and so on: tasks with predictions; `config.xml`: the labelling configuration",
    "Label Studio",
    LabelStudio,
)
