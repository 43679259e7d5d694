"""Print the boxes that Label Studio's converter finds in an export: `python label_studio_tool.py EXPORT FOLDER`.

Needs label-studio-sdk. Fails if its validation refuses the configuration, a task or a prediction.
"""

import json
import sys
from pathlib import Path

from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface

export, folder = map(Path, sys.argv[1:])
config = (export / "config.xml").read_text()
interface = LabelInterface(config)
interface.validate()
tasks = [task for file in sorted(export.glob("tasks-*.json")) for task in json.loads(file.read_text())]
for task in tasks:
    assert interface.validate_task({"data": task["data"]}), task["data"]
    errors = interface.validate_prediction(task["predictions"][0], return_errors=True)
    assert not errors, errors
# As it exports them after somebody has taken each prediction for right.
labelled = [
    {"id": number, "data": task["data"], "annotations": [task["predictions"][0] | {"id": number}]}
    for number, task in enumerate(tasks)
]
(folder / "labelled.json").write_text(json.dumps(labelled))
Converter(config, str(folder), download_resources=False).convert_to_coco(
    str(folder / "labelled.json"), str(folder / "coco"), is_dir=False
)
coco = json.loads((folder / "coco" / "result.json").read_text())
names = {each["id"]: each["name"] for each in coco["categories"]}
places = {each["id"]: each["file_name"] for each in coco["images"]}
found: dict[str, list[tuple[str, list[float]]]] = {task["data"]["id"]: [] for task in tasks}
ids = {task["data"]["image"]: task["data"]["id"] for task in tasks}
for box in coco["annotations"]:
    found[ids[places[box["image_id"]]]].append((names[box["category_id"]], box["bbox"]))
print(json.dumps(found))
