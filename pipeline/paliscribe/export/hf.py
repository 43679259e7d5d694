"""Hugging Face: a folder of Parquet files that `datasets.load_dataset` opens, a row for each picture."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paliscribe.export.base import Format, Run
from paliscribe.export.names import free
from paliscribe.export.pictures import Picture
from paliscribe.export.target import Target
from paliscribe.export.webdataset import ANSWER
from paliscribe.results.schema import NAMES

GROUP_ROWS, GROUP_BYTES = 4096, 16 * 2**20  # of a row group
STEP_ROWS, STEP_VALUES, STEP_BYTES = 256, 100_000, 4 * 2**20  # that are Python objects: run lengths, bytes of images
FILE = 512 * 2**20  # bytes after which another file begins
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
VALUES = {"float": "float32", "double": "float64", "halffloat": "float16", "date32[day]": "date32"}  # as datasets says
HEAD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
# Annotations of pictures

A row is a picture of a run of Paliscribe; `annotations` has its answers, one for each task.
"""


class HuggingFace:
    """Writes `data/train-00000.parquet` and so on, and `README.md`, which names them."""

    def __init__(self, target: Target, run: Run) -> None:
        self._target, self._images = target, run.images
        own = [field for field in run.schema if field.name not in NAMES]
        self._annotations = free("annotations", [field.name for field in own])
        answer = pa.struct([*(run.schema.field(name).remove_metadata() for name in ANSWER), ("review", pa.string())])
        schema = pa.schema(
            [
                ("id", pa.string()),
                ("image", IMAGE if run.images else pa.string()),
                ("width", pa.int32()),
                ("height", pa.int32()),
                (self._annotations, pa.list_(pa.field("element", answer))),
                *(field.remove_metadata() for field in own),
            ]
        )
        features = {field.name: _feature(field.type) for field in schema}
        if run.images:
            features["image"] = {"_type": "Image"}
        self._schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        target.put("README.md", HEAD.encode())
        self._rows: list[dict[str, Any]] = []
        self._values = self._bytes = self._number = 0
        self._held: list[pa.Table] = []  # of the next row group
        self._writer: pq.ParquetWriter | None = None

    def add(self, picture: Picture) -> None:
        """See Writer."""
        image: Any = picture.image
        if self._images:
            image = {"bytes": picture.data, "path": f"{picture.stem}{picture.suffix}"}
            self._bytes += len(picture.data or b"")
        answers = [{name: each.record[name] for name in ANSWER} | {"review": each.review} for each in picture.answers]
        head = {"id": picture.id, "image": image, "width": picture.width or None, "height": picture.height or None}
        self._rows.append({**head, **picture.columns, self._annotations: answers})
        self._values += sum(len(mask["rle"] or ()) for each in answers for mask in each["masks"] or ())
        if len(self._rows) >= STEP_ROWS or self._values >= STEP_VALUES or self._bytes >= STEP_BYTES:
            self._pack()

    def close(self) -> None:
        """See Writer."""
        self._pack()
        self._flush()
        if self._writer is not None:
            self._end(self._writer)

    def _pack(self) -> None:
        if self._rows:
            self._held.append(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._values, self._bytes = [], 0, 0
        rows, size = (sum(getattr(table, name) for table in self._held) for name in ("num_rows", "nbytes"))
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        if self._writer is None:
            self._path = self._target.scratch()
            self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        self._writer.write_table(pa.concat_tables(self._held))
        self._held = []
        if self._path.stat().st_size >= FILE:
            self._end(self._writer)

    def _end(self, writer: pq.ParquetWriter) -> None:
        writer.close()
        self._target.upload(f"data/train-{self._number:05d}.parquet", self._path)
        self._writer, self._number = None, self._number + 1


def _feature(kind: pa.DataType) -> Any:
    """A type as `datasets` writes it."""
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    return {"dtype": VALUES.get(str(kind), str(kind)), "_type": "Value"}


FORMAT = Format(
    "`data/train-00000.parquet` and so on, a row for each picture; pictures by address, or embedded with `--images`",
    "`datasets.load_dataset`",
    HuggingFace,
    folder=None,
)
