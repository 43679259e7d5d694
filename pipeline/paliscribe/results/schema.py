"""The columns of a result, once: names, types, units, meanings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from paliscribe.records import Box, Mask, Record

VERSION = "1"


def _list(kind: pa.DataType) -> pa.DataType:
    """A list whose child has the name that Parquet gives it, so that what is read is what is documented."""
    return pa.list_(pa.field("element", kind))


BOX = pa.struct(
    [
        ("label", pa.string()),
        ("x_min", pa.float32()),
        ("y_min", pa.float32()),
        ("x_max", pa.float32()),
        ("y_max", pa.float32()),
        ("score", pa.float32()),
    ]
)
MASK = pa.struct(
    [
        ("label", pa.string()),
        ("codes", _list(pa.int16())),
        ("rle", _list(pa.int32())),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("score", pa.float32()),
    ]
)
COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("id", pa.string(), "The row's id in the manifest"),
    ("image", pa.string(), "Address of the image; null if the row names none"),
    ("task", pa.string(), "The task as it was given, placeholders unfilled"),
    ("kind", pa.string(), "caption, describe, ocr, answer, question, detect, segment or free"),
    ("prompt", pa.string(), "What the model was asked; null if it could not be rendered"),
    ("status", pa.string(), "ok; invalid: the output breaks the task's grammar; error: a dead letter"),
    ("text", pa.string(), "The model's output; null for an error"),
    ("boxes", _list(BOX), "Boxes in pixels of the upright original image"),
    ("masks", _list(MASK), "Masks: codebook indices, and with a mask decoder COCO run lengths over the image"),
    ("score", pa.float32(), "Mean probability of the generated tokens, 0 to 1"),
    ("prompt_tokens", pa.int32(), "Tokens of the image and the prompt"),
    ("tokens", pa.int32(), "Generated tokens, without end-of-sequence"),
    ("finish_reason", pa.string(), "stop: the model ended; length: the token limit ended it"),
    ("error_kind", pa.string(), "For an error: its kind, one of a fixed list"),
    ("error_message", pa.string(), "For an error or an invalid output: what was wrong, in words"),
    ("width", pa.int32(), "Pixels of the upright original image"),
    ("height", pa.int32(), "Pixels of the upright original image"),
    ("image_sha256", pa.string(), "Hash of the encoded image"),
    ("model", pa.string(), "The model's id"),
    ("revision", pa.string(), "Its commit, or a hash of its folder or prefix"),
    ("precision", pa.string(), "Arithmetic of its weights"),
    ("shard", pa.int32(), "Shard of the frozen manifest"),
    ("row", pa.int64(), "Row of the manifest, from 0"),
)
NAMES = frozenset(name for name, _, _ in COLUMNS)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model as every record of a run names it."""

    model: str
    revision: str
    precision: str


def schema(carried: pa.Schema) -> pa.Schema:
    """The Arrow schema of a run's results; `carried` are the manifest's own columns, which come last."""
    fields = [pa.field(name, kind, metadata={"description": words}) for name, kind, words in COLUMNS]
    own = [pa.field(f.name, f.type, metadata={"description": "Carried from the manifest"}) for f in carried]
    return pa.schema([*fields, *own], metadata={"paliscribe.schema_version": VERSION})


def describe() -> str:
    """The columns as a Markdown table, for the docs."""
    lines = ["| column | type | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | `{_words(kind)}` | {words} |" for name, kind, words in COLUMNS]
    return "\n".join(lines)


def _words(kind: pa.DataType) -> str:
    return str(kind).replace("element: ", "")


def record_values(record: Record) -> dict[str, Any]:
    """A record as plain values, boxes and masks as dicts, without the model's facts and the carried columns."""
    values = {name: getattr(record, name) for name in NAMES & set(Record.__dataclass_fields__)}
    values["boxes"] = [_box(box) for box in record.boxes]
    values["masks"] = [_mask(mask) for mask in record.masks]
    return {name: values[name] for name, _, _ in COLUMNS if name in values}


def to_table(records: Sequence[Record], facts: ModelFacts, whole: pa.Schema) -> pa.Table:
    """Records under the run's schema, in their order."""
    carried = [name for name in whole.names if name not in NAMES]
    rows = [
        record_values(record) | asdict(facts) | {name: record.columns.get(name) for name in carried}
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema=whole)


def _box(box: Box) -> dict[str, Any]:
    return asdict(box)


def _mask(mask: Mask) -> dict[str, Any]:
    return {
        "label": mask.label,
        "codes": list(mask.codes),
        "rle": None if mask.rle is None else list(mask.rle),
        "height": mask.height,
        "width": mask.width,
        "score": mask.box.score,
    }
