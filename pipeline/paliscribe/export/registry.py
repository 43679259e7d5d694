"""The formats of exports."""

from paliscribe.export import coco, fiftyone, hf, label_studio, lines, voc, webdataset, yolo
from paliscribe.export.base import Format

FORMATS: dict[str, Format] = {
    "coco": coco.FORMAT,
    "yolo": yolo.FORMAT,
    "voc": voc.FORMAT,
    "jsonl": lines.JSONL,
    "csv": lines.CSV,
    "hf": hf.FORMAT,
    "webdataset": webdataset.FORMAT,
    "label-studio": label_studio.FORMAT,
    "fiftyone": fiftyone.FORMAT,
}


def describe() -> str:
    """The formats as a Markdown table for the docs."""
    rows = ["| format | what is written | copies of pictures | answers | read by |", "|---|---|---|---|---|"]
    for name, each in FORMATS.items():
        place = f"`{each.folder}/`" if each.folder else "inside the files"
        answers = "boxes and masks" if each.boxes else "all"
        rows.append(f"| `{name}` | {each.words} | {place} | {answers} | {each.reader} |")
    return "\n".join(rows)
