"""Images inside a Parquet manifest: the addresses of their rows stand for them, and no bytes are read if possible."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paliscribe.errors import UsageError
from paliscribe.manifest.blocks import SPACE, Source
from paliscribe.manifest.messages import quoted
from paliscribe.storage import is_local, is_text, parquet, redacted, split
from paliscribe.storage.parquet import PATH, image_bytes, image_leaf


@dataclass(frozen=True, slots=True)
class Pictures:
    """The column of a Parquet manifest that holds images. `leaf`: the path of their bytes. `uri`: of the file."""

    file: pq.ParquetFile
    column: str
    leaf: str
    uri: str
    version: str

    @classmethod
    def of(cls, source: Source, file: pq.ParquetFile) -> "Pictures | None":
        """Those of a file; None if its column of images has another type, or is not there.

        Raises UsageError if the file could not be told from a later version of it; StorageError.
        """
        column, schema = source.image_column, file.schema_arrow
        if column not in schema.names or (leaf := image_leaf(column, schema.field(column).type)) is None:
            return None
        if (version := parquet.file_version(source.uri)) is None:
            raise UsageError(
                f"manifest {redacted(source.uri)}: column {quoted(column)} holds images, which are read from a folder "
                "or from s3:// only; copy the file there, or name a column of addresses with --image-column"
            )
        return cls(file, column, leaf, parquet.absolute(source.uri), version)

    def leaves(self, number: int) -> list[str]:
        """What must be read of the column in a row group: the paths, and the bytes if only they tell which are null."""
        kind = self.file.schema_arrow.field(self.column).type
        has_paths = pa.types.is_struct(kind) and kind.get_field_index(PATH) >= 0
        return [f"{self.column}.{PATH}"] * has_paths + [self.leaf] * (self._are_there(number) is None)

    def addressed(self, batch: pa.RecordBatch, number: int, start: int) -> tuple[pa.RecordBatch, pa.Array]:
        """A batch with addresses for images, and the default ids of its rows that hold bytes, else null.

        `number`: its row group. `start`: the number of its first row in the file.
        """
        column = batch.column(self.column) if self.column in batch.schema.names else None
        if (there := self._are_there(number)) is None:
            there = image_bytes(column).is_valid()
        paths = pa.nulls(len(batch), pa.string())
        if column is not None and pa.types.is_struct(column.type) and column.type.get_field_index(PATH) >= 0:
            paths = pc.utf8_trim(pc.struct_field(column, PATH).cast(pa.string()), characters=SPACE)
            paths = pc.if_else(pc.equal(paths, ""), None, paths)
        rows = pa.array(range(start, start + len(batch)), pa.int64())
        found = pc.if_else(there, parquet.addresses(self.uri, self.column, self.version, rows), paths)
        names = pc.binary_join_element_wise(f"{self._shown()}#", rows.cast(pa.string()), "")
        ids = pc.if_else(there, pc.coalesce(paths, names), None)
        others = {name: batch.column(name) for name in batch.schema.names if name != self.column}
        return pa.record_batch(others | {self.column: found}), ids

    def _are_there(self, number: int) -> bool | None:
        """Whether all rows of a row group have bytes, or none; None if some have, or nothing tells."""
        chunk = self.file.metadata.row_group(number).column(parquet.leaf_number(self.file, self.leaf))
        if chunk.statistics is None or not chunk.statistics.has_null_count:
            return None
        return {0: True, chunk.num_values: False}.get(chunk.statistics.null_count)

    def _shown(self) -> str:
        """The file as ids name it: not by its place in a folder alone, since another file may have the same."""
        path = "/".join(split(self.uri)) if is_local(self.uri) else ""
        return path if path and is_text(path) else redacted(self.uri)


def selected(names: Sequence[str], unread: frozenset[str], pictures: Pictures | None, number: int) -> list[str] | None:
    """The columns and leaves of a row group to read; None for all."""
    if not unread and pictures is None:
        return None
    others = [name for name in names if name not in unread and (pictures is None or name != pictures.column)]
    return others + (pictures.leaves(number) if pictures is not None else [])


def addressed(
    batches: Iterator[tuple[int, pa.RecordBatch]], pictures: Pictures | None
) -> Iterator[tuple[pa.RecordBatch, pa.Array | None]]:
    """All batches of a file, each with its row group's number, as `Pictures.addressed`."""
    start = 0
    for number, batch in batches:
        yield pictures.addressed(batch, number, start) if pictures is not None else (batch, None)
        start += len(batch)
