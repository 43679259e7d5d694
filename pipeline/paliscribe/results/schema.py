"""Columns of the results: names, types, units, meanings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from paliscribe.grammar.tasks import KINDS
from paliscribe.records import Box, Mask, Record

VERSION = "1"


def _list(kind: pa.DataType) -> pa.DataType:
    """A list whose child is named as in Parquet, so that files have the documented schema."""
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
    ("image", pa.string(), "Address of the image; null if the row has none"),
    ("task", pa.string(), "The task as configured, with its placeholders"),
    ("kind", pa.string(), ", ".join(KINDS)),
    ("prompt", pa.string(), "The prompt sent to the model; null if it could not be rendered"),
    ("status", pa.string(), "ok; invalid: the output violates the task's grammar; error: a dead letter"),
    ("text", pa.string(), "The model's output; null for an error"),
    ("boxes", _list(BOX), "Boxes in pixels of the original image after Exif rotation"),
    ("masks", _list(MASK), "Masks: codebook indices; with a mask decoder also COCO RLE over the whole image"),
    ("score", pa.float32(), "Mean probability of the generated tokens, 0 to 1"),
    ("prompt_tokens", pa.int32(), "Tokens of the image and the prompt"),
    ("tokens", pa.int32(), "Generated tokens, without end-of-sequence"),
    ("finish_reason", pa.string(), "stop: the model ended the answer; length: the token limit did"),
    ("error_kind", pa.string(), "For an error: its kind, from a fixed list"),
    ("error_message", pa.string(), "For an error or an invalid output: what went wrong"),
    ("width", pa.int32(), "Width of the original image after Exif rotation, in pixels"),
    ("height", pa.int32(), "Height of the original image after Exif rotation, in pixels"),
    ("image_sha256", pa.string(), "SHA-256 of the encoded image"),
    ("model", pa.string(), "The model's id"),
    ("revision", pa.string(), "The model's commit, or a hash of its folder or prefix"),
    ("precision", pa.string(), "Precision of the model's weights"),
    ("shard", pa.int32(), "Shard of the frozen manifest"),
    ("row", pa.int64(), "Row of the manifest, from 0"),
)
NAMES = frozenset(name for name, _, _ in COLUMNS)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Model columns, equal in every record of a run."""

    model: str
    revision: str
    precision: str


def schema(carried: pa.Schema) -> pa.Schema:
    """Arrow schema of a run's results. `carried`: the manifest's own columns, appended at the end."""
    fields = [pa.field(name, kind, metadata={"description": words}) for name, kind, words in COLUMNS]
    own = [pa.field(f.name, f.type, metadata={"description": "Carried from the manifest"}) for f in carried]
    return pa.schema([*fields, *own], metadata={"paliscribe.schema_version": VERSION})


def describe() -> str:
    """The columns as a Markdown table for the docs."""
    lines = ["| column | type | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | `{_words(kind)}` | {words} |" for name, kind, words in COLUMNS]
    return "\n".join(lines)


def _words(kind: pa.DataType) -> str:
    return str(kind).replace("element: ", "")


def record_values(record: Record) -> dict[str, Any]:
    """A record as plain values, boxes and masks as dicts, without model columns and carried columns."""
    values = {name: getattr(record, name) for name in NAMES & set(Record.__dataclass_fields__)}
    values["boxes"] = [_box(box) for box in record.boxes]
    values["masks"] = [_mask(mask) for mask in record.masks]
    return {name: values[name] for name, _, _ in COLUMNS if name in values}


def to_table(records: Sequence[Record], facts: ModelFacts, whole: pa.Schema) -> pa.Table:
    """Records as a table of the run's schema `whole`, in order."""
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
